"""Which kernels score: the compiled ones where they are installed, else the exported graph."""

from __future__ import annotations

import logging
from pathlib import Path

from mimic_engine.errors import InvalidInputError, MissingDependencyError
from mimic_engine.scoring.base import ScanKernels
from mimic_engine.scoring.blocks import BlockKernels
from mimic_engine.scoring.cpu import CpuKernels
from mimic_engine.scoring.numpy import NumpyScorer
from mimic_engine.scoring.onnx import OnnxScorer
from mimic_engine.types import SCORERS, FoldConstants, ScorerChoice

logger = logging.getLogger(__name__)


def open_kernels(
    choice: ScorerChoice, model: str | Path, constants: FoldConstants, *, verify: bool = True
) -> ScanKernels:
    """Kernels for the scan of one exported model.

    Parameters
    ----------
    choice : "cpu" (compiled), "onnx" (the exported scorer graph), "numpy" (slow, needs neither),
        or "auto": the first of these that is installed; says so once where that is not the compiled one.
    model : the exported model folder.
    constants : of that model.
    verify : check the SHA-256 of the graph.

    Raises
    ------
    InvalidInputError
        If the choice is unknown.
    MissingDependencyError
        If "cpu" was asked for and the compiled kernels are not installed.
    ModelError
        If the graph is missing or damaged.
    """
    if choice not in SCORERS:
        raise InvalidInputError(f"scorer: {choice!r} is not one of {', '.join(SCORERS)}", field="scorer")
    if choice == "numpy":
        return BlockKernels(NumpyScorer(constants), constants)
    if choice != "onnx":
        try:
            return CpuKernels(constants)
        except MissingDependencyError as error:
            if choice == "cpu":
                raise
            logger.warning("scoring with the exported graph, several times slower: %s", error)
    return BlockKernels(OnnxScorer.open(model, verify=verify), constants)
