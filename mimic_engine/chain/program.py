"""The stages of one bucket in their order: as they are the first time, then as CUDA graphs.

Stages that can be captured and follow each other become one graph; one that
cannot (an ONNX Runtime session, which keeps graphs of its own and allows no
other around them) is launched between them. Nothing here waits for the device.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

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
