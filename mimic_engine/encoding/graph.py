"""One exported graph on ONNX Runtime's CPU provider: checked, opened, run.

No model knowledge here: names and shapes come from the manifest.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from mimic_engine.encoding.manifest import GraphEntry, ModelManifest, Shape
from mimic_engine.errors import EngineError, InvalidInputError, ModelError
from mimic_engine.types import Array

PROVIDERS = ["CPUExecutionProvider"]
ERRORS_ONLY = 3  # ONNX Runtime's log severity


class OnnxGraph:
    """A graph that is ready to run; safe to call from several threads.

    Parameters
    ----------
    path : of the ``.onnx`` file, already checked.
    entry : names and shapes of its inputs and outputs.
    threads : cores that one run may use.
    """

    def __init__(self, path: Path, entry: GraphEntry, threads: int) -> None:
        self.inputs = entry.inputs
        self.outputs = entry.outputs
        self._path = path
        self._session = _open_session(path, threads)
        self._check_names()

    @classmethod
    def open(
        cls, folder: Path, manifest: ModelManifest, name: str, precision: str, *, threads: int, verify: bool
    ) -> Self:
        """Open a graph of a model folder.

        Raises
        ------
        ModelError
            If it is missing, damaged, or was not exported in that precision.
        """
        entry = manifest.entry(name, precision)
        if entry.data is not None:
            entry.data.check(folder, verify=verify)
        return cls(entry.onnx.check(folder, verify=verify), entry, threads)

    def run(self, feeds: Mapping[str, NDArray[np.generic]]) -> dict[str, Array]:
        """Outputs by name; inputs that the graph does not have are left out.

        Raises
        ------
        InvalidInputError
            If an array is missing or has another shape than the graph takes.
        EngineError
            If ONNX Runtime fails.
        """
        given = {name: self._checked(name, feeds) for name in self.inputs}
        try:
            values = self._session.run(None, given)
        except Exception as error:
            raise EngineError(f"{self._path.name}: ONNX Runtime failed: {error}") from error
        return dict(zip(self.outputs, values, strict=True))

    def empty(self) -> dict[str, Array]:
        """The outputs for no rows at all: every named axis has length 0."""
        shapes = {name: [0 if isinstance(n, str) else n for n in s] for name, s in self.outputs.items()}
        return {name: np.empty(shape, np.float32) for name, shape in shapes.items()}

    def _checked(self, name: str, feeds: Mapping[str, NDArray[np.generic]]) -> NDArray[np.generic]:
        if name not in feeds:
            raise InvalidInputError(f"{self._path.name}: input {name!r} is missing", field=name)
        array = feeds[name]
        if not _fits(array.shape, self.inputs[name]):
            found = f"{self._path.name}: input {name!r} has shape {array.shape}"
            raise InvalidInputError(f"{found}, the graph takes {self.inputs[name]}", field=name)
        return array

    def _check_names(self) -> None:
        inputs = [i.name for i in self._session.get_inputs()]
        outputs = [o.name for o in self._session.get_outputs()]
        if inputs != list(self.inputs) or outputs != list(self.outputs):
            raise ModelError(
                f"{self._path}: takes {inputs} and gives {outputs}, "
                f"the manifest says {list(self.inputs)} and {list(self.outputs)}"
            )


def available_threads() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _open_session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    if threads < 1:
        raise InvalidInputError(f"threads: {threads} is below 1", field="threads")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = ERRORS_ONLY
    # Its threads would spin after a call and take the cores from the scan: twice the time of a whole request.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=PROVIDERS)
    except Exception as error:
        raise ModelError(f"{path}: ONNX Runtime cannot load it: {error}") from error
    if session.get_providers() != PROVIDERS:
        raise ModelError(f"{path}: runs on {session.get_providers()}, asked for {PROVIDERS}")
    return session


def _fits(shape: tuple[int, ...], expected: Shape) -> bool:
    return len(shape) == len(expected) and all(
        isinstance(e, str) or n == e for n, e in zip(shape, expected, strict=True)
    )
