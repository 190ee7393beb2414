"""Which kernels score."""

from __future__ import annotations

from pathlib import Path

from mimic_engine.errors import InvalidInputError
from mimic_engine.scoring.base import ScanKernels
from mimic_engine.scoring.blocks import BlockKernels
from mimic_engine.scoring.numpy import NumpyScorer
from mimic_engine.scoring.onnx import OnnxScorer
from mimic_engine.types import SCORERS, FoldConstants, ScorerChoice


def open_kernels(
    choice: ScorerChoice, model: str | Path, constants: FoldConstants, *, verify: bool = True
) -> ScanKernels:
    """Kernels for the scan of one exported model.

    Parameters
    ----------
    choice : "onnx" (the exported scorer graph), "numpy" (slow), or "auto", the fastest that is installed.
    model : the exported model folder.
    constants : of that model.
    verify : check the SHA-256 of the graph.

    Raises
    ------
    InvalidInputError
        If the choice is unknown.
    ModelError
        If the graph is missing or damaged.
    """
    if choice not in SCORERS:
        raise InvalidInputError(f"scorer: {choice!r} is not one of {', '.join(SCORERS)}", field="scorer")
    if choice == "numpy":
        return BlockKernels(NumpyScorer(constants), constants)
    return BlockKernels(OnnxScorer.open(model, verify=verify), constants)
