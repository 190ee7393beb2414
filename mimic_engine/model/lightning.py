"""Import of published MIMIC checkpoints (PyTorch Lightning files) by their key names.

The file is read with ``weights_only=True``. Objects other than tensors that
such files carry (hyper-parameters of any class) are replaced by inert
placeholders: no code of the file runs.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mimic_engine.config import ModelConfig, TextConfig
from mimic_engine.errors import ModelError
from mimic_engine.model.units import Mimic

# The published configuration: CLIP ViT-B/32, and the literal string "[SEP]" between the two texts.
PUBLISHED = ModelConfig(text=TextConfig(pairing="literal"))
# Index buffers that older transformers releases stored; they hold 0, 1, 2, ... and nothing learnt.
IGNORED_SUFFIXES = ("embeddings.position_ids",)


@dataclass(frozen=True)
class ImportReport:
    """Keys that the file lacks, keys that the model does not know, and keys left aside on purpose."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    ignored: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether every weight came from the file and every weight of the file was used."""
        return not self.missing and not self.unexpected


def read_lightning_state(path: str | Path) -> dict[str, Tensor]:
    """``state_dict`` of a Lightning checkpoint file, on the CPU.

    Raises
    ------
    ModelError
        If the file cannot be read or holds no ``state_dict`` of tensors.
    """
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
        placeholders: list[Any] = [(_placeholder(name), name) for name in unknown]
        with torch.serialization.safe_globals(placeholders):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise ModelError(f"{path}: cannot be read as a PyTorch checkpoint: {error}") from error
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ModelError(f"{path}: no 'state_dict' of tensors in this file: not a Lightning checkpoint")
    return {str(k): v for k, v in state.items()}


def import_lightning(path: str | Path, config: ModelConfig = PUBLISHED) -> tuple[Mimic, ImportReport]:
    """Build the published model and fill it from a Lightning checkpoint.

    Parameters
    ----------
    path : the ``.ckpt`` file.
    config : the published configuration by default; its ``encoder`` names a local
        CLIP folder or hub id, of which only the architecture is used.

    Returns
    -------
    The model in eval mode and the report; the caller decides about an incomplete import.
    """
    state = read_lightning_state(path)
    model = Mimic.build(config, pretrained=False)
    report = fill_from_state(model, state)
    return model.eval(), report


def fill_from_state(model: Mimic, state: Mapping[str, Tensor]) -> ImportReport:
    """Load the weights whose names and shapes fit and report the rest.

    Raises
    ------
    ModelError
        If a weight of the right name has another shape; names both shapes.
    """
    own = model.state_dict()
    wrong = [
        f"{k}: {tuple(state[k].shape)} in the file, {tuple(own[k].shape)} in the model"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    if wrong:
        raise ModelError("checkpoint does not fit the model: " + "; ".join(wrong))
    ignored = tuple(sorted(k for k in state if k not in own and k.endswith(IGNORED_SUFFIXES)))
    model.load_state_dict({k: v for k, v in state.items() if k in own}, strict=False)
    return ImportReport(
        missing=tuple(sorted(set(own) - set(state))),
        unexpected=tuple(sorted(set(state) - set(own) - set(ignored))),
        ignored=ignored,
    )


def _placeholder(name: str) -> type:
    """A class of a foreign name whose construction gives an empty dictionary, which a pickle may fill.

    An ordered dictionary takes both what the unpickler does to objects (a state) and to
    subclasses of dict (items); subclasses of list stay refused.
    """

    def inert(cls: type, *args: object, **kwargs: object) -> OrderedDict[str, object]:
        del cls, args, kwargs
        return OrderedDict()

    return type(name.rpartition(".")[2], (), {"__new__": inert, "__module__": "placeholder"})
