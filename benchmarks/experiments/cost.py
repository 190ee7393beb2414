"""Cost of a configuration, counted: parameters, multiply-adds, bytes of the index. Times are in timing.py.

Multiply-adds are those of matrix products (element-wise work is left out), at
the full text length. The pair is that of the folded scores (section 3.3 of the
paper, folded as in :mod:`mimic_engine.model.fold`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mimic_engine.index.schema import stored_dtype, trailing_shapes
from mimic_engine.model.checkpoint import HEADS
from mimic_engine.model.encoders import Vectors
from mimic_engine.model.fold import FoldEntity, FoldMention, fold_constants
from mimic_engine.model.folded_scorer import FoldedScorer
from mimic_engine.model.units import Features, Mimic
from mimic_engine.train.encode import RecordEncoder, fold_entities

INDEX_DTYPE = "float16"  # the index's default


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one run's model."""

    parameters: int  # of projections and matcher, those that the score depends on
    pair_multiply_adds: int
    fold_multiply_adds: int  # of one entity, its encoders' output given
    index_bytes_per_entity: int  # of an index in INDEX_DTYPE

    def to_json(self) -> dict[str, Any]:
        """Every field by its name."""
        return asdict(self)


def count_cost(encode: RecordEncoder) -> Cost:
    """The cost of the model that ``encode`` runs."""
    model = encode.model.eval()
    return Cost(
        parameters=used_parameters(encode),
        pair_multiply_adds=pair_multiply_adds(encode),
        fold_multiply_adds=fold_multiply_adds(model, encode),
        index_bytes_per_entity=index_bytes_per_entity(encode),
    )


def used_parameters(encode: RecordEncoder) -> int:
    """Parameters of projections and matcher that the total score has a gradient for."""
    model = encode.model
    model.zero_grad(set_to_none=True)
    records = encode.corpus.entities[:2]
    model.matcher(encode(records), encode(records)).total.sum().backward()
    used = sum(
        p.numel() for name, p in model.named_parameters() if name.startswith(HEADS) and p.grad is not None
    )
    model.zero_grad(set_to_none=True)
    return used


@torch.no_grad()
def pair_multiply_adds(encode: RecordEncoder) -> int:
    """Multiply-adds of scoring one folded mention against one folded entity."""
    features = encode(encode.corpus.entities[:1], _length(encode))
    matcher = encode.model.matcher
    mention, entity = FoldMention(matcher)(*features), FoldEntity(matcher)(*features)
    return _multiply_adds(lambda: FoldedScorer(fold_constants(matcher))(mention, entity))


@torch.no_grad()
def fold_multiply_adds(model: Mimic, encode: RecordEncoder) -> int:
    """Multiply-adds of projecting and folding one entity from its encoders' output."""
    features = encode(encode.corpus.entities[:1], _length(encode))
    fold = FoldEntity(model.matcher)
    raw = _raw_image(model, features)
    needs_image = model.matcher.config.vision != "off" or model.matcher.config.cmfu
    projection = _multiply_adds(lambda: model.encoder.project_image(raw)) if needs_image else 0
    return projection + _multiply_adds(lambda: fold(*features))


def index_bytes_per_entity(encode: RecordEncoder) -> int:
    """Bytes of one entity's folded arrays in an index of INDEX_DTYPE; names and metadata left out."""
    one = fold_entities(encode, encode.corpus.entities[:1], 1)
    return sum(
        math.prod(shape) * stored_dtype(name, INDEX_DTYPE).itemsize
        for name, shape in trailing_shapes(one).items()
    )


def _multiply_adds(work: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() // 2


def _raw_image(model: Mimic, features: Features) -> Vectors:
    encoder, patches = model.encoder, features.image_tokens.shape[1]
    like = features.image_cls

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=like.dtype, device=like.device)

    return Vectors(
        zeros(1, encoder.image_cls_fc.in_features), zeros(1, patches, encoder.image_tokens_fc.in_features)
    )


def _length(encode: RecordEncoder) -> int:
    return int(encode.corpus.tokens.input_ids.shape[1])
