"""Numbers below 1e-38 taken for zero while training runs on a CPU.

Sharp attention is full of them, forwards and backwards, and a processor takes
many times as long for each as for an ordinary number.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def denormals_as_zero() -> Iterator[None]:
    """Denormal results and operands are zero inside, in the calling thread.

    Threads that are started inside keep this for good, those that were there before have none of it:
    enter before PyTorch's pool exists, that is before the first large operation. Nothing changes on a
    processor that cannot do it.
    """
    before = flushes_denormals()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def flushes_denormals() -> bool:
    """Whether the calling thread takes denormal results for zero."""
    smallest_normal = torch.finfo(torch.float32).tiny
    return bool(np.full(1, smallest_normal, np.float32) * np.float32(0.5) == 0)
