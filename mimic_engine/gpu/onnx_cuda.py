"""The ONNX Runtime CUDA session: arrays at fixed addresses, one CUDA graph a bucket. No torch here.

Sessions are opened on the device's stream (``user_compute_stream``). ONNX
Runtime keeps a CUDA graph of its own for every binding, which no other graph
may hold, and waits for it. It falls back to the CPU with a log line alone; here
a provider that did not come up is an error.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnxruntime

from mimic_engine.device_errors import device_faults
from mimic_engine.encoding.buckets import LENGTH, ROWS, bucket
from mimic_engine.encoding.manifest import GraphEntry, ModelManifest
from mimic_engine.encoding.onnx import CPU, check_names, cpu_options, open_session, precisions
from mimic_engine.errors import BackendError, MimicError
from mimic_engine.gpu.device import Device, open_device
from mimic_engine.gpu.layout import Placed
from mimic_engine.gpu.session import DeviceGraph, DeviceSession, Launch, Sizes

CUDA = "CUDAExecutionProvider"
INSTALL = (
    "pip uninstall -y onnxruntime onnxruntime-gpu && pip install --no-deps onnxruntime-gpu "
    "(never both: they overwrite each other)"
)
_TYPES: Mapping[str, np.dtype[Any]] = {
    "tensor(int64)": np.dtype(np.int64),
    "tensor(float)": np.dtype(np.float32),
}
logger = logging.getLogger(__name__)


class BoundGraph(DeviceGraph):
    """A graph whose inputs and outputs lie on the device; no other CUDA graph can hold it.

    Parameters
    ----------
    path : of the ``.onnx`` file, already checked.
    entry : names and shapes of its inputs and outputs.
    device : where it runs, on its stream.
    longest : text tokens at most.
    cuda_graphs : capture one CUDA graph a bucket.
    """

    capturable = False
    memory = "cuda"  # ONNX Runtime's name of what addresses are of

    def __init__(
        self, path: Path, entry: GraphEntry, device: Device, longest: int, *, cuda_graphs: bool = True
    ) -> None:
        self._cuda_graphs = cuda_graphs
        self._launchers = 0
        self._session = self.open(path, device.stream)
        check_names(path, self._session, entry)
        dtypes = {t.name: _TYPES[t.type] for t in (*self._session.get_inputs(), *self._session.get_outputs())}
        axes = {axis for shape in entry.inputs.values() for axis in shape if isinstance(axis, str)}
        largest = {axis: longest if axis == LENGTH else ROWS[-1] for axis in axes}
        super().__init__(path.name, entry, device, dtypes, largest)

    @property
    def runs_until_steady(self) -> int:
        """One that ONNX Runtime captures, and one that replays it."""
        return 2 if self._cuda_graphs else 1

    def padded(self, sizes: Sizes) -> Sizes:
        """The next bucket of rows; texts come at the length of theirs."""
        return {axis: size if axis == LENGTH else bucket(size, ROWS) for axis, size in sizes.items()}

    def launcher(self, arrays: Mapping[str, Placed]) -> Launch:
        """A call that runs the graph on arrays at fixed addresses.

        With a CUDA graph of its own the library waits for it; without, the call
        returns while the device works.
        """
        binding = self._session.io_binding()
        for names, bind in ((self.inputs, binding.bind_input), (self.outputs, binding.bind_output)):
            for name in names:
                at = arrays[name]
                bind(name, self.memory, 0, at.dtype.type, list(at.shape), at.address)
        self._launchers += 1
        options = self._run_options(self._launchers)

        def launch() -> None:
            with device_faults(self.title):
                self._session.run_with_iobinding(binding, options)

        return launch

    def open(self, path: Path, stream: int) -> onnxruntime.InferenceSession:
        """The graph on the CUDA provider; what that does not run is left to the CPU's."""
        cuda = {
            "use_tf32": "0",
            "enable_cuda_graph": str(int(self._cuda_graphs)),
            "user_compute_stream": str(stream),
        }
        return open_session(path, cpu_options(1), [(CUDA, cuda), (CPU, {})])

    def _run_options(self, number: int) -> Any:
        options = onnxruntime.RunOptions()
        if self._cuda_graphs:
            options.add_run_config_entry("gpu_graph_id", str(number))
        else:
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        return options


class CudaSession(DeviceSession):
    """Encoders and folds of an exported model on ONNX Runtime's CUDA provider."""

    @classmethod
    def open(
        cls, folder: str | Path, *, precision: str = "fp32", verify: bool = True, device: Device | None = None
    ) -> Self:
        """Open an exported model folder.

        Parameters
        ----------
        folder, precision, verify : as in :meth:`OnnxSession.open`.
        device : where to run; the first one by default.

        Raises
        ------
        BackendError
            If ONNX Runtime has no CUDA provider here, or it does not come up.
        MissingDependencyError
            If nothing is installed that gives memory on the device.
        ModelError
            If a file is missing or damaged, the version is another, or the precision is not there.
        """
        folder = Path(folder)
        manifest = ModelManifest.read(folder)
        check_provider()
        on = open_device() if device is None else device
        on.activate()

        def graphs() -> dict[str, BoundGraph]:
            return {
                name: open_graph(folder, manifest, name, chosen, verify, on)
                for name, chosen in precisions(precision).items()
            }

        return cls(manifest, graphs, manifest.tokenizer.check(folder, verify=verify), "cuda", on)


def check_provider() -> None:
    """Raise BackendError if this ONNX Runtime was built without CUDA."""
    there = onnxruntime.get_available_providers()
    if CUDA not in there:
        raise BackendError(f"onnxruntime {onnxruntime.__version__} has no CUDA, only {there}: {INSTALL}")


def open_graph(
    folder: Path, manifest: ModelManifest, name: str, precision: str, verify: bool, device: Device
) -> BoundGraph:
    """Open one graph on the device; errors as in ``CudaSession.open``."""
    entry, longest = manifest.entry(name, precision), manifest.widths["length"]
    if entry.data is not None:
        entry.data.check(folder, verify=verify)
    path = entry.onnx.check(folder, verify=verify)
    try:
        return BoundGraph(path, entry, device, longest)
    except MimicError as error:
        # Captured graphs need every operator on the device; not all versions put all of ours there.
        logger.warning("%s: opened without CUDA graphs: %s", path.name, error)
        return BoundGraph(path, entry, device, longest, cuda_graphs=False)
