"""Measures how far the coded mode's answers are the exact ones, with the mentions at hand.

Only rankings are needed: the exact best k of a mention (found by the certified
scan, which gives the same), and the estimates that the codes give to all
entities. What they say is in :mod:`mimic_engine.calibration.recall`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mimic_engine.backends.scan import open_kernels
from mimic_engine.calibration.recall import CODED, Recall
from mimic_engine.encoding.featurizer import Featurizer
from mimic_engine.errors import InvalidInputError
from mimic_engine.index.store import Index
from mimic_engine.scan.scan import Scan
from mimic_engine.types import Array, Mention

ENTITIES = "entities"  # source of mentions that are the index's own entities
DEFAULT_MENTIONS = 512
DEFAULT_K = 10

_MENTIONS_AT_ONCE = 32
_SCORES_AT_ONCE = 1 << 25  # (B, N) estimates: 128 MiB


class CodedCalibration:
    """The coded mode of an index beside the exact one.

    Parameters
    ----------
    featurizer : the model that the index was built with
    model : its exported folder
    mentions : to measure with; by default entities of the index itself (:func:`entity_mentions`)
    source : where they come from, as the manifest names it
    limit : how many entities are taken where ``mentions`` is None
    threads : cores for the scan; all that the process may use by default
    progress : show a progress bar on standard error
    """

    def __init__(
        self,
        featurizer: Featurizer,
        model: str | Path,
        mentions: Sequence[Mention] | None = None,
        *,
        source: str = ENTITIES,
        limit: int = DEFAULT_MENTIONS,
        threads: int | None = None,
        progress: bool = False,
    ) -> None:
        self.source = source
        self._featurizer, self._model, self._mentions = featurizer, model, mentions
        self._limit, self._threads, self._progress = limit, threads, progress

    def __call__(self, index: Index) -> Mapping[str, Any]:
        """Entries for the manifest's ``agreement``, none without codes; errors as in :meth:`places`."""
        if index.codes is None:
            return {}
        return {CODED: self.recall(index, self.places(index)).to_json()}

    def recall(self, index: Index, places: NDArray[np.int64]) -> Recall:
        """The recall that ``places`` (M, k) show of an index with codes."""
        assert index.codes is not None
        return Recall.of_places(
            places, centroids=len(index.codes.centroids), entities=len(index), source=self.source
        )

    def places(self, index: Index, k: int = DEFAULT_K) -> NDArray[np.int64]:
        """Measure; see :func:`measure_places`, and for errors too.

        Raises
        ------
        InvalidInputError
            If the index has no codes.
        IndexMismatchError
            If it was built with another model.
        """
        if index.codes is None:
            raise InvalidInputError(f"{index.path}: no codes; write them with: mimic-engine index recode")
        index.check_model(self._featurizer.model_hash)
        mentions = entity_mentions(index, self._limit) if self._mentions is None else self._mentions
        kernels = open_kernels("auto", self._model, index.manifest.constants)
        scan = Scan(index.segments, kernels, threads=self._threads, tie_key=index.ids, codes=index.codes)
        try:
            return measure_places(
                self._featurizer, mentions, scan, k=k, allowed=index.alive, progress=self._progress
            )
        finally:
            scan.close()


def entity_mentions(index: Index, limit: int = DEFAULT_MENTIONS) -> list[Mention]:
    """Up to ``limit`` entities of an index as mentions: the name in its description, without an image.

    They lie evenly over the index. What users write differs from this: mentions
    of one's own measure better, where there are any.
    """
    alive = np.arange(index.row_count) if index.alive is None else np.flatnonzero(index.alive)
    size = min(limit, len(alive))
    entities = [index.entity(int(alive[i * len(alive) // size])) for i in range(size)]
    return [Mention(e.name, e.description or e.name) for e in entities]


def measure_places(
    featurizer: Featurizer,
    mentions: Sequence[Mention],
    scan: Scan,
    *,
    k: int = DEFAULT_K,
    allowed: NDArray[np.bool_] | None = None,
    progress: bool = False,
) -> NDArray[np.int64]:
    """Places that the estimates give to the exact best k of M mentions, (M, k), best first.

    A place counts every entity whose estimate is at least as high: 1 is the
    best, and re-scoring as many as the place says finds it however ties are broken.

    Parameters
    ----------
    featurizer : the model of the index
    mentions : at least one
    scan : over the index with its codes
    k : cut to the number of entities
    allowed : (N,), the rows that count; all by default
    progress : show a progress bar on standard error

    Raises
    ------
    InvalidInputError
        If there are no mentions, or one of them is wrong.
    EngineError
        If a score or an estimate is not finite.
    """
    if not mentions:
        raise InvalidInputError("mentions: none to measure the agreement with", field="mentions")
    k = min(k, len(scan) if allowed is None else int(np.count_nonzero(allowed)))
    size = max(1, min(_MENTIONS_AT_ONCE, _SCORES_AT_ONCE // len(scan)))
    places = []
    with tqdm(total=len(mentions), desc="agreement", unit=" mentions", disable=not progress) as bar:
        for start in range(0, len(mentions), size):
            batch = mentions[start : start + size]
            arrays = featurizer.mentions(batch)
            estimates = scan.estimates(arrays)  # (B, N)
            if allowed is not None:
                estimates[:, ~allowed] = -np.inf
            places.append(_places(estimates, scan.search(arrays, k, allowed=allowed).rows))
            bar.update(len(batch))
    return np.concatenate(places)


def _places(estimates: Array, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many of ``estimates`` (B, N) are at least those of ``rows`` (B, k); (B, k)."""
    own = np.take_along_axis(estimates, rows, axis=1)  # (B, k)
    counts = [
        [np.count_nonzero(line >= value) for value in row] for line, row in zip(estimates, own, strict=True)
    ]
    return np.array(counts, dtype=np.int64)
