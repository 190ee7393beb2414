"""Every GPU kernel against its readable twin on fresh random input, before anything is timed.

The twins are the NumPy references in float64. A check returns the largest error
relative to the largest reference value, and fails above its limit; what a
kernel should not have written must still hold the poison it was given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.gpu.data import Book, World, cluster, fold_entities, fold_mentions
from mimic_engine.errors import EngineError
from mimic_engine.kernels.coded_tglu import coded_table, coded_tglu, table_shape
from mimic_engine.kernels.coded_tglu_ref import coded_context_ref, tables_ref
from mimic_engine.kernels.cone_bound import Cones, cone_axes, cone_bound
from mimic_engine.kernels.cone_bound_ref import cone_norm_bound, cone_of
from mimic_engine.kernels.gated_units import gated_units, global_entities, pack_globals
from mimic_engine.kernels.reference import g2l_ref, normed_ref, scores_ref
from mimic_engine.kernels.stream_topk import NOTHING, check_k, key_room, top_keys, top_keys_ref, unpack_keys
from mimic_engine.kernels.tglu_attention import TextMentions, pack_text, tglu_attention
from mimic_engine.types import EntityArrays, MentionArrays

Floats = NDArray[np.floating]
LIMITS = {"float32": 2e-5, "float16": 2e-3, "int8": 2e-3}  # of the attention kernel, relative


@dataclass(frozen=True, slots=True)
class Check:
    """One kernel compared with its twin."""

    kernel: str
    dtype: str
    n: int
    b: int
    error: float  # relative to the largest value of the twin
    limit: float

    @property
    def passed(self) -> bool:
        """False for NaN too."""
        return bool(self.error <= self.limit)


@dataclass(frozen=True, slots=True)
class Case:
    """B mentions and N stored entities, on the host and on the device."""

    world: World
    dtype: str
    mentions: MentionArrays
    entities: EntityArrays
    mention: dict[str, Tensor]
    entity: dict[str, Tensor]

    @classmethod
    def make(cls, world: World, dtype: str, n: int, b: int, seed: int) -> Case:
        """Fresh input."""
        entities = fold_entities(world, n, dtype)
        gold = torch.randint(0, n, (b,), generator=torch.Generator().manual_seed(seed))
        mentions = fold_mentions(world, gold, seed)
        return cls(
            world, dtype, mentions, entities, _device(mentions, world.device), _device(entities, world.device)
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(B, N)."""
        return self.mentions.rows, self.entities.rows

    def text(self) -> TextMentions:
        """The mentions' text side, packed for the queries' storage type."""
        stored = self.entity["tglu_query"].dtype
        work = torch.float16 if stored == torch.int8 else stored
        return pack_text(self.mention["tglu_key"], self.mention["tglu_value"], None, work)

    def poison(self, *shape: int) -> Tensor:
        """An output that no kernel has written to."""
        return torch.full(shape or self.shape, torch.nan, device=self.world.device)


def run_checks(world: World, sizes: tuple[tuple[int, int], ...], seed: int) -> Iterator[Check | Exception]:
    """All checks at all sizes (N, B), in all storage types; an exception where a check could not be run."""
    for dtype in ("float16", "float32", "int8"):
        for n, b in sizes:
            case = Case.make(world, dtype, n, b, seed)
            for check in _CHECKS:
                try:
                    yield from check(case)
                except Exception as error:  # the others still run
                    yield EngineError(
                        f"{check.__name__} {dtype} n={n} b={b}: {type(error).__name__}: {error}"
                    )


def _tglu_attention(case: Case) -> Iterator[Check]:
    reference = g2l_ref(_wide(case.mentions), _wide(case.entities), case.world.constants)
    entity, out = case.entity, case.poison()
    arguments: dict[str, Any] = {"scale": entity.get("tglu_query_scale")}
    tglu_attention(
        case.text(), entity["tglu_query"], entity["tglu_cls"], entity["tglu_bias"], out, **arguments
    )
    yield _compared("tglu_attention", case, out, reference, LIMITS[case.dtype])
    rows, counts = _lists(case)
    listed = case.poison(*rows.shape)
    tglu_attention(
        case.text(), entity["tglu_query"], entity["tglu_cls"], entity["tglu_bias"], listed,
        rows=rows, counts=counts, **arguments,
    )  # fmt: skip
    yield _compared_lists("tglu_attention listed", case, listed, reference, rows, counts, LIMITS[case.dtype])


def _gated_units(case: Case) -> Iterator[Check]:
    mention, entity = _wide(case.mentions), _wide(case.entities)
    units = scores_ref(mention, entity, case.world.constants).units
    assert mention.text_cls is not None and entity.text_cls is not None
    reference = (mention.text_cls @ entity.text_cls.T / 2 + units["vdlu"] + units["cmfu"]) / 3
    packed = pack_globals(case.mention, case.entity["text_cls"].dtype)
    out = case.poison()
    gated_units(packed, global_entities(case.entity), case.world.constants, out)
    yield _compared("gated_units", case, out, reference, 2e-5)
    rows, counts = _lists(case)
    listed = case.poison(*rows.shape)
    gated_units(packed, global_entities(case.entity), case.world.constants, listed, rows=rows, counts=counts)
    yield _compared_lists("gated_units listed", case, listed, reference, rows, counts, 2e-5)


