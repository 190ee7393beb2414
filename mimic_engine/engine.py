"""The engine: mentions in, ranked entities out. Read this first.

    preprocess -> encode -> fold -> scan -> re-score the winners -> top-k

:class:`Linker` puts the parts together and knows nothing of HTTP. The parts:
:mod:`mimic_engine.encoding` (graphs and preprocessing), :mod:`mimic_engine.index`
(folded entities on disk), :mod:`mimic_engine.scoring` (the scan).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mimic_engine.encoding.base import Featurizer, PreparedMention
from mimic_engine.encoding.open import open_featurizer
from mimic_engine.errors import InvalidInputError
from mimic_engine.images import ImageLimits
from mimic_engine.index.store import Index
from mimic_engine.scoring.onnx import OnnxScorer
from mimic_engine.scoring.scan import ExactScan, TopK
from mimic_engine.types import Candidate, LinkResult, Mention, MentionArrays


class Linker:
    """Links mentions to the entities of one index with one model.

    Safe to use from one thread at a time (the service gives it a thread of its
    own); :meth:`prepare` may be called from any thread.

    Examples
    --------
    >>> linker = Linker.open("model/", "index/")  # doctest: +SKIP
    >>> [result] = linker.link([Mention("Jordan", "Jordan lies east of Israel.")])  # doctest: +SKIP
    >>> result.candidates[0].name  # doctest: +SKIP
    'Jordan'
    """

    def __init__(self, featurizer: Featurizer, index: Index, scan: ExactScan) -> None:
        self.featurizer = featurizer
        self.index = index
        self._scan = scan

    @classmethod
    def open(
        cls,
        model: str | Path,
        index: str | Path,
        *,
        precision: str = "fp32",
        threads: int | None = None,
        verify: bool = True,
        image_limits: ImageLimits | None = None,
    ) -> Self:
        """Open an exported model and an index built with it.

        Parameters
        ----------
        model : folder that ``export/to_onnx.py`` wrote.
        index : folder that ``mimic-engine index build`` wrote.
        precision : of the encoder graphs: "fp32", "fp16" or "int8".
        threads : CPU cores for encoders and scan; all that the process may use by default.
        verify : check the SHA-256 of every file before it is trusted.
        image_limits : byte, pixel and format limits of mention images.

        Raises
        ------
        ModelError
            If the model folder is missing, damaged or lacks the precision.
        IndexFormatError, IndexMismatchError
            If the index is missing, damaged, empty, or was built with another model.
        """
        opened = Index.open(index, verify=verify)
        featurizer = open_featurizer(
            model, precision=precision, threads=threads, verify=verify, image_limits=image_limits
        )
        opened.check_model(featurizer.model_hash)
        scorer = OnnxScorer.open(model, verify=verify)
        scan = ExactScan(opened.segments, scorer, threads=threads, tie_key=opened.ids)
        return cls(featurizer, opened, scan)

    @property
    def model_hash(self) -> str:
        """Identity of the model; the index carries the same."""
        return self.featurizer.model_hash

    def link(
        self, mentions: Sequence[Mention], top_k: int = 10, *, candidates: Sequence[str] | None = None
    ) -> list[LinkResult]:
        """Rank entities for each mention.

        Parameters
        ----------
        mentions : B mentions; text over the model's length is cut, and the result says so.
        top_k : how many entities to return for each.
        candidates : entity ids to choose among; all entities by default.

        Raises
        ------
        InvalidInputError
            If ``top_k`` is not between 1 and the number of candidates, or an image is unusable.
        UnknownEntityError
            If a candidate id is not in the index.
        """
        prepared = [self.prepare(m) for m in mentions]
        return self.link_prepared(prepared, [top_k] * len(prepared), [candidates] * len(prepared))

    def prepare(self, mention: Mention) -> PreparedMention:
        """Tokenise and decode one mention; errors as in :meth:`link`."""
        return self.featurizer.prepare(mention)

    def link_prepared(
        self,
        prepared: Sequence[PreparedMention],
        top_k: Sequence[int],
        candidates: Sequence[Sequence[str] | None],
    ) -> list[LinkResult]:
        """Encode B prepared mentions together and rank entities for each with its own options.

        Mentions that share their candidates are scanned together.
        """
        groups: dict[tuple[str, ...] | None, list[int]] = {}
        for b, ids in enumerate(candidates):
            groups.setdefault(None if ids is None else tuple(ids), []).append(b)
        rows = {ids: None if ids is None else self._candidate_rows(ids) for ids in groups}
        for ids, members in groups.items():
            for b in members:
                self._check_top_k(top_k[b], rows[ids])
        if not prepared:
            return []
        arrays = self.featurizer.fold_prepared(prepared)
        results: dict[int, LinkResult] = {}
        for ids, members in groups.items():
            among = rows[ids]
            found = self._scan.search(_rows(arrays, members), max(top_k[b] for b in members), rows=among)
            scored = len(self.index) if among is None else len(among)
            for i, b in enumerate(members):
                results[b] = self._result(prepared[b], found, i, top_k[b], scored)
        return [results[b] for b in range(len(prepared))]

    def ranks(self, mentions: Sequence[Mention], gold: NDArray[np.int64]) -> NDArray[np.int64]:
        """1-based rank of index row ``gold[b]`` for each mention, ties counted against it; (B,)."""
        return self._scan.ranks(self.featurizer.mentions(mentions), gold)

    def warm_up(self) -> None:
        """Run every graph that a request needs, so that the first costs no more than the next."""
        size = self.featurizer.image_size
        for pixels in (None, np.zeros((3, size, size), np.float32)):
            tokens = self.prepare(Mention("warm-up", "One mention, so that every graph has run.")).tokens
            self.link_prepared([PreparedMention(tokens, pixels)], [1], [None])

    def info(self) -> dict[str, Any]:
        """What is loaded, for people and for ``/v1/info``; JSON types only."""
        return {
            "model_hash": self.model_hash,
            "units": list(self.featurizer.constants.units),
            "max_text_tokens": self.featurizer.max_text_tokens,
            "image_size": self.featurizer.image_size,
            "entities": len(self.index),
            "index_dtype": self.index.manifest.dtype,
            "mode": "exact",
            "scorer": self._scan.scorer_name,
            "threads": self._scan.threads,
        }

    def close(self) -> None:
        """Stop the scan's threads."""
        self._scan.close()

    def _candidate_rows(self, ids: Sequence[str]) -> NDArray[np.int64]:
        if len(set(ids)) != len(ids):
            twice = next(i for n, i in enumerate(ids) if i in ids[:n])
            raise InvalidInputError(f"candidates: {twice!r} is given twice", field="candidates")
        return self.index.rows(ids)

    def _check_top_k(self, top_k: int, rows: NDArray[np.int64] | None) -> None:
        count = len(self.index) if rows is None else len(rows)
        if not 1 <= top_k <= count:
            raise InvalidInputError(
                f"top_k: {top_k} is not between 1 and the {count} candidates", field="top_k"
            )

    def _result(self, prepared: PreparedMention, found: TopK, b: int, k: int, scored: int) -> LinkResult:
        rows = found.rows[b, :k]
        units = [{name: float(s[b, i]) for name, s in found.units.items()} for i in range(len(rows))]
        ids, names = self.index.ids(rows), self.index.names(rows)
        candidates = tuple(
            Candidate(ids[i], names[i], float(found.scores[b, i]), units[i]) for i in range(len(rows))
        )
        return LinkResult(
            candidates, bool(prepared.tokens.truncated[0]), prepared.pixels is not None, "exact", scored
        )


def _rows(arrays: MentionArrays, rows: Sequence[int]) -> MentionArrays:
    return MentionArrays(**{name: a[list(rows)] for name, a in arrays.items()})
