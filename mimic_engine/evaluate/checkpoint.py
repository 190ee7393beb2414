"""A training checkpoint opened for evaluation on PyTorch: featurizer and scorer, in float32 on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mimic_engine.encoding.featurizer import Featurizer
from mimic_engine.encoding.torch import TorchSession, set_threads
from mimic_engine.errors import InvalidInputError
from mimic_engine.images import ImagePreprocessor
from mimic_engine.model.checkpoint import load_checkpoint
from mimic_engine.scan.base import ScanKernels
from mimic_engine.text import TextPreprocessor
from mimic_engine.train.config import portable
from mimic_engine.train.ranking import kernels_for


def open_checkpoint(
    folder: Path, *, text_source: str | None, image_source: str | None, threads: int | None
) -> tuple[Featurizer, ScanKernels, dict[str, Any]]:
    """Featurizer and kernels of a checkpoint, and its notes (training options, dev metrics).

    Raises
    ------
    ModelError
        If the checkpoint is damaged, or the encoders are not those it was trained with.
    """
    if threads is not None and threads < 1:
        raise InvalidInputError(f"--threads: must be at least 1, got {threads}", field="threads")
    if threads is not None:
        set_threads(threads)
    checkpoint = load_checkpoint(folder, text_source=text_source, image_source=image_source)
    session = TorchSession(checkpoint.model)
    text = TextPreprocessor.open(checkpoint.tokenizer_json, session.text_config)
    featurizer = Featurizer(session, text, ImagePreprocessor(session.image_config))
    extra = dict(checkpoint.extra)
    extra |= {"train": portable(extra["train"])} if "train" in extra else {}
    notes = {"runtime": "torch fp32", "checkpoint": extra}
    return featurizer, kernels_for(session.constants, "cpu"), notes
