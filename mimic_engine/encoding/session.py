"""The session over a set of runnable graphs, shared by ONNX Runtime and TensorRT.

A backend gives one :class:`RunnableGraph` for each encoder and fold; cutting
batches into runs, and cutting and padding of texts, are here. No torch, and
nothing of any backend.
"""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mimic_engine.device_errors import device_faults
from mimic_engine.encoding.buckets import LENGTH, ROWS, RunShapes, cut, length_buckets, pad_length
from mimic_engine.encoding.graph_names import (
    CLS,
    ENTITY,
    ENTITY_FOLD,
    FEATURES,
    IDS,
    IMAGE_ENCODER,
    MASK,
    MENTION,
    MENTION_FOLD,
    PIXELS,
    TEXT_ENCODER,
    TEXT_INPUTS,
    TOKENS,
)
from mimic_engine.encoding.manifest import GraphEntry, ModelManifest, Shape
from mimic_engine.errors import DeviceError, InvalidInputError
from mimic_engine.types import Array, EntityArrays, ImageFeatures, MentionArrays, TextFeatures, TokenBatch

Arrays = Mapping[str, NDArray[np.generic]]


class RunnableGraph(ABC):
    """A graph on some backend, ready to run: float32 out; what it is given is checked first.

    Parameters
    ----------
    title : names it in messages.
    entry : names and shapes of its inputs and outputs.
    """

    def __init__(self, title: str, entry: GraphEntry) -> None:
        self.title = title
        self.entry = entry
        self.inputs = entry.inputs
        self.outputs = entry.outputs

    def run(self, feeds: Arrays) -> dict[str, Array]:
        """Outputs by name; inputs that the graph does not have are left out.

        Raises
        ------
        InvalidInputError
            If an array is missing or has another shape than the graph takes.
        DeviceError
            If the backend fails; :class:`DeviceLostError` if it cannot be used again in this process.
        """
        given = {name: self._checked(name, feeds) for name in self.inputs}
        with device_faults(self.title):
            return self.execute(given)

    @property
    def row_buckets(self) -> tuple[int, ...]:
        """Numbers of rows that it runs at, ascending; others are padded to the next one."""
        return ROWS

    @property
    def runs_until_steady(self) -> int:
        """Runs of one shape until nothing more is prepared for it."""
        return 1

    @abstractmethod
    def execute(self, feeds: Arrays) -> dict[str, Array]:
        """Run on checked inputs."""

    def empty(self) -> dict[str, Array]:
        """The outputs for no rows at all: every named axis has length 0."""
        shapes = {name: [0 if isinstance(n, str) else n for n in s] for name, s in self.outputs.items()}
        return {name: np.empty(shape, np.float32) for name, shape in shapes.items()}

    def _checked(self, name: str, feeds: Arrays) -> NDArray[np.generic]:
        if name not in feeds:
            raise InvalidInputError(f"{self.title}: input {name!r} is missing", field=name)
        array = feeds[name]
        if not _fits(array.shape, self.inputs[name]):
            message = f"{self.title}: input {name!r} has shape {array.shape}"
            raise InvalidInputError(f"{message}, the graph takes {self.inputs[name]}", field=name)
        return array


def _fits(shape: tuple[int, ...], expected: Shape) -> bool:
    return len(shape) == len(expected) and all(
        isinstance(e, str) or n == e for n, e in zip(shape, expected, strict=True)
    )


class ShortenedTexts(RunnableGraph):
    """A text encoder of free length L' as one of the model's length L: cuts padding, gives zeros for it.

    For models that mask padding, whose scores do not depend on what a padding token's state is.
    """

    def __init__(self, graph: RunnableGraph, length: int) -> None:
        inputs, outputs = (_fixed(shapes, length) for shapes in (graph.inputs, graph.outputs))
        super().__init__(graph.title, replace(graph.entry, inputs=inputs, outputs=outputs))
        self._graph = graph
        self._length = length

    @property
    def row_buckets(self) -> tuple[int, ...]:
        """Those of the graph itself."""
        return self._graph.row_buckets

    @property
    def runs_until_steady(self) -> int:
        """Those of the graph itself."""
        return self._graph.runs_until_steady

    def execute(self, feeds: Arrays) -> dict[str, Array]:
        """Token ids (B, L) -> cls (B, T), tokens (B, L, W)."""
        out = self._graph.run(cut(feeds, feeds[MASK], self._length))
        return out | {TOKENS: pad_length(out[TOKENS], self._length)}


