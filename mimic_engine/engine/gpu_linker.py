"""A linker whose requests stay on the GPU: one upload, the stages of the pipeline, one download.

What the pipeline has no bucket for goes the way of every linker, on the same
stream: candidates given by id or type, explanations, another ``rerank`` or one
that the device has no room for, more results than
:data:`~mimic_engine.gpu.request.TOP_K_BUCKETS` knows, the model's score alone where
names are weighed, a mention whose name is like more than
:data:`~mimic_engine.gpu.request.MAX_NAMES` entities'.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any, Self

from mimic_engine.calibration.stored import Calibration
from mimic_engine.device_errors import device_faults
from mimic_engine.encoding.featurizer import Featurizer, PreparedMention, blank_texts
from mimic_engine.engine.linker import Linker, PreparedRequest
from mimic_engine.engine.warmup import WarmUp, first_and_steady
from mimic_engine.gpu.pipeline import GpuPipeline, InFlightBatch, overlapped
from mimic_engine.gpu.request import MAX_NAMES, RequestPlan
from mimic_engine.gpu.scan import CudaScan
from mimic_engine.gpu.session import DeviceSession
from mimic_engine.gpu.stream import TorchDevice
from mimic_engine.index.store import Index
from mimic_engine.scan.ranker import Ranker
from mimic_engine.scan.scan import TopK
from mimic_engine.scan.terms import NO_NAMES
from mimic_engine.types import LinkOptions, LinkResult, Mode

logger = logging.getLogger(__name__)

WARM_TOP_K = 10  # results that buckets are captured for beforehand: the default of a request

Finish = Callable[[], list[LinkResult]]


@dataclass(frozen=True, slots=True)
class _Group:
    """Mentions that travel together: their numbers in the batch, the entities to rank, and the mode."""

    members: tuple[int, ...]
    k: int
    mode: Mode


class GpuLinker(Linker):
    """A :class:`~mimic_engine.engine.linker.Linker` over a :class:`GpuPipeline`; from one thread at a time.

    Parameters
    ----------
    featurizer : without a cache, over a session on the GPU; linkers of one model share it.
    index : that is searched.
    scan : over the index, on the same GPU.
    calibration, names, verify : as of every linker.
    """

    def __init__(
        self,
        featurizer: Featurizer,
        index: Index,
        scan: CudaScan,
        calibration: Calibration | None = None,
        *,
        names: bool = True,
        verify: bool = True,
    ) -> None:
        super().__init__(featurizer, index, scan, calibration, names=names, verify=verify)
        session = featurizer.session
        assert isinstance(session, DeviceSession)
        self._session, self._cuda_scan = session, scan
        self._stream = TorchDevice(scan.device, session.device.stream)
        self._pipeline: GpuPipeline | None = None  # made by the thread that links

    @classmethod
    def over(cls, linker: Linker) -> Self:
        """A linker over the same parts, all on the GPU; it takes the other's place."""
        scan = linker._scan
        assert isinstance(scan, CudaScan)
        return cls(linker.featurizer, linker.index, scan, linker.calibration, **linker._options())

    @property
    def pipeline(self) -> GpuPipeline:
        """The pipeline over the encoders and the index as they lie on the device now."""
        if self._pipeline is None or self._is_stale(self._pipeline):
            self._pipeline = None  # it holds memory, which the new one will ask for
            with device_faults("GPU pipeline"):
                self._pipeline = GpuPipeline(self._stream, self._plan())
        return self._pipeline

    def _is_stale(self, pipeline: GpuPipeline) -> bool:
        """Whether the encoders or the index were taken up anew since."""
        plan = pipeline.plan
        return plan.graphs is not self._session.graphs or plan.passes is not self._cuda_scan.passes

    def _plan(self) -> RequestPlan:
        missing, allowed = self.featurizer.missing, self.index.alive
        return RequestPlan(
            self._session.graphs,
            missing,
            self._cuda_scan,
            allowed,
            self._rerank,
            names=self.counts_names,
        )

    def link_prepared(self, requests: Sequence[PreparedRequest]) -> list[LinkResult]:
        """Encode and rank B prepared requests, as every linker does."""
        return self.start_prepared(requests)()

    def start_prepared(self, requests: Sequence[PreparedRequest]) -> Finish:
        """Start B prepared requests and return while the device works; the call waits and gives the results.

        At most :data:`~mimic_engine.gpu.pipeline.SLOTS` batches may be under way. A batch
        that takes more than one bucket is answered before this returns.
        """
        groups, others = self._groups(requests)
        if len(groups) == 1 and not others:
            batch = self._start(requests, groups[0])
            return lambda: self._results(requests, groups[0], self._finish(batch))
        results: dict[int, LinkResult] = {}
        if others:
            with self._stream.current():
                found = super().link_prepared([requests[b] for b in others])
            results.update(zip(others, found, strict=True))
        for group, top in zip(groups, self._run(requests, groups), strict=True):
            results.update(zip(group.members, self._results(requests, group, top), strict=True))
        return lambda: [results[b] for b in range(len(requests))]

    def warm_up(self) -> None:
        """Run what other linkers run, then every bucket in every mode until it is captured.

        Buckets are captured for :data:`WARM_TOP_K` results; one for more is when it is first asked for,
        and ``info`` says for how many there are.
        """
        start = time.perf_counter()
        _, seen = self._examples(self.featurizer.max_text_tokens)
        encoder_runs = self.featurizer.warm_up()
        with self._stream.current():
            searches = self._scan.warm_up(self.featurizer.fold_prepared([seen]), self.index.alive)
        for _ in self.warm_in_steps():
            pass
        seconds = time.perf_counter() - start
        [request] = self._requests([seen], LinkOptions(1))
        first, steady = first_and_steady(lambda: self.link_prepared([request]))
        self.warmed = WarmUp(seconds, encoder_runs, searches, first, steady)
        logger.info("%s", self.warmed)

    def warm_in_steps(self) -> Iterator[None]:
        """Run one size of batch in every mode, until it is captured, every time it is advanced.

        On the thread that links. For another state of the index there is no more to a warm-up: the
        encoders are the same, and kernels are compiled.
        """
        plan, k = self.pipeline.plan, min(WARM_TOP_K, len(self.index))
        sizes = [(rows, images) for rows in plan.rows for images in (0, *plan.rows) if images <= rows]
        for length, (rows, images) in product(plan.lengths, sizes):
            blank, seen = self._examples(length)
            batch = [seen] * images + [blank] * (rows - images)
            for mode in plan.modes:
                for _ in range(2):  # as launches, then as graphs
                    self.link_prepared(self._requests(batch, LinkOptions(k, mode=mode)))
            yield

    def _requests(self, mentions: Sequence[PreparedMention], options: LinkOptions) -> list[PreparedRequest]:
        search = self._resolve(options)
        return [PreparedRequest(mention, options, search) for mention in mentions]

    def _examples(self, length: int) -> tuple[PreparedMention, PreparedMention]:
        """A mention of ``length`` tokens without an image, and with one."""
        blank = PreparedMention(blank_texts(1, length, self.featurizer.max_text_tokens), None)
        return blank, replace(blank, pixels=self.featurizer.images.missing())

    def recover(self) -> None:
        """Take the device up anew after a DeviceError, and warm up; errors as of every linker."""
        self._pipeline = None  # it holds memory, which the new one will ask for
        super().recover()

    def info(self) -> dict[str, Any]:
        """As of every linker, with the pipeline's backend and the buckets that there were batches for."""
        captured = {} if self._pipeline is None else dict(self._pipeline.captured)
        chain = {
            "backend": self.featurizer.backend,
            "programs": len(captured),
            "graphs": sum(c.graphs for c in captured.values()),
            "launched": sorted({name for c in captured.values() for name in c.launched}),
            "top_k": sorted({bucket.k for bucket in captured}),
        }
        return {**super().info(), "chain": chain}

    def _over(self, index: Index, scan: Ranker) -> Self:
        assert isinstance(scan, CudaScan)  # over() keeps the kind
        linker = type(self)(self.featurizer, index, scan, self.calibration, **self._options())
        linker._stream = self._stream  # with the memory that its graphs share
        linker.warmed = self.warmed
        return linker

    # -- which way each mention goes -------------------------------------------------------------------

    def _groups(self, requests: Sequence[PreparedRequest]) -> tuple[list[_Group], list[int]]:
        """Mentions by the bucket they take, and those that take none."""
        by_mode: dict[Mode, list[int]] = {}
        others = []
        for b, request in enumerate(requests):
            if self._fits(request):
                by_mode.setdefault(request.options.mode, []).append(b)
            else:
                others.append(b)
        most = self.pipeline.plan.rows[-1]
        groups = []
        for mode, members in by_mode.items():
            for start in range(0, len(members), most):
                own = tuple(members[start : start + most])
                groups.append(_Group(own, max(self._ranked(requests[b]) for b in own), mode))
        return groups, others

    def _fits(self, request: PreparedRequest) -> bool:
        plan, option = self.pipeline.plan, request.options
        plain = option.candidates is None and option.types is None and not option.explain
        return (
            plain
            and option.rerank in (None, self._rerank)
            and option.mode in plan.modes
            and 1 <= self._ranked(request) <= plan.top_ks[-1]
            and request.search.names == plan.names
            and (request.names is None or len(request.names.rows) <= MAX_NAMES)
        )

    # -- one group -------------------------------------------------------------------------------------

    def _run(self, requests: Sequence[PreparedRequest], groups: Sequence[_Group]) -> list[TopK]:
        """Several groups, as many at a time as there are slots."""
        if not groups:
            return []
        start = partial(self._start, requests)
        return list(overlapped(groups, start, self._finish, max(1, self.pipeline.free)))

    def _start(self, requests: Sequence[PreparedRequest], group: _Group) -> InFlightBatch:
        own = [requests[b] for b in group.members]
        names = [request.names or NO_NAMES for request in own] if self.counts_names else None
        with device_faults("GPU pipeline"):
            return self.pipeline.start([request.mention for request in own], group.k, group.mode, names)

    def _finish(self, batch: InFlightBatch) -> TopK:
        with device_faults("GPU pipeline"):
            return batch.pipeline.finish(batch)

    def _results(self, requests: Sequence[PreparedRequest], group: _Group, found: TopK) -> list[LinkResult]:
        return [self._result(requests[b], found, i) for i, b in enumerate(group.members)]
