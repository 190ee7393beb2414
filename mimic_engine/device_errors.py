"""Meaning of a failure on a device: out of memory, a failed run, or a context that nothing mends.

Libraries say it in words alone (CUDA's error names, in their own exceptions),
so the words are read here, in one place. Knows no library and imports none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from mimic_engine.errors import BackendError, DeviceError, DeviceLostError, MimicError

# Errors after which every call in the context fails until the process ends: CUresult and cudaError_t names,
# and the texts that go with them ("CUDA driver API", data types). Those of a launch that was refused are not.
_LOST = re.compile(
    r"illegal memory access|illegal address|misaligned address|illegal instruction|invalid program counter"
    r"|hardware stack error|operation not supported on global/shared address space|invalid address space"
    r"|unspecified launch failure|launch timed out|device-side assert|uncorrectable|context is destroyed"
    r"|device(s)? (is|are) (busy or )?unavailable|driver shutting down"
    r"|cuda(_)?error(_)?(illegal_?(address|instruction)|misaligned_?address|invalid_?(pc|address_?space)"
    r"|hardware_?stack_?error|launch_?(failed|failure|timeout)|assert|ecc_?uncorrectable|nvlink_?uncorrectable"
    r"|context_?is_?destroyed|devices?_?unavailable|deinitialized)",
    re.IGNORECASE,
)
_MEMORY = re.compile(
    r"out of memory|out_of_memory|cudaerrormemoryallocation|not enough (device )?memory"
    r"|failed to allocate memory|bfcarena|bad allocation|bad_alloc",
    re.IGNORECASE,
)
_SHOWN = 300  # characters of a library's text in a message


def device_error(what: str, error: BaseException) -> DeviceError:
    """The error of the tree for a failure of a library while it worked on ``what``.

    A :class:`DeviceLostError` where the words of the error, or of one that it came
    from, say that the context is broken.
    """
    errors = list(_causes(error))
    texts = [f"{type(e).__name__}: {e}" for e in errors]
    shown = texts[0][:_SHOWN]
    if any(isinstance(e, DeviceLostError) or _LOST.search(t) for e, t in zip(errors, texts, strict=True)):
        reason = "its context is broken"
        return DeviceLostError(f"{what}: {reason}: {shown}", reason=reason)
    memory = any(isinstance(e, MemoryError) or _MEMORY.search(t) for e, t in zip(errors, texts, strict=True))
    reason = "out of memory" if memory else "a run failed"
    return DeviceError(f"{what}: {reason}: {shown}", reason=reason)


@contextmanager
def device_faults(what: str) -> Iterator[None]:
    """Turn what a library or the device layer raises inside into a :class:`DeviceError`.

    Other errors of ours pass as they are: wrong input, scores that are not finite, and mistakes in the
    program, which a device that is taken up anew would not mend.
    """
    try:
        yield
    except BackendError as error:
        raise device_error(what, error) from error
    except (MimicError, *_MISTAKES):
        raise
    except Exception as error:
        raise device_error(what, error) from error


_MISTAKES = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, TypeError)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and those it came from."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
