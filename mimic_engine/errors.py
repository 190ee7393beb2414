"""The one exception tree of the project, and nothing else.

Every message names the field, the limit and the value. The server maps these
classes to HTTP status codes in one table (:mod:`mimic_engine.server.errors`).
"""


class MimicError(Exception):
    """Base of every error that mimic_engine raises on purpose."""


class InvalidInputError(MimicError, ValueError):
    """A mention, entity, option or argument is outside its limits (HTTP 422); ``field`` may name it."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class UnknownEntityError(InvalidInputError):
    """An entity id that the index does not hold (HTTP 404 or 422)."""


class TooLargeError(InvalidInputError):
    """A body, image or batch is over its size limit (HTTP 413)."""


class ImageError(InvalidInputError):
    """An image cannot be decoded (HTTP 422)."""


class ImageTypeError(ImageError):
    """An image is in a format that is not allowed (HTTP 415)."""


class DataError(MimicError, ValueError):
    """A record of a data set or knowledge base is wrong; names file and record."""


class ModelError(MimicError):
    """A checkpoint or exported model is missing, damaged or of another version."""


class IndexFormatError(MimicError):
    """An index folder is missing, damaged, empty or of another version."""


class IndexMismatchError(IndexFormatError):
    """The index was built with another model than the one that was opened."""


class IndexWriteError(MimicError):
    """An index could not be changed (a full disk, say); what was there before is as it was."""


class IndexLockedError(IndexWriteError):
    """Another process or writer is changing the index."""


class MissingDependencyError(MimicError, ImportError):
    """A feature was asked for by name and needs a package that is not installed."""


class BackendError(MimicError):
    """A backend that was asked for does not work here: no device, driver too old, provider missing."""


class UnauthorisedError(MimicError):
    """A request carries no key, or one that the service does not know (HTTP 401)."""


class ForbiddenError(MimicError):
    """A request's key does not allow what it asks for (HTTP 403)."""


class QueueFullError(MimicError):
    """The batcher's queue is full; try again after ``retry_after_s`` (HTTP 429)."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineError(MimicError):
    """The request's deadline passed before it was answered (HTTP 504)."""


class NotReadyError(MimicError):
    """The service is warming up, draining, or its device thread is dead (HTTP 503)."""


class EngineError(MimicError):
    """The engine failed while it worked on a request (HTTP 500)."""


class DeviceError(EngineError):
    """The device failed in a batch, and is taken up anew (HTTP 503); ``reason`` says why, in words."""

    def __init__(self, message: str, *, reason: str = "a run failed") -> None:
        super().__init__(message)
        self.reason = reason


class DeviceLostError(DeviceError):
    """The device's context is broken: only a new process can use the device again (HTTP 503)."""
