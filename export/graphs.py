"""The five graphs of a model as PyTorch modules with named inputs and outputs, and their fp32 ONNX export.

Two encoders, two folds and the scorer, under the names of
:mod:`mimic_engine.encoding.graph_names`. The first axis of every array is of
any length. Precision is :mod:`mimic_engine.export.precision`'s matter.
"""

from __future__ import annotations

import ast
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from mimic_engine.encoding.buckets import LENGTH
from mimic_engine.encoding.graph_names import (
    CLS,
    ENTITY,
    ENTITY_FOLD,
    FEATURES,
    IMAGE_ENCODER,
    MASK,
    MENTION,
    MENTION_FOLD,
    PIXELS,
    SCORER,
    TEXT_ENCODER,
    TEXT_INPUTS,
    TOKENS,
    TOTAL,
)
from mimic_engine.model.encoders import Encoder
from mimic_engine.model.fold import FoldEntity, FoldMention, fold_constants
from mimic_engine.model.folded_scorer import FoldedScorer
from mimic_engine.model.units import Mimic
from mimic_engine.types import FoldConstants

OPSET = 20  # from 23 on attention becomes one operator, which TensorRT refuses in fp32
BATCH, ROWS = "batch", "rows"  # names of the free first axes: mentions, entities


@dataclass(frozen=True)
class Graph:
    """A module whose inputs and outputs have names and a free first axis, those of texts perhaps a second."""

    name: str
    module: nn.Module
    inputs: Mapping[str, Tensor]  # examples, more than one row each
    outputs: tuple[str, ...]
    axes: Mapping[str, str]  # input -> name of its first axis
    longest: int | None = None  # tokens; where given, the second axis of every input is free up to it

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs of the PyTorch module, by name."""
        with torch.no_grad():
            values = self.module(*(inputs[name] for name in self.inputs))
        return dict(zip(self.outputs, values, strict=True))


class TextGraph(nn.Module):
    """Token ids (B, L) int64 -> cls (B, T), tokens (B, L, token width)."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Global and local text features."""
        out = self.encoder.text_backbone(input_ids, attention_mask, token_type_ids)
        return out.cls, out.tokens


class ImageGraph(nn.Module):
    """Pixels (B, 3, S, S) -> cls (B, D), tokens (B, P, D), projected."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Global and local image features of width D."""
        out = self.encoder.project_image(self.encoder.image_backbone(pixels))
        return out.cls, out.tokens


class FoldGraph(nn.Module):
    """A fold whose arrays come out in order."""

    def __init__(self, fold: FoldMention | FoldEntity) -> None:
        super().__init__()
        self.fold = fold

    def forward(
        self,
        text_cls: Tensor,
        text_tokens: Tensor,
        text_mask: Tensor,
        image_cls: Tensor,
        image_tokens: Tensor,
    ) -> tuple[Tensor, ...]:
        """Folded arrays in the order of the fold's dictionary."""
        return tuple(self.fold(text_cls, text_tokens, text_mask, image_cls, image_tokens).values())


class ScorerGraph(nn.Module):
    """The folded scorer with its arrays as positional inputs."""

    def __init__(self, constants: FoldConstants, mention: tuple[str, ...], entity: tuple[str, ...]) -> None:
        super().__init__()
        self.scorer = FoldedScorer(constants)
        self.mention = mention
        self.entity = entity

    def forward(self, *arrays: Tensor) -> tuple[Tensor, ...]:
        """Mention arrays, then entity arrays -> total and unit scores, (B, N) each."""
        split = len(self.mention)
        out = self.scorer(
            dict(zip(self.mention, arrays[:split], strict=True)),
            dict(zip(self.entity, arrays[split:], strict=True)),
        )
        return out.total, *out.units.values()


def model_graphs(model: Mimic) -> dict[str, Graph]:
    """The five graphs of a model in eval mode, with example inputs, by name."""
    model.eval()
    constants = fold_constants(model.matcher)
    text = _text_graph(model, rows=3)
    image = _image_graph(model, rows=3)
    folds = {
        MENTION_FOLD: _fold_graph(MENTION_FOLD, MENTION, FoldMention(model.matcher), BATCH, text, image),
        ENTITY_FOLD: _fold_graph(ENTITY_FOLD, ENTITY, FoldEntity(model.matcher), ROWS, text, image),
    }
    return (
        {TEXT_ENCODER: text, IMAGE_ENCODER: image}
        | folds
        | {SCORER: _scorer_graph(constants, *folds.values())}
    )


