"""Checkpoints: a folder with ``config.json``, ``model.safetensors``, ``tokenizer.json``, backbone configs.

A checkpoint either holds all weights, or leaves the pretrained backbones out
(``include_backbone=False``: frozen encoders that come from elsewhere) and
records their hash, which loading checks. The identity of a model is a SHA-256 over
its weights and what of its configuration changes what it computes. Published
Lightning checkpoints are read by :mod:`mimic_engine.model.lightning`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mimic_engine.config import ModelConfig
from mimic_engine.errors import ModelError
from mimic_engine.files import publish_folder, read_versioned, write_versioned
from mimic_engine.model.units import Mimic

FORMAT = "mimic-checkpoint"
VERSION = 1
CONFIG = "config.json"
HEADS = ("encoder.image_cls_fc.", "encoder.image_tokens_fc.", "matcher.")  # over the pretrained backbones


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model (in eval mode), its tokenizer file, hash and free-form notes."""

    model: Mimic
    tokenizer_json: Path
    model_hash: str
    extra: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Config:
    """The fields of ``config.json``."""

    model: ModelConfig
    include_backbone: bool
    backbone_sha256: str
    model_hash: str
    extra: Mapping[str, Any]


def save_checkpoint(
    model: Mimic,
    folder: str | Path,
    *,
    tokenizer_json: str,
    include_backbone: bool = True,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint folder: to a temporary name first, then renamed.

    Parameters
    ----------
    model : its weights are stored as they are (dtype kept).
    folder : replaced if it is already a checkpoint, refused if it is anything else.
    tokenizer_json : text of the tokenizer file (see :func:`tokenizer_json_text`).
    include_backbone : False leaves the pretrained encoders and the tokenizer out and
        records the encoders' hash.
    extra : notes for people and tools (training command, metrics); JSON.

    Raises
    ------
    ModelError
        If ``folder`` exists and is no checkpoint.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / CONFIG).is_file():
        raise ModelError(f"{folder}: exists and is no checkpoint; give another name")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    backbone = {k: v for k, v in state.items() if not k.startswith(HEADS)}
    kept = state if include_backbone else {k: v for k, v in state.items() if k.startswith(HEADS)}
    save_file(_unshared(kept), partial / "model.safetensors")
    config = _Config(
        model.config, include_backbone, state_hash(backbone), model_hash(model), dict(extra or {})
    )
    if include_backbone:
        (partial / "tokenizer.json").write_text(tokenizer_json, "utf-8")
        _save_backbone_configs(model, partial)
    write_versioned(partial / CONFIG, config, format=FORMAT, version=VERSION)
    publish_folder(partial, folder)


def load_checkpoint(
    folder: str | Path, *, text_source: str | None = None, image_source: str | None = None
) -> Checkpoint:
    """Read a checkpoint folder.

    Parameters
    ----------
    folder : written by :func:`save_checkpoint`.
    text_source, image_source : where to load backbones from that the checkpoint leaves out;
        by default the sources it was trained with.

    Raises
    ------
    ModelError
        If a file is missing or damaged, keys are missing or unexpected, or a
        backbone is not the one that the checkpoint was trained with.
    """
    folder = Path(folder)
    stored = _read_config(folder)
    config = stored.model
    if stored.include_backbone:
        sources = {"text_source": str(folder / "text"), "image_source": str(folder / "image")}
    else:
        given = {"text_source": text_source, "image_source": image_source}
        sources = {name: value for name, value in given.items() if value is not None}
    config = replace(config, encoder=replace(config.encoder, **sources))  # type: ignore[arg-type]
    model = Mimic.build(config, pretrained=not stored.include_backbone)
    if model.config.matcher != config.matcher:
        raise ModelError(f"{folder}: encoder widths {model.config.matcher} differ from {config.matcher}")
    try:
        state = load_file(folder / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder / 'model.safetensors'}: cannot be read: {error}") from error
    _fill(model, state, folder, partial=not stored.include_backbone)
    model.eval()
    _check_hashes(model, stored, folder)
    tokenizer_from = str(folder) if stored.include_backbone else config.encoder.text_source
    return Checkpoint(model, tokenizer_json_path(tokenizer_from), stored.model_hash, stored.extra)


