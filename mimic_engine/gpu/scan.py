"""The scan on a GPU: the search of :class:`mimic_engine.scan.scan.Scan` with the index on the device.

Same modes, same answers, same errors. Kernels are in ``kernels/`` (Triton),
memory in :mod:`mimic_engine.gpu.index`, launches in
:mod:`mimic_engine.gpu.passes`. Here: which passes answer a search, the one
fetch at its end, and the index taken up anew after a fault. What the device
finds is a short list; its order, the ties and the units' scores come from one
more exact pass over that list, so that all modes give the same numbers. Name
scores and the prior are added on the device (:mod:`mimic_engine.gpu.terms`) and,
to what is fetched, on the host.

A search whose list would be longer than the kernels keep, and a certified one for
which too many entities survive their bounds, is answered by scoring all of them,
and says "exact".
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from mimic_engine.device_errors import device_faults
from mimic_engine.errors import DeviceError, InvalidInputError, MissingDependencyError
from mimic_engine.gpu.index import DeviceIndex, Placement
from mimic_engine.gpu.passes import DeviceMentions, DevicePasses, DeviceShortList, ShortList
from mimic_engine.gpu.terms import DeviceTerms
from mimic_engine.kernels.stream_topk import MAX_K, check_k
from mimic_engine.scan.passes import MENTIONS_PER_PASS, CodeBook, Segments
from mimic_engine.scan.scan import DEFAULT_RERANK, TopK
from mimic_engine.scan.terms import NO_NAMES, MentionTerms, NameScores, ScoreTerms
from mimic_engine.scan.topk import TieKey, check_finite, order, pessimistic_ranks, topk_with_ties
from mimic_engine.types import MODES, Array, EntityArrays, FoldConstants, MentionArrays, Mode

CHUNK_ROWS = 1 << 20  # with 64 mentions, 256 MB of scores
SPARE = 8  # candidates beyond the k-th that are looked at again: rounding may exchange neighbours
WARM_MENTIONS = tuple(range(1, MENTIONS_PER_PASS + 1))  # kernels are compiled for sizes as they divide
WARM_TOP_K = (1, 10, 50, 100)  # lists of 16, 32, 64 and 128 candidates
# Sums in another order; half-precision attention weights that fall on the other side.
_ROUNDING = {torch.float32: 2e-5, torch.float16: 2e-4, torch.int8: 2e-4, torch.bfloat16: 2e-3}

Mask = NDArray[np.bool_]
_Rows = NDArray[np.int64]
_Terms = Sequence[MentionTerms]


class CudaScan:
    """A :class:`~mimic_engine.scan.ranker.Ranker` on a GPU; safe to use from one thread at a time.

    The entities' arrays stay mapped on the host as well: a rebuild copies them
    anew, and explanations read them.

    Parameters
    ----------
    segments : folded entities, memory-mapped or not, row numbers running on from one to the next.
    constants : of the model that folded them.
    device : "cuda", "cuda:1"...; "cpu" runs under Triton's interpreter alone.
    tie_key : entity ids of rows, to break ties; by row number if absent.
    codes : for the mode "coded".
    placement : "device", "host" (token queries in pinned host memory), or "auto".
    chunk_rows : entities scored at a time: bounds the (B, rows) float32 scores on the device.
    terms : what a search with name scores adds.

    Raises
    ------
    MissingDependencyError
        If there is no CUDA device.
    EngineError
        If the index does not fit in the device's memory.
    """

    threads = 1

    def __init__(
        self,
        segments: Sequence[EntityArrays],
        constants: FoldConstants,
        *,
        device: str = "cuda",
        tie_key: TieKey | None = None,
        codes: CodeBook | None = None,
        placement: Placement = "auto",
        chunk_rows: int = CHUNK_ROWS,
        terms: ScoreTerms | None = None,
    ) -> None:
        self.device = torch.device(device)
        on_gpu = self.device.type == "cuda"
        if on_gpu and not torch.cuda.is_available():
            raise MissingDependencyError(f"device: {device!r} needs a CUDA device and a CUDA build of torch")
        self._segments = Segments(segments)
        self._constants, self._tie_key, self._codes = constants, tie_key, codes
        self._placement, self._chunk_rows = placement, chunk_rows
        self._terms = terms or ScoreTerms()
        self._largest = self._terms.largest
        self._passes: DevicePasses | None = None
        self._prior: torch.Tensor | None = None  # (N,)
        self._open()
        self.scorer_name = f"triton {torch.cuda.get_device_name(self.device)}" if on_gpu else "triton"

    def __len__(self) -> int:
        return len(self._segments)

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that :meth:`search` can answer in."""
        return MODES if self._codes is not None else tuple(m for m in MODES if m != "coded")

    @property
    def passes(self) -> DevicePasses:
        """The passes over the index on the device, others after a rebuild; DeviceError where that failed."""
        if self._passes is None:
            raise DeviceError("scan: the index is not on the device since it failed", reason="no index")
        return self._passes

    @property
    def index(self) -> DeviceIndex:
        """The index on the device; errors as of :attr:`passes`."""
        return self.passes.index

    def token_queries(self, rows: _Rows) -> EntityArrays:
        """Input of TGLU's attention from n rows: token queries (n, L, D) float32, and their weights."""
        return self._segments.token_queries(rows)

    def over(
        self,
        segments: Sequence[EntityArrays],
        tie_key: TieKey | None,
        codes: CodeBook | None = None,
        terms: ScoreTerms | None = None,
    ) -> CudaScan:
        """A scan of other entities; both lie on the device until the old one goes."""
        return CudaScan(
            segments,
            self._constants,
            device=str(self.device),
            tie_key=tie_key,
            codes=codes,
            placement=self._placement,
            chunk_rows=self._chunk_rows,
            terms=terms,
        )

    def warm_up(self, mention: MentionArrays, allowed: Mask | None) -> int:
        """Search with every number of mentions and length of list, in every mode; the number of searches.

        ``mention`` is one, and copied. Where terms weigh anything they are added: the rest is the same.
        """
        most = len(self) if allowed is None else int(np.count_nonzero(allowed))
        top_ks = sorted({min(k, most) for k in WARM_TOP_K})
        few = np.arange(len(self)) if allowed is None else np.flatnonzero(allowed)
        for count in WARM_MENTIONS:
            mentions = mention.take([0] * count)
            names = [NO_NAMES] * count if self._largest else None
            for k in top_ks:
                for mode in self.modes:
                    self.search(mentions, k, mode=mode, allowed=allowed, names=names)
            self.search(mentions, 1, rows=few[:1], names=names)
        return len(WARM_MENTIONS) * (len(top_ks) * len(self.modes) + 1)

    def rebuild(self) -> None:
        """Free the index on the device and copy it there anew; errors as of opening."""
        self._passes = self._prior = None
        gc.collect()  # tensors go with the objects, before the new ones ask for their memory
        if torch.cuda.is_available():
            with device_faults("scan"):
                torch.cuda.empty_cache()
        self._open()

    def close(self) -> None:
        """Nothing to stop; device memory goes with the object."""

    def _open(self) -> None:
        codes = self._codes
        with device_faults("scan"):
            index = DeviceIndex(
                self._segments.arrays,
                self.device,
                codes=None if codes is None else codes.segments,
                placement=self._placement,
            )
            stored = index.arrays.get("tglu_query", next(iter(index.arrays.values()))).dtype
            rounding = _ROUNDING[stored]
            self._passes = DevicePasses(index, self._constants, MENTIONS_PER_PASS, self._chunk_rows, rounding)
            self._centroids = None
            if codes is not None:
                centroids = np.array(codes.centroids, np.float32)
                self._centroids = torch.from_numpy(centroids).to(self.device)
            self._prior = None
            if self._terms.prior is not None:
                self._prior = torch.from_numpy(np.array(self._terms.prior, np.float32)).to(self.device)

    # -- one number a pair -----------------------------------------------------------------------------

    def totals(self, mentions: MentionArrays) -> Array:
        """Exact scores (B, N) of B mentions without terms; EngineError if one is not finite."""
        out = np.empty((mentions.rows, len(self)), np.float32)  # (B, N)
        passes, start = self.passes, 0
        for part in _batches(mentions):
            prepared = self.prepare(part, "exact")
            for chunk in self.index.chunks(passes.chunk_rows, queries=prepared.text is not None):
                scores = passes.totals(prepared, chunk).cpu().numpy()
                out[start : start + part.rows, chunk.start : chunk.stop] = scores
            start += part.rows
        check_finite(out)
        return out

    def ranks(
        self,
        mentions: MentionArrays,
        gold: _Rows,
        *,
        allowed: Mask | None = None,
        names: Sequence[NameScores] | None = None,
    ) -> NDArray[np.int64]:
        """1-based rank of row ``gold[b]`` for each mention; ties count against it. (B,).

        ``allowed`` and ``names`` as in :meth:`search`; the gold rows must be allowed.

        Raises
        ------
        InvalidInputError
            If the names are of another number of mentions.
        DeviceError
            If the device fails.
        """
        terms = self._terms.of(names, mentions.rows)
        parts, start = [np.empty(0, np.int64)], 0
        with device_faults("scan"):
            for part in _batches(mentions):
                stop = start + part.rows
                totals = self.totals(part)
                for row, own in zip(totals, terms[start:stop], strict=True):
                    own.add_to_all(row)
                if allowed is not None:
                    totals[:, ~allowed] = -np.inf
                parts.append(pessimistic_ranks(totals, gold[start:stop]))
                start = stop
        return np.concatenate(parts)

    # -- the k best ------------------------------------------------------------------------------------

    def search(
        self,
        mentions: MentionArrays,
        k: int,
        *,
        mode: Mode = "certified",
        rows: _Rows | None = None,
        allowed: Mask | None = None,
        rerank: int | None = None,
        names: Sequence[NameScores] | None = None,
    ) -> TopK:
        """The k best entities of each mention; parameters and errors as in ``Scan.search``.

        The list in question holds at most 1,024 entities: 1,016 for the k best, or what ``rerank`` asks for.

        Raises
        ------
        DeviceError
            If the device fails.
        """
        if rows is not None and allowed is not None:
            rows = rows[allowed[rows]]
        self._check_mode(mode)
        candidates = len(self) if rows is None and allowed is None else _count(rows, allowed)
        if not 1 <= k <= candidates:
            raise InvalidInputError(
                f"top_k: {k} is not between 1 and the {candidates} candidates", field="top_k"
            )
        terms = self._terms.of(names, mentions.rows)
        with device_faults("scan"):
            if list_length(k, mode if rows is None else "exact", rerank) > MAX_K:
                one = (mentions.block(b, b + 1) for b in range(mentions.rows))
                return _joined(
                    [self._by_all_totals(m, own, k, rows, allowed) for m, own in zip(one, terms, strict=True)]
                )
            parts, start = [], 0
            for part in _batches(mentions):
                own, start = terms[start : start + part.rows], start + part.rows
                parts.append(self._search_part(part, own, k, mode, rows, allowed, candidates, rerank))
            return _joined(parts)

    def launch(
        self,
        prepared: DeviceMentions,
        k: int,
        mode: Mode,
        allowed: torch.Tensor | None = None,
        candidates: int | None = None,
        rerank: int | None = None,
    ) -> DeviceShortList:
        """Start a search of prepared mentions: kernel launches alone; see :meth:`capturable`."""
        room = check_k(list_length(k, mode, rerank))
        if mode == "exact":
            return self.passes.exact(prepared, room, allowed, len(self) if candidates is None else candidates)
        if mode == "certified":
            return self.passes.certified(prepared, k, room, allowed)
        return self.passes.coded(prepared, room, allowed)

    def capturable(self, mode: Mode) -> bool:
        """Whether a CUDA graph can hold a search; not where chunks are copied on a stream of their own."""
        return mode != "exact" or self.index.placement == "device"

    def prepare(
        self,
        mentions: MentionArrays | Mapping[str, torch.Tensor],
        mode: Mode,
        terms: DeviceTerms | None = None,
    ) -> DeviceMentions:
        """Mentions (on the host, or folded arrays on the device by name) with what ``mode`` needs of them.

        ``terms`` are added to their scores; None: the model's score alone.
        """
        return self.passes.mentions(
            mentions,
            cones=mode == "certified",
            centroids=self._centroids if mode == "coded" else None,
            terms=terms,
        )

    def terms_of(self, rows: torch.Tensor, scores: torch.Tensor) -> DeviceTerms:
        """Name scores on the device, as :class:`DeviceTerms` has them, with the entities' prior."""
        return DeviceTerms(rows, scores, self._prior, self._largest)

    def _on_device(self, terms: _Terms) -> DeviceTerms | None:
        """The terms of B mentions on the device; None where they have none."""
        names = [own.names for own in terms if own.names is not None]
        return DeviceTerms.of(names, self._prior, self._largest, self.device) if names else None

    def _search_part(
        self,
        mentions: MentionArrays,
        terms: _Terms,
        k: int,
        mode: Mode,
        rows: _Rows | None,
        allowed: Mask | None,
        candidates: int,
        rerank: int | None,
    ) -> TopK:
        prepared = self.prepare(mentions, mode if rows is None else "exact", self._on_device(terms))
        if rows is not None:
            listed = torch.from_numpy(rows.astype(np.int32)).to(self.device)
            on_device = self.passes.among(prepared, listed, check_k(k + SPARE))
        else:
            on_device = self.launch(prepared, k, mode, self.mask(allowed), candidates, rerank)
        answered: Mode = mode if rows is None else "exact"
        shortlist = self._fetch(prepared, on_device)
        return self._settled(shortlist, terms, k, answered, mentions.take, rows, allowed)

    def _fetch(self, prepared: DeviceMentions, on_device: DeviceShortList) -> ShortList:
        """Bring a short list to the host: the one wait of a search."""
        parts, g2l = self.passes.units(prepared, on_device.rows, on_device.counts)
        rows, scores, counts = on_device.rows, on_device.scores, on_device.counts
        tensors = (rows, scores, counts, on_device.scored, on_device.overflow, parts, g2l)
        return ShortList(*(t.cpu().numpy() for t in tensors))

    def settle(
        self,
        shortlist: ShortList,
        k: int,
        mode: Mode,
        take: Callable[[Sequence[int]], MentionArrays],
        *,
        allowed: Mask | None = None,
        names: Sequence[NameScores] | None = None,
    ) -> TopK:
        """The answers of a search: a short list in its final order, and another search where it fell short.

        Parameters
        ----------
        shortlist : of B mentions.
        k : entities to answer with.
        mode : that was searched in.
        take : gives the folded arrays of some of the B mentions, for those to be scored densely.
        allowed, names : as in :meth:`search`.

        Raises
        ------
        InvalidInputError
            If the names are of another number of mentions.
        EngineError
            If a score is not finite.
        """
        terms = self._terms.of(names, len(shortlist.rows))
        return self._settled(shortlist, terms, k, mode, take, None, allowed)

    def _settled(
        self,
        shortlist: ShortList,
        terms: _Terms,
        k: int,
        mode: Mode,
        take: Callable[[Sequence[int]], MentionArrays],
        rows: _Rows | None,
        allowed: Mask | None,
    ) -> TopK:
        candidates = len(self) if rows is None and allowed is None else _count(rows, allowed)
        result, overflowed, cut = self._ranked(shortlist, terms, k, mode)
        if overflowed:
            own = [terms[b] for b in overflowed]
            dense = self._search_part(take(overflowed), own, k, "exact", None, allowed, candidates, None)
            result = _replaced(result, overflowed, dense)
        for b in cut:
            found = self._by_all_totals(take([b]), terms[b], k, rows, allowed)
            result = _replaced(result, [b], found)
        return result

    def _ranked(
        self, shortlist: ShortList, terms: _Terms, k: int, mode: Mode
    ) -> tuple[TopK, list[int], list[int]]:
        """The answers; the mentions with too many survivors, and those with too many ties for the list."""
        rows = shortlist.rows.astype(np.int64)  # (B, K)
        units, totals = self._scores(shortlist.parts, shortlist.g2l, rows, terms)  # (B, K) each
        chosen, overflowed, cut = [], [], []
        for b in range(len(rows)):
            live = int(shortlist.counts[b])
            check_finite(totals[b, :live])
            check_finite(shortlist.first[b, :live])
            final = order(totals[b, :live], rows[b, :live], self._tie_key)[:k]
            chosen.append(np.resize(final, k))
            if shortlist.overflow[b]:
                overflowed.append(b)
            elif live < k or self._cut_short(totals[b, final[-1]], shortlist.first[b], live, mode, terms[b]):
                cut.append(b)
        pick = np.stack(chosen)  # (B, k)
        result = TopK(
            np.take_along_axis(rows, pick, 1),
            np.take_along_axis(totals, pick, 1),
            {name: np.take_along_axis(score, pick, 1) for name, score in units.items()},
            (mode,) * len(rows),
            shortlist.scored,
        )
        return result, overflowed, cut

    def _cut_short(self, kth: float, first: Array, live: int, mode: Mode, terms: MentionTerms) -> bool:
        """Whether rounding or a tie could put an entity outside the list among the k best."""
        if mode == "coded" or live < len(first):
            return False
        return bool(first[live - 1] >= kth - self._margin(abs(kth), terms))

    def _by_all_totals(
        self, mention: MentionArrays, terms: MentionTerms, k: int, rows: _Rows | None, allowed: Mask | None
    ) -> TopK:
        """One mention's answer from all its totals, on the host: as many ties as there may be."""
        totals = self.totals(mention)[0]  # (N,)
        terms.add_to_all(totals)
        if allowed is not None:
            totals[~allowed] = -np.inf
        considered = totals if rows is None else totals[rows]
        finite = np.isfinite(considered)
        near = topk_with_ties(considered, k, self._margin(np.abs(considered[finite]).max(), terms))
        near = near[finite[near]]
        return self._rank(mention, terms, near if rows is None else rows[near], k, int(finite.sum()))

    def _margin(self, size: float, terms: MentionTerms) -> float:
        """Twice what two computations of a total of this size may differ by: the model's may be larger."""
        largest = 0.0 if terms.names is None else self._largest
        return float(2 * self.passes.rounding * (1 + size + largest))

    def _rank(self, mention: MentionArrays, terms: MentionTerms, rows: _Rows, k: int, scored: int) -> TopK:
        """The k best of a few rows of one mention."""
        prepared = self.prepare(mention, "exact")
        listed = torch.from_numpy(rows.astype(np.int32)[None]).to(self.device)
        counts = torch.tensor([len(rows)], dtype=torch.int32, device=self.device)
        parts, g2l = self.passes.units(prepared, listed, counts)
        units, totals = self._scores(parts.cpu().numpy(), g2l.cpu().numpy(), rows[None], [terms])  # (1, n)
        final = order(totals[0], rows, self._tie_key)[:k]
        picked = {name: score[:, final] for name, score in units.items()}
        return TopK(rows[None, final], totals[:, final], picked, ("exact",), np.array([scored]))

    def _scores(self, parts: Array, g2l: Array, rows: _Rows, terms: _Terms) -> tuple[dict[str, Array], Array]:
        """Unit scores and terms by name, and totals, (B, K) each, of the rows (B, K).

        ``parts`` are g2g, vision, CMFU (3, B, K), ``g2l`` is (B, K).
        """
        own = {"tglu": (parts[0] + g2l) / 2, "vdlu": parts[1], "concat": parts[1], "cmfu": parts[2]}
        units = {name: own[name] for name in self._constants.units}
        totals = _mean(units)
        each = [mention.units(row) for mention, row in zip(terms, rows, strict=True)]
        added = {name: np.stack([one[name] for one in each]) for name in each[0]}
        for term in added.values():
            totals += term
        return units | added, totals

    def mask(self, allowed: Mask | None) -> torch.Tensor | None:
        """A mask (N,) on the device, as :meth:`launch` takes it."""
        if allowed is None:
            return None
        return torch.from_numpy(allowed.astype(np.uint8)).to(self.device)

    def _check_mode(self, mode: Mode) -> None:
        if mode not in MODES:
            raise InvalidInputError(f"mode: {mode!r} is not one of {', '.join(MODES)}", field="mode")
        if mode not in self.modes:
            raise InvalidInputError("mode: 'coded' needs an index with codes", field="mode")


