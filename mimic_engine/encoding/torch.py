"""The PyTorch session: a :class:`~mimic_engine.model.mimic.Mimic` as it is, for training-time evaluation."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mimic_engine.model.fold import FoldEntity, FoldMention, fold_constants
from mimic_engine.model.hashing import model_hash
from mimic_engine.model.mimic import Mimic
from mimic_engine.types import Array, EntityArrays, ImageFeatures, MentionArrays, TextFeatures, TokenBatch


class TorchSession:
    """Encoders and folds of a PyTorch model in eval mode, float32 in and out.

    The weights are read at each call, so a model that goes on training is
    evaluated as it is; ``constants`` and ``model_hash`` are those of creation.
    """

    def __init__(self, model: Mimic) -> None:
        self._model = model
        self._fold_mention = FoldMention(model.matcher)
        self._fold_entity = FoldEntity(model.matcher)
        self.constants = fold_constants(model.matcher)
        self.model_hash = model_hash(model)
        self.text_config = model.config.text
        self.image_config = model.config.image

    @torch.no_grad()
    def encode_text(self, tokens: TokenBatch) -> TextFeatures:
        """Token ids (B, L) to text features."""
        ids = (tokens.input_ids, tokens.attention_mask, tokens.token_type_ids)
        out = self._model.encoder.text_backbone(*(self._tensor(a) for a in ids))
        return TextFeatures(_array(out.cls), _array(out.tokens), tokens.attention_mask.astype(np.float32))

    @torch.no_grad()
    def encode_image(self, pixels: Array) -> ImageFeatures:
        """Pixels (B, 3, S, S) to image features of width D."""
        encoder = self._model.encoder
        out = encoder.project_image(encoder.image_backbone(self._tensor(pixels)))
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
        return torch.from_numpy(np.ascontiguousarray(array)).to(next(self._model.parameters()).device)


def _array(tensor: Tensor) -> Array:
    return tensor.float().cpu().numpy()
