"""The manifest of an exported model folder: what is in it, and the checks before a byte of it is trusted.

Layout of the folder (written by ``export/to_onnx.py``)::

    manifest.json     format, version, model hash, preprocessing, constants, widths, graphs
    tokenizer.json    of the text encoder
    graphs/*.onnx     one file a graph and precision (and ``*.onnx.data`` beside graphs over 2 GB)

Every file is listed with its size and SHA-256. This module reads and writes
the manifest and checks the files; it runs nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from mimic_engine.config import ImageConfig, TextConfig
from mimic_engine.encoding.graph_names import GRAPHS
from mimic_engine.errors import ModelError
from mimic_engine.files import sha256_of, write_atomic
from mimic_engine.types import FoldConstants

FORMAT = "mimic-model"
VERSION = 1
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
QUANTISED = ("int8", "fp8")  # of the encoders alone
CPU_PRECISIONS = ("fp32", "fp16", "int8", "fp8")  # no CPU kernels for bf16; fp8 is computed in float32 there

Shape = tuple[str | int, ...]  # a name stands for an axis of any length ("batch", "rows")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of the model folder: relative path, SHA-256 (hex) and size."""

    file: str
    sha256: str
    bytes: int

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
            raise ModelError(f"{folder / 'manifest.json'}: file {self.file!r} lies outside the model folder")
        if not path.is_file():
            raise ModelError(f"{path}: missing")
        found = path.stat().st_size
        if found != self.bytes:
            raise ModelError(f"{path}: {found} bytes, the manifest says {self.bytes}: cut short or changed")
        if verify and (digest := sha256_of(path)) != self.sha256:
            raise ModelError(f"{path}: SHA-256 {digest[:12]}, the manifest says {self.sha256[:12]}: changed")
        return path


@dataclass(frozen=True, slots=True)
class GraphEntry:
    """One graph in one precision: its files, and names and shapes of what goes in and out.

    Arrays are float32 in every precision, token ids and masks of the text encoder int64.
    """

    onnx: StoredFile
    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]
    data: StoredFile | None = None  # external weights

    def to_json(self) -> dict[str, Any]:
        """A JSON object from which :meth:`from_json` gives an equal entry back."""
        out = asdict(self.onnx) | {"inputs": dict(self.inputs), "outputs": dict(self.outputs)}
        return out if self.data is None else out | {"data": asdict(self.data)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read the object that :meth:`to_json` wrote."""
        external = data.get("data")
        return cls(
            _stored_file(data),
            {name: tuple(shape) for name, shape in data["inputs"].items()},
            {name: tuple(shape) for name, shape in data["outputs"].items()},
            None if external is None else _stored_file(external),
        )


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
            If it is missing, damaged, of another format or version, or lacks a field.
        """
        path = Path(folder) / "manifest.json"
        try:
            data = json.loads(path.read_text("utf-8"))
        except OSError as error:
            raise ModelError(f"{path}: no exported model here: {error.strerror}") from error
        except ValueError as error:
            raise ModelError(f"{path}: not JSON: {error}") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ModelError(f"{path}: not the manifest of an exported model (format {FORMAT!r})")
        if data.get("version") != VERSION:
            raise ModelError(f"{path}: version {data.get('version')!r}; this program reads version {VERSION}")
        try:
            return cls._from_json(data)
        except (KeyError, TypeError, AttributeError, ValueError, ModelError) as error:
            raise ModelError(f"{path}: damaged: {type(error).__name__}: {error}") from error

    @classmethod
    def _from_json(cls, data: Mapping[str, Any]) -> Self:
        missing = [name for name in GRAPHS if not data["graphs"].get(name)]
        if missing:
            raise ValueError(f"no graphs {missing}")
        return cls(
            str(data["model_hash"]),
            TextConfig.from_json(data["text"]),
            ImageConfig.from_json(data["image"]),
            FoldConstants.from_json(data["constants"]),
            {str(name): int(width) for name, width in data["widths"].items()},
            _stored_file(data["tokenizer"]),
            {
                name: {p: GraphEntry.from_json(entry) for p, entry in by_precision.items()}
                for name, by_precision in data["graphs"].items()
            },
        )

    def write(self, folder: Path) -> None:
        """Write ``manifest.json`` into ``folder``, whole or not at all."""
        data = {
            "format": FORMAT,
            "version": VERSION,
            "model_hash": self.model_hash,
            "text": self.text.to_json(),
            "image": self.image.to_json(),
            "constants": self.constants.to_json(),
            "widths": dict(self.widths),
            "tokenizer": asdict(self.tokenizer),
            "graphs": {
                name: {p: entry.to_json() for p, entry in by_precision.items()}
                for name, by_precision in self.graphs.items()
            },
        }
        write_atomic(folder / "manifest.json", json.dumps(data, indent=2) + "\n")

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


def _stored_file(data: Mapping[str, Any]) -> StoredFile:
    values = {f.name: data[f.name] for f in fields(StoredFile)}
    if not isinstance(values["file"], str) or not isinstance(values["bytes"], int):
        raise TypeError(f"file {values['file']!r} of {values['bytes']!r} bytes")
    return StoredFile(**values)
