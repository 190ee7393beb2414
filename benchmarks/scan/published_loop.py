"""The published MIMIC evaluation loop, written anew as it is: the yardstick of speed, the oracle of scores.

Unfolded: fp32 features of every entity stay on the host, and for every batch of
mentions they pass through in chunks of 6,000, all projections redone and the
whole L x L attention materialised. One fault alone is mended: the published
cross-modal unit fails on a batch of one mention or a chunk of one entity.
Follows sections 3.2 and 3.3 of the MIMIC paper (arXiv 2307.09721); imports
nothing of the engine's own model. Axes: B mentions, N entities (n in a chunk),
L text tokens, P image tokens, D unit width.

    python -m benchmarks.scan.published_loop --entities 2000 --batch 8
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.scan.published_inputs import Features, Widths, random_features, random_weights
from mimic_engine.errors import EngineError, InvalidInputError, MimicError
from mimic_engine.provenance import write_result

__all__ = [
    "Features",
    "LoopResult",
    "Widths",
    "published_loop",
    "published_ranks",
    "published_scores",
    "random_features",
    "random_weights",
]

CHUNK = 6000  # entities moved to the device at a time, as published
BATCH = 20  # mentions a batch, as published
LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True, slots=True)
class _Layers:
    """The linear layers and layer norms below one prefix of a state dict, called by name."""

    weights: Mapping[str, Tensor]
    prefix: str

    def linear(self, name: str, x: Tensor) -> Tensor:
        """``x W^T + b`` over the last axis."""
        key = f"{self.prefix}.{name}"
        return functional.linear(x, self.weights[f"{key}.weight"], self.weights[f"{key}.bias"])

    def norm(self, name: str, x: Tensor) -> Tensor:
        """Layer norm over the last axis."""
        weight, bias = (
            self.weights[f"{self.prefix}.{name}.weight"],
            self.weights[f"{self.prefix}.{name}.bias"],
        )
        return functional.layer_norm(x, weight.shape, weight, bias, LAYER_NORM_EPS)

    def normed(self, features: Features) -> Features:
        """The four layer norms before the units."""
        return Features(
            text_cls=self.norm("text_cls_layernorm", features.text_cls),
            text_tokens=self.norm("text_tokens_layernorm", features.text_tokens),
            image_cls=self.norm("image_cls_layernorm", features.image_cls),
            image_tokens=self.norm("image_tokens_layernorm", features.image_tokens),
        )


def _tglu(layers: _Layers, entities: Features, mentions: Features) -> Tensor:
    """Text global-local unit (paper, section 3.3.1), every pair's L x L attention in full; (n, B)."""
    query = layers.linear("fc_query", entities.text_tokens)[:, None]  # (n, 1, L, D)
    key = layers.linear("fc_key", mentions.text_tokens)[None]  # (1, B, L, D)
    value = layers.linear("fc_value", mentions.text_tokens)[None]  # (1, B, L, D)
    attention = torch.matmul(query, key.transpose(-1, -2)) / key.shape[-1] ** 0.5  # (n, B, L, L)
    context = torch.matmul(attention.softmax(-1), value)  # (n, B, L, D)
    context = layers.norm("layer_norm", context.mean(-2))  # (n, B, D)
    g2l = (layers.linear("fc_cls", entities.text_cls)[:, None] * context).sum(-1)  # (n, B)
    g2g = torch.matmul(entities.text_cls, mentions.text_cls.T)  # (n, B)
    return (g2g + g2l) / 2


def _dual(layers: _Layers, query_cls: Tensor, key_cls: Tensor, value_tokens: Tensor) -> Tensor:
    """One direction of the vision dual unit (section 3.3.2), Q queries x K keys; (Q, K)."""
    query = layers.linear("cls_fc", query_cls)[:, None]  # (Q, 1, D)
    key = layers.linear("cls_fc", key_cls)[None]  # (1, K, D)
    value = layers.linear("tokens_fc", value_tokens).mean(1)[None]  # (1, K, D)
    context = layers.linear("fc", layers.norm("add_layer_norm", value + query))  # (Q, K, D)
    gate = torch.tanh(layers.linear("gate_fc", context))  # (Q, K, 1)
    fused = layers.norm("layer_norm", gate * context + key)  # (Q, K, D)
    return (fused * layers.norm("layer_norm", query)).sum(-1)


def _vdlu(weights: Mapping[str, Tensor], entities: Features, mentions: Features) -> Tensor:
    """Vision dual unit: mean of entity -> mention and mention -> entity; (n, B)."""
    ent2men = _Layers(weights, "matcher.vdlu.dual_ent2men")
    men2ent = _Layers(weights, "matcher.vdlu.dual_men2ent")
    forth = _dual(ent2men, entities.image_cls, mentions.image_cls, mentions.image_tokens)  # (n, B)
    back = _dual(men2ent, mentions.image_cls, entities.image_cls, entities.image_tokens)  # (B, n)
    return (forth + back.T) / 2


