"""Batches through the device, two at a time: slots, the way of a batch, the hand-back of its results.

    fill slot (host) -> upload (own stream) -> copy to the fixed inputs -> program -> copy of what was
    folded to the slot -> download of the results -> host waits for this batch alone

While one batch is on the device the next one is written to the other slot and
uploaded. All programs share one set of fixed arrays, which is right because one
stream runs them one after the other. Knows neither what the stages compute nor
what the device is.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from numpy.typing import NDArray

from mimic_engine.errors import EngineError, InvalidInputError
from mimic_engine.gpu.layout import Bytes, Layout, Placed

# The stages of one bucket in their order: as they are the first time, then as CUDA graphs. Stages that
# can be captured and follow each other become one graph; one that cannot (an ONNX Runtime session,
# which keeps graphs of its own and allows no other around them) is launched between them. Nothing here
# waits for the device.

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stage:
    """Work that is queued on the chain's stream by ``launch``, on arrays at fixed addresses."""

    name: str
    launch: Callable[[], None]
    capturable: bool = True


class Recorder(Protocol):
    """What a program needs of a device."""

    def capture(self, work: Callable[[], None]) -> Any:
        """A graph of what ``work`` queues; it is not run yet."""
        ...

    def replay(self, graph: Any) -> None:
        """Queue a graph."""
        ...


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


class Program:
    """Runs stages in order.

    The first run launches every stage, which compiles kernels and makes
    workspaces. Then each group of neighbours that can be captured is, once. A
    capture that fails is logged with its reason and its stages are launched one
    by one from then on: :attr:`launched` says which.

    Parameters
    ----------
    recorder : of the device; without graphs where ``graphs`` is false.
    stages : in order.
    graphs : whether to capture at all.
    apart : make every stage a graph of its own, to time them one by one.
    """

    def __init__(
        self, recorder: Recorder, stages: Sequence[Stage], *, graphs: bool = True, apart: bool = False
    ) -> None:
        self._recorder = recorder
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
                self._recorder.replay(part.graph)
            between(part.name)
        if not self._ran and self._graphs:
            self._capture()
        self._ran = True

    def _capture(self) -> None:
        for part in self._parts:
            if not part.stages[0].capturable:
                continue
            try:
                part.graph = self._recorder.capture(part.launch)
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


B = TypeVar("B", bound=Hashable)  # a bucket: whatever shapes and options a program is made for
I = TypeVar("I")  # noqa: E741 - an item of a stream of work
F = TypeVar("F")  # its flight
T = TypeVar("T")

HostArrays = Mapping[str, NDArray[Any]]
SLOTS = 2


class ChainDevice(Recorder, Protocol):
    """A device with a stream that everything runs on, and another for uploads; from one thread at a time.

    What is queued returns at once. Host memory of a copy comes from :meth:`pinned`.
    """

    def current(self) -> AbstractContextManager[object]:
        """Make the main stream the one that libraries launch on within the block."""
        ...

    def memory(self, size_bytes: int) -> Any:
        """Device memory, kept as long as the object."""
        ...

    def pinned(self, size_bytes: int) -> Bytes:
        """Page-locked host memory."""
        ...

    def place(self, memory: Any, layout: Layout) -> dict[str, Placed]:
        """The arrays of a layout at the start of device memory."""
        ...

    def upload(self, host: Bytes, memory: Any) -> Any:
        """Queue a copy to the start of device memory on the upload stream; an event for its end."""
        ...

    def wait(self, event: Any) -> None:
        """Hold the main stream until an event has happened."""
        ...

    def copy(self, source: Any, target: Any, size_bytes: int) -> None:
        """Queue a copy within the device on the main stream."""
        ...

    def download(self, memory: Any, host: Bytes) -> None:
        """Queue a copy from the start of device memory on the main stream."""
        ...

    def mark(self) -> Any:
        """An event that happens when the main stream gets here."""
        ...

    def finish(self, event: Any) -> None:
        """Wait on the host for an event; raises what went wrong on the device."""
        ...


@dataclass(frozen=True, slots=True)
class Layouts:
    """The arrays of one bucket: what is uploaded, what stages pass on, what is folded, what comes back."""

    inputs: Layout
    work: Layout
    folded: Layout
    results: Layout


class Recipe(Protocol[B]):
    """How a bucket is computed."""

    @property
    def largest(self) -> B:
        """The bucket that takes the most memory in every respect."""
        ...

    def layouts(self, bucket: B) -> Layouts:
        """The arrays of a bucket."""
        ...

    def stages(self, bucket: B, arrays: Mapping[str, Placed]) -> Sequence[Stage]:
        """The stages of a bucket, over its arrays of all four kinds by name."""
        ...


@dataclass(slots=True)
class _Slot:
    """What one batch under way owns."""

    inputs: Bytes  # pinned
    uploaded: Any  # device memory
    folded: Any  # device memory
    results: Bytes  # pinned
    taken: bool = False


