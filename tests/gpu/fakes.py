"""A device in plain memory that runs late, and a TensorRT library whose engines run the ONNX graph on it.

Work is done when the device is waited for and not before, as on a device, so
that host memory changed too early, or read too early, gives wrong numbers.
"""

import threading
from math import prod

import numpy as np

from mimic_engine.errors import BackendError
from mimic_engine.gpu.device import Device, DeviceMemory
from mimic_engine.gpu.tensorrt_library import TENSORRT, Library
from tests.gpu.library_fakes import memory


class FakeDevice(Device):
    """Device memory is host memory; the stream keeps what is queued until it is waited for."""

    layer = "fake"
    architecture = "sm_99"
    stream = 77

    def __init__(self, size_bytes=1 << 30):
        self.free = size_bytes
        self.queued = []
        self.calls = []
        self.threads = set()
        self.activate()

    def activate(self):
        self.threads.add(threading.get_ident())

    def queue(self, work):
        self.queued.append(work)

    def synchronize(self):
        assert threading.get_ident() in self.threads, "the device is not this thread's"
        self.calls.append("synchronize")
        work, self.queued = self.queued, []
        for step in work:
            step()

    def allocate(self, size_bytes):
        if size_bytes > self.free:
            raise BackendError(f"{size_bytes} bytes of device memory: out of memory")
        self.free -= size_bytes
        own = np.full(max(1, size_bytes), 0xAB, np.uint8)
        return DeviceMemory(own.ctypes.data, own)

    def pinned(self, size_bytes):
        return np.full(max(1, size_bytes), 0xCD, np.uint8)

    def upload(self, host, target):
        self._copy(target.address, host.ctypes.data, host.nbytes)

    def download(self, source, host):
        self._copy(host.ctypes.data, source.address, host.nbytes)

    def _copy(self, target, source, size):
        def copy():
            memory(target, size)[:] = memory(source, size)

        self.queue(copy)


class PromptDevice(FakeDevice):
    """Runs what is queued at once, as the pipeline's device does on the CPU."""

    def queue(self, work):
        work()


class FakeContext:
    def __init__(self, engine):
        self.engine, self.profile, self.shapes, self.addresses = engine, None, {}, {}

    def set_optimization_profile_async(self, index, handle):
        self.profile = index
        return 0 <= index < len(self.engine.profiles)

    def set_input_shape(self, name, shape):
        sizes = zip(shape, self.engine.graph.inputs[name], strict=True)
        spans = self.engine.profiles[self.profile]
        inside = all(n == a if isinstance(a, int) else spans[a][0] <= n <= spans[a][2] for n, a in sizes)
        if inside:
            self.shapes[name] = tuple(shape)
        return inside

    def infer_shapes(self):
        return [name for name in self.engine.graph.inputs if name not in self.shapes]

    def get_tensor_shape(self, name):
        sizes = {}
        for key, shape in self.engine.graph.inputs.items():
            sizes |= {a: n for a, n in zip(shape, self.shapes[key], strict=True) if isinstance(a, str)}
        shapes = self.engine.graph.inputs | self.engine.graph.outputs
        return [sizes[n] if isinstance(n, str) else n for n in shapes[name]]

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def execute_async_v3(self, handle):
        engine, device = self.engine, self.engine.device
        assert set(self.addresses) == {*engine.graph.inputs, *engine.graph.outputs}

        def run():
            feeds = {}
            for name, shape in self.shapes.items():
                dtype = np.dtype(engine.dtype(name))
                raw = memory(self.addresses[name], prod(shape) * dtype.itemsize)
                feeds[name] = raw.view(dtype).reshape(shape)
            for name, value in engine.graph.run(feeds).items():
                memory(self.addresses[name], value.nbytes)[:] = (
                    np.ascontiguousarray(value).view(np.uint8).ravel()
                )

        assert handle == device.stream
        device.queue(run)
        return not engine.broken


class FakeEngine:
    """What a deserialised engine offers; runs ``graph`` on the CPU."""

    def __init__(self, graph, profiles, device):
        self.graph, self.profiles, self.device, self.broken = graph, profiles, device, False
        self.names = [*graph.inputs, *graph.outputs]
        self.num_io_tensors = len(self.names)
        self.num_optimization_profiles = len(profiles)
        self.contexts = []

    def get_tensor_name(self, i):
        return self.names[i]

    def dtype(self, name):
        ids = ("input_ids", "attention_mask", "token_type_ids")
        return np.int64 if name in ids else np.float32

    get_tensor_dtype = dtype

    def create_execution_context(self, strategy):
        self.contexts.append(FakeContext(self))
        return self.contexts[-1]


class FakeTrt:
    class ExecutionContextAllocationStrategy:
        ON_PROFILE_CHANGE = 1

    @staticmethod
    def nptype(dtype):
        return dtype


def fake_library():
    return Library(TENSORRT, FakeTrt, "10.16.1.11", None)