def _fixed(shapes: Mapping[str, Shape], length: int) -> dict[str, Shape]:
    """Shapes with the free length replaced by a number."""
    return {name: tuple(length if n == LENGTH else n for n in shape) for name, shape in shapes.items()}


class GraphSession:
    """Encoders and folds of an exported model, float32 in and out; an ``EncoderSession``.

    Parameters
    ----------
    manifest : of the exported model.
    graphs : one for each encoder and fold of :mod:`mimic_engine.encoding.graph_names`.
    tokenizer_json : the checked tokenizer file.
    backend : short name for logs and reports.
    reopen : opens the graphs anew, after a device has failed.
    """

    def __init__(
        self,
        manifest: ModelManifest,
        graphs: Mapping[str, RunnableGraph],
        tokenizer_json: Path,
        backend: str,
        *,
        reopen: Callable[[], Mapping[str, RunnableGraph]] | None = None,
    ) -> None:
        self.constants = manifest.constants
        self.model_hash = manifest.model_hash
        self.text_config = manifest.text
        self.image_config = manifest.image
        self.tokenizer_json = tokenizer_json
        self.backend = backend
        self._length = manifest.widths["length"]
        self._reopen = reopen
        self._graphs = self._with_free_length(graphs)

    def _with_free_length(self, graphs: Mapping[str, RunnableGraph]) -> dict[str, RunnableGraph]:
        text = graphs[TEXT_ENCODER]
        if LENGTH in text.inputs[IDS]:
            text = ShortenedTexts(text, self._length)
        return {**graphs, TEXT_ENCODER: text}

    def rebuild(self) -> None:
        """Drop every graph with what it holds on the device, and open all of them anew.

        Raises
        ------
        MimicError
            If one does not open; the session then fails every run until a later rebuild succeeds.
        """
        if self._reopen is None:
            return
        self._graphs = {}
        gc.collect()  # device memory goes with the objects, before the new ones ask for it
        self._graphs = self._with_free_length(self._reopen())

    @property
    def shapes(self) -> RunShapes:
        """Shapes that the graphs run at."""
        graphs = self._graphs.values()
        rows = tuple(sorted({n for graph in graphs for n in graph.row_buckets}))
        shortened = isinstance(self._graphs[TEXT_ENCODER], ShortenedTexts)
        lengths = length_buckets(self._length) if shortened else (self._length,)
        return RunShapes(rows, lengths, max(graph.runs_until_steady for graph in graphs))

    def encode_text(self, tokens: TokenBatch) -> TextFeatures:
        """Token ids (B, L) int64 to global (B, T) and local (B, L, token width) text features.

        Where the model masks padding, the states of padding tokens may be zeros.
        """
        out = self._run(TEXT_ENCODER, {name: getattr(tokens, name) for name in TEXT_INPUTS})
        return TextFeatures(out[CLS], out[TOKENS], tokens.attention_mask.astype(np.float32))

    def encode_image(self, pixels: Array) -> ImageFeatures:
        """Pixels (B, 3, S, S) float32 to global (B, D) and local (B, P, D) image features."""
        out = self._run(IMAGE_ENCODER, {PIXELS: pixels})
        return ImageFeatures(out[CLS], out[TOKENS])

    def fold_mentions(self, text: TextFeatures, image: ImageFeatures) -> MentionArrays:
        """Features of B mentions to folded arrays."""
        return MentionArrays(**self._fold(MENTION_FOLD, MENTION, text, image))

    def fold_entities(self, text: TextFeatures, image: ImageFeatures) -> EntityArrays:
        """Features of N entities to folded arrays."""
        return EntityArrays(**self._fold(ENTITY_FOLD, ENTITY, text, image))

    def _fold(self, fold: str, prefix: str, text: TextFeatures, image: ImageFeatures) -> dict[str, Array]:
        values = (text.cls, text.tokens, text.mask, image.cls, image.tokens)
        out = self._run(fold, dict(zip(FEATURES, values, strict=True)))
        return {name.removeprefix(prefix): array for name, array in out.items()}

    def _run(self, name: str, feeds: Arrays) -> dict[str, Array]:
        """Run a graph over any number of rows, a bounded number at a time."""
        if name not in self._graphs:
            raise DeviceError(f"{name}: not there since the device failed", reason="no session")
        graph = self._graphs[name]
        rows, most = len(next(iter(feeds.values()))), graph.row_buckets[-1]
        parts = [
            graph.run({key: array[i : i + most] for key, array in feeds.items()})
            for i in range(0, rows, most)
        ]
        return _joined(parts) if parts else graph.empty()


def _joined(parts: list[dict[str, Array]]) -> dict[str, Array]:
    if len(parts) == 1:
        return parts[0]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
