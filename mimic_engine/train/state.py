"""The state of a run between epochs, in one file: a resumed run goes on as if it had not stopped."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mimic_engine.errors import InvalidInputError, ModelError
from mimic_engine.files import decode, replace_file
from mimic_engine.train.config import TrainConfig

VERSION = 2
# Options that may differ when a run goes on: where things are and how long it lasts, not what it computes.
FREE = frozenset(
    ("data", "out", "text_source", "image_source", "cache", "resume", "patience", "threads", "max_steps")
)


@dataclass
class Progress:
    """Progress of a run: epochs, steps, best dev MRR, validations since, seconds trained, log rows."""

    epoch: int = 0
    step: int = 0
    best_mrr: float = -1.0
    waited: int = 0
    seconds: float = 0.0
    rows: list[dict[str, float]] = field(default_factory=list)


def save_state(
    path: Path,
    config: TrainConfig,
    progress: Progress,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    more: Mapping[str, Any],
) -> None:
    """Write weights, optimiser, random states, progress and ``more``, whole or not at all.

    ``more`` is what else the next epoch depends on: tensors, numbers and mappings of them, or None.
    """
    content = {
        "version": VERSION,
        "config": config.to_json(),
        "progress": vars(progress),
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "more": dict(more),
    }
    with replace_file(path) as temporary:
        torch.save(content, temporary)


def load_state(
    path: Path, config: TrainConfig, model: nn.Module, optimiser: torch.optim.Optimizer
) -> tuple[Progress, dict[str, Any]]:
    """Read what :func:`save_state` wrote into ``model``, ``optimiser`` and the random generators.

    Returns
    -------
    How far the run was, and ``more`` as it was written.

    Raises
    ------
    ModelError
        If the file is missing or damaged.
    InvalidInputError
        If the run was started with other options; names them.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(f"--resume: no run to go on with at {path}: {error}") from error
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise ModelError(f"--resume: {path} cannot be read: {error}") from error
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise ModelError(f"--resume: {path} is not a training state of version {VERSION}")
    _check_same(content["config"], config.to_json())
    model.load_state_dict(content["model"])
    optimiser.load_state_dict(content["optimiser"])
    torch.set_rng_state(content["rng"])
    if content["cuda_rng"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(content["cuda_rng"])
    return decode(content["progress"], Progress, f"--resume: {path}", ModelError), content["more"]


def _check_same(before: dict[str, Any], now: dict[str, Any]) -> None:
    changed = [
        f"--{name.replace('_', '-')}: {before.get(name)!r} before, {now[name]!r} now"
        for name in now
        if name not in FREE and before.get(name) != now[name]
    ]
    if changed:
        raise InvalidInputError("--resume: the run was started with other options: " + "; ".join(changed))
