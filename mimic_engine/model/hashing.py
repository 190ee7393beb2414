"""Identity of a model: a SHA-256 over its weights and what of its config changes what it computes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor

from mimic_engine.config import ModelConfig
from mimic_engine.model.mimic import Mimic


def state_hash(state: Mapping[str, Tensor], *, salt: str = "") -> str:
    """SHA-256 (hex) over names, dtypes, shapes and bytes of all tensors, in name order."""
    digest = hashlib.sha256(salt.encode())
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def model_hash(model: Mimic) -> str:
    """SHA-256 (hex) of a model; an index carries it and is refused by every other model.

    Where the encoders were loaded from does not count, what they hold does.
    """
    return state_hash(model.state_dict(), salt=_config_salt(model.config))


def _config_salt(config: ModelConfig) -> str:
    values = config.to_json()
    for source in ("text_source", "image_source"):
        del values["encoder"][source]
    if config.image.entity_pictures == 1:  # the published model, whose hash does not speak of it
        del values["image"]["entity_pictures"]
    return json.dumps(values, sort_keys=True)
