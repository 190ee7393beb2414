"""Schema of the arrays of an index: which there are, their dtypes and shapes, and what folds them.

The fields are those of :class:`mimic_engine.types.EntityArrays`; which of them
are present follows from the units that are on. What an index asks of a model is
:class:`EntityFeaturizer`; that its arrays can be stored is checked batch by batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from mimic_engine.errors import InvalidInputError, ModelError
from mimic_engine.types import Entity, EntityArrays, FoldConstants

Trailing = dict[str, tuple[int, ...]]  # array name -> shape without the first axis
DType = Literal["float16", "float32", "int8"]  # int8: the token queries alone, all other vectors float16
DTYPES: tuple[DType, ...] = get_args(DType)
QUERY, SCALE = "tglu_query", "tglu_query_scale"
ALWAYS_FLOAT32 = frozenset(
    {SCALE, "tglu_bias", "tglu_token_weight", "vdlu_query_scalars", "vdlu_key_scalars"}
)
_REQUIRED = {
    "tglu": ("text_cls", "tglu_query", "tglu_cls", "tglu_bias"),
    "vdlu": ("vdlu_query", "vdlu_query_scalars", "vdlu_key", "vdlu_key_scalars"),
    "concat": ("concat",),
    "cmfu": ("cmfu",),
}
_OPTIONAL = {"tglu": ("tglu_token_weight",)}
_VDLU_VECTORS, _VDLU_SCALARS = 3, 7


def checked_dtype(dtype: str) -> DType:
    """The dtype of an index by its name; :class:`InvalidInputError` if there is none of this name."""
    for known in DTYPES:
        if dtype == known:
            return known
    raise InvalidInputError(f"dtype: {dtype!r} is not one of {DTYPES}")


def stored_dtype(name: str, dtype: str) -> np.dtype[Any]:
    """Little-endian dtype of one array in an index of this ``dtype``."""
    if name == QUERY and dtype == "int8":
        return np.dtype("i1")
    return np.dtype("<f4" if dtype == "float32" or name in ALWAYS_FLOAT32 else "<f2")


def stored_shapes(folded: Trailing, dtype: str) -> Trailing:
    """Shapes of what an index of this ``dtype`` stores of folded arrays: int8 queries bring their scales."""
    if dtype != "int8":
        return dict(folded)
    return {**folded, SCALE: folded[QUERY][:-1]}


def folded_shapes(stored: Trailing) -> Trailing:
    """Shapes of the folded arrays that were stored in these."""
    return {name: shape for name, shape in stored.items() if name != SCALE}


def trailing_shapes(arrays: EntityArrays) -> Trailing:
    """Shape of every present array without its first axis."""
    return {name: tuple(value.shape[1:]) for name, value in arrays.items()}


def check_layout(shapes: Mapping[str, tuple[int, ...]], constants: FoldConstants) -> None:
    """Check that the arrays are those which the units of ``constants`` score with.

    Raises
    ------
    ValueError
        If an array is missing or not expected, or its shape does not fit.
    """
    if unknown := sorted(set(constants.units) - set(_REQUIRED)):
        raise ValueError(f"units {unknown} are not among {sorted(_REQUIRED)}")
    required = {name for unit in constants.units for name in _REQUIRED[unit]}
    allowed = required.union(name for unit in constants.units for name in _OPTIONAL.get(unit, ()))
    if missing := sorted(required - set(shapes)):
        raise ValueError(f"arrays {missing} are missing; units {list(constants.units)} need them")
    if unexpected := sorted(set(shapes) - allowed):
        raise ValueError(f"arrays {unexpected} belong to no unit of {list(constants.units)}")
    tokens = shapes.get("tglu_query", (0,))[0:1]  # (L,)
    for name, shape in shapes.items():
        expected = _expected(name, shape, tokens, constants.width)
        if shape != expected or 0 in shape:
            raise ValueError(f"array {name}: shape (N, *{shape}), expected (N, *{expected}) without zeros")


def _expected(name: str, shape: tuple[int, ...], tokens: tuple[int, ...], width: int) -> tuple[int, ...]:
    match name:
        case "tglu_query":
            return (*tokens, width)
        case "tglu_token_weight":
            return tokens
        case "tglu_bias":
            return ()
        case "text_cls":
            return shape[:1] or (1,)  # any width T
        case "vdlu_query" | "vdlu_key":
            return (_VDLU_VECTORS, width)
        case "vdlu_query_scalars" | "vdlu_key_scalars":
            return (_VDLU_SCALARS,)
        case _:
            return (width,)


def check_stored(arrays: Mapping[str, NDArray[Any]], rows: int, dtype: str, constants: FoldConstants) -> None:
    """Check dtypes, number of rows and layout of one segment's arrays; raises ``ValueError``."""
    for name, value in arrays.items():
        if value.dtype != stored_dtype(name, dtype):
            raise ValueError(f"array {name}: dtype {value.dtype}, expected {stored_dtype(name, dtype)}")
        if value.shape[:1] != (rows,):
            raise ValueError(f"array {name}: shape {value.shape}, expected {rows} rows")
    shapes = {name: value.shape[1:] for name, value in arrays.items()}
    folded = folded_shapes(shapes)
    check_layout(folded, constants)
    if shapes != (expected := stored_shapes(folded, dtype)):
        raise ValueError(f"arrays of shapes {shapes}, expected {expected} in an index of dtype {dtype}")


class EntityFeaturizer(Protocol):
    """A model as an index needs it: entities in, folded float32 arrays out."""

    @property
    def constants(self) -> FoldConstants:
        """Numbers that the scores need beyond the arrays."""

    @property
    def model_hash(self) -> str:
        """Hash over weights and configuration."""

    def entities(self, entities: Sequence[Entity], /) -> EntityArrays:
        """Fold n entities; every array float32, n rows in the order given."""


class CheckedFold:
    """A featurizer whose arrays have one layout: the one given, or that of the first batch.

    Attributes
    ----------
    layout : shape of every array without its first axis; empty before the first batch
    """

    def __init__(self, featurizer: EntityFeaturizer, layout: Trailing) -> None:
        self.layout = dict(layout)
        self._featurizer = featurizer

    def __call__(self, batch: Sequence[Entity]) -> EntityArrays:
        """Fold a batch; raises :class:`ModelError` if the arrays cannot be stored."""
        arrays = self._featurizer.entities(batch)
        layout = trailing_shapes(arrays)
        try:
            if not self.layout:
                check_layout(layout, self._featurizer.constants)
                self.layout = layout
            if layout != self.layout:
                raise ValueError(f"shapes {layout} differ from those of earlier entities, {self.layout}")
            for name, value in arrays.items():
                if value.dtype != np.float32 or len(value) != len(batch):
                    raise ValueError(
                        f"array {name}: {value.shape} {value.dtype}, expected {len(batch)} rows float32"
                    )
        except ValueError as error:
            raise ModelError(f"the model's folded entities cannot be stored: {error}") from error
        return arrays
