"""The life of the server process: listening, saying when it is ready, draining on a signal.

uvicorn closes its sockets before the application hears of a shutdown. Here the order is: readiness
fails, requests in flight finish (new ones get 503), then the sockets close.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import signal
import socket
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette

from mimic_engine.errors import InvalidInputError
from mimic_engine.server.service import LinkService
from mimic_engine.server.settings import Settings

logger = logging.getLogger(__name__)


def bind(host: str, port: int) -> socket.socket:
    """Take the port before anything is loaded; uvicorn listens on it later.

    Raises
    ------
    InvalidInputError
        If the address is not ours or the port is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # With protocol 0 asyncio would not turn Nagle's algorithm off, and answers would take 40 ms.
        taken = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InvalidInputError(f"host: cannot use {host!r}: {error}", field="host") from error
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
    except OSError as error:
        taken.close()
        if error.errno == errno.EADDRINUSE:
            message = f"port: {port} on {host} is in use; choose another with --port (0 takes a free one)"
            raise InvalidInputError(message, field="port") from error
        raise InvalidInputError(f"host: cannot listen on {host}:{port}: {error}", field="host") from error
    return taken


class DrainingServer(uvicorn.Server):
    """A uvicorn server that drains its :class:`LinkService` before it closes its sockets.

    ``on_ready`` runs once, when the warm-up has ended. ``startup_failure`` holds what ended it otherwise.
    A second Ctrl-C does not wait.
    """

    def __init__(
        self, app: Starlette, settings: Settings, *, on_ready: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="on",
                log_config=None,
                access_log=False,  # ours knows the request id
                timeout_keep_alive=settings.keep_alive_s,
                timeout_graceful_shutdown=math.ceil(settings.drain_timeout_s),
            )
        )
        self.service: LinkService = app.state.service
        self.settings = settings
        self.startup_failure: BaseException | None = None
        self._on_ready = on_ready
        self._announced = False
        self._forced = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def on_tick(self, counter: int) -> bool:
        """Look, ten times a second, whether the warm-up has ended."""
        self._loop = asyncio.get_running_loop()
        if not self._announced:
            if self.service.batcher.failure is not None:
                self.startup_failure = self.service.batcher.failure
                return True
            if self.service.unready_reason is None:
                self._announced = True
                self._on_ready()
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; a drained server then exits with 0."""
        del frame
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._forced.set)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, then let uvicorn close the sockets and wait for the last answers to be sent."""
        self.service.announce_leaving()
        logger.info("draining: requests in flight finish (Ctrl-C again: do not wait)")
        if self.settings.drain_grace_s:
            await self._unless_forced(asyncio.sleep(self.settings.drain_grace_s, True))
        if await self._unless_forced(self.service.drain()) is False:
            logger.error("drain_timeout_s=%g passed with requests in flight", self.settings.drain_timeout_s)
        if self.force_exit:
            self.service.batcher.close(0)
        await super().shutdown(sockets)

    async def _unless_forced(self, work: Coroutine[Any, Any, bool]) -> bool | None:
        task = asyncio.ensure_future(work)
        forced = asyncio.ensure_future(self._forced.wait())
        await asyncio.wait({task, forced}, return_when=asyncio.FIRST_COMPLETED)
        forced.cancel()
        if task.done():
            return task.result()
        task.cancel()
        return None
