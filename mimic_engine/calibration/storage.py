"""Recall of an index stored in fewer bits, measured by its best entities folded again in float32.

For each mention the best 2 k entities of the index are folded again from what it
keeps of them. Their float32 scores are compared with the stored ones, and the
best k by the one with the best k by the other. An entity whose image is not
at hand (given as bytes, or moved since) is left out and counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mimic_engine.backends.scan import open_kernels
from mimic_engine.calibration.coded import ENTITIES, entity_mentions
from mimic_engine.data.images import BrokenImages
from mimic_engine.encoding.featurizer import Featurizer
from mimic_engine.encoding.knowledge_base import KnowledgeBaseFeaturizer
from mimic_engine.errors import IndexFormatError, InvalidInputError
from mimic_engine.files import Natural, NonNegative, Share, decode
from mimic_engine.index.manifest import IndexManifest
from mimic_engine.index.store import Index
from mimic_engine.scan.scan import Scan, TopK
from mimic_engine.types import Array, Entity, EntityArrays, Mention, MentionArrays

STORAGE = "storage"  # name of this measurement in the manifest's ``agreement``
DEFAULT_MENTIONS = 32
DEFAULT_K = 10
TOLERANCE = 2.0  # a mean error this many times the recorded one is no longer what was recorded
_FLOOR = 1e-5  # rounding of the scores themselves, relative to 1 + |score|: no error is below it

_ENTITIES_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class StorageRecall:
    """One measurement.

    Attributes
    ----------
    dtype : of the index
    mentions, entities, left_out : mentions, entities folded again, entities that could not be
    source : where the mentions come from; "entities" are names and descriptions of the index itself
    k : how many of the best entities are compared
    error_mean, error_max : of |stored score - float32 score| / (1 + |float32 score|)
    top1_identical : share of mentions (0 to 1) with the same best entity
    topk_contained : of the best k by float32, the share that is among the stored best k
    """

    dtype: str
    mentions: Natural
    entities: Natural
    left_out: Natural
    source: str
    k: Natural
    error_mean: NonNegative
    error_max: NonNegative
    top1_identical: Share
    topk_contained: Share

    def __str__(self) -> str:
        left_out = f" ({self.left_out} without their pictures left out)" if self.left_out else ""
        return (
            f"{self.dtype} against float32, {self.mentions} mentions ({self.source}), "
            f"{self.entities} entities{left_out}: relative error of a score {self.error_mean:.2g} "
            f"on average, {self.error_max:.2g} at most; same best entity for {self.top1_identical:.4%} "
            f"of the mentions, {self.topk_contained:.4%} of the top {self.k} found"
        )


class StorageCalibration:
    """An index beside the float32 arrays that it was made from.

    Parameters
    ----------
    featurizer : the model that the index was built with, in the same precision
    model : its exported folder
    mentions : to measure with; by default entities of the index itself
    source : where they come from, as the manifest names it
    limit : how many mentions are taken at most
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
        self._featurizer, self._model, self._mentions = featurizer, model, mentions
        self._source, self._limit, self._threads, self._progress = source, limit, threads, progress

    def __call__(self, index: Index) -> Mapping[str, Any]:
        """The entry for the manifest's ``agreement``; errors as in :meth:`measure`."""
        return {STORAGE: asdict(self.measure(index))}

    def measure(self, index: Index, k: int = DEFAULT_K) -> StorageRecall:
        """Measure.

        Raises
        ------
        InvalidInputError
            If there are no mentions, or no entity can be folded again.
        IndexMismatchError
            If the index was built with another model.
        """
        index.check_model(self._featurizer.model_hash)
        mentions = entity_mentions(index, self._limit) if self._mentions is None else self._mentions
        if not (mentions := _evenly(mentions, self._limit)):
            raise InvalidInputError("mentions: none to measure the agreement with", field="mentions")
        arrays = self._featurizer.mentions(mentions)
        stored = self._search(index, arrays, min(2 * k, len(index)))
        rows, entities = _foldable(index, np.unique(stored.rows))
        left_out = len(np.unique(stored.rows)) - len(rows)
        if not entities:
            raise InvalidInputError(f"{index.path}: of its best {left_out} entities no picture is at hand")
        exact = self._scores(index, arrays, rows, self._fold(entities), stored)
        errors = np.abs(stored.scores - exact) / (1 + np.abs(exact))  # (M, R), NaN where left out
        usable = ~np.isnan(exact)  # (M, R)
        compared = [_compare(stored.scores[b, u], exact[b, u], k) for b, u in enumerate(usable) if u.any()]
        return StorageRecall(
            index.manifest.dtype,
            len(compared),
            len(rows),
            left_out,
            self._source,
            min(k, len(index)),
            float(np.nanmean(errors)),
            float(np.nanmax(errors)),
            float(np.mean([same for same, _ in compared])),
            float(np.mean([share for _, share in compared])),
        )

    def _search(self, index: Index, arrays: MentionArrays, count: int) -> TopK:
        kernels = open_kernels("auto", self._model, index.manifest.constants)
        scan = Scan(index.segments, kernels, threads=self._threads, tie_key=index.ids)
        try:
            return scan.search(arrays, count, allowed=index.alive)
        finally:
            scan.close()

    def _fold(self, entities: Sequence[Entity]) -> list[EntityArrays]:
        source = KnowledgeBaseFeaturizer(self._featurizer, BrokenImages("as-missing"))
        starts = tqdm(range(0, len(entities), _ENTITIES_AT_ONCE), desc="storage", disable=not self._progress)
        return [source.entities(entities[start : start + _ENTITIES_AT_ONCE]) for start in starts]

    def _scores(
        self,
        index: Index,
        arrays: MentionArrays,
        rows: NDArray[np.int64],
        folded: Sequence[EntityArrays],
        stored: TopK,
    ) -> Array:
        """Float32 scores of the stored answers, (M, R); NaN for rows that were not folded again."""
        kernels = open_kernels("auto", self._model, index.manifest.constants)
        scan = Scan(folded, kernels, threads=self._threads)
        try:
            totals = scan.totals(arrays)  # (M, rows)
        finally:
            scan.close()
        place = np.searchsorted(rows, stored.rows).clip(max=len(rows) - 1)  # (M, R)
        exact = np.take_along_axis(totals, place, axis=1)
        exact[rows[place] != stored.rows] = np.nan
        return exact


