"""What a configuration costs: parameters, multiply-adds, bytes of the index, time of a scan and of training.

Multiply-adds are those of matrix products (element-wise work is left out), at
the full text length. The pair is that of the folded scores (section 3.3 of the
paper, folded as in :mod:`mimic_engine.model.fold`).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mimic_engine.errors import EngineError
from mimic_engine.index.layout import stored_dtype, trailing_shapes
from mimic_engine.model.encoders import Vectors
from mimic_engine.model.fold import FoldEntity, FoldMention, fold_constants
from mimic_engine.model.folded_scorer import FoldedScorer
from mimic_engine.model.matcher import Features
from mimic_engine.model.mimic import Mimic
from mimic_engine.train.encode import RecordEncoder, fold_entities, fold_mentions
from mimic_engine.train.optimiser import HEADS
from mimic_engine.train.ranking import entity_scan

INDEX_DTYPE = "float16"  # the index's default
TOP_K = 10
TIMED_MENTIONS = 15


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one run. The scan is the exact one of a single mention, the median over a few, on this machine."""

    parameters: int  # of projections and matcher, those that the score depends on
    pair_multiply_adds: int
    fold_multiply_adds: int  # of one entity, its encoders' output given
    index_bytes_per_entity: int  # of an index in INDEX_DTYPE
    scan_ms: float
    scan_entities: int
    scan_threads: int
    scorer: str
    train_seconds: float  # validations included
    step_seconds: float  # median over the epochs, validations left out

    def to_json(self) -> dict[str, Any]:
        """Every field by its name."""
        return asdict(self)


def measure_cost(encode: RecordEncoder, rows: Sequence[Mapping[str, float]], batch_size: int) -> Cost:
    """Count and time a trained model.

    Parameters
    ----------
    encode : around the model; its corpus has a split "dev".
    rows : the run's log, one an epoch.
    batch_size : entities that are folded at a time.

    Raises
    ------
    EngineError
        If a score is not finite, or the timed scan does not give the best scores.
    """
    model = encode.model.eval()
    scan_ms, threads, scorer = _time_scan(encode, batch_size)
    return Cost(
        parameters=used_parameters(encode),
        pair_multiply_adds=pair_multiply_adds(encode),
        fold_multiply_adds=fold_multiply_adds(model, encode),
        index_bytes_per_entity=index_bytes_per_entity(encode),
        scan_ms=scan_ms,
        scan_entities=len(encode.corpus.names),
        scan_threads=threads,
        scorer=scorer,
        train_seconds=rows[-1]["seconds"],
        step_seconds=statistics.median(row["step_seconds"] for row in rows),
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
    raw = _raw_picture(model, features)
    needs_picture = model.matcher.config.vision != "off" or model.matcher.config.cmfu
    projection = _multiply_adds(lambda: model.encoder.project_image(raw)) if needs_picture else 0
    return projection + _multiply_adds(lambda: fold(*features))


def index_bytes_per_entity(encode: RecordEncoder) -> int:
    """Bytes of one entity's folded arrays in an index of INDEX_DTYPE; names and metadata left out."""
    one = fold_entities(encode, encode.corpus.entities[:1], 1)
    return sum(
        math.prod(shape) * stored_dtype(name, INDEX_DTYPE).itemsize
        for name, shape in trailing_shapes(one).items()
    )


def _time_scan(encode: RecordEncoder, batch_size: int) -> tuple[float, int, str]:
    """Milliseconds of an exact scan for a mention, threads, and the kernels' name."""
    dev = encode.corpus.splits["dev"].records
    chosen = np.unique(np.linspace(0, len(dev) - 1, TIMED_MENTIONS).astype(np.int64))
    mentions = fold_mentions(encode, dev[chosen], batch_size)
    times = []
    with entity_scan(encode, batch_size) as scan:
        k = min(TOP_K, len(scan))
        scan.search(mentions.block(0, 1), k, mode="exact")  # warms up
        for row in range(mentions.rows):
            mention = mentions.block(row, row + 1)
            start = time.perf_counter()
            found = scan.search(mention, k, mode="exact")
            times.append(time.perf_counter() - start)
            best = np.sort(scan.totals(mention)[0])[::-1][:k]
            if not np.allclose(found.scores[0], best, rtol=1e-4, atol=1e-4):
                raise EngineError(f"the timed scan gave {found.scores[0]}, the best scores are {best}")
        return statistics.median(times) * 1e3, scan.threads, scan.scorer_name


def _multiply_adds(work: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() // 2


def _raw_picture(model: Mimic, features: Features) -> Vectors:
    encoder, patches = model.encoder, features.image_tokens.shape[1]
    like = features.image_cls

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=like.dtype, device=like.device)

    return Vectors(
        zeros(1, encoder.image_cls_fc.in_features), zeros(1, patches, encoder.image_tokens_fc.in_features)
    )


def _length(encode: RecordEncoder) -> int:
    return int(encode.corpus.tokens.input_ids.shape[1])