def _text_graph(model: Mimic, rows: int) -> Graph:
    length = model.config.text.max_length
    ids = torch.ones(rows, length, dtype=torch.int64)
    mask = torch.ones_like(
        ids
    )  # a tensor of its own: the exporter takes one tensor given twice for one input
    mask[:, length // 2 :] = 0
    inputs = dict(zip(TEXT_INPUTS, (ids, mask, torch.zeros_like(ids)), strict=True))
    module = TextGraph(model.encoder).eval()
    longest = length if ignores_padding(model) else None
    return Graph(TEXT_ENCODER, module, inputs, (CLS, TOKENS), dict.fromkeys(inputs, BATCH), longest)


def ignores_padding(model: Mimic) -> bool:
    """Whether no score depends on the states of padding tokens, so that texts may be cut to their length.

    The encoders mask padding themselves, and pool over real tokens; only TGLU reads the states of all
    tokens, unless it masks padding, too. The published weights were trained with all of them.
    """
    matcher = model.config.matcher
    return matcher.mask_padding or not matcher.tglu


def _image_graph(model: Mimic, rows: int) -> Graph:
    size = model.config.image.size
    inputs = {PIXELS: torch.zeros(rows, 3, size, size, dtype=_dtype(model))}
    module = ImageGraph(model.encoder).eval()
    return Graph(IMAGE_ENCODER, module, inputs, (CLS, TOKENS), {PIXELS: BATCH})


def _dtype(model: Mimic) -> torch.dtype:
    return next(model.parameters()).dtype


def _fold_graph(
    name: str, prefix: str, fold: FoldMention | FoldEntity, axis: str, text: Graph, image: Graph
) -> Graph:
    text_out, image_out = text.run(text.inputs), image.run(image.inputs)
    mask = text.inputs[MASK].to(text_out[CLS].dtype)
    shared = (text_out[CLS], text_out[TOKENS], mask, image_out[CLS], image_out[TOKENS])
    values = tuple(t.clone() for t in shared)  # the exporter takes views of one memory for one input
    inputs = dict(zip(FEATURES, values, strict=True))
    with torch.no_grad():
        outputs = tuple(prefix + array for array in fold(*values))
    return Graph(name, FoldGraph(fold).eval(), inputs, outputs, dict.fromkeys(inputs, axis))


def _scorer_graph(constants: FoldConstants, mention_fold: Graph, entity_fold: Graph) -> Graph:
    mention = mention_fold.run({k: v[:2] for k, v in mention_fold.inputs.items()})  # another length than rows
    entity = entity_fold.run(entity_fold.inputs)
    inputs = mention | entity
    axes = {name: BATCH if name.startswith(MENTION) else ROWS for name in inputs}
    names = (tuple(k.removeprefix(MENTION) for k in mention), tuple(k.removeprefix(ENTITY) for k in entity))
    module = ScorerGraph(constants, *names).eval()
    return Graph(SCORER, module, inputs, (TOTAL, *constants.units), axes)


def export_fp32(graph: Graph) -> onnx.ModelProto:
    """Trace a graph once for every number of rows and translate it to ONNX, float32."""
    free = {axis: torch.export.Dim(axis, min=1, max=2**20) for axis in set(graph.axes.values())}
    shapes: Any = tuple({0: free[graph.axes[name]]} for name in graph.inputs)
    if graph.longest is not None:
        length = torch.export.Dim(LENGTH, min=2, max=graph.longest)
        shapes = tuple(shape | {1: length} for shape in shapes)
    if graph.name == SCORER:
        shapes = (shapes,)  # its inputs arrive as *arrays
    # The exporter logs every operator of torchvision, which none of the graphs uses, as skipped.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    for name in ("onnx_ir", "onnxscript"):  # a line for every node that they merge
        logging.getLogger(name).setLevel(logging.WARNING)
    with torch.no_grad(), warnings.catch_warnings():
        # torch warns about its own use of a deprecated class, and that two inputs share an axis: intended.
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
        warnings.filterwarnings("ignore", message=".*# The axis name: .* will not be used.*")
        program = torch.onnx.export(
            graph.module,
            tuple(graph.inputs.values()),
            dynamo=True,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=shapes,
            opset_version=OPSET,
            verbose=False,
        )
    if program is None:
        raise RuntimeError(f"torch.onnx.export gave nothing for {graph.name}")
    return _without_traces(program.model_proto)


def _without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop the exporter's notes: stack traces with this machine's paths, larger than a small graph.

    Of them only the place in the model stays, in front of a node's name ("encoder.text...layer.0/MatMul_3").
    """
    g = model.graph
    for node in g.node:
        scopes = {p.key: p.value for p in node.metadata_props}.get("pkg.torch.onnx.name_scopes", "[]")
        path = [s for s in ast.literal_eval(scopes)[:-1] if s and not s.startswith("_")]
        node.name = "/".join((*path[-1:], node.name.removeprefix("node_")))
    for part in (model, g, *g.node, *g.value_info, *g.input, *g.output, *g.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return model
