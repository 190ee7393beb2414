"""The ONNX Runtime CUDA session: I/O bound to the device, one CUDA graph a bucket. No torch here.

ONNX Runtime falls back to the CPU with a log line alone; here a provider that
did not come up is an error.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnxruntime

from mimic_engine.device_errors import device_faults
from mimic_engine.encoding.buckets import ROWS, bucket, pad_rows
from mimic_engine.encoding.manifest import GraphEntry, ModelManifest
from mimic_engine.encoding.onnx import CPU, check_names, cpu_options, open_session, precisions
from mimic_engine.encoding.session import Arrays, GraphSession, RunnableGraph
from mimic_engine.errors import BackendError, MimicError
from mimic_engine.gpu.layout import Placed
from mimic_engine.types import Array

CUDA = "CUDAExecutionProvider"
INSTALL = (
    "pip uninstall -y onnxruntime onnxruntime-gpu && pip install --no-deps onnxruntime-gpu "
    "(never both: they overwrite each other)"
)
logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Bound:
    """One bucket's inputs and outputs at fixed addresses."""

    binding: Any
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    options: Any


class BoundGraph(RunnableGraph):
    """A graph whose inputs and outputs lie on the device; from one thread at a time.

    Parameters
    ----------
    path : of the ``.onnx`` file, already checked.
    entry : names and shapes of its inputs and outputs.
    device : "cuda", or "cpu" for the same binding without a device.
    cuda_graphs : capture one CUDA graph a bucket.
    stream : handle of the stream to run on, where others queue work too; a stream of its own by default.
    """

    def __init__(
        self,
        path: Path,
        entry: GraphEntry,
        *,
        device: str = "cuda",
        cuda_graphs: bool = True,
        stream: int | None = None,
    ) -> None:
        super().__init__(path.name, entry)
        self._kind = device
        self._stream = stream
        self._launchers = 0
        self._cuda_graphs = cuda_graphs and device == "cuda"
        self._session = self._open(path)
        check_names(path, self._session, entry)
        self._bound: dict[tuple[int, ...], _Bound] = {}

    @property
    def runs_until_steady(self) -> int:
        """One that ONNX Runtime captures, and one that replays it."""
        return 2 if self._cuda_graphs else 1

    def execute(self, feeds: Arrays) -> dict[str, Array]:
        """Run on checked inputs, padded to their bucket by repeating the last row."""
        rows = len(next(iter(feeds.values())))
        size = bucket(rows, ROWS)
        padded = {name: np.ascontiguousarray(pad_rows(array, size)) for name, array in feeds.items()}
        bound = self._bind(padded)
        for name, array in padded.items():
            bound.inputs[name].update_inplace(array)
        self._session.run_with_iobinding(bound.binding, bound.options)
        return {name: value.numpy()[:rows].copy() for name, value in bound.outputs.items()}

    def launcher(self, arrays: Mapping[str, Placed]) -> Callable[[], None]:
        """A call that runs the graph on arrays at fixed addresses, on the stream the session was opened with.

        With a CUDA graph of its own the library waits for it; without, the call
        returns while the device works. Neither may be captured in another graph.

        Parameters
        ----------
        arrays : all inputs and outputs of the graph, by name.
        """
        binding = self._session.io_binding()
        for names, bind in ((self.inputs, binding.bind_input), (self.outputs, binding.bind_output)):
            for name in names:
                at = arrays[name]
                bind(name, self._kind, 0, at.dtype.type, list(at.shape), at.address)
        options = self._run_options(len(self._bound) + self._launchers)
        self._launchers += 1
        if self._kind == "cuda" and not self._cuda_graphs:
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")

        def launch() -> None:
            with device_faults(self.title):
                self._session.run_with_iobinding(binding, options)

        return launch

    def _open(self, path: Path) -> onnxruntime.InferenceSession:
        providers: list[tuple[str, dict[str, str]]] = [(CPU, {})]
        options = cpu_options(1)
        if self._kind == "cuda":
            cuda = {"use_tf32": "0", "enable_cuda_graph": str(int(self._cuda_graphs))}
            if self._stream is not None:
                cuda["user_compute_stream"] = str(self._stream)
            providers.insert(0, (CUDA, cuda))
        return open_session(path, options, providers)

    def _bind(self, feeds: Arrays) -> _Bound:
        key = tuple(n for array in feeds.values() for n in array.shape)
        if key not in self._bound:
            self._bound[key] = self._new_binding(feeds)
        return self._bound[key]

    def _new_binding(self, feeds: Arrays) -> _Bound:
        make = onnxruntime.OrtValue
        sizes = {
            axis: array.shape[i]
            for name, array in feeds.items()
            for i, axis in enumerate(self.inputs[name])
            if isinstance(axis, str)
        }
        inputs = {name: make.ortvalue_from_numpy(array, self._kind, 0) for name, array in feeds.items()}
        outputs = {
            name: make.ortvalue_from_shape_and_type(
                [sizes[n] if isinstance(n, str) else n for n in shape], np.float32, self._kind, 0
            )
            for name, shape in self.outputs.items()
        }
        binding = self._session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        return _Bound(binding, inputs, outputs, self._run_options(len(self._bound) + self._launchers))

    def _run_options(self, number: int) -> Any:
        options = onnxruntime.RunOptions()
        if self._cuda_graphs:
            options.add_run_config_entry("gpu_graph_id", str(number + 1))
        return options


class CudaSession(GraphSession):
    """Encoders and folds of an exported model on ONNX Runtime's CUDA provider."""

    @classmethod
    def open(cls, folder: str | Path, *, precision: str = "fp32", verify: bool = True) -> Self:
        """Open an exported model folder; arguments as in :meth:`OnnxSession.open`.

        Raises
        ------
        BackendError
            If ONNX Runtime has no CUDA provider here, or it does not come up.
        ModelError
            If a file is missing or damaged, the version is another, or the precision is not there.
        """
        folder = Path(folder)
        manifest = ModelManifest.read(folder)
        check_provider()

        def graphs() -> dict[str, BoundGraph]:
            return {
                name: open_graph(folder, manifest, name, chosen, verify)
                for name, chosen in precisions(precision).items()
            }

        tokenizer = manifest.tokenizer.check(folder, verify=verify)
        return cls(manifest, graphs(), tokenizer, "cuda", reopen=graphs)


def check_provider() -> None:
    """Raise BackendError if this ONNX Runtime was built without CUDA."""
    there = onnxruntime.get_available_providers()
    if CUDA not in there:
        raise BackendError(f"onnxruntime {onnxruntime.__version__} has no CUDA, only {there}: {INSTALL}")


def open_graph(
    folder: Path,
    manifest: ModelManifest,
    name: str,
    precision: str,
    verify: bool,
    stream: int | None = None,
) -> BoundGraph:
    """Open one graph on the device, on its own stream or a given one; errors as in ``CudaSession.open``."""
    entry = manifest.entry(name, precision)
    if entry.data is not None:
        entry.data.check(folder, verify=verify)
    path = entry.onnx.check(folder, verify=verify)
    try:
        return BoundGraph(path, entry, stream=stream)
    except MimicError as error:
        # Captured graphs need every operator on the device; not all versions put all of ours there.
        logger.warning("%s: opened without CUDA graphs: %s", path.name, error)
        return BoundGraph(path, entry, cuda_graphs=False, stream=stream)
