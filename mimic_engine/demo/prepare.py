"""The embedded demo: from nothing to an index that the service can open with the base model.

Fetches the packages, builds knowledge base and images, makes the base model
ready, and builds the index. Every step is kept in the cache folder; a later start only
opens what is there, and needs no torch.
"""

from __future__ import annotations

import hashlib
import secrets
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from mimic_engine.base.model import WEIGHTS, base_model, base_version
from mimic_engine.demo import build_demo, default_cache, fetch_demo
from mimic_engine.demo.build import fingerprint
from mimic_engine.files import create_private
from mimic_engine.index.manifest import VERSION as INDEX_VERSION

CENTROIDS = 256  # of 23,600 tokens
CALIBRATION_MENTIONS = 128  # keeps the first start short


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
    cache : folder for everything fetched and built; by default ``$XDG_CACHE_HOME/mimic_engine/demo`` or
        the same under ``~/.cache``, and for the base model ``base`` beside it.
    progress : say on standard error what is done, with progress bars.

    Raises
    ------
    DataError
        If a package cannot be fetched or has another hash than the pinned one.
    MissingDependencyError
        If the first run lacks the packages of the extra ``demo``.
    """
    own = cache or default_cache()
    with resources.as_file(resources.files("mimic_engine.base") / WEIGHTS) as weights:
        version = base_version(weights)
    index = own / f"index-{_version(version)}"
    say = _Steps(progress)
    model = base_model(cache, progress=progress)
    if not (index / "manifest.json").exists():
        say("demo: fetching texts and drawings (about 15 MB)")
        files = fetch_demo(own, progress)
        say("demo: drawing the images")
        build_demo(files, own, progress)
        say("demo: building the index")
        _index(model, index, own, progress)
    return DemoPaths(model, index, own)


def demo_admin_key(cache: Path | None = None) -> Path:
    """File of the key that lets whoever can read it change the demo's entities; made when first asked for.

    Raises ``OSError`` if it cannot be written.
    """
    path = (cache or default_cache()) / "admin.key"
    if not path.exists():
        create_private(path, secrets.token_urlsafe(24) + "\n")  # or another start was first: its key it is
    return path


def _index(model: Path, index: Path, data: Path, progress: bool) -> None:
    from mimic_engine.backends.encoders import open_featurizer
    from mimic_engine.calibration.coded import CodedCalibration
    from mimic_engine.data.images import BrokenImages
    from mimic_engine.data.source import entity_stream
    from mimic_engine.encoding.knowledge_base import KnowledgeBaseFeaturizer
    from mimic_engine.index.build import build_index

    featurizer = open_featurizer(model)
    build_index(
        KnowledgeBaseFeaturizer(featurizer, BrokenImages("error")),
        entity_stream(data / "kb.jsonl"),
        index,
        progress=progress,
        centroids=CENTROIDS,
        measure=CodedCalibration(featurizer, model, limit=CALIBRATION_MENTIONS),
    )


def _version(base: str) -> str:
    """Names what the demo's index is made from: the base model, the data, the file format."""
    parts = (base, fingerprint(), str(INDEX_VERSION), str(CENTROIDS))
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:12]


class _Steps:
    """Says a step on standard error, or nothing."""

    def __init__(self, progress: bool) -> None:
        self._progress = progress

    def __call__(self, text: str) -> None:
        if self._progress:
            print(text, file=sys.stderr, flush=True)