def _fused(layers: _Layers, side: Features) -> Tensor:
    """One side of the cross-modal unit (section 3.3.3): text attends to image tokens; (rows, D)."""
    text = layers.linear("text_fc", side.text_cls)[:, None]  # (rows, 1, D)
    image = layers.linear("image_fc", side.image_tokens)  # (rows, P, D)
    attention = torch.matmul(text, image.transpose(-1, -2)).softmax(-1)  # (rows, 1, P), not scaled
    context = torch.matmul(attention, image)[
        :, 0
    ]  # (rows, D); the published squeeze() drops a single row here
    text = text[:, 0]  # (rows, D)
    gate = torch.tanh(layers.linear("gate_fc", text))  # (rows, 1)
    return layers.norm("gate_layer_norm", text * gate + context)


def _cmfu(layers: _Layers, entities: Features, mentions: Features) -> Tensor:
    """Cross-modal fusion unit: inner product of both fused sides; (n, B)."""
    return torch.matmul(_fused(layers, entities), _fused(layers, mentions).T)


def _match(weights: Mapping[str, Tensor], mentions: Features, entities: Features) -> dict[str, Tensor]:
    """The published matcher on one chunk, both sides projected from the raw features; four times (B, n)."""
    matcher = _Layers(weights, "matcher")
    mentions, entities = matcher.normed(mentions), matcher.normed(entities)
    tglu = _tglu(_Layers(weights, "matcher.tglu"), entities, mentions).T  # (B, n)
    vdlu = _vdlu(weights, entities, mentions).T  # (B, n)
    cmfu = _cmfu(_Layers(weights, "matcher.cmfu"), entities, mentions).T  # (B, n)
    return {"total": (tglu + vdlu + cmfu) / 3, "tglu": tglu, "vdlu": vdlu, "cmfu": cmfu}


def _checked(weights: Mapping[str, Tensor], mentions: Features, entities: Features, chunk: int) -> None:
    widths, dtype = Widths.of(weights), weights["matcher.tglu.fc_query.weight"].dtype
    mentions.check("mentions", widths, dtype)
    entities.check("entities", widths, dtype)
    if chunk < 1:
        raise InvalidInputError(f"chunk: must be at least 1, got {chunk}")


@torch.no_grad()
def published_scores(
    weights: Mapping[str, Tensor], mentions: Features, entities: Features, chunk: int = CHUNK
) -> dict[str, Tensor]:
    """Scores of one batch of mentions against all entities, as the published evaluation computes them.

    Parameters
    ----------
    weights
        State dict of the published names (``matcher.tglu.fc_query.weight`` ...),
        float32 or float64. Its device is where the matcher runs.
    mentions, entities
        B and N rows of raw features of the same dtype.
    chunk
        Entities scored at a time.

    Returns
    -------
    dict
        ``total``, ``tglu``, ``vdlu`` and ``cmfu``, each (B, N) on the host, in the dtype of the weights.

    Raises
    ------
    ModelError
        If a tensor of the state dict is missing or its shape contradicts the others.
    InvalidInputError
        If the features do not fit the weights, or ``chunk`` is below 1.
    """
    _checked(weights, mentions, entities, chunk)
    device = weights["matcher.tglu.fc_query.weight"].device
    batch = mentions.block(0, len(mentions), device)
    dtype = weights["matcher.tglu.fc_query.weight"].dtype
    scores = {
        name: torch.empty(len(mentions), len(entities), dtype=dtype)
        for name in ("total", "tglu", "vdlu", "cmfu")
    }  # (B, N) each
    for start in range(0, len(entities), chunk):
        part = entities.block(start, min(start + chunk, len(entities)), device)
        for name, block in _match(weights, batch, part).items():
            scores[name][:, start : start + chunk] = block.cpu()
    return scores


@dataclass(frozen=True, slots=True)
class LoopResult:
    """Ranks of all mentions, and the seconds each batch took, features on the host to ranks."""

    ranks: Tensor  # (M,) int64, 1 = best
    batch_seconds: tuple[float, ...]
    pairs: int

    @property
    def pairs_per_s(self) -> float:
        """Mention-entity pairs scored a second, over all batches."""
        return self.pairs / sum(self.batch_seconds)


