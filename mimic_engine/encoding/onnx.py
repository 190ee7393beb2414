"""The ONNX Runtime session: encoders and folds of an exported model on the CPU. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mimic_engine.encoding.graph import OnnxGraph, available_threads
from mimic_engine.encoding.manifest import ModelManifest
from mimic_engine.types import Array, EntityArrays, ImageFeatures, MentionArrays, TextFeatures, TokenBatch

ROWS_PER_RUN = 32  # bounds the encoders' working memory, about 10 MB a picture, whatever the batch
ENCODERS = ("text_encoder", "image_encoder")


class OnnxSession:
    """Encoders and folds of an exported model, float32 in and out; an ``EncoderSession``.

    Examples
    --------
    >>> session = OnnxSession.open("model/", precision="fp32", threads=2)  # doctest: +SKIP
    >>> session.encode_text(tokens).cls.shape  # doctest: +SKIP
    (3, 384)
    """

    def __init__(
        self, manifest: ModelManifest, graphs: Mapping[str, OnnxGraph], tokenizer_json: Path
    ) -> None:
        self.constants = manifest.constants
        self.model_hash = manifest.model_hash
        self.text_config = manifest.text
        self.image_config = manifest.image
        self.tokenizer_json = tokenizer_json
        self._graphs = graphs

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        precision: str = "fp32",
        threads: int | None = None,
        verify: bool = True,
    ) -> Self:
        """Open an exported model folder.

        Parameters
        ----------
        folder : written by ``export/to_onnx.py``.
        precision : "fp32", "fp16" or "int8", of the encoders; the folds follow where they
            were exported in it, and are fp32 with int8 encoders.
        threads : cores that one call may use; all that the process may use by default.
        verify : check the SHA-256 of every file that is opened; otherwise only its size.

        Raises
        ------
        ModelError
            If a file is missing or damaged, the version is another, or the precision is not there.
        """
        folder = Path(folder)
        manifest = ModelManifest.read(folder)
        threads = available_threads() if threads is None else threads
        graphs = {
            name: OnnxGraph.open(folder, manifest, name, chosen, threads=threads, verify=verify)
            for name, chosen in _precisions(precision).items()
        }
        return cls(manifest, graphs, manifest.tokenizer.check(folder, verify=verify))

    def encode_text(self, tokens: TokenBatch) -> TextFeatures:
        """Token ids (B, L) int64 to global (B, T) and local (B, L, token width) text features."""
        out = self._run(
            "text_encoder",
            {
                "input_ids": tokens.input_ids,
                "attention_mask": tokens.attention_mask,
                "token_type_ids": tokens.token_type_ids,
            },
        )
        return TextFeatures(out["cls"], out["tokens"], tokens.attention_mask.astype(np.float32))

    def encode_image(self, pixels: Array) -> ImageFeatures:
        """Pixels (B, 3, S, S) float32 to global (B, D) and local (B, P, D) image features."""
        out = self._run("image_encoder", {"pixels": pixels})
        return ImageFeatures(out["cls"], out["tokens"])

    def fold_mentions(self, text: TextFeatures, image: ImageFeatures) -> MentionArrays:
        """Features of B mentions to folded arrays."""
        return MentionArrays(**self._fold("mention_", text, image))

    def fold_entities(self, text: TextFeatures, image: ImageFeatures) -> EntityArrays:
        """Features of N entities to folded arrays."""
        return EntityArrays(**self._fold("entity_", text, image))

    def _fold(self, prefix: str, text: TextFeatures, image: ImageFeatures) -> dict[str, Array]:
        feeds = {
            "text_cls": text.cls,
            "text_tokens": text.tokens,
            "text_mask": text.mask,
            "image_cls": image.cls,
            "image_tokens": image.tokens,
        }
        out = self._run(f"{prefix}fold", feeds)
        return {name.removeprefix(prefix): array for name, array in out.items()}

    def _run(self, name: str, feeds: Mapping[str, NDArray[np.generic]]) -> dict[str, Array]:
        """Run a graph over any number of rows, a bounded number at a time."""
        graph = self._graphs[name]
        rows = len(next(iter(feeds.values())))
        parts = [
            graph.run({key: array[i : i + ROWS_PER_RUN] for key, array in feeds.items()})
            for i in range(0, rows, ROWS_PER_RUN)
        ]
        if not parts:
            return graph.empty()
        if len(parts) == 1:
            return parts[0]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _precisions(precision: str) -> dict[str, str]:
    """Precision of each graph: int8 is for encoders, their folds stay fp32."""
    folds = "fp32" if precision == "int8" else precision
    return dict.fromkeys(ENCODERS, precision) | {"mention_fold": folds, "entity_fold": folds}
