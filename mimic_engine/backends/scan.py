"""The scan, which scores: on a GPU, or on the CPU over compiled kernels or the exported graph.

The GPU scan needs torch and Triton; they are imported when it is opened and not before.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mimic_engine.errors import EngineError, InvalidInputError, MissingDependencyError
from mimic_engine.scan.base import ScanKernels
from mimic_engine.scan.blocks import BlockKernels, OnnxScorer
from mimic_engine.scan.cpu import CpuKernels
from mimic_engine.scan.passes import CodeBook
from mimic_engine.scan.ranker import Ranker
from mimic_engine.scan.scan import Scan
from mimic_engine.scan.terms import ScoreTerms
from mimic_engine.scan.topk import TieKey
from mimic_engine.types import (
    KERNELS,
    PLACEMENTS,
    SCORERS,
    EntityArrays,
    FoldConstants,
    KernelChoice,
    PlacementChoice,
    ScorerChoice,
)

INSTALL = "pip install 'mimic-engine[gpu]'"
DEVICE = "cuda"
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ScanOptions:
    """How a scan is opened.

    ``scorer`` is "cuda", a choice of kernels for the CPU, or "auto": the GPU where the encoders run
    on one (``gpu_encoders``) and the index fits, else the CPU. ``threads`` are CPU cores, all by
    default; ``placement`` says where a GPU scan keeps the token queries; ``verify`` checks the
    SHA-256 of a graph that is opened.
    """

    scorer: ScorerChoice = "auto"
    threads: int | None = None
    placement: PlacementChoice = "auto"
    gpu_encoders: bool = False
    verify: bool = True


def open_scan(
    segments: Sequence[EntityArrays],
    constants: FoldConstants,
    model: str | Path,
    options: ScanOptions,
    *,
    tie_key: TieKey | None = None,
    codes: CodeBook | None = None,
    terms: ScoreTerms | None = None,
) -> Ranker:
    """A scan of an index's entities.

    Parameters
    ----------
    segments : folded entities, row numbers running on from one to the next.
    constants : of the model that folded them.
    model : the exported model folder.
    options : what scores, and where.
    tie_key : entity ids of rows, to break ties; by row number if absent.
    codes : for the mode "coded".
    terms : what a search with name scores adds.

    Raises
    ------
    InvalidInputError
        If an option is none of its choices.
    MissingDependencyError
        If the scorer was asked for by name and something that it needs is not installed.
    EngineError
        If the index was to be on a GPU and does not fit there.
    ModelError
        If the scorer graph is needed and missing or damaged.
    """
    choice = options.scorer
    if choice not in SCORERS:
        raise InvalidInputError(f"scorer: {choice!r} is not one of {', '.join(SCORERS)}", field="scorer")
    if options.placement not in PLACEMENTS:
        raise InvalidInputError(
            f"placement: {options.placement!r} is not one of {', '.join(PLACEMENTS)}", field="placement"
        )
    if choice == "cuda":
        return _on_gpu(segments, constants, options.placement, tie_key, codes, terms)
    if choice == "auto" and options.gpu_encoders:
        try:
            return _on_gpu(segments, constants, options.placement, tie_key, codes, terms)
        except (MissingDependencyError, EngineError) as error:
            logger.warning("the encoders run on a GPU and the scan does not: %s", error)
    kernels = open_kernels(choice, model, constants, verify=options.verify)
    return Scan(segments, kernels, threads=options.threads, tie_key=tie_key, codes=codes, terms=terms)


def _on_gpu(
    segments: Sequence[EntityArrays],
    constants: FoldConstants,
    placement: PlacementChoice,
    tie_key: TieKey | None,
    codes: CodeBook | None,
    terms: ScoreTerms | None,
) -> Ranker:
    for name in ("torch", "triton"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise MissingDependencyError(f"scorer: 'cuda' needs {name} ({error}): {INSTALL}") from error
    from mimic_engine.gpu.scan import CudaScan

    try:
        return CudaScan(
            segments,
            constants,
            device=DEVICE,
            tie_key=tie_key,
            codes=codes,
            placement=placement,
            terms=terms,
        )
    except MissingDependencyError as error:
        raise MissingDependencyError(f"scorer: 'cuda': {error}: {INSTALL}") from error


def open_kernels(
    choice: KernelChoice, model: str | Path, constants: FoldConstants, *, verify: bool = True
) -> ScanKernels:
    """Kernels for the scan of one exported model on the CPU.

    Parameters
    ----------
    choice : "cpu" (compiled), "onnx" (the exported scorer graph), or "auto": compiled where that is
        installed; says so once where it is not.
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
    if choice not in KERNELS:
        raise InvalidInputError(f"scorer: {choice!r} is not one of {', '.join(KERNELS)}", field="scorer")
    if choice != "onnx":
        try:
            return CpuKernels(constants)
        except MissingDependencyError as error:
            if choice == "cpu":
                raise
            logger.warning("scoring with the exported graph, several times slower: %s", error)
    return BlockKernels(OnnxScorer.open(model, verify=verify), constants)
