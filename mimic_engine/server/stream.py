"""The answer to ``/v1/link:stream``: reads lines, links them, writes lines, never holds more than a window.

A line is read only when a place in the window and a place in the queue are free: a client that sends faster
than the device works finds its connection full, and nobody else's mentions are refused on its behalf.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mimic_engine.batching.queue import Reservation
from mimic_engine.errors import MimicError
from mimic_engine.server.errors import describe
from mimic_engine.server.linking import Asked, Linking
from mimic_engine.server.requests import NDJSON, LinkRequest, lines_of
from mimic_engine.types import LinkResult
from mimic_engine.wire import ErrorBody, LinkAnswer

Work = asyncio.Future[LinkAnswer | Exception]


class StreamedLinks(Response):
    """Answers while the request is still coming in, one line for each line, in their order."""

    def __init__(self, request: Request, linking: Linking, timeout_s: float) -> None:
        super().__init__(media_type=NDJSON[0])
        del self.headers["content-length"]
        self._request, self._linking, self._timeout_s = request, linking, timeout_s
        self._settings = linking.service.settings
        self._working: set[Work] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        del scope, receive  # the request has them
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        window: asyncio.Queue[Work | None] = asyncio.Queue(self._settings.stream_window)
        reader = asyncio.ensure_future(self._read(window))
        try:
            async for line in self._answered(window):
                await send({"type": "http.response.body", "body": line, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            reader.cancel()
            for work in tuple(self._working):
                work.cancel()

    async def _read(self, window: asyncio.Queue[Work | None]) -> None:
        """Put the work of one line after the other into the window; None is the end."""
        try:
            async for line in lines_of(self._request, self._settings.max_body_bytes):
                await window.put(await self._begin(self._linking.read(line)))
        except ClientDisconnect:
            pass
        except Exception as error:
            await window.put(_done(error))
        await window.put(None)

    async def _begin(self, asked: Asked) -> Work:
        """Reserve a place, then link beside everything else."""
        if isinstance(asked, MimicError):
            return _done(self._linking.shaped(asked, asked))
        reservation = await self._linking.service.batcher.queue.reserve_when_free(1)
        work = asyncio.ensure_future(self._link(reservation, asked))
        self._working.add(work)
        work.add_done_callback(self._working.discard)
        # Also where it was cancelled before it began.
        work.add_done_callback(lambda _: reservation.give_back())
        return work

    async def _link(
        self, reservation: Reservation[Any, LinkResult], asked: LinkRequest
    ) -> LinkAnswer | Exception:
        deadline = time.monotonic() + self._timeout_s
        try:
            [result] = await self._linking.service.link_in(reservation, [asked], deadline, {})
        except MimicError as error:
            result = error
        return self._linking.shaped(asked, result)

    async def _answered(self, window: asyncio.Queue[Work | None]) -> AsyncIterator[bytes]:
        number = 0
        while (work := await window.get()) is not None:
            answer = await work
            yield _line(answer, number)
            number += 1


def _line(answer: LinkAnswer | Exception, number: int) -> bytes:
    body: LinkAnswer | ErrorBody
    body = describe(answer, f"lines[{number}]")[1] if isinstance(answer, Exception) else answer
    return msgspec.json.encode(body) + b"\n"


def _done(answer: LinkAnswer | Exception) -> Work:
    done = asyncio.get_running_loop().create_future()
    done.set_result(answer)
    return done
