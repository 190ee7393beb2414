"""The engine: mentions in, ranked entities out. Read this first.

    preprocess -> encode -> fold -> scan -> re-score the winners -> top-k

:class:`Linker` puts the parts together and knows nothing of HTTP. The parts:
:mod:`mimic_engine.encoding` (graphs and preprocessing), :mod:`mimic_engine.index`
(folded entities on disk), :mod:`mimic_engine.scan` (the scan).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mimic_engine.backends.encoders import GPU_BACKENDS, open_featurizer
from mimic_engine.backends.scan import ScanOptions, open_scan
from mimic_engine.calibration.nil import NilThreshold
from mimic_engine.calibration.recall import promised
from mimic_engine.encoding.cache import CachingFeaturizer, EncodingCache
from mimic_engine.encoding.featurizer import Featurizer, PreparedMention
from mimic_engine.engine.explain import explain_result
from mimic_engine.engine.warmup import WarmUp, first_and_steady
from mimic_engine.errors import InvalidInputError
from mimic_engine.images import ImageLimits
from mimic_engine.index.store import Index
from mimic_engine.scan.ranker import Ranker
from mimic_engine.scan.scan import DEFAULT_RERANK, TopK
from mimic_engine.types import (
    Candidate,
    DeviceLayer,
    LinkOptions,
    LinkResult,
    Mention,
    MentionArrays,
    Mode,
    PlacementChoice,
    ScorerChoice,
)

logger = logging.getLogger(__name__)


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

    def __init__(
        self,
        featurizer: Featurizer,
        index: Index,
        scan: Ranker,
        nil: NilThreshold | None = None,
        *,
        verify: bool = True,
    ) -> None:
        self.featurizer = featurizer
        self.index = index
        self.nil = nil
        self._scan = scan
        self._verify = verify
        promise = promised(index.manifest)
        self.warmed: WarmUp | None = None
        self._rerank = DEFAULT_RERANK if promise is None else max(DEFAULT_RERANK, promise.r_999)

    @classmethod
    def open(
        cls,
        model: str | Path,
        index: str | Path,
        *,
        backend: str = "auto",
        precision: str = "fp32",
        threads: int | None = None,
        scorer: ScorerChoice = "auto",
        placement: PlacementChoice = "auto",
        verify: bool = True,
        image_limits: ImageLimits | None = None,
        engines: str | Path | None = None,
        checkpoint: str | Path | None = None,
        device_layer: DeviceLayer = "auto",
        cache_bytes: int = 0,
    ) -> Self:
        """Open an exported model and an index built with it.

        Parameters
        ----------
        model : folder that ``export/to_onnx.py`` wrote.
        index : folder that ``mimic-engine index build`` wrote.
        backend : what runs the encoders: "onnx" (ONNX Runtime on the CPU), "cuda" (ONNX Runtime),
            "tensorrt", "torch", or "auto": the fastest that gives the CPU's answers on this machine.
        precision : of the encoder graphs: "fp32", "fp16", "int8", "fp8", and "bf16" on a GPU.
        threads : CPU cores for encoders and scan; all that the process may use by default.
        scorer : "cuda" (the scan on a GPU), "cpu" (compiled kernels), "onnx", "numpy", or "auto": the
            GPU where the encoders run on one and the index fits, else the fastest that is installed.
        placement : where the scan on a GPU keeps the token queries, four fifths of an index: "device",
            "host" (pinned memory), or "auto", the device if they fit.
        verify : check the SHA-256 of every file before it is trusted.
        image_limits : byte, pixel and format limits of mention images.
        engines : folder of TensorRT engines; ``engines`` in ``model`` by default.
        checkpoint : folder that ``model`` was exported from, which the torch backend reads.
        device_layer : what encoders on a GPU have memory from: "pycuda", "cuda-core", or "auto", PyCUDA
            where it is installed.
        cache_bytes : memory for mentions and pictures that come again; 0 remembers none.

        Raises
        ------
        ModelError
            If the model folder is missing, damaged or lacks the precision.
        BackendError, MissingDependencyError
            If the backend or the device layer that was asked for does not work here.
        IndexFormatError, IndexMismatchError
            If the index is missing, damaged, empty, or was built with another model.
        MissingDependencyError
            If the scorer was asked for by name, and it or a device that it needs is not there.
        EngineError
            If the scorer is "cuda" and the index does not fit in the device's memory.
        """
        opened = Index.open(index, verify=verify)
        featurizer = open_featurizer(
            model,
            backend=backend,
            precision=precision,
            threads=threads,
            verify=verify,
            image_limits=image_limits,
            engines=engines,
            checkpoint=checkpoint,
            device_layer=device_layer,
            cache_bytes=cache_bytes,
        )
        opened.check_model(featurizer.model_hash)
        nil = NilThreshold.read(Path(model), featurizer.model_hash)
        options = ScanOptions(scorer, threads, placement, featurizer.backend in GPU_BACKENDS, verify)
        scan = open_scan(
            opened.segments, featurizer.constants, model, options, tie_key=opened.ids, codes=opened.codes
        )
        return cls(featurizer, opened, scan, nil, verify=verify)

    def reopened(self) -> Self:
        """A linker over the newest state of the same index folder, or itself if that has not changed.

        The old one goes on working, on the entities it was opened with.

        Raises
        ------
        IndexFormatError, IndexMismatchError
            If the index is damaged by now, or was rebuilt with another model.
        """
        newest = Index.open(self.index.path, verify=self._verify)
        if newest.manifest == self.index.manifest:
            return self
        newest.check_model(self.model_hash)
        return self._over(newest, self._scan.over(newest.segments, newest.ids, newest.codes))

    def _over(self, index: Index, scan: Ranker) -> Self:
        """The same over another state of the index."""
        linker = type(self)(self.featurizer, index, scan, self.nil, verify=self._verify)
        linker.warmed = self.warmed
        return linker

    @property
    def nil_threshold(self) -> float | None:
        """Score below which a mention's best candidate is no answer; None where it was not calibrated."""
        return None if self.nil is None else self.nil.threshold

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that the index can be searched in."""
        return self._scan.modes

    @property
    def model_hash(self) -> str:
        """Identity of the model; the index carries the same."""
        return self.featurizer.model_hash

    def link(
        self,
        mentions: Sequence[Mention],
        top_k: int = 10,
        *,
        candidates: Sequence[str] | None = None,
        types: Sequence[str] | None = None,
        mode: Mode = "certified",
        rerank: int | None = None,
        explain: bool = False,
    ) -> list[LinkResult]:
        """Rank entities for each mention.

        Parameters
        ----------
        mentions : B mentions; text over the model's length is cut, and the result says so.
        top_k : how many entities to return for each.
        candidates : entity ids to choose among; all entities by default.
        types : entity types to choose among; all by default.
        mode : "certified" and "exact" give the same answer, the first for less work; "coded"
            needs an index with codes and gives what the index's calibration says.
        rerank : entities that mode "coded" scores exactly; by default 128, or what the index's
            calibration asks for if that is more.
        explain : say for every candidate which tokens TGLU attended to, and what each unit gave.

        Raises
        ------
        InvalidInputError
            If ``top_k`` is not between 1 and the number of candidates, no entity has one of the types,
            the mode cannot be answered in, or an image is unusable.
        UnknownEntityError
            If a candidate id is not in the index.
        """
        among, kinds = (None if given is None else tuple(given) for given in (candidates, types))
        options = LinkOptions(top_k, among, kinds, mode, rerank, explain)
        prepared = [self.prepare(m, explain=explain) for m in mentions]
        return self.link_prepared(prepared, [options] * len(prepared))

    def prepare(self, mention: Mention, *, explain: bool = False) -> PreparedMention:
        """Tokenise and decode one mention; errors as in :meth:`link`."""
        return self.featurizer.prepare(mention, spans=explain)

    def link_prepared(
        self, prepared: Sequence[PreparedMention], options: Sequence[LinkOptions]
    ) -> list[LinkResult]:
        """Encode B prepared mentions together and rank entities for each with its own options.

        Mentions that share everything but ``top_k`` are scanned together.
        """
        groups: dict[LinkOptions, list[int]] = {}
        for b, option in enumerate(options):
            groups.setdefault(replace(option, top_k=0, explain=False), []).append(b)
        rows = {group: self.index.select(group.candidates, group.types) for group in groups}
        for group, members in groups.items():
            self._check(group, rows[group], [options[b].top_k for b in members])
        if not prepared:
            return []
        arrays = self.featurizer.fold_prepared(prepared)
        results: dict[int, LinkResult] = {}
        for group, members in groups.items():
            most = max(options[b].top_k for b in members)
            found = self._search(arrays.take(members), most, group, rows[group])
            for i, b in enumerate(members):
                result = self._result(prepared[b], found, i, options[b].top_k)
                if options[b].explain:
                    result = self._explained(result, prepared[b], arrays.take([b]), found.rows[i])
                results[b] = result
        return [results[b] for b in range(len(prepared))]

    @property
    def cache(self) -> EncodingCache | None:
        """The memory of mentions and pictures that were encoded before, if there is one."""
        return self.featurizer.cache if isinstance(self.featurizer, CachingFeaturizer) else None

    def ranks(self, mentions: Sequence[Mention], gold: NDArray[np.int64]) -> NDArray[np.int64]:
        """1-based rank of index row ``gold[b]`` for each mention, ties counted against it; (B,)."""
        return self._scan.ranks(self.featurizer.mentions(mentions), gold, allowed=self.index.alive)

    def warm_up(self) -> None:
        """Run everything in every shape that a request can have, so that the first costs what the next does.

        ``warmed`` says, and the log, what the first request after it took against those that followed.
        """
        start = time.perf_counter()
        size = self.featurizer.image_size
        tokens = self.prepare(Mention("warm-up", "One mention, so that every graph has run.")).tokens
        mention = PreparedMention(tokens, np.zeros((3, size, size), np.float32))
        encoder_runs = self.featurizer.warm_up()
        searches = self._scan.warm_up(self.featurizer.fold_prepared([mention]), self.index.alive)
        seconds = time.perf_counter() - start
        first, steady = first_and_steady(lambda: self.link_prepared([mention], [LinkOptions(1)]))
        self.warmed = WarmUp(seconds, encoder_runs, searches, first, steady)
        logger.info("%s", self.warmed)

    def recover(self) -> None:
        """Take the device up anew after a DeviceError, and warm up; on the thread that links.

        Linkers of the same model share the encoders, and have them back as well.

        Raises
        ------
        MimicError
            If that fails; mentions then fail too, until a later recovery succeeds.
        """
        self.featurizer.rebuild()
        self._scan.rebuild()
        self.warm_up()

    def info(self) -> dict[str, Any]:
        """What is loaded, for people and for ``/v1/info``; JSON types only."""
        return {
            "model_hash": self.model_hash,
            "units": list(self.featurizer.constants.units),
            "max_text_tokens": self.featurizer.max_text_tokens,
            "image_size": self.featurizer.image_size,
            "entities": len(self.index),
            "index_dtype": self.index.manifest.dtype,
            "modes": list(self.modes),
            "agreement": dict(self.index.manifest.agreement),
            "backend": self.featurizer.backend,
            "scorer": self._scan.scorer_name,
            "threads": self._scan.threads,
            "warm_up": None if self.warmed is None else self.warmed.to_json(),
            "nil_threshold": None if self.nil is None else asdict(self.nil),
        }

    def close(self) -> None:
        """Stop the scan's threads."""
        self._scan.close()

    def _check(self, group: LinkOptions, rows: NDArray[np.int64] | None, top_ks: Sequence[int]) -> None:
        """Hold options against the index before anything is encoded."""
        if group.mode not in self._scan.modes:
            modes = ", ".join(self._scan.modes)
            raise InvalidInputError(
                f"mode: {group.mode!r} is not one of {modes}, which this index can answer in", field="mode"
            )
        count = len(self.index) if rows is None else len(rows)
        for top_k in top_ks:
            if not 1 <= top_k <= count:
                raise InvalidInputError(
                    f"top_k: {top_k} is not between 1 and the {count} candidates", field="top_k"
                )
        if group.rerank is not None and group.rerank < 1:
            raise InvalidInputError(f"rerank: must be at least 1, got {group.rerank}", field="rerank")

    def _search(
        self, mentions: MentionArrays, k: int, group: LinkOptions, rows: NDArray[np.int64] | None
    ) -> TopK:
        """Candidates given by id are few and all scored; those of a type may be most of the index."""
        allowed = self.index.alive
        if group.candidates is None and rows is not None:
            allowed = np.zeros(len(self._scan), np.bool_)  # (N,)
            allowed[rows] = True
            rows = None
        return self._scan.search(
            mentions, k, mode=group.mode, rows=rows, allowed=allowed, rerank=group.rerank or self._rerank
        )

    def _explained(
        self, result: LinkResult, prepared: PreparedMention, mention: MentionArrays, rows: NDArray[np.int64]
    ) -> LinkResult:
        """The result with an explanation of each candidate; ``mention`` holds one row."""
        entities = self._scan.token_queries(rows[: len(result.candidates)])
        return explain_result(result, prepared.spans or (), mention, entities)

    def _result(self, prepared: PreparedMention, found: TopK, b: int, k: int) -> LinkResult:
        rows = found.rows[b, :k]
        units = [{name: float(s[b, i]) for name, s in found.units.items()} for i in range(len(rows))]
        ids, names = self.index.ids(rows), self.index.names(rows)
        candidates = tuple(
            Candidate(ids[i], names[i], float(found.scores[b, i]), units[i]) for i in range(len(rows))
        )
        return LinkResult(
            candidates,
            bool(prepared.tokens.truncated[0]),
            prepared.has_image,
            found.modes[b],
            int(found.scored[b]),
        )
