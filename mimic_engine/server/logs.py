"""The log of the service: plain text or one JSON object a line, each with the id of its request."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from datetime import UTC, datetime

import msgspec

from mimic_engine.server.settings import Settings

REQUEST_ID: ContextVar[str | None] = ContextVar("mimic_request_id", default=None)

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s%(request)s"
# Tells on info, as errors, of each build for another processor that it was made without.
_TALKATIVE = "faiss.loader"
# What every record has; the rest came with ``extra=`` and goes into the JSON object.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "request_id", "request"}


class _AddRequestId(logging.Filter):
    """Gives every record the id of the request that is being handled, if any."""

    def filter(self, record: logging.LogRecord) -> bool:
        request_id = REQUEST_ID.get()
        vars(record).update(request_id=request_id, request=f" [{request_id}]" if request_id else "")
        return True


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, request_id, exception, and extras."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one record."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := getattr(record, "request_id", None):
            line["request_id"] = request_id
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        return msgspec.json.encode(line, enc_hook=str).decode()


def configure(settings: Settings) -> None:
    """Set up the root logger of this process, unless it is set up already."""
    handler = logging.StreamHandler()
    handler.addFilter(_AddRequestId())
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else logging.Formatter(_TEXT))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler])
    if settings.log_level == "info":
        logging.getLogger(_TALKATIVE).setLevel(logging.WARNING)