def recorded(manifest: IndexManifest) -> StorageRecall | None:
    """The measurement that the manifest keeps; None where it was not measured.

    Raises
    ------
    IndexFormatError
        If the record is not one that this version reads.
    """
    data = manifest.agreement.get(STORAGE)
    where = f"agreement.{STORAGE} of the manifest"
    return None if data is None else decode(data, StorageRecall, where, IndexFormatError)


def regressions(then: StorageRecall, now: StorageRecall) -> list[str]:
    """A mean error over twice the recorded one, in words; none where it is not."""
    limit = TOLERANCE * max(then.error_mean, _FLOOR)
    if now.error_mean <= limit:
        return []
    return [f"storage: mean relative error {now.error_mean:.3g} is over {limit:.3g}, twice the recorded one"]


def _evenly(mentions: Sequence[Mention], limit: int) -> list[Mention]:
    size = min(limit, len(mentions))
    return [mentions[i * len(mentions) // size] for i in range(size)]


def _foldable(index: Index, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[Entity]]:
    """Those of the rows whose entity has no image that is not at hand."""
    entities = [index.entity(row) for row in rows.tolist()]
    there = [all(Path(str(image)).is_file() for image in e.images) for e in entities]
    return rows[np.array(there)], [e for e, usable in zip(entities, there, strict=True) if usable]


def _compare(stored: Array, exact: Array, k: int) -> tuple[bool, float]:
    """Whether the best by ``exact`` (R,) is the stored best, and the share of its best k among those."""
    mine, wanted = (np.argsort(-scores, kind="stable")[:k] for scores in (stored, exact))
    return bool(mine[0] == wanted[0]), float(np.isin(wanted, mine).mean())
