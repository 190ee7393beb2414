"""Engine files and their sidecar manifests: what an engine is, and the checks before it is run.

An engine ``GRAPH.PRECISION.TARGET.engine`` lies beside a ``.engine.json`` that
says from which graph, by which library, for which device it was built. An
engine of another graph, version or device is refused with the command that
builds it anew. This module reads and writes; it needs no TensorRT.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from mimic_engine.encoding.manifest import GraphEntry
from mimic_engine.errors import ModelError
from mimic_engine.files import Natural, read_versioned, sha256_of, write_versioned

FORMAT = "mimic-engine"
VERSION = 1
FOLDER = "engines"  # within a model folder, where the engines of that model are looked for

Spans = Mapping[str, tuple[int, int, int]]  # free axis -> least, usual, largest length


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """The sidecar manifest of one engine."""

    model_hash: str
    graph: str
    precision: str
    graph_sha256: str  # of the ONNX file, and of its weights file where there is one
    flavour: str
    library: str  # version of TensorRT
    target: str  # architecture: "sm_89"
    profiles: tuple[Spans, ...]
    seconds: float
    bytes: Natural
    sha256: str
    stripped: bool  # without weights: they are put in from the graph when it is loaded
    version_compatible: bool
    verified: Mapping[str, Any] | None  # what export/verify.py found, None before

    @property
    def file(self) -> str:
        """Name of the engine file."""
        return engine_file(self.graph, self.precision, self.target)

    def write(self, folder: Path) -> None:
        """Write the sidecar beside the engine, whole or not at all."""
        write_versioned(sidecar(folder / self.file), self, format=FORMAT, version=VERSION)

    @classmethod
    def read(cls, engine: Path) -> Self:
        """Read the sidecar of an engine file.

        Raises
        ------
        ModelError
            If engine or sidecar is missing, or the sidecar is damaged or of another format.
        """
        path = sidecar(engine)
        for file in (engine, path):
            if not file.is_file():
                raise ModelError(f"{file}: missing; build it with export/build_trt.py")
        return read_versioned(path, cls, format=FORMAT, version=VERSION, error=ModelError)

    def check_graph(self, engine: Path, model: Path, model_hash: str, entry: GraphEntry) -> None:
        """Raise ModelError unless the engine was built from this graph and is the file that was built."""
        if self.model_hash != model_hash:
            self._refuse(engine, model, f"of model {self.model_hash[:12]}, the folder is {model_hash[:12]}")
        if self.graph_sha256 != graph_sha256(entry):
            self._refuse(engine, model, f"built from another {self.graph}.{self.precision}.onnx")
        found = engine.stat().st_size
        if found != self.bytes:
            self._refuse(engine, model, f"{found} bytes, {self.bytes} were built: cut short or changed")
        if sha256_of(engine) != self.sha256:
            self._refuse(engine, model, "its SHA-256 is not that of what was built: changed")
        if self.verified is not None and not self.verified.get("ok"):
            self._refuse(engine, model, f"it failed its verification: {self.verified.get('reason')}")

    def check_library(self, engine: Path, model: Path, flavour: str, version: str, target: str) -> None:
        """Raise ModelError unless this library on this device runs the engine."""
        if self.flavour != flavour:
            self._refuse(engine, model, f"built by {self.flavour}, this is {flavour}")
        if not self._runs_on(version):
            self._refuse(engine, model, f"built by version {self.library}, this is {version}")
        if self.target != target:
            self._refuse(engine, model, f"built for {self.target}, the device is {target}")

    def _runs_on(self, version: str) -> bool:
        """The same version; a version-compatible engine also on later ones of the same major version."""
        built, here = (tuple(int(n) for n in v.split(".")[:3]) for v in (self.library, version))
        return built == here or (self.version_compatible and built[0] == here[0] and here >= built)

    def _refuse(self, engine: Path, model: Path, why: str) -> None:
        raise ModelError(f"{engine}: {why}; rebuild it: {self.command(model, engine.parent)}")

    def command(self, model: Path, out: Path) -> str:
        """The command line that builds this engine."""
        flags = [
            *("--flavor", self.flavour, "--precision", self.precision),
            *("--target", self.target, "--graphs", self.graph),
            *(["--strip", "--refit"] if self.stripped else []),
            *(["--version-compatible"] if self.version_compatible else []),
        ]
        return shlex.join(["python", "export/build_trt.py", str(model), str(out), *flags])


def engine_file(graph: str, precision: str, target: str) -> str:
    """Name of an engine file."""
    return f"{graph}.{precision}.{target}.engine"


def sidecar(engine: Path) -> Path:
    """Path of an engine's manifest."""
    return engine.with_name(engine.name + ".json")


def graph_sha256(entry: GraphEntry) -> str:
    """Identity of a graph: the SHA-256 of its file, joined with that of its weights file."""
    return entry.onnx.sha256 + ("" if entry.data is None else "+" + entry.data.sha256)
