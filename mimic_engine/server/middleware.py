"""The outermost layer, plain ASGI: request id, timing, body limit, metrics, and the answer to a fault."""

from __future__ import annotations

import logging
import math
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mimic_engine.errors import TooLargeError
from mimic_engine.server.errors import error_response
from mimic_engine.server.logs import REQUEST_ID
from mimic_engine.server.metrics import Metrics
from mimic_engine.server.tracing import RequestTracer

if TYPE_CHECKING:
    from opentelemetry.trace import Span

access = logging.getLogger("mimic_engine.access")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:+/=-]{1,128}")
_DISCARD_FACTOR = 4  # a body over its limit is read and dropped up to so many limits


@dataclass(slots=True)
class Trace:
    """Name of one request and where its time went, for ``X-Request-Id`` and ``Server-Timing``."""

    request_id: str
    started: float = field(default_factory=time.monotonic)
    parts_ms: dict[str, float] = field(default_factory=dict)

    def server_timing(self) -> str:
        """Write the header: the parts in their order, then the total."""
        parts = {**self.parts_ms, "total": (time.monotonic() - self.started) * 1e3}
        return ", ".join(f"{name};dur={ms:.3f}" for name, ms in parts.items())


class TraceMiddleware:
    """Wraps the whole application; handlers find the :class:`Trace` as ``request.state.trace``.

    While ``leaving()`` is true every answer closes its connection, so that clients which keep theirs open
    go elsewhere before the sockets close. Bodies of the paths ``streams`` have no limit: they are never held
    whole.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        max_body_bytes: int,
        access_log: bool = False,
        leaving: Callable[[], bool] = lambda: False,
        streams: frozenset[str] = frozenset(),
        tracer: RequestTracer | None = None,
    ) -> None:
        self.app, self.metrics, self.max_body_bytes = app, metrics, max_body_bytes
        self.streams, self.tracer = streams, tracer
        self.access_log, self.leaving = access_log, leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        trace = Trace(_request_id(headers.get("x-request-id")))
        scope.setdefault("state", {})["trace"] = trace
        named = REQUEST_ID.set(trace.request_id)
        span = None if self.tracer is None else self.tracer.begin(scope, headers, trace.request_id)
        stream = scope["path"] in self.streams
        limited = _LimitedReceive(receive, math.inf if stream else self.max_body_bytes)
        status = 0

        async def send_traced(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if status == 413 and "expect" not in headers:
                    await limited.discard()
                out = MutableHeaders(scope=message)
                out["X-Request-Id"] = trace.request_id
                out["Server-Timing"] = trace.server_timing()
                unread = (
                    limited.more
                    and not stream
                    and ("content-length" in headers or "transfer-encoding" in headers)
                )
                if unread or self.leaving():
                    out["Connection"] = "close"
            await send(message)

        try:
            limited.check_declared(headers)
            await self.app(scope, limited, send_traced)
        except ClientDisconnect:
            pass  # it left while sending: nobody is there to be answered
        except Exception as error:
            if status:  # the answer had begun: all that is left is to break it off
                raise
            await error_response(error)(scope, receive, send_traced)
        finally:
            self._record(scope, trace, status, span)
            REQUEST_ID.reset(named)

    def _record(self, scope: Scope, trace: Trace, status: int, span: Span | None) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        seconds = time.monotonic() - trace.started
        self.metrics.requests.labels(route, str(status or "gone")).inc()
        self.metrics.request_s.labels(route).observe(seconds)
        if self.tracer is not None and span is not None:
            self.tracer.end(span, route, scope["method"], status or 499, trace.parts_ms)
        if self.access_log:
            extra = {
                "method": scope["method"],
                "route": route,
                "status": status,
                "ms": round(seconds * 1e3, 3),
            }
            access.info("%s %s %d %.1f ms", scope["method"], route, status, seconds * 1e3, extra=extra)


class _LimitedReceive:
    """Counts the bytes of a body and stops at the limit."""

    def __init__(self, receive: Receive, limit: float) -> None:
        self._receive, self._limit, self._seen = receive, limit, 0
        self.more = True  # of the body, as far as we have read

    def check_declared(self, headers: Headers) -> None:
        length = headers.get("content-length", "")
        if length.isdecimal() and (len(length) > 18 or int(length) > self._limit):
            raise self._too_large(length)

    async def __call__(self) -> Message:
        message = await self._receive()
        self._seen += len(message.get("body", b""))
        self.more = message.get("more_body", False)
        if self._seen > self._limit:
            raise self._too_large(f"{self._seen} or more")
        return message

    async def discard(self) -> None:
        """Read on for a while: a client that is still sending would not see the answer otherwise."""
        while self.more and self._seen < _DISCARD_FACTOR * self._limit:
            message = await self._receive()
            self._seen += len(message.get("body", b""))
            self.more = message.get("more_body", False)

    def _too_large(self, size: str) -> TooLargeError:
        return TooLargeError(f"body: at most {self._limit} bytes (max_body_bytes), got {size}", field="body")


def _request_id(given: str | None) -> str:
    """Take the caller's id where it is fit for a log line, else make one."""
    return given if given and _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
