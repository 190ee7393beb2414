"""Opens an exported model folder for inference: session and preprocessing, ready to featurize."""

from __future__ import annotations

from pathlib import Path

from mimic_engine.encoding.backends import BackendOptions, open_backend
from mimic_engine.encoding.base import Featurizer
from mimic_engine.encoding.cache import EncodingCache
from mimic_engine.encoding.caching import CachingFeaturizer
from mimic_engine.images import ImageLimits, ImagePreprocessor
from mimic_engine.text import TextPreprocessor


def open_featurizer(
    model: str | Path,
    *,
    backend: str = "auto",
    precision: str = "fp32",
    threads: int | None = None,
    verify: bool = True,
    image_limits: ImageLimits | None = None,
    engines: str | Path | None = None,
    checkpoint: str | Path | None = None,
    cache_bytes: int = 0,
) -> Featurizer:
    """Open the encoders and folds of an exported model; arguments as in ``Linker.open``.

    Raises
    ------
    ModelError
        If the folder is missing, damaged or lacks the precision.
    BackendError, MissingDependencyError
        If the backend that was asked for does not work here.
    """
    options = BackendOptions(
        precision,
        threads,
        verify,
        None if engines is None else Path(engines),
        None if checkpoint is None else Path(checkpoint),
    )
    session = open_backend(Path(model), backend, options)
    text = TextPreprocessor.open(session.tokenizer_json, session.text_config)
    images = ImagePreprocessor(session.image_config, image_limits or ImageLimits())
    if cache_bytes:
        return CachingFeaturizer(session, text, images, EncodingCache(cache_bytes))
    return Featurizer(session, text, images)
