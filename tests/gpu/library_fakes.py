"""PyCUDA's driver module and ``cuda.core`` in host memory, as far as the device layer calls them.

Names and parameters are those of the libraries; ``test_device.py`` holds them
against the installed ones. Copies run when a stream is waited for and not
before, and everything needs a context in its thread, as on a device.
"""

import ctypes
import itertools
import threading

import numpy as np

LIMIT = 1 << 40  # bytes of the fake device


def memory(address, size):
    return np.frombuffer((ctypes.c_char * size).from_address(address), np.uint8)


class Queue:
    handles = itertools.count(0x5000)

    def __init__(self):
        self.handle, self._work = next(self.handles), []

    def copy(self, target, source, size):
        self._work.append((target, source, size))

    def run(self):
        work, self._work = self._work, []
        for target, source, size in work:
            memory(target, size)[:] = memory(source, size)


class Pycuda:
    """``pycuda.driver``: a stack of contexts a thread, which must be empty when the thread ends."""

    class MemoryError(Exception):
        pass

    class LogicError(Exception):
        pass

    def __init__(self):
        self.stacks = {}
        driver = self

        class Device:
            def __init__(self, ordinal):
                if ordinal:
                    raise driver.LogicError("cuDeviceGet failed: invalid device ordinal")

            def compute_capability(self):
                return 9, 0

            def retain_primary_context(self):
                return Context()

        class Context:
            def push(self):
                stack = driver.stacks
                stack[threading.get_ident()] = stack.get(threading.get_ident(), 0) + 1

            @staticmethod
            def pop():
                driver.current()
                driver.stacks[threading.get_ident()] -= 1

            def detach(self):
                assert not driver.stacks.get(threading.get_ident())

        class Stream:
            def __init__(self, flags=0):
                driver.current()
                assert flags == 1, "the stream would wait for the default one"
                self._queue = Queue()

            @property
            def handle(self):
                return self._queue.handle

            def synchronize(self):
                driver.current()
                self._queue.run()

        class DeviceAllocation:
            def __init__(self, size):
                self._memory = np.full(size, 0xAB, np.uint8)

            def __int__(self):
                return self._memory.ctypes.data

        self.Device, self.Context, self.Stream = Device, Context, Stream
        self.DeviceAllocation = DeviceAllocation

    def current(self):
        if not self.stacks.get(threading.get_ident()):
            raise self.LogicError("explicit_context_dependent failed: invalid device context")

    def init(self, flags=0):
        pass

    def mem_alloc(self, bytes):
        self.current()
        if bytes > LIMIT:
            raise self.MemoryError("cuMemAlloc failed: out of memory")
        return self.DeviceAllocation(bytes)

    def pagelocked_empty(self, shape, dtype, order="C", mem_flags=0):
        self.current()
        return np.full(shape, 0xCD, dtype)

    def memcpy_htod_async(self, dest, src, stream=None):
        self.current()
        stream._queue.copy(dest, src.ctypes.data, src.nbytes)

    def memcpy_dtoh_async(self, dest, src, stream=None):
        self.current()
        stream._queue.copy(dest.ctypes.data, src, dest.nbytes)


class CudaCore:
    """``cuda.core``: a device is made the thread's own."""

    def __init__(self):
        self.threads = set()
        core = self

        class Device:
            compute_capability = (9, 0)

            def __init__(self, device_id=None):
                if device_id:
                    raise ValueError("device_id must be >= 0 and < 1")

            def set_current(self, ctx=None):
                core.threads.add(threading.get_ident())

            def create_stream(self, obj=None, options=None):
                core.current()
                return Stream()

            def allocate(self, size, *, stream):
                core.current()
                if size > LIMIT:
                    raise RuntimeError("CUDA_ERROR_OUT_OF_MEMORY")
                return Buffer(np.full(size, 0xAB, np.uint8))

        class Stream:
            def __init__(self):
                self._queue = Queue()

            @property
            def handle(self):
                return self._queue.handle

            def sync(self):
                core.current()
                self._queue.run()

        class Buffer:
            def __init__(self, array):
                self._array, self.handle, self.size = array, array.ctypes.data, array.nbytes

            @classmethod
            def from_handle(cls, ptr, size, mr=None, owner=None, *, stream=None):
                return cls(memory(ptr, size))

            def copy_from(self, src, *, stream, options=None):
                core.current()
                stream._queue.copy(self.handle, src.handle, self.size)

        class LegacyPinnedMemoryResource:
            def allocate(self, size, *, stream=None):
                core.current()
                return Buffer(np.full(size, 0xCD, np.uint8))

        self.Device, self.Stream, self.Buffer = Device, Stream, Buffer
        self.LegacyPinnedMemoryResource = LegacyPinnedMemoryResource

    def current(self):
        assert threading.get_ident() in self.threads, "the device is not this thread's"
