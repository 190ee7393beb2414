"""A linker whose requests stay on the device: one upload, one chain of launches, one download.

What the chain has no program for goes the way of every linker, on the same
stream: candidates given by id or type, explanations, another ``rerank`` or one that the
device has no room for, more results than :data:`~mimic_engine.gpu.request.PLACES` knows.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mimic_engine.calibration.nil import NilThreshold
from mimic_engine.device_errors import device_faults
from mimic_engine.encoding.cache import CachingFeaturizer
from mimic_engine.encoding.featurizer import Featurizer, PreparedMention, blank_texts
from mimic_engine.engine.linker import Linker
from mimic_engine.engine.warmup import WarmUp, first_and_steady
from mimic_engine.errors import BackendError, InvalidInputError
from mimic_engine.gpu.graphs import SharedGraphs
from mimic_engine.gpu.passes import Fetched
from mimic_engine.gpu.pipeline import Chain, Flight, HostArrays, overlapped
from mimic_engine.gpu.request import IDS, PREFIX, Bucket, RequestRecipe, ScanSearch, allowed_rows
from mimic_engine.gpu.scan import CudaRanker, CudaScan
from mimic_engine.gpu.stream import TorchDevice
from mimic_engine.index.store import Index
from mimic_engine.scan.ranker import Ranker
from mimic_engine.scan.scan import TopK
from mimic_engine.types import LinkOptions, LinkResult, MentionArrays, Mode

logger = logging.getLogger(__name__)

WARM_TOP_K = 10  # results that programs are made for beforehand: the default of a request

Finish = Callable[[], list[LinkResult]]


@dataclass(frozen=True, slots=True)
class _Part:
    """Mentions that travel together: their places in the batch, the results asked for, and the mode."""

    members: tuple[int, ...]
    k: int
    mode: Mode


@dataclass(frozen=True, slots=True)
class _Flying:
    """A part on the device, and the chain that it is to be finished by."""

    part: _Part
    chain: RequestChain
    flight: Flight[Bucket]


class RequestChain(Chain[Bucket]):
    """A chain of requests that knows which encoders and which scan it was made of."""

    def __init__(
        self, device: TorchDevice, recipe: RequestRecipe, capture: bool, made_of: tuple[int, CudaScan]
    ) -> None:
        super().__init__(device, recipe, graphs=capture)
        self.requests, self.made_of = recipe, made_of


class DeviceLinker(Linker):
    """A :class:`~mimic_engine.engine.linker.Linker` over a :class:`Chain`; from one thread at a time.

    Parameters
    ----------
    featurizer : preprocessing, and a session for what the chain does not do; without a cache.
    index : that is searched.
    scan : over the index, on ``device``.
    nil, verify : as of every linker.
    graphs : encoders and fold, on the stream of ``device``; linkers of one model share them.
    device : of the chain.
    capture : whether programs become CUDA graphs.

    Raises
    ------
    InvalidInputError
        If the featurizer has a cache: what it remembers is on the host.
    """

    def __init__(
        self,
        featurizer: Featurizer,
        index: Index,
        scan: CudaRanker,
        nil: NilThreshold | None = None,
        *,
        verify: bool = True,
        graphs: SharedGraphs,
        device: TorchDevice,
        capture: bool = True,
    ) -> None:
        super().__init__(featurizer, index, scan, nil, verify=verify)
        if isinstance(featurizer, CachingFeaturizer):
            raise InvalidInputError("cache_bytes: a chain on the device remembers nothing; give 0")
        self._ranker, self._shared, self._device = scan, graphs, device
        self._capture = capture
        self._chain: RequestChain | None = None  # made by the thread that links

    @classmethod
    def of(cls, linker: Linker, graphs: SharedGraphs, device: TorchDevice) -> Self:
        """A chain over the parts of a linker whose scan is on the GPU; it takes the linker's place.

        Raises
        ------
        InvalidInputError, BackendError
            As of the class; BackendError too if the scan is not on the GPU.
        """
        scan = linker._scan
        if not isinstance(scan, CudaRanker):
            raise BackendError(f"chain: the scan runs on {scan.scorer_name!r}, not on the GPU")
        return cls(
            linker.featurizer,
            linker.index,
            scan,
            linker.nil,
            verify=linker._verify,
            graphs=graphs,
            device=device,
        )

    @property
    def chain(self) -> RequestChain:
        """The chain over the encoders and the index as they lie on the device now."""
        if self._chain is None or self._chain.made_of != (self._shared.generation, self._ranker.opened):
            self._chain = None
            with device_faults("chain"):
                self._chain = self._new_chain()
        return self._chain

    def _new_chain(self) -> RequestChain:
        scan = self._ranker.opened
        search = ScanSearch(scan, allowed_rows(scan, self.index.alive), self._rerank)
        missing = self.featurizer.missing
        recipe = RequestRecipe(self._shared.graphs, search, missing, self._device.device)
        return RequestChain(self._device, recipe, self._capture, (self._shared.generation, scan))

    def link_prepared(
        self, prepared: Sequence[PreparedMention], options: Sequence[LinkOptions]
    ) -> list[LinkResult]:
        """Encode and rank B prepared mentions, as every linker does."""
        return self.start_prepared(prepared, options)()

    def start_prepared(self, prepared: Sequence[PreparedMention], options: Sequence[LinkOptions]) -> Finish:
        """Start B prepared mentions and return while the device works; the call waits and gives the results.

        At most :data:`~mimic_engine.gpu.pipeline.SLOTS` batches may be under way. A batch
        that takes more than one program is answered before this returns.

        Raises
        ------
        InvalidInputError
            As :meth:`link_prepared`; nothing is started then.
        """
        parts, others = self._parts(options)
        for part in parts:
            group = replace(options[part.members[0]], top_k=0, explain=False)
            self._check(group, None, [options[b].top_k for b in part.members])
        if len(parts) == 1 and not others:
            flying = self._start(prepared, parts[0])
            return lambda: self._results(prepared, options, parts[0], self._finish(flying))
        results: dict[int, LinkResult] = {}
        if others:
            with self._device.current():
                found = super().link_prepared([prepared[b] for b in others], [options[b] for b in others])
            results.update(zip(others, found, strict=True))
        for part, top in zip(parts, self._run(prepared, parts), strict=True):
            results.update(zip(part.members, self._results(prepared, options, part, top), strict=True))
        return lambda: [results[b] for b in range(len(prepared))]

    def warm_up(self) -> None:
        """Run what other linkers run, then the program of every bucket in every mode until it is captured.

        Programs are made for :data:`WARM_TOP_K` results; one for more is made when it is first asked for,
        and ``info`` says for how many there are programs.
        """
        start = time.perf_counter()
        _, seen = self._examples(self.featurizer.max_text_tokens)
        encoder_runs = self.featurizer.warm_up()
        folded = self.featurizer.fold_prepared([seen])
        with self._device.current():
            searches = self._scan.warm_up(folded, self.index.alive)
        for _ in self.warm_in_steps():
            pass
        seconds = time.perf_counter() - start
        first, steady = first_and_steady(lambda: self.link_prepared([seen], [LinkOptions(1)]))
        self.warmed = WarmUp(seconds, encoder_runs, searches, first, steady)
        logger.info("%s", self.warmed)

    def warm_in_steps(self) -> Iterator[None]:
        """Run the programs of one bucket, until they are captured, every time it is advanced.

        On the thread that links. For another state of the index there is no more to a warm-up: the
        encoders are the same, and kernels are compiled.
        """
        requests, k = self.chain.requests, min(WARM_TOP_K, len(self.index))
        sizes = [(n, p) for n in requests.rows for p in (0, *requests.rows) if p <= n]
        for length, (rows, pictures) in product(requests.lengths, sizes):
            blank, seen = self._examples(length)
            batch = [seen] * pictures + [blank] * (rows - pictures)
            for mode in requests.modes:
                for _ in range(2):  # as launches, then as graphs
                    self.link_prepared(batch, [LinkOptions(k, mode=mode)] * rows)
            yield

    def _examples(self, length: int) -> tuple[PreparedMention, PreparedMention]:
        """A mention of ``length`` tokens without a picture, and with one."""
        blank = PreparedMention(blank_texts(1, length, self.featurizer.max_text_tokens), None)
        return blank, replace(blank, pixels=self.featurizer.images.missing())

    def recover(self) -> None:
        """Take the device up anew after a DeviceError, and warm up; errors as of every linker."""
        self._chain = None  # it holds memory, which the new one will ask for
        self._shared.rebuild()
        super().recover()

    def info(self) -> dict[str, Any]:
        """As of every linker, with the chain's backend and its programs."""
        programs = {} if self._chain is None else dict(self._chain.programs)
        chain = {
            "backend": self._shared.graphs.backend,
            "programs": len(programs),
            "graphs": sum(p.graphs for p in programs.values()),
            "launched": sorted({name for p in programs.values() for name in p.launched}),
            "top_k": sorted({bucket.k for bucket in programs}),
        }
        return {**super().info(), "chain": chain}

    def _over(self, index: Index, scan: Ranker) -> Self:
        assert isinstance(scan, CudaRanker)  # over() keeps the kind
        linker = type(self)(
            self.featurizer,
            index,
            scan,
            self.nil,
            verify=self._verify,
            graphs=self._shared,
            device=self._device,
            capture=self._capture,
        )
        linker.warmed = self.warmed
        return linker

    # -- which way each mention goes -------------------------------------------------------------------

    def _parts(self, options: Sequence[LinkOptions]) -> tuple[list[_Part], list[int]]:
        """Mentions by the program they take, and those that take none."""
        by_mode: dict[Mode, list[int]] = {}
        others = []
        for b, option in enumerate(options):
            if self._fits(option):
                by_mode.setdefault(option.mode, []).append(b)
            else:
                others.append(b)
        most = self.chain.requests.rows[-1]
        parts = []
        for mode, members in by_mode.items():
            for start in range(0, len(members), most):
                own = tuple(members[start : start + most])
                parts.append(_Part(own, max(options[b].top_k for b in own), mode))
        return parts, others

    def _fits(self, option: LinkOptions) -> bool:
        plain = option.candidates is None and option.types is None and not option.explain
        return (
            plain
            and option.rerank in (None, self._rerank)
            and option.mode in self.chain.requests.modes
            and 1 <= option.top_k <= self.chain.requests.places[-1]
        )

    # -- one part --------------------------------------------------------------------------------------

    def _run(self, prepared: Sequence[PreparedMention], parts: Sequence[_Part]) -> list[TopK]:
        """Several parts, as many at a time as there are slots."""
        if not parts:
            return []
        start = partial(self._start, prepared)
        return list(overlapped(parts, start, self._finish, max(1, self.chain.free)))

    def _start(self, prepared: Sequence[PreparedMention], part: _Part) -> _Flying:
        own = [prepared[b] for b in part.members]
        mask = np.concatenate([m.tokens.attention_mask for m in own])  # (B, L)
        pictures = sum(m.pixels is not None for m in own)
        with device_faults("chain"):
            chain = self.chain
            bucket = chain.requests.bucket(len(own), pictures, mask, part.k, part.mode)
            flight = chain.start(bucket, lambda host: fill(host, own))
        return _Flying(part, chain, flight)

    def _finish(self, flying: _Flying) -> TopK:
        part, (_, scan) = flying.part, flying.chain.made_of

        def read(results: HostArrays, folded: Callable[[], HostArrays]) -> TopK:
            fetched = Fetched.of(results, len(part.members))

            def take(rows: Sequence[int]) -> MentionArrays:
                return MentionArrays(**{n.removeprefix(PREFIX): a[list(rows)] for n, a in folded().items()})

            return scan.settled(fetched, part.k, part.mode, take, allowed=self.index.alive)

        with device_faults("chain"):
            return flying.chain.finish(flying.flight, read)

    def _results(
        self,
        prepared: Sequence[PreparedMention],
        options: Sequence[LinkOptions],
        part: _Part,
        found: TopK,
    ) -> list[LinkResult]:
        return [self._result(prepared[b], found, i, options[b].top_k) for i, b in enumerate(part.members)]


def fill(host: Mapping[str, NDArray[Any]], mentions: Sequence[PreparedMention]) -> None:
    """Write B mentions to the inputs of a bucket; rows and pictures beyond them repeat the last."""
    rows, tokens = host["input_ids"].shape
    places = [min(row, len(mentions) - 1) for row in range(rows)]
    for name in IDS:
        for row, place in enumerate(places):
            host[name][row] = getattr(mentions[place].tokens, name)[0, :tokens]
    has = np.array([m.pixels is not None for m in mentions])  # (B,)
    host["picture"][:] = np.where(has, np.cumsum(has) - 1, -1)[places]
    pixels = [m.pixels for m in mentions if m.pixels is not None]
    for row in range(len(host["pixels"])):
        host["pixels"][row] = pixels[min(row, len(pixels) - 1)]
