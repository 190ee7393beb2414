"""Linking as a service, without HTTP: checks, preparation in threads, the batcher, readiness, draining.

A single mention is a list of one: both take the same way and obey the same admission rule.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from mimic_engine.batching import Batcher, State
from mimic_engine.errors import (
    DeadlineError,
    EngineError,
    ImageError,
    InvalidInputError,
    MimicError,
    TooLargeError,
)
from mimic_engine.server.settings import Settings
from mimic_engine.types import Entity, LinkOptions, LinkResult, Mention

DEFAULT_TOP_K = 10
INLINE_CHARS = 2_000  # shorter texts tokenise faster than a hand-off to a thread takes


class IndexLike(Protocol):
    """What the service needs of an index."""

    def __len__(self) -> int: ...

    def rows(self, ids: Sequence[str]) -> Any:
        """Rows of entity ids; UnknownEntityError names the first that is not there."""

    def entity(self, row: int) -> Entity:
        """Metadata of a row."""


class LinkerLike(Protocol):
    """What the service needs of :class:`mimic_engine.Linker`."""

    @property
    def index(self) -> IndexLike:
        """The index that is linked against."""

    @property
    def model_hash(self) -> str:
        """Hash of the model."""

    def prepare(self, mention: Mention) -> Any:
        """Tokenise and decode; any thread. InvalidInputError and its kin for bad input."""

    def link_prepared(self, prepared: list[Any], options: list[LinkOptions]) -> list[LinkResult]:
        """Do the device work, on the device thread only."""

    def warm_up(self) -> None:
        """Make the first request as fast as the others, on the device thread."""

    def info(self) -> Mapping[str, Any]:
        """Describe model and index, as JSON."""


@dataclass(frozen=True, slots=True)
class Query:
    """One mention as a caller asked for it."""

    mention: Mention
    top_k: int | None = None
    candidates: Sequence[str] | None = None


@dataclass(frozen=True, slots=True)
class LinkItem:
    """One mention as the device gets it."""

    prepared: Any
    options: LinkOptions
    cost: int


class LinkService:
    """Owns the batcher and the preparing threads around one linker."""

    def __init__(
        self, linker: LinkerLike, settings: Settings, on_batch: Callable[[Any], None] = lambda _: None
    ) -> None:
        self.linker, self.settings = linker, settings
        self.leaving = False
        self._pool = ThreadPoolExecutor(settings.prepare_threads, "mimic-prepare")
        self.batcher: Batcher[LinkItem, LinkResult] = Batcher(
            self._run,
            settings.batch_limits(),
            cost=lambda item: item.cost,
            warm_up=linker.warm_up,
            on_batch=on_batch,
        )

    # -- linking ------------------------------------------------------------------------------------

    async def link(
        self, queries: Sequence[Query | MimicError], deadline: float, timing: dict[str, float]
    ) -> list[LinkResult | MimicError]:
        """Answer every query with a result or its error; errors among the queries stay where they are.

        ``deadline`` is a time of :func:`time.monotonic`; ``timing`` receives ``prepare``, ``queue`` and
        ``device`` in milliseconds.

        Raises
        ------
        QueueFullError, NotReadyError, DeadlineError
            Where they concern the call as a whole.
        """
        answers: list[LinkResult | MimicError] = [
            q if isinstance(q, MimicError) else EngineError("not answered") for q in queries
        ]
        open_slots = [(i, q) for i, q in enumerate(queries) if isinstance(q, Query)]
        with self.batcher.reserve(len(open_slots)) as places:
            began = time.monotonic()
            prepared = await self._prepare([q for _, q in open_slots], deadline)
            timing["prepare"] = (time.monotonic() - began) * 1e3
            items: list[tuple[int, LinkItem]] = []
            for (i, _), item in zip(open_slots, prepared, strict=True):
                if isinstance(item, MimicError):
                    answers[i] = item
                else:
                    items.append((i, item))
            outcomes = await places.submit([item for _, item in items], deadline)
        for (i, _), outcome in zip(items, outcomes, strict=True):
            answers[i] = outcome.error or outcome.unwrap()
        timing["queue"] = max((o.queue_s for o in outcomes), default=0.0) * 1e3
        timing["device"] = max((o.service_s for o in outcomes), default=0.0) * 1e3
        return answers

    async def _prepare(self, queries: Sequence[Query], deadline: float) -> list[LinkItem | MimicError]:
        if len(queries) == 1 and _is_cheap(queries[0]):
            return [self._prepare_one(queries[0])]
        if not queries:
            return []
        loop = asyncio.get_running_loop()
        jobs = [loop.run_in_executor(self._pool, self._prepare_one, query) for query in queries]
        try:
            _, late = await asyncio.wait(jobs, timeout=max(0.0, deadline - time.monotonic()))
        finally:
            for job in jobs:
                job.cancel()
        if late:
            raise DeadlineError("the request's deadline passed while it was prepared")
        return [job.result() for job in jobs]

    def _prepare_one(self, query: Query) -> LinkItem | MimicError:
        """Check and prepare one query; its error belongs to it alone."""
        try:
            top_k = self._check(query)
            prepared = self.linker.prepare(query.mention)
        except MimicError as error:
            return error
        except Exception as error:
            fault = EngineError(f"preparing a mention failed: {type(error).__name__}")
            fault.__cause__ = error
            return fault
        cost = 1 if query.mention.image is None else self.settings.image_cost
        candidates = None if query.candidates is None else tuple(query.candidates)
        return LinkItem(prepared, LinkOptions(top_k, candidates), cost)

    def _check(self, query: Query) -> int:
        """Hold a query against the limits; gives the number of candidates to return."""
        for field in ("mention", "sentence"):
            length, limit = len(getattr(query.mention, field)), self.settings.max_text_chars
            if length > limit:
                raise InvalidInputError(f"{field}: at most {limit} characters, got {length}", field=field)
        if not query.mention.mention.strip():
            raise InvalidInputError("mention: must not be empty", field="mention")
        self._check_image(query.mention.image)
        available = len(self.linker.index)
        top_k = min(DEFAULT_TOP_K, available) if query.top_k is None else query.top_k
        most = min(self.settings.max_top_k, available)
        if not 1 <= top_k <= most:
            raise InvalidInputError(
                f"top_k: must be 1 to {most} (max_top_k={self.settings.max_top_k}, "
                f"{available} entities in the index), got {top_k}",
                field="top_k",
            )
        if query.candidates is None:
            return top_k
        self._check_candidates(query.candidates)
        return min(top_k, len(query.candidates))

    def _check_image(self, image: object) -> None:
        if image is None:
            return
        assert isinstance(image, bytes)  # a path would let callers read our files
        if not image:
            raise ImageError("image: must not be empty", field="image")
        if len(image) > self.settings.max_image_bytes:
            limit = self.settings.max_image_bytes
            raise TooLargeError(f"image: at most {limit} bytes, got {len(image)}", field="image")

    def _check_candidates(self, ids: Sequence[str]) -> None:
        field, limit = "candidates", self.settings.max_candidates
        if not 1 <= len(ids) <= limit:
            raise InvalidInputError(f"{field}: must be 1 to {limit} ids, got {len(ids)}", field=field)
        if len(set(ids)) != len(ids):
            twice = next(id_ for i, id_ in enumerate(ids) if id_ in ids[:i])
            raise InvalidInputError(f"{field}: {twice!r} is given twice", field=field)
        try:
            self.linker.index.rows(ids)
        except InvalidInputError as error:
            error.field = field
            raise

    def _run(self, items: list[LinkItem]) -> list[LinkResult]:
        return self.linker.link_prepared([item.prepared for item in items], [item.options for item in items])

    # -- readiness and the end ------------------------------------------------------------------------

    @property
    def unready_reason(self) -> str | None:
        """None when requests should come here, else why not."""
        if self.leaving:
            return State.DRAINING.value
        if not self.batcher.alive:
            return State.FAILED.value
        if self.batcher.state is not State.READY:
            return self.batcher.state.value
        busy_s, limit_s = self.batcher.busy_s, self.settings.stall_timeout_s
        return f"the device has been stuck for {busy_s:.0f} s" if busy_s > limit_s else None

    def announce_leaving(self) -> None:
        """Fail readiness, and go on accepting."""
        self.leaving = True

    async def drain(self) -> bool:
        """Accept no more and wait for the answers under way; False if ``drain_timeout_s`` was too short."""
        self.announce_leaving()
        return await asyncio.to_thread(self.batcher.drain, self.settings.drain_timeout_s)

    def close(self) -> None:
        """End the threads; what still waits is refused."""
        self.leaving = True
        self.batcher.close(self.settings.drain_timeout_s)
        self._pool.shutdown(wait=False, cancel_futures=True)


def _is_cheap(query: Query) -> bool:
    mention = query.mention
    return (
        mention.image is None
        and query.candidates is None
        and len(mention.mention) + len(mention.sentence) <= INLINE_CHARS
    )
