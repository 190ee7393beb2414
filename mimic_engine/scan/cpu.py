"""The compiled CPU kernels as :class:`~mimic_engine.scan.base.ScanKernels`: checks and conversions only.

The passes are C++ (``kernels/cpu``), built where a compiler is at hand; the
library lies beside ``mimic_engine/kernels/__init__.py`` and picks an
instruction set at run time. Their readable twins are ``kernels/reference.py``,
``kernels/cone_bound_ref.py`` and ``kernels/coded_tglu_ref.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np

from mimic_engine.errors import InvalidInputError, MissingDependencyError
from mimic_engine.scan.base import Codes, Rows
from mimic_engine.types import Array, EntityArrays, FoldConstants, MentionArrays, Scores

_MODULE = "mimic_engine.kernels._cpu"


class CpuKernels:
    """Fused passes over entities as they are stored, one core a call, the interpreter lock released.

    The total of a pair has the same bits in ``totals`` and ``scores``, alone or
    in any batch, by slice or by row number; no total is above its bound. Other
    instruction sets may round differently. Up to 128 tokens on either side.

    A mention or an entity vector that is not finite gives scores and bounds that
    are not finite; token queries are not read by ``bounds`` and ``estimates``.

    Parameters
    ----------
    constants : of the model that folded both sides.
    isa : one of ``instruction_sets()``; the first of them if absent.
    sweeps : Gauss-Seidel sweeps of the cone bound: more make it tighter and slower.

    Raises
    ------
    MissingDependencyError
        If this installation holds no compiled kernels.
    InvalidInputError
        If ``isa`` does not run on this machine, or ``sweeps`` is below 1.
    """

    rounding = 0.0
    pairs_per_block = 4096

    def __init__(self, constants: FoldConstants, isa: str | None = None, *, sweeps: int = 1) -> None:
        self._library = _library()
        known = self._library.instruction_sets()
        self._isa = known[0] if isa is None else isa
        if self._isa not in known:
            raise InvalidInputError(f"isa: {isa!r} is not one of {known} on this machine", field="isa")
        if sweeps < 1:
            raise InvalidInputError(f"sweeps: must be at least 1, got {sweeps}", field="sweeps")
        self._sweeps = sweeps
        self._constants = constants
        self._native = _call(
            self._library.constants,
            constants.width,
            list(constants.units),
            constants.layer_norm_eps,
            constants.gate_bias,
            constants.bias_norm,
        )

    @staticmethod
    def available() -> bool:
        """Whether this installation holds compiled kernels."""
        try:
            _library()
        except MissingDependencyError:
            return False
        return True

    @staticmethod
    def instruction_sets() -> tuple[str, ...]:
        """Those that this machine runs, the fastest first; ``MissingDependencyError`` without kernels."""
        return tuple(_library().instruction_sets())

    @property
    def name(self) -> str:
        """``cpu-`` and the instruction set."""
        return f"cpu-{self._isa}"

    def prepare(self, mentions: MentionArrays, centroids: Array | None = None) -> Any:
        """Pack B folded mentions; with ``centroids`` (C, D) float32 also the tables of ``estimates``.

        Raises
        ------
        InvalidInputError
            If an array is missing, or its dtype or shape does not fit.
        """
        arrays = dict(mentions.items())
        return _call(self._library.prepare, self._isa, self._native, arrays, self._sweeps, centroids)

    def take(self, prepared: Any, rows: Sequence[int]) -> Any:
        """Some of the packed mentions as a batch of their own; raises ``InvalidInputError``."""
        return _call(self._library.choose, prepared, [int(b) for b in rows])

    def totals(self, prepared: Any, entities: EntityArrays, rows: Rows, out: Array) -> None:
        """Write the exact totals, (B, n) float32, of the rows to ``out``; raises ``InvalidInputError``."""
        self._score(prepared, entities, rows, out, {})

    def scores(self, prepared: Any, entities: EntityArrays, rows: Rows) -> Scores:
        """Total and unit scores, (B, n) float32 each; raises ``InvalidInputError``."""
        count = len(range(*rows.indices(entities.rows))) if isinstance(rows, slice) else len(rows)
        shape = (prepared.count, count)
        units = {name: np.empty(shape, np.float32) for name in self._constants.units}
        total = np.empty(shape, np.float32)
        self._score(prepared, entities, rows, total, units)
        return Scores(total, units)

    def bounds(self, prepared: Any, entities: EntityArrays, rows: slice, out: Array) -> None:
        """Write upper bounds of the totals, (B, n) float32, to ``out``; raises ``InvalidInputError``."""
        start, stop = _range(rows, entities.rows)
        _call(self._library.bounds, prepared, dict(entities.items()), start, stop, out)

    def estimates(self, prepared: Any, entities: EntityArrays, codes: Codes, rows: slice, out: Array) -> None:
        """Write totals by the codes, (B, n) float32, to ``out``; raises ``InvalidInputError``."""
        start, stop = _range(rows, entities.rows)
        _call(self._library.estimates, prepared, dict(entities.items()), codes, start, stop, out)

    def _score(
        self, prepared: Any, entities: EntityArrays, rows: Rows, out: Array, units: dict[str, Array]
    ) -> None:
        start, stop, numbers = 0, 0, None
        if isinstance(rows, slice):
            start, stop = _range(rows, entities.rows)
        else:
            numbers = np.ascontiguousarray(rows, np.int64)
        arrays = dict(entities.items())
        _call(self._library.totals, prepared, arrays, start, stop, numbers, out, units)


def _library() -> Any:
    try:
        return import_module(_MODULE)
    except ModuleNotFoundError as error:
        if error.name != _MODULE:
            raise
        raise MissingDependencyError(
            "the compiled CPU kernels are not part of this installation: install a wheel of this platform, "
            "or a C++17 compiler and build with MIMIC_BUILD_KERNELS=require, which says what is missing"
        ) from error


def _range(rows: slice, count: int) -> tuple[int, int]:
    start, stop, step = rows.indices(count)
    if step != 1:
        raise InvalidInputError(f"rows: a slice of step {step}, only 1 is possible", field="rows")
    return start, max(start, stop)


def _call(function: Any, *arguments: Any) -> Any:
    """Call into the library; what it refuses is an ``InvalidInputError`` that names the argument."""
    try:
        return function(*arguments)
    except ValueError as error:
        message = str(error)
        raise InvalidInputError(message, field=message.partition(":")[0]) from error
