"""Folded arrays of a small model, as an index stores them, and as tensors."""

from dataclasses import dataclass

import numpy as np
import torch

from mimic_engine.config import MatcherConfig
from mimic_engine.types import EntityArrays, FoldConstants, MentionArrays

VECTORS = ("text_cls", "tglu_query", "tglu_cls", "vdlu_query", "vdlu_key", "cmfu", "concat")
SMALL = MatcherConfig(text_width=11, text_token_width=13, hidden=8)


@dataclass(frozen=True)
class Folded:
    """One model's folded arrays, the entities also as an index stores them."""

    mentions: MentionArrays
    entities: EntityArrays
    constants: FoldConstants

    def stored(self, dtype: str) -> EntityArrays:
        """Vectors as float32, float16, or float16 with int8 token queries."""
        arrays = dict(self.entities.items())
        if dtype != "float32":
            arrays |= {n: a.astype(np.float16) for n, a in arrays.items() if n in VECTORS}
        if dtype == "int8":
            query = self.entities.tglu_query
            scale = np.abs(query).max(-1) / 127 + 1e-12  # (N, L)
            arrays["tglu_query"] = np.round(query / scale[..., None]).astype(np.int8)
            arrays["tglu_query_scale"] = scale.astype(np.float32)
        return EntityArrays(**arrays)


def wide(arrays):
    """Mentions or stored entities in float64; int8 queries times their scales."""
    out = {n: a.astype(np.float64) for n, a in arrays.items() if n != "tglu_query_scale"}
    if getattr(arrays, "tglu_query_scale", None) is not None:
        out["tglu_query"] *= arrays.tglu_query_scale[..., None]
    return type(arrays)(**out)


def tensors(arrays):
    return {name: torch.from_numpy(np.array(a)) for name, a in arrays.items()}
