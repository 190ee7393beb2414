"""The engine's side of a comparison with the published loop: the same weights and features, folded.

Turns a published state dict and raw features (:mod:`benchmarks.scan.published_inputs`)
into the engine's matcher, folded arrays and scorers, and says whether two
top-k lists agree. Times nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.scan.published_inputs import Features, Widths
from mimic_engine.config import MatcherConfig
from mimic_engine.encoding.graph_names import ENTITY, MENTION, SCORER, TOTAL
from mimic_engine.encoding.manifest import GraphEntry, StoredFile
from mimic_engine.encoding.onnx import OnnxGraph
from mimic_engine.errors import EngineError, InvalidInputError
from mimic_engine.export.graphs import BATCH, ROWS, Graph, ScorerGraph, export_fp32
from mimic_engine.index.schema import stored_dtype
from mimic_engine.kernels.reference import NumpyScorer
from mimic_engine.model.fold import FoldEntity, FoldMention
from mimic_engine.model.units import Matcher
from mimic_engine.scan.base import ScanKernels, Scorer
from mimic_engine.scan.blocks import BlockKernels, OnnxScorer
from mimic_engine.scan.cpu import CpuKernels
from mimic_engine.scan.torch import TorchScorer
from mimic_engine.types import Array, EntityArrays, FoldConstants, MentionArrays

BACKENDS = ("cpu", "onnx", "numpy", "torch")
# How far two scores may lie apart and still be told the wrong way round: totals reach 40 in magnitude,
# float32 sums differ by some 2e-5 there, half-precision vectors by some 5e-3.
TOLERANCES = {"float32": 1e-4, "float16": 2e-2}
ROWS_PER_FOLD = 256  # raw features of 26 MB


def load_matcher(weights: Mapping[str, Tensor]) -> Matcher:
    """The engine's matcher with published weights (float32), in eval mode.

    Raises
    ------
    ModelError
        If the state dict lacks a tensor or its shapes contradict each other.
    """
    widths = Widths.of(weights)
    matcher = Matcher(MatcherConfig(widths.text_cls, widths.text_tokens, widths.tglu))
    state = {k.removeprefix("matcher."): v for k, v in weights.items() if k.startswith("matcher.")}
    # Widths.of has found all but the norm that nothing uses: its place is filled where it is absent.
    matcher.load_state_dict(matcher.state_dict() | state)
    return matcher.eval()


def fold_mentions(matcher: Matcher, mentions: Features) -> MentionArrays:
    """Raw features of B mentions to folded arrays, float32."""
    return MentionArrays(**_fold(FoldMention(matcher), mentions, "float32"))


def fold_entities(matcher: Matcher, entities: Features, dtype: str = "float32") -> EntityArrays:
    """Raw features of N entities to folded arrays as an index of ``dtype`` stores them."""
    return EntityArrays(**_fold(FoldEntity(matcher), entities, dtype))


@torch.no_grad()
def _fold(fold: FoldMention | FoldEntity, features: Features, dtype: str) -> dict[str, Array]:
    out: dict[str, Array] = {}
    for start in range(0, len(features), ROWS_PER_FOLD):
        part = features.block(start, min(start + ROWS_PER_FOLD, len(features)))
        mask = torch.ones(part.text_tokens.shape[:2])  # (n, L); the published code masks nothing
        folded = fold(part.text_cls, part.text_tokens, mask, part.image_cls, part.image_tokens)
        for name, value in folded.items():
            if name not in out:
                out[name] = np.empty((len(features), *value.shape[1:]), stored_dtype(name, dtype))
            out[name][start : start + len(part)] = value.numpy()
    return out


def nbytes(arrays: EntityArrays) -> int:
    """Bytes that the arrays hold."""
    return sum(array.nbytes for _, array in arrays.items())


def make_kernels(
    backend: str, constants: FoldConstants, mentions: MentionArrays, entities: EntityArrays, folder: Path
) -> ScanKernels:
    """Kernels of one of :data:`BACKENDS`; the ONNX graph is exported into ``folder``.

    Parameters
    ----------
    backend : "cpu", "onnx", "numpy" or "torch".
    constants : of the matcher that folded the arrays.
    mentions, entities : arrays of the shapes to be scored; their numbers do not matter.

    Raises
    ------
    InvalidInputError
        If the backend is none of these.
    """
    scorer: Scorer
    match backend:
        case "cpu":
            return CpuKernels(constants)
        case "onnx":
            scorer = _export_scorer(constants, mentions, entities, folder)
        case "numpy":
            scorer = NumpyScorer(constants)
        case "torch":
            scorer = TorchScorer(constants)
        case _:
            raise InvalidInputError(f"backend: {backend!r} is not one of {', '.join(BACKENDS)}")
    return BlockKernels(scorer, constants)


def _export_scorer(
    constants: FoldConstants, mentions: MentionArrays, entities: EntityArrays, folder: Path
) -> OnnxScorer:
    """The scorer graph alone, as an exported model holds it."""
    examples = {MENTION + k: torch.from_numpy(_rows(a, 2)) for k, a in mentions.items()}
    examples |= {ENTITY + k: torch.from_numpy(_rows(a, 3)) for k, a in entities.items()}
    axes = {name: BATCH if name.startswith(MENTION) else ROWS for name in examples}
    names = (tuple(k for k, _ in mentions.items()), tuple(k for k, _ in entities.items()))
    module = ScorerGraph(constants, *names).eval()
    proto = export_fp32(Graph(SCORER, module, examples, (TOTAL, *constants.units), axes))
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save_model(proto, folder / "scorer.onnx")
    inputs, outputs = (
        {v.name: tuple(d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim) for v in values}
        for values in (proto.graph.input, proto.graph.output)
    )
    entry = GraphEntry.of(StoredFile.of(folder, "scorer.onnx"), inputs, outputs)
    return OnnxScorer(OnnxGraph(folder / "scorer.onnx", entry, threads=1))


def _rows(array: Array, rows: int) -> Array:
    """``rows`` example rows; two axes need different lengths for the exporter to keep them apart."""
    return np.resize(array, (rows, *array.shape[1:])).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How the engine's top-k lists compare with those of the published loop."""

    identical: float  # fraction of mentions with the same ids in the same order
    worst_gap: float  # largest amount by which the loop prefers what it has at a place to what the engine has

    def check(self, tolerance: float) -> None:
        """Raise EngineError unless every difference lies between scores within ``tolerance``."""
        if not self.worst_gap <= tolerance:
            raise EngineError(
                f"top-k: places differ by {self.worst_gap:.2e} in the published loop's scores, "
                f"the limit is {tolerance:.2e}"
            )