def model_hash(model: Mimic) -> str:
    """SHA-256 (hex) of a model; an index carries it and is refused by every other model.

    Where the encoders were loaded from does not count, what they hold does.
    """
    return state_hash(model.state_dict(), salt=_config_salt(model.config))


def state_hash(state: Mapping[str, Tensor], *, salt: str = "") -> str:
    """SHA-256 (hex) over names, dtypes, shapes and bytes of all tensors, in name order."""
    digest = hashlib.sha256(salt.encode())
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def tokenizer_json_path(source: str) -> Path:
    """Path of ``tokenizer.json`` in a local folder, or of a hub id's cached file.

    Raises
    ------
    ModelError
        If the source has no such file.
    """
    local = Path(source) / "tokenizer.json"
    if local.is_file():
        return local
    from transformers.utils.hub import cached_file

    try:
        path = None if Path(source).is_dir() else cached_file(source, "tokenizer.json")
    except (OSError, ValueError) as error:
        raise ModelError(f"text_source {source!r}: no tokenizer.json there: {error}") from error
    if path is None:
        raise ModelError(f"text_source {source!r}: no tokenizer.json there; save a fast tokenizer into it")
    return Path(path)


def tokenizer_json_text(source: str) -> str:
    """The text of the file that :func:`tokenizer_json_path` finds."""
    return tokenizer_json_path(source).read_text("utf-8")


def _read_config(folder: Path) -> _Config:
    path = folder / CONFIG
    try:
        return read_versioned(path, _Config, format=FORMAT, version=VERSION, error=ModelError)
    except FileNotFoundError:
        raise ModelError(f"{path}: no checkpoint here") from None


def _fill(model: Mimic, state: Mapping[str, Tensor], folder: Path, *, partial: bool) -> None:
    expected = {k: v for k, v in model.state_dict().items() if not partial or k.startswith(HEADS)}
    missing, unexpected = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    shapes = [k for k in expected if k in state and state[k].shape != expected[k].shape]
    if missing or unexpected or shapes:
        raise ModelError(
            f"{folder}: weights do not fit: missing {missing}, unexpected {unexpected}, wrong shape {shapes}"
        )
    model.load_state_dict(dict(state), strict=False)


def _check_hashes(model: Mimic, stored: _Config, folder: Path) -> None:
    if not stored.include_backbone:
        backbone = {k: v for k, v in model.state_dict().items() if not k.startswith(HEADS)}
        own = state_hash(backbone)
        if own != stored.backbone_sha256:
            raise ModelError(
                f"{folder}: encoders have hash {own[:12]}, trained with {stored.backbone_sha256[:12]}: "
                "give text_source and image_source of the same weights"
            )
    own = model_hash(model)
    if own != stored.model_hash:
        raise ModelError(f"{folder}: weights have hash {own[:12]}, config.json says {stored.model_hash[:12]}")


def _unshared(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with memory of their own, as safetensors demands."""
    seen: set[int] = set()
    out = {}
    for name, tensor in state.items():
        out[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return out


def _save_backbone_configs(model: Mimic, folder: Path) -> None:
    """Write the Hugging Face configs from which the architecture is rebuilt without weights."""
    for name in ("text", "image"):
        part = getattr(model.encoder, "clip", None) or getattr(getattr(model.encoder, name), "model", None)
        config = getattr(part, "config", None)
        if config is not None and hasattr(config, "save_pretrained"):
            config.save_pretrained(folder / name)


def _config_salt(config: ModelConfig) -> str:
    values = config.to_json()
    for source in ("text_source", "image_source"):
        del values["encoder"][source]
    if config.image.entity_pictures == 1:  # the published model, whose hash does not speak of it
        del values["image"]["entity_pictures"]
    if config.text.window == "start":  # the same
        del values["text"]["window"]
    return json.dumps(values, sort_keys=True)