def published_loop(
    weights: Mapping[str, Tensor],
    mentions: Features,
    entities: Features,
    gold: Tensor,
    *,
    batch: int = BATCH,
    chunk: int = CHUNK,
    clock: Callable[[], float] = time.perf_counter,
) -> LoopResult:
    """Rank every mention's gold entity among all entities, batch by batch, and time each batch.

    A rank is 1 plus the number of other entities that score as high or higher:
    ties count against the model. (The published code sorts twice and so breaks
    ties by the accident of an unstable sort.)

    Parameters
    ----------
    weights, mentions, entities, chunk
        As in :func:`published_scores`; M mentions and N entities.
    gold
        (M,) int64, row of the right entity in ``entities``.
    batch
        Mentions scored at a time.
    clock
        Seconds, for tests.

    Raises
    ------
    InvalidInputError
        As :func:`published_scores`; or ``gold`` has another length or a row outside
        the entities; or there is no mention; or ``batch`` is below 1.
    EngineError
        If a score is not finite.
    """
    if batch < 1:
        raise InvalidInputError(f"batch: must be at least 1, got {batch}")
    if len(mentions) < 1 or gold.shape != (len(mentions),):
        raise InvalidInputError(
            f"gold: shape must be (mentions,), at least (1,); got {tuple(gold.shape)} for {len(mentions)}"
        )
    outside = gold[(gold < 0) | (gold >= len(entities))]
    if len(outside):
        raise InvalidInputError(f"gold: rows must lie in [0, {len(entities)}), got {int(outside[0])}")
    ranks, seconds = [], []
    for start in range(0, len(mentions), batch):
        begin = clock()
        part = mentions.block(start, min(start + batch, len(mentions)))
        total = published_scores(weights, part, entities, chunk)["total"]  # (B, N)
        if not bool(torch.isfinite(total).all()):
            raise EngineError(f"scores of mentions {start}:{start + len(part)} are not all finite")
        best = total.gather(1, gold[start : start + batch, None])  # (B, 1)
        ranks.append((total >= best).sum(1))  # (B,), the gold entity itself makes it 1-based
        seconds.append(clock() - begin)
    return LoopResult(torch.cat(ranks), tuple(seconds), len(mentions) * len(entities))


def published_ranks(
    weights: Mapping[str, Tensor],
    mentions: Features,
    entities: Features,
    gold: Tensor,
    *,
    batch: int = BATCH,
    chunk: int = CHUNK,
) -> Tensor:
    """1-based ranks of the gold entities, (M,) int64, ties counted against us; see :func:`published_loop`."""
    return published_loop(weights, mentions, entities, gold, batch=batch, chunk=chunk).ranks


def _check_against_float64(weights: Mapping[str, Tensor], mentions: Features, entities: Features) -> float:
    """Largest difference of the total from float64 on a few pairs; EngineError above fp32 rounding."""
    few_m, few_e = mentions.block(0, 3), entities.block(0, 7)
    fast = published_scores(weights, few_m, few_e)["total"]  # (3, 7)
    double = {name: value.double() for name, value in weights.items()}
    exact = published_scores(double, few_m.to(torch.float64), few_e.to(torch.float64))["total"]  # (3, 7)
    error = float((fast.double() - exact).abs().max())
    limit = 1e-5 * max(1.0, float(exact.abs().max()))
    if error > limit:
        raise EngineError(f"float32 scores differ from float64 by {error:.2e}, the limit is {limit:.2e}")
    return error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scan.published_loop", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "--entities", type=int, required=True, metavar="N", help="103,552 bytes of memory each"
    )
    parser.add_argument(
        "--batch", type=int, default=BATCH, metavar="B", help="mentions a batch (%(default)s)"
    )
    parser.add_argument("--batches", type=int, default=3, help="batches timed (%(default)s)")
    parser.add_argument("--chunk", type=int, default=CHUNK, help="entities a chunk (%(default)s)")
    parser.add_argument("--threads", type=int, help="torch's intra-op threads (default: torch's own choice)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="where the matcher runs (%(default)s)")
    parser.add_argument("--out", type=Path, help="also write a result file here")
    return parser


def _run(args: argparse.Namespace) -> dict[str, object]:
    """Time the loop on random CLIP-sized input; the payload of a result file."""
    for name in ("entities", "batch", "batches", "chunk", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise InvalidInputError(f"--{name}: must be at least 1, got {value}")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    weights = random_weights(seed=args.seed)
    entities = random_features(args.entities, seed=args.seed + 1)
    mentions = random_features(args.batch * args.batches, seed=args.seed + 2)
    gold = torch.arange(len(mentions)) % len(entities)
    error = _check_against_float64(weights, mentions, entities)
    weights = {name: value.to(args.device) for name, value in weights.items()}
    published_scores(weights, mentions.block(0, 1), entities.block(0, 16), args.chunk)  # warm-up
    result = published_loop(weights, mentions, entities, gold, batch=args.batch, chunk=args.chunk)
    return {
        "n": args.entities,
        "b": args.batch,
        "batches": args.batches,
        "chunk": args.chunk,
        "device": args.device,
        "threads": torch.get_num_threads(),
        "pairs_per_s": result.pairs_per_s,
        "ms_per_batch_min": 1e3 * min(result.batch_seconds),
        "ms_per_batch": [1e3 * seconds for seconds in result.batch_seconds],
        "features_bytes_per_entity": entities.values_per_row * 4,
        "max_abs_error_vs_float64": error,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; prints pairs a second and the time of a batch. Returns the exit status."""
    args = _parser().parse_args(argv)
    try:
        payload = _run(args)
        print(
            f"published loop: {payload['pairs_per_s']:,.0f} pairs/s, "
            f"best batch {payload['ms_per_batch_min']:,.1f} ms "
            f"(N = {args.entities:,}, B = {args.batch}, {payload['threads']} threads)"
        )
        if args.out is not None:
            print(write_result(args.out, payload))
    except MimicError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
