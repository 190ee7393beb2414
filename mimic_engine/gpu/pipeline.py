"""The GPU pipeline: batches of requests through the device, two at a time.

    fill slot (host) -> upload (own stream) -> copy to the fixed inputs -> stages -> copy of what was
    folded to the slot -> download of the results -> host waits for this batch alone

While one batch is on the device the next one is written to the other slot and
uploaded. All buckets share one set of fixed arrays, which is right because one
stream runs them one after the other. What the stages are is said by
:mod:`mimic_engine.gpu.request`. Nothing but :meth:`GpuPipeline.finish` waits for
the device.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from mimic_engine.encoding.featurizer import PreparedMention
from mimic_engine.encoding.graph_names import MENTION
from mimic_engine.errors import EngineError, InvalidInputError
from mimic_engine.gpu.layout import Bytes, Placed
from mimic_engine.gpu.request import Bucket, Layouts, RequestPlan, Stage
from mimic_engine.gpu.stream import TorchDevice
from mimic_engine.scan.scan import TopK
from mimic_engine.scan.terms import NameScores
from mimic_engine.types import MentionArrays, Mode

SLOTS = 2
logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Part:
    """Stages that are queued together: one graph, or one launch after the other."""

    stages: tuple[Stage, ...]
    graph: Any = None

    @property
    def name(self) -> str:
        return "+".join(stage.name for stage in self.stages)

    def launch(self) -> None:
        for stage in self.stages:
            stage.launch()


class CapturedPipeline:
    """The stages of one bucket: as they are the first time, then as CUDA graphs.

    The first run launches every stage, which compiles kernels and makes
    workspaces. Then each group of neighbours that can be captured is, once; a
    stage that cannot is launched between them. A capture that fails is logged with
    its reason and its stages are launched one by one from then on:
    :attr:`launched` says which.

    Parameters
    ----------
    device : that captures and replays.
    stages : in order.
    graphs : whether to capture at all.
    apart : make every stage a graph of its own, to time them one by one.
    """

    def __init__(
        self, device: TorchDevice, stages: Sequence[Stage], *, graphs: bool = True, apart: bool = False
    ) -> None:
        self._device = device
        self._graphs = graphs
        self._ran = False
        self._parts = [_Part(group) for group in _groups(stages, apart)]

    @property
    def launched(self) -> tuple[str, ...]:
        """Names of the stages that are launched one by one, in no graph."""
        return tuple(s.name for part in self._parts if part.graph is None for s in part.stages)

    @property
    def graphs(self) -> int:
        """Graphs that a run replays."""
        return sum(part.graph is not None for part in self._parts)

    def run(self, between: Callable[[str], None] = lambda _: None) -> None:
        """Queue all stages; ``between`` is told the name of every part once it is queued."""
        for part in self._parts:
            if part.graph is None:
                part.launch()
            else:
                self._device.replay(part.graph)
            between(part.name)
        if not self._ran and self._graphs:
            self._capture()
        self._ran = True

    def _capture(self) -> None:
        for part in self._parts:
            if not part.stages[0].capturable:
                continue
            try:
                part.graph = self._device.capture(part.launch)
            except Exception as error:  # whatever the driver or a library raises; the launches still work
                logger.warning("stages %s are launched one by one, not as a graph: %s", part.name, error)


def _groups(stages: Sequence[Stage], apart: bool) -> list[tuple[Stage, ...]]:
    """Neighbours that are captured together; a stage that cannot be captured stands alone."""
    groups: list[list[Stage]] = []
    for stage in stages:
        joins = groups and not apart and stage.capturable and groups[-1][-1].capturable
        if joins:
            groups[-1].append(stage)
        else:
            groups.append([stage])
    return [tuple(group) for group in groups]


@dataclass(slots=True)
class _Slot:
    """Buffers that one batch under way owns."""

    inputs: Bytes  # pinned
    uploaded: Tensor
    folded: Tensor
    results: Bytes  # pinned
    taken: bool = False


@dataclass(frozen=True, slots=True)
class InFlightBatch:
    """A batch on the device; to be given to :meth:`GpuPipeline.finish` of its pipeline, once."""

    pipeline: GpuPipeline
    bucket: Bucket
    mentions: int
    k: int
    names: Sequence[NameScores] | None
    slot: _Slot
    done: Any


class GpuPipeline:
    """Requests over one model and one state of an index; from one thread at a time.

    Parameters
    ----------
    device : that runs it.
    plan : what is done to a batch.
    graphs : capture CUDA graphs.
    """

    def __init__(self, device: TorchDevice, plan: RequestPlan, *, graphs: bool = True) -> None:
        self.device, self.plan = device, plan
        self._graphs = graphs
        self._most = most = plan.layouts(plan.largest)
        self._inputs, self._work, self._folded, self._results = (
            device.memory(layout.size_bytes) for layout in (most.inputs, most.work, most.folded, most.results)
        )
        self._slots = [self._new_slot() for _ in range(SLOTS)]
        self._captured: dict[Bucket, CapturedPipeline] = {}

    @property
    def free(self) -> int:
        """Slots that a batch may be started in."""
        return sum(not slot.taken for slot in self._slots)

    @property
    def captured(self) -> Mapping[Bucket, CapturedPipeline]:
        """The buckets that there were batches for."""
        return self._captured

    def start(
        self,
        mentions: Sequence[PreparedMention],
        k: int,
        mode: Mode,
        names: Sequence[NameScores] | None = None,
    ) -> InFlightBatch:
        """Queue B mentions, the k best for each, and return while the device works.

        ``names`` are their name scores, where the plan counts names.

        Raises
        ------
        InvalidInputError
            If there are names and the plan counts none, or the other way.
        EngineError
            If both slots are taken: finish a batch first.
        """
        slot = next((s for s in self._slots if not s.taken), None)
        if slot is None:
            raise EngineError(f"GPU pipeline: all {SLOTS} slots hold a batch; finish one first")
        bucket = self.plan.bucket(mentions, k, mode)
        layouts = self._checked(bucket)
        self.plan.fill(layouts.inputs.views(slot.inputs), mentions, names)
        slot.taken = True
        try:
            done = self._queue(bucket, layouts, slot)
            return InFlightBatch(self, bucket, len(mentions), k, names, slot, done)
        except BaseException:
            self._abandon(slot)
            raise

    def finish(self, batch: InFlightBatch) -> TopK:
        """Wait for a batch and rank what was found; its slot is free afterwards, whatever happens."""
        if not batch.slot.taken:
            raise InvalidInputError("GPU pipeline: this batch was finished before")
        try:
            self.device.finish(batch.done)
            results = self.plan.layouts(batch.bucket).results.views(batch.slot.results)

            def take(members: Sequence[int]) -> MentionArrays:
                return self.folded(batch).take(list(members))

            with self.device.current():  # a mention that fell short is searched again where the batch was
                mode = batch.bucket.mode
                return self.plan.answer(results, batch.mentions, batch.k, mode, take, batch.names)
        finally:
            batch.slot.taken = False

    def folded(self, batch: InFlightBatch) -> MentionArrays:
        """The mentions of a batch that is not finished, folded, fetched from its slot on the device."""
        layout = self.plan.layouts(batch.bucket).folded
        host = self.device.pinned(layout.size_bytes)
        self.device.download(batch.slot.folded, host)
        self.device.finish(self.device.mark())
        arrays = layout.views(host)
        return MentionArrays(**{n.removeprefix(MENTION): a[: batch.mentions] for n, a in arrays.items()})

    def arrays(self, bucket: Bucket) -> dict[str, Placed]:
        """The fixed arrays of a bucket, of all four kinds, by name."""
        layouts = self.plan.layouts(bucket)
        kinds = (
            (self._inputs, layouts.inputs),
            (self._work, layouts.work),
            (self._folded, layouts.folded),
            (self._results, layouts.results),
        )
        return {
            name: placed
            for memory, layout in kinds
            for name, placed in self.device.place(memory, layout).items()
        }

    def _queue(self, bucket: Bucket, layouts: Layouts, slot: _Slot) -> Any:
        """Queue a batch that lies in its slot; an event for its end."""
        device, size = self.device, layouts.inputs.size_bytes
        captured = self._bucket(bucket)
        device.wait(device.upload(slot.inputs[:size], slot.uploaded))
        device.copy(slot.uploaded, self._inputs, size)
        with device.current():
            captured.run()
        device.copy(self._folded, slot.folded, layouts.folded.size_bytes)
        device.download(self._results, slot.results[: layouts.results.size_bytes])
        return device.mark()

    def _bucket(self, bucket: Bucket) -> CapturedPipeline:
        if bucket not in self._captured:
            stages = self.plan.stages(bucket, self.arrays(bucket))
            self._captured[bucket] = CapturedPipeline(self.device, stages, graphs=self._graphs)
        return self._captured[bucket]

    def _checked(self, bucket: Bucket) -> Layouts:
        layouts = self.plan.layouts(bucket)
        for kind in ("inputs", "work", "folded", "results"):
            getattr(layouts, kind).check(getattr(self._most, kind).size_bytes)
        return layouts

    def _abandon(self, slot: _Slot) -> None:
        """Free the slot of a batch that was not queued whole, once nothing reads its memory any more."""
        with contextlib.suppress(Exception):  # the device may be what has failed
            self.device.finish(self.device.mark())
        slot.taken = False

    def _new_slot(self) -> _Slot:
        device, most = self.device, self._most
        return _Slot(
            device.pinned(most.inputs.size_bytes),
            device.memory(most.inputs.size_bytes),
            device.memory(most.folded.size_bytes),
            device.pinned(most.results.size_bytes),
        )


I = TypeVar("I")  # noqa: E741 - an item of a stream of work
F = TypeVar("F")  # the item under way
T = TypeVar("T")


def overlapped(
    items: Iterable[I], start: Callable[[I], F], finish: Callable[[F], T], depth: int = SLOTS
) -> Iterator[T]:
    """Results in order, the next item started before the one before it is finished.

    At most ``depth`` items are under way. When something raises, what is under way
    is finished, so that no slot stays taken, and the first error goes on.
    """
    in_flight: list[F] = []
    try:
        for item in items:
            if len(in_flight) == depth:
                yield finish(in_flight.pop(0))
            in_flight.append(start(item))
        while in_flight:
            yield finish(in_flight.pop(0))
    finally:
        for batch in in_flight:
            with contextlib.suppress(Exception):  # an error is on its way already
                finish(batch)
