"""The manifest of an exported model folder: what is in it, and the checks before a byte of it is trusted.

Layout of the folder (written by ``export/to_onnx.py``)::

    manifest.json     format, version, model hash, preprocessing, constants, widths, graphs
    tokenizer.json    of the text encoder
    graphs/*.onnx     one file a graph and precision (and ``*.onnx.data`` beside graphs over 2 GB)

Every file is listed with its size and SHA-256. This module reads and writes
the manifest and checks the files; it runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from mimic_engine.config import ImageConfig, TextConfig
from mimic_engine.encoding.graph_names import GRAPHS
from mimic_engine.errors import ModelError
from mimic_engine.files import OPTIONAL, Natural, Sha256, read_versioned, sha256_of, write_versioned
from mimic_engine.types import FoldConstants

FORMAT = "mimic-model"
VERSION = 1
MANIFEST = "manifest.json"
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
QUANTISED = ("int8", "fp8")  # of the encoders alone
CPU_PRECISIONS = ("fp32", "fp16", "int8", "fp8")  # no CPU kernels for bf16; fp8 is computed in float32 there

Shape = tuple[str | int, ...]  # a name stands for an axis of any length ("batch", "rows")


@dataclass(frozen=True, slots=True)
class ModelManifest:
    """Everything the runtime must know of an exported model before it runs a graph.

    ``model_hash`` identifies weights and configuration whatever the precision:
    an index carries it and is refused by every other model.
    """

    model_hash: str
    text: TextConfig
    image: ImageConfig
    constants: FoldConstants
    widths: Mapping[str, int]
    tokenizer: StoredFile
    graphs: Mapping[str, Mapping[str, GraphEntry]]  # graph -> precision -> entry

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """Read ``manifest.json`` of a model folder.

        Raises
        ------
        ModelError
            If it is missing, damaged, of another format or version, or lacks a field or a graph.
        """
        path = Path(folder) / MANIFEST
        try:
            manifest = read_versioned(path, cls, format=FORMAT, version=VERSION, error=ModelError)
        except FileNotFoundError:
            raise ModelError(f"{path}: no exported model here") from None
        if missing := [name for name in GRAPHS if not manifest.graphs.get(name)]:
            raise ModelError(f"{path}: no graphs {missing}")
        return manifest

    def write(self, folder: Path) -> None:
        """Write ``manifest.json`` into ``folder``, whole or not at all."""
        write_versioned(folder / MANIFEST, self, format=FORMAT, version=VERSION)

    def entry(self, graph: str, precision: str) -> GraphEntry:
        """The entry of one graph.

        Raises
        ------
        ModelError
            If the model was not exported in that precision; names those that there are.
        """
        by_precision = self.graphs[graph]
        if precision not in by_precision:
            raise ModelError(
                f"precision: {graph} was not exported in {precision!r}; there is {', '.join(by_precision)}"
            )
        return by_precision[precision]


@dataclass(frozen=True, slots=True)
class GraphEntry:
    """One graph in one precision: its files, and names and shapes of what goes in and out.

    Arrays are float32 in every precision, token ids and masks of the text encoder int64.
    """

    file: str
    sha256: Sha256
    bytes: Natural
    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]
    data: StoredFile | None = field(default=None, metadata=OPTIONAL)  # external weights

    @classmethod
    def of(
        cls,
        onnx: StoredFile,
        inputs: Mapping[str, Shape],
        outputs: Mapping[str, Shape],
        data: StoredFile | None = None,
    ) -> Self:
        """The entry of an ONNX file."""
        return cls(onnx.file, onnx.sha256, onnx.bytes, inputs, outputs, data)

    @property
    def onnx(self) -> StoredFile:
        """The ONNX file."""
        return StoredFile(self.file, self.sha256, self.bytes)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of the model folder: relative path, SHA-256 (hex) and size."""

    file: str
    sha256: Sha256
    bytes: Natural

    @classmethod
    def of(cls, folder: Path, file: str) -> Self:
        """Measure a file that lies in ``folder``."""
        path = folder / file
        return cls(file, sha256_of(path), path.stat().st_size)

    def check(self, folder: Path, *, verify: bool) -> Path:
        """Path of the file, once its size (and with ``verify`` its SHA-256) is the recorded one.

        Raises
        ------
        ModelError
            If the file is missing, cut short, changed, or its path leads out of the folder.
        """
        path = folder / self.file
        if Path(self.file).is_absolute() or ".." in Path(self.file).parts:
            raise ModelError(f"{folder / MANIFEST}: file {self.file!r} lies outside the model folder")
        if not path.is_file():
            raise ModelError(f"{path}: missing")
        size_bytes = path.stat().st_size
        if size_bytes != self.bytes:
            raise ModelError(
                f"{path}: {size_bytes} bytes, the manifest says {self.bytes}: cut short or changed"
            )
        if verify and (digest := sha256_of(path)) != self.sha256:
            raise ModelError(f"{path}: SHA-256 {digest[:12]}, the manifest says {self.sha256[:12]}: changed")
        return path