def compare_top_k(rows: NDArray[np.int64], reference: NDArray[np.floating]) -> Agreement:
    """Compare the engine's ranked rows (B, K) with all reference scores (B, N)."""
    k = rows.shape[1]
    best = np.argsort(-reference, axis=1, kind="stable")[:, :k]  # (B, K)
    gap = np.abs(np.take_along_axis(reference, best, 1) - np.take_along_axis(reference, rows, 1))  # (B, K)
    return Agreement(float((rows == best).all(1).mean()), float(gap.max()))


def check_ranks(
    ranks: NDArray[np.int64], reference: NDArray[np.floating], gold: NDArray[np.int64], tolerance: float
) -> float:
    """Compare the engine's ranks (B,) of ``gold`` with those of all reference scores (B, N).

    Returns
    -------
    float
        Fraction of mentions with the same rank, ties counted against the gold entity.

    Raises
    ------
    EngineError
        If a rank is not explained by scores within ``tolerance`` of the gold entity's.
    """
    own = reference[np.arange(len(gold)), gold][:, None]  # (B, 1)
    least = (reference >= own + tolerance).sum(1) + 1  # (B,)
    most = (reference >= own - tolerance).sum(1)  # (B,)
    wrong = np.flatnonzero((ranks < least) | (ranks > most))
    if len(wrong):
        b = int(wrong[0])
        raise EngineError(
            f"rank of mention {b}: {ranks[b]}, the published loop's lies in [{least[b]}, {most[b]}]"
        )
    return float((ranks == (reference >= own).sum(1)).mean())