@dataclass(frozen=True, slots=True)
class Flight(Generic[B]):
    """A batch on the device; to be given to :meth:`Chain.finish` once."""

    bucket: B
    slot: _Slot
    done: Any


class Chain(Generic[B]):
    """Programs by bucket, and the slots that batches travel in.

    Parameters
    ----------
    device : that runs it.
    recipe : what a bucket's program is made of.
    graphs : capture programs as CUDA graphs.
    """

    def __init__(self, device: ChainDevice, recipe: Recipe[B], *, graphs: bool = True) -> None:
        self.device, self.recipe = device, recipe
        self._graphs = graphs
        self._most = most = recipe.layouts(recipe.largest)
        self._inputs, self._work, self._folded, self._results = (
            device.memory(layout.size_bytes) for layout in (most.inputs, most.work, most.folded, most.results)
        )
        self._slots = [self._new_slot() for _ in range(SLOTS)]
        self._programs: dict[B, Program] = {}

    @property
    def free(self) -> int:
        """Slots that a batch may be started in."""
        return sum(not slot.taken for slot in self._slots)

    @property
    def programs(self) -> Mapping[B, Program]:
        """The programs made so far, by bucket."""
        return self._programs

    def start(self, bucket: B, fill: Callable[[HostArrays], None]) -> Flight[B]:
        """Queue a batch and return while the device works.

        Parameters
        ----------
        bucket : its program is made on first use.
        fill : writes the inputs, by name; every value of them, a slot is used again and again.

        Raises
        ------
        EngineError
            If both slots are taken: finish a batch first.
        """
        slot = next((s for s in self._slots if not s.taken), None)
        if slot is None:
            raise EngineError(f"staging: all {SLOTS} slots hold a batch; finish one first")
        layouts = self._checked(bucket)
        fill(layouts.inputs.views(slot.inputs))
        slot.taken = True
        try:
            return self._queue(bucket, layouts, slot)
        except BaseException:
            self._abandon(slot)
            raise

    def finish(self, flight: Flight[B], read: Callable[[HostArrays, Callable[[], HostArrays]], T]) -> T:
        """Wait for a batch and read its results; the slot is free afterwards, whatever happens.

        Parameters
        ----------
        flight : of :meth:`start`.
        read : given views of the results, good until it returns, and a call that fetches
            what was folded from the device, for those who need more of it.
        """
        if not flight.slot.taken:
            raise InvalidInputError("staging: this batch was finished before")
        try:
            self.device.finish(flight.done)
            layouts = self.recipe.layouts(flight.bucket)
            with self.device.current():  # whoever needs more computes where the chain does
                results = layouts.results.views(flight.slot.results)
                return read(results, partial(self._fetch, flight, layouts))
        finally:
            flight.slot.taken = False

    def run(self, bucket: B, fill: Callable[[HostArrays], None], read: Callable[..., T]) -> T:
        """Start and finish one batch."""
        return self.finish(self.start(bucket, fill), read)

    def arrays(self, bucket: B) -> dict[str, Placed]:
        """The fixed arrays of a bucket, of all four kinds, by name."""
        layouts = self.recipe.layouts(bucket)
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

    def _queue(self, bucket: B, layouts: Layouts, slot: _Slot) -> Flight[B]:
        device, size = self.device, layouts.inputs.size_bytes
        program = self._program(bucket)
        device.wait(device.upload(slot.inputs[:size], slot.uploaded))
        device.copy(slot.uploaded, self._inputs, size)
        with device.current():
            program.run()
        device.copy(self._folded, slot.folded, layouts.folded.size_bytes)
        device.download(self._results, slot.results[: layouts.results.size_bytes])
        return Flight(bucket, slot, device.mark())

    def _program(self, bucket: B) -> Program:
        if bucket not in self._programs:
            stages = self.recipe.stages(bucket, self.arrays(bucket))
            self._programs[bucket] = Program(self.device, stages, graphs=self._graphs)
        return self._programs[bucket]

    def _fetch(self, flight: Flight[B], layouts: Layouts) -> HostArrays:
        """What was folded for a batch, from its slot on the device."""
        host = self.device.pinned(layouts.folded.size_bytes)
        self.device.download(flight.slot.folded, host)
        self.device.finish(self.device.mark())
        return layouts.folded.views(host)

    def _checked(self, bucket: B) -> Layouts:
        layouts = self.recipe.layouts(bucket)
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


def overlapped(
    items: Iterable[I], start: Callable[[I], F], finish: Callable[[F], T], depth: int = SLOTS
) -> Iterator[T]:
    """Results in order, the next item started before the one before it is finished.

    At most ``depth`` items are under way. When something raises, what is under way
    is finished, so that no slot stays taken, and the first error goes on.
    """
    flights: list[F] = []
    try:
        for item in items:
            if len(flights) == depth:
                yield finish(flights.pop(0))
            flights.append(start(item))
        while flights:
            yield finish(flights.pop(0))
    finally:
        for flight in flights:
            with contextlib.suppress(Exception):  # an error is on its way already
                finish(flight)
