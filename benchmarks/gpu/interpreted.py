"""Top-k by NumPy for Triton's interpreter, which runs the library's own a thousand times slower."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import TensorHandle


def numpy_topk(x: Any, k: Any) -> Any:
    """What ``triton.language.topk`` gives for an interpreted tensor: the k largest, sorted."""
    count = getattr(k, "value", k)
    best = np.sort(x.handle.data, axis=-1)[..., ::-1][..., :count].copy()
    kind = tl.block_type(x.dtype.scalar, list(best.shape))
    return tl.core.tensor(TensorHandle(best, x.dtype.scalar), kind)
