"""The codes of an index: centroids of all entity token queries, and the one nearest to each token.

The softmax row of an entity token depends on its query vector alone (equation 7
of the paper), so a mention's attention need only be worked out for the
centroids; what is done with them is in ``kernels/coded_tglu_ref.py``. Here: opening
the files, and coding new tokens with centroids that are there. Finding the
centroids is in :mod:`mimic_engine.index.codes.cluster`, writing in
:mod:`mimic_engine.index.codes.write`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mimic_engine.errors import IndexFormatError
from mimic_engine.index.arrays import read_array_file
from mimic_engine.index.manifest import CENTROIDS, CODES, CodesRecord, IndexManifest, codes_dtype, codes_file
from mimic_engine.types import Array, EntityArrays

CodeArray = NDArray[np.uint8] | NDArray[np.uint16]  # (rows, L)

_BLOCK_VALUES = 1 << 20  # of the (tokens, C) inner products worked on at once: 4 MiB
_BLOCK_TOKENS = 1 << 14
_LEAST_ERROR = 0.01  # of the mean length: below it a clustering counts as perfect, and drift stays finite


@dataclass(frozen=True, slots=True)
class Codes:
    """Centroids and codes of an open index.

    Attributes
    ----------
    centroids : (C, D) float32, divided by sqrt(D) as the query vectors are
    segments : codes (rows, L), uint8 or uint16, of every segment; read-only maps of the files
    error, norm : mean distance from the nearest centroid, and mean length, of the vectors
        that the centroids were found with
    """

    centroids: Array
    segments: tuple[CodeArray, ...]
    error: float
    norm: float

    def assign(self, queries: NDArray[np.floating]) -> CodeArray:
        """The centroid nearest to every vector of ``queries`` (..., D); (...) in the stored dtype."""
        vectors = queries.reshape(-1, queries.shape[-1])  # (T, D)
        return nearest(vectors, self.centroids).reshape(queries.shape[:-1])

    def drift(self, queries: NDArray[np.floating], weight: Array | None = None) -> float:
        """Mean distance of new tokens from their centroids, as a multiple of the training sample's.

        About 1 as long as new entities are like those that were clustered; cluster
        anew when it has grown. A sample that lay on its centroids, or within a
        hundredth of its mean length of them, counts as that hundredth.

        Parameters
        ----------
        queries : (n, L, D), at least one
        weight : (n, L), where padding is masked; tokens of weight 0 are left out
        """
        vectors = queries.reshape(-1, queries.shape[-1]).astype(np.float32, copy=False)  # (T, D)
        if weight is not None:
            vectors = vectors[weight.reshape(-1) > 0]
        base = max(self.error, _LEAST_ERROR * self.norm, float(np.finfo(np.float32).tiny))
        return mean_error(vectors, self.centroids) / base


def open_codes(path: Path, manifest: IndexManifest, segments: tuple[EntityArrays, ...]) -> Codes | None:
    """Map the codes of an index whose segments are open; None where it has none.

    Every code is read once: one that is no centroid would be an access outside a table.

    Raises
    ------
    IndexFormatError
        If a file is damaged, or does not fit the manifest or its segment.
    """
    record = manifest.codes
    if record is None:
        return None
    folder = path / CODES / record.folder
    centroids = _open_centroids(folder / CENTROIDS, record, manifest.constants.width)
    names = [codes_file(s.name) for s in manifest.segments]
    codes = [_open_segment(folder / n, record, s) for n, s in zip(names, segments, strict=True)]
    return Codes(centroids, tuple(codes), record.error, record.norm)


def nearest(vectors: NDArray[np.floating], centroids: Array) -> CodeArray:
    """Number of the centroid nearest to each of ``vectors`` (T, D), the first of equals; (T,).

    Parameters
    ----------
    vectors : float32, or float16 that is widened block by block
    centroids : (C, D) float32
    """
    half_squares = (centroids * centroids).sum(
        1
    ) / 2  # (C,): |v - c|^2 is least where v.c - |c|^2 / 2 is most
    codes = np.empty(len(vectors), codes_dtype(len(centroids)))  # (T,)
    for block in _blocks(len(vectors), len(centroids)):
        inner = vectors[block].astype(np.float32, copy=False) @ centroids.T  # (t, C)
        inner -= half_squares
        codes[block] = inner.argmax(axis=1)
    return codes


def mean_error(vectors: Array, centroids: Array) -> float:
    """Mean distance of ``vectors`` (T, D) from the nearest of ``centroids`` (C, D); 0 for no vectors."""
    codes, total = nearest(vectors, centroids), 0.0
    for block in _blocks(len(vectors), len(centroids)):
        total += float(np.linalg.norm(vectors[block] - centroids[codes[block]], axis=1).sum(dtype=np.float64))
    return total / max(1, len(vectors))


def token_queries(arrays: EntityArrays, rows: slice | NDArray[np.int64]) -> Array:
    """Token query vectors of some rows of a stored segment, (n, L, D) float32."""
    assert arrays.tglu_query is not None
    queries = arrays.tglu_query[rows].astype(np.float32, copy=False)  # (n, L, D)
    if arrays.tglu_query_scale is None:
        return queries
    return queries * arrays.tglu_query_scale[rows][..., None]


def _blocks(tokens: int, centroids: int) -> Iterator[slice]:
    size = max(1, min(_BLOCK_TOKENS, _BLOCK_VALUES // centroids))
    for start in range(0, tokens, size):
        yield slice(start, start + size)


def _open_centroids(file: Path, record: CodesRecord, width: int) -> Array:
    arrays = read_array_file(file)
    found = {name: (value.dtype.str, value.shape) for name, value in arrays.items()}
    if found != {"centroids": ("<f4", (record.centroids, width))}:
        raise IndexFormatError(
            f"{file}: holds {found}, expected {record.centroids} centroids of width {width}"
        )
    if not np.isfinite(arrays["centroids"]).all():
        raise IndexFormatError(f"{file}: a centroid is not finite")
    return arrays["centroids"]


def _open_segment(file: Path, record: CodesRecord, segment: EntityArrays) -> CodeArray:
    if segment.tglu_query is None:
        raise IndexFormatError(f"{file}: codes of a segment that has no token queries")
    arrays, shape = read_array_file(file), segment.tglu_query.shape[:2]
    found = {name: (value.dtype, value.shape) for name, value in arrays.items()}
    if found != {"codes": (np.dtype(record.dtype), shape)}:
        raise IndexFormatError(f"{file}: holds {found}, expected codes {shape} {record.dtype}")
    codes: CodeArray = arrays["codes"]
    if (highest := int(codes.max(initial=0))) >= record.centroids:
        raise IndexFormatError(f"{file}: holds code {highest}, but there are {record.centroids} centroids")
    return codes