def _coded_tglu(case: Case) -> Iterator[Check]:
    if case.dtype == "int8":
        return
    book: Book = cluster(case.world, case.entities, 256)
    mention, entity = _wide(case.mentions), _wide(case.entities)
    context = coded_context_ref(tables_ref(mention, book.centroids.astype(float)), book.segments[0], None)
    reference = normed_ref(context, entity, case.world.constants)
    text, device = case.text(), case.world.device
    table = torch.full(table_shape(text, 256), torch.nan, dtype=torch.float16, device=device)
    coded_table(text, torch.from_numpy(book.centroids).to(device), table)
    codes = torch.from_numpy(np.array(book.segments[0].T, order="C")).to(device)
    out = case.poison()
    coded_tglu(text, table, codes, case.entity["tglu_cls"], case.entity["tglu_bias"], out)
    yield _compared("coded_tglu", case, out, reference, 5e-3)


def _cone_bound(case: Case) -> Iterator[Check]:
    """How far a score exceeds its bound (never), and how far a bound falls below the theorem's best."""
    entity, out, above = case.entity, case.poison(), case.poison()
    tglu_attention(
        case.text(), entity["tglu_query"], entity["tglu_cls"], entity["tglu_bias"], out,
        scale=entity.get("tglu_query_scale"),
    )  # fmt: skip
    cones = Cones.empty(case.text(), entity["tglu_cls"].dtype)
    cone_axes(case.text(), cones)
    cone_bound(cones, entity["tglu_cls"], entity["tglu_bias"], above)
    excess = float((out - above).max().clamp(min=0))
    yield Check("cone_bound >= score", case.dtype, case.shape[1], case.shape[0], excess, 0.0)
    u = entity["tglu_cls"].double().cpu().numpy()
    assert case.mentions.tglu_value is not None
    best = np.stack([cone_norm_bound(cone_of(v), u, sweeps=30) for v in case.mentions.tglu_value])
    least = np.sqrt(u.shape[1]) * best + entity["tglu_bias"].double().cpu().numpy()
    short = np.maximum(least - above.double().cpu().numpy(), 0).max() / np.abs(least).max()
    yield Check("cone_bound >= projection", case.dtype, case.shape[1], case.shape[0], float(short), 1e-6)


def _stream_topk(case: Case) -> Iterator[Check]:
    if case.dtype != "float16":
        return
    device, (b, n) = case.world.device, case.shape
    scores = torch.randn(b, n, device=device)
    scores[:, ::5] = scores[:, :1].clone()  # ties
    for k in (min(10, n), min(700, n)):
        side = check_k(k)
        best = torch.full((b, side), NOTHING, device=device)
        room = torch.empty((b, key_room(n, side)), dtype=torch.int64, device=device)
        top_keys(scores, best, room)
        rows = torch.empty((b, side), dtype=torch.int32, device=device)
        found, counts = (
            torch.empty((b, side), device=device),
            torch.empty(b, dtype=torch.int32, device=device),
        )
        unpack_keys(best, rows, found, counts)
        expected, _ = top_keys_ref(scores, k)
        wrong = float((rows[:, :k].long() != expected).float().mean())
        yield Check(f"stream_topk k={k}", "float32", n, b, wrong, 0.0)


_CHECKS: tuple[Callable[[Case], Iterator[Check]], ...] = (
    _tglu_attention,
    _gated_units,
    _coded_tglu,
    _cone_bound,
    _stream_topk,
)


def _lists(case: Case) -> tuple[Tensor, Tensor]:
    """Random rows for each mention, and how many of them count."""
    b, n = case.shape
    g = torch.Generator().manual_seed(n)
    rows = torch.randint(0, n, (b, 37), generator=g, dtype=torch.int32)
    counts = torch.randint(0, 38, (b,), generator=g, dtype=torch.int32)
    return rows.to(case.world.device), counts.to(case.world.device)


def _compared(kernel: str, case: Case, out: Tensor, reference: Floats, limit: float) -> Check:
    error = np.abs(out.double().cpu().numpy() - reference).max() / max(1.0, np.abs(reference).max())
    return Check(kernel, case.dtype, case.shape[1], case.shape[0], _known(error), limit)


def _compared_lists(
    kernel: str, case: Case, out: Tensor, reference: Floats, rows: Tensor, counts: Tensor, limit: float
) -> Check:
    found, worst = out.double().cpu().numpy(), 0.0
    for b, count in enumerate(counts.tolist()):
        own = reference[b, rows[b, :count].cpu().numpy()]
        worst = max(worst, _known(np.abs(found[b, :count] - own).max(initial=0.0)))
        if not np.isnan(found[b, count:]).all():
            worst = float("inf")  # written where nothing counts
    return Check(
        kernel, case.dtype, case.shape[1], case.shape[0], worst / max(1.0, np.abs(reference).max()), limit
    )


def _known(error: float) -> float:
    """NaN as infinity: it never passes, and JSON has no NaN."""
    return float("inf") if np.isnan(error) else float(error)


def _wide(arrays: Any) -> Any:
    """Mentions or stored entities in float64; int8 queries times their scales."""
    out = {n: a.astype(np.float64) for n, a in arrays.items() if n != "tglu_query_scale"}
    if getattr(arrays, "tglu_query_scale", None) is not None:
        out["tglu_query"] *= arrays.tglu_query_scale[..., None]
    return type(arrays)(**out)


def _device(arrays: MentionArrays | EntityArrays, device: torch.device) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.array(a)).to(device) for name, a in arrays.items()}
