"""A device in plain memory that runs late, and a TensorRT library whose engines run the ONNX graph on it.

Work is done when a stream is waited for and not before, as on a device, so
that host memory changed too early, or read too early, gives wrong numbers.
"""

import ctypes
import threading
from math import prod

import numpy as np

from mimic_engine.gpu.device import Buffer, Device, Stream
from mimic_engine.gpu.tensorrt_library import TENSORRT, Library


def memory(address, size):
    return np.frombuffer(memoryview((ctypes.c_char * size).from_address(address)), np.uint8)


class FakeDevice(Device):
    """Device memory is host memory; every stream keeps what is queued until it is waited for."""

    name = "fake"
    architecture = "sm_99"

    def __init__(self, size_bytes=1 << 30):
        super().__init__()
        self.free = size_bytes
        self.queues = {}
        self.recording = None
        self.calls = []
        self.threads = set()
        self.activate()

    def _make_current(self):
        self.threads.add(threading.get_ident())

    def stream(self):
        handle = len(self.queues) + 1
        self.queues[handle] = []
        return Stream(handle, None)

    def queue(self, handle, work):
        (self.queues[handle] if self.recording is None else self.recording).append(work)

    def synchronize(self, stream):
        assert threading.get_ident() in self.threads, "the device is not this thread's"
        assert self.recording is None, "waiting is not allowed while a graph is captured"
        self.calls.append("synchronize")
        work, self.queues[stream.handle] = self.queues[stream.handle], []
        for step in work:
            step()

    def record(self, stream):
        return [list(self.queues[stream.handle])]

    def wait(self, stream, event):
        self.queue(stream.handle, lambda: None)

    def allocate(self, size_bytes):
        assert self.recording is None, "allocating is not allowed while a graph is captured"
        if size_bytes > self.free:
            from mimic_engine.errors import BackendError

            raise BackendError(f"{size_bytes} bytes of device memory: out of memory")
        self.free -= size_bytes
        own = np.full(max(1, size_bytes), 0xAB, np.uint8)
        return Buffer(own.ctypes.data, size_bytes, own)

    def capture(self, stream, work):
        assert not self.queues[stream.handle], "the stream is busy"
        self.recording = []
        work()
        graph, self.recording = self.recording, None
        self.calls.append("capture")
        return graph

    def replay(self, graph, stream):
        self.calls.append("replay")
        self.queues[stream.handle].extend(graph)

    def kernel(self, cubin, name):
        return name

    def launch(self, kernel, grid, block, arguments, stream, *, shared_bytes=0):
        self.queue(stream.handle, lambda: self.calls.append(kernel))

    def _allocate_pinned(self, size_bytes):
        own = np.full(size_bytes, 0xCD, np.uint8)
        return own.ctypes.data, own

    def _copy(self, target, source, size, stream, *, to_device):
        def copy():
            memory(target, size)[:] = memory(source, size)

        self.queue(stream.handle, copy)


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
        return [sizes[n] if isinstance(n, str) else n for n in self.engine.graph.outputs[name]]

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

        device.queue(handle, run)
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