def list_length(k: int, mode: Mode, rerank: int | None = None) -> int:
    """Entities that a search for the k best keeps on the device, for a last look."""
    return max(k + SPARE, rerank or DEFAULT_RERANK) if mode == "coded" else k + SPARE


def _count(rows: _Rows | None, allowed: Mask | None) -> int:
    if rows is not None:
        return len(rows)
    assert allowed is not None
    return int(np.count_nonzero(allowed))


def _batches(mentions: MentionArrays) -> Iterator[MentionArrays]:
    for start in range(0, mentions.rows, MENTIONS_PER_PASS):
        stop = start + MENTIONS_PER_PASS
        yield mentions.block(start, stop)


def _mean(units: dict[str, Array]) -> Array:
    """Total scores of unit scores of one shape."""
    return np.asarray(np.mean(np.stack(list(units.values())), axis=0, dtype=np.float32))


def _replaced(result: TopK, members: Sequence[int], part: TopK) -> TopK:
    """``result`` with the mentions ``members`` answered by ``part``."""
    modes = list(result.modes)
    for b, mode in zip(members, part.modes, strict=True):
        modes[b] = mode
    where = list(members)
    result.rows[where], result.scores[where], result.scored[where] = part.rows, part.scores, part.scored
    for name, score in result.units.items():
        score[where] = part.units[name]
    return TopK(result.rows, result.scores, result.units, tuple(modes), result.scored)


def _joined(parts: Sequence[TopK]) -> TopK:
    return TopK(
        np.concatenate([p.rows for p in parts]),
        np.concatenate([p.scores for p in parts]),
        {name: np.concatenate([p.units[name] for p in parts]) for name in parts[0].units},
        tuple(mode for p in parts for mode in p.modes),
        np.concatenate([p.scored for p in parts]),
    )
