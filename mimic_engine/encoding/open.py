"""Opens an exported model folder for inference: session and preprocessing, ready to featurize."""

from __future__ import annotations

from pathlib import Path

from mimic_engine.encoding.base import Featurizer
from mimic_engine.encoding.onnx import OnnxSession
from mimic_engine.images import ImageLimits, ImagePreprocessor
from mimic_engine.text import TextPreprocessor


def open_featurizer(
    model: str | Path,
    *,
    precision: str = "fp32",
    threads: int | None = None,
    verify: bool = True,
    image_limits: ImageLimits | None = None,
) -> Featurizer:
    """Open the encoders and folds of an exported model on ONNX Runtime; arguments as in ``Linker.open``.

    Raises
    ------
    ModelError
        If the folder is missing, damaged or lacks the precision.
    """
    session = OnnxSession.open(model, precision=precision, threads=threads, verify=verify)
    text = TextPreprocessor.open(session.tokenizer_json, session.text_config)
    images = ImagePreprocessor(session.image_config, image_limits or ImageLimits())
    return Featurizer(session, text, images)
