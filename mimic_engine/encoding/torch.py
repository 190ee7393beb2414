"""The PyTorch session: a :class:`~mimic_engine.model.units.Mimic` as it is, to evaluate and compare with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mimic_engine.encoding.buckets import ROWS, RunShapes
from mimic_engine.encoding.manifest import ModelManifest
from mimic_engine.errors import ModelError
from mimic_engine.model.checkpoint import Checkpoint, load_checkpoint, model_hash
from mimic_engine.model.fold import FoldEntity, FoldMention, fold_constants
from mimic_engine.model.units import Mimic
from mimic_engine.types import Array, EntityArrays, ImageFeatures, MentionArrays, TextFeatures, TokenBatch


def set_threads(count: int) -> None:
    """Bound the CPU threads of every PyTorch operation of this process."""
    torch.set_num_threads(count)


class TorchSession:
    """Encoders and folds of a PyTorch model in eval mode, float32 in and out.

    The weights are read at each call, so a model that goes on training is
    evaluated as it is; ``constants`` and ``model_hash`` are those of creation.

    Parameters
    ----------
    model : on any device, in any float type.
    compiled : run the backbones through ``torch.compile``; minutes on first use.
    """

    backend = "torch"

    def __init__(self, model: Mimic, *, compiled: bool = False) -> None:
        self._model = model
        backbones = (model.encoder.text_backbone, model.encoder.image_backbone)
        self._text: Any
        self._image: Any
        self._text, self._image = (torch.compile(b) for b in backbones) if compiled else backbones
        self._fold_mention = FoldMention(model.matcher)
        self._fold_entity = FoldEntity(model.matcher)
        self.constants = fold_constants(model.matcher)
        self.model_hash = model_hash(model)
        self.text_config = model.config.text
        self.image_config = model.config.image

    @property
    def shapes(self) -> RunShapes:
        """The rows that a service runs it at, and the model's length: nothing is padded or cut here."""
        return RunShapes(ROWS, (self.text_config.max_length,))

    def rebuild(self) -> None:
        """Give memory that is cached back to the device; the model itself stays where it is."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @torch.no_grad()
    def encode_text(self, tokens: TokenBatch) -> TextFeatures:
        """Token ids (B, L) to text features."""
        ids = (tokens.input_ids, tokens.attention_mask, tokens.token_type_ids)
        out = self._text(*(self._tensor(a) for a in ids))
        return TextFeatures(_array(out.cls), _array(out.tokens), tokens.attention_mask.astype(np.float32))

    @torch.no_grad()
    def encode_image(self, pixels: Array) -> ImageFeatures:
        """Pixels (B, 3, S, S) to image features of width D."""
        out = self._model.encoder.project_image(self._image(self._tensor(pixels)))
        return ImageFeatures(_array(out.cls), _array(out.tokens))

    @torch.no_grad()
    def fold_mentions(self, text: TextFeatures, image: ImageFeatures) -> MentionArrays:
        """Features of B mentions to folded arrays."""
        return MentionArrays(**self._fold(self._fold_mention, text, image))

    @torch.no_grad()
    def fold_entities(self, text: TextFeatures, image: ImageFeatures) -> EntityArrays:
        """Features of N entities to folded arrays."""
        return EntityArrays(**self._fold(self._fold_entity, text, image))

    def _fold(
        self, fold: FoldMention | FoldEntity, text: TextFeatures, image: ImageFeatures
    ) -> dict[str, Array]:
        inputs = (text.cls, text.tokens, text.mask, image.cls, image.tokens)
        return {name: _array(t) for name, t in fold(*(self._tensor(a) for a in inputs)).items()}

    def _tensor(self, array: np.ndarray) -> Tensor:
        weight = next(self._model.parameters())
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor.to(weight.device, weight.dtype if tensor.is_floating_point() else None)


class CheckpointSession(TorchSession):
    """The session of a checkpoint, with its tokenizer."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint.model)
        self.tokenizer_json = checkpoint.tokenizer_json


def open_torch_session(checkpoint: Path, model: Path, *, threads: int | None = None) -> CheckpointSession:
    """The session of the checkpoint that an exported model came from.

    Raises
    ------
    ModelError
        If a file is missing or damaged, or the checkpoint is of another model.
    """
    exported = ModelManifest.read(model)
    loaded = load_checkpoint(checkpoint)
    if loaded.model_hash != exported.model_hash:
        raise ModelError(
            f"{checkpoint}: is model {loaded.model_hash[:12]}, {model} is model {exported.model_hash[:12]}"
        )
    if threads is not None:
        torch.set_num_threads(threads)
    return CheckpointSession(loaded)


def _array(tensor: Tensor) -> Array:
    return tensor.float().cpu().numpy()
