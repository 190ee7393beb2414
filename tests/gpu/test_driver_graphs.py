"""Graphs by the driver: the calls and their order, on a driver in Python that keeps the books CUDA keeps."""

import ctypes
import sys
import threading
from types import SimpleNamespace

import pytest

from mimic_engine.errors import BackendError
from mimic_engine.gpu.device import DriverGraphs, PycudaDevice

STREAM = 77


class Driver:
    """Gives out handles and takes them back; ``refuse`` names a function that fails with error 901."""

    def __init__(self, refuse=None):
        self.refuse, self.calls, self.capturing, self.alive = refuse, [], False, set()

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append(name)
            if name == self.refuse:
                return 901
            return getattr(Driver, f"_{name}")(self, *arguments) or 0

        return call

    def _new(self, reference):
        handle = 1000 + len(self.calls)
        self.alive.add(handle)
        reference._obj.value = handle

    def _cuStreamBeginCapture_v2(self, stream, mode):
        assert (stream.value, mode.value) == (STREAM, 1) and not self.capturing
        self.capturing = True

    def _cuStreamEndCapture(self, stream, graph):
        assert stream.value == STREAM and self.capturing
        self.capturing = False
        self._new(graph)

    def _cuGraphInstantiateWithFlags(self, ready, graph, flags):
        assert graph.value in self.alive and flags.value == 0
        self._new(ready)

    def _cuGraphDestroy(self, graph):
        self.alive.remove(graph.value)

    _cuGraphExecDestroy = _cuGraphDestroy

    def _cuGraphLaunch(self, ready, stream):
        assert ready.value in self.alive and stream.value == STREAM

    def _cuGetErrorName(self, code, name):
        assert code.value == 901
        name._obj.value = b"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"


def test_what_is_captured_is_launched_and_given_back():
    driver, seen = Driver(), []
    graph = DriverGraphs(driver).capture(STREAM, lambda: seen.append(driver.capturing))
    assert seen == [True] and driver.alive == {graph.handle}
    graph.launch(STREAM)
    graph.launch(STREAM)
    assert driver.calls.count("cuGraphLaunch") == 2
    del graph
    assert not driver.alive


def test_a_capture_that_fails_ends_the_capture_and_keeps_the_error():
    driver = Driver()

    def work():
        raise KeyError("a launch failed")

    with pytest.raises(KeyError, match="a launch failed"):
        DriverGraphs(driver).capture(STREAM, work)
    assert not driver.capturing and not driver.alive


@pytest.mark.parametrize(
    "refused", ["cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags"]
)
def test_what_the_driver_refuses_is_named(refused):
    driver = Driver(refuse=refused)
    with pytest.raises(BackendError, match=f"{refused}: CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"):
        DriverGraphs(driver).capture(STREAM, lambda: None)
    assert not driver.alive


def test_a_launch_that_is_refused_is_an_error():
    driver = Driver()
    graph = DriverGraphs(driver).capture(STREAM, lambda: None)
    driver.refuse = "cuGraphLaunch"
    with pytest.raises(BackendError, match="cuGraphLaunch"):
        graph.launch(STREAM)


def test_without_a_driver_the_library_is_named():
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        with pytest.raises(BackendError, match=r"libcuda\.so\.1: no CUDA driver"):
            DriverGraphs()
    else:
        assert DriverGraphs().driver


class Pycuda:
    """PyCUDA's stack of contexts a thread; a thread that ends with one on it would end the process."""

    def __init__(self):
        self.stacks = {}
        context = SimpleNamespace(push=self.push, pop=self.pop)
        self.device = SimpleNamespace(
            compute_capability=lambda: (9, 0), retain_primary_context=lambda: context
        )
        self.module = SimpleNamespace(init=lambda: None, Device=lambda index: self.device)

    def push(self):
        self.stacks[threading.get_ident()] = self.stacks.get(threading.get_ident(), 0) + 1

    def pop(self):
        self.stacks[threading.get_ident()] -= 1


@pytest.fixture
def pycuda(monkeypatch):
    fake = Pycuda()
    monkeypatch.setitem(sys.modules, "pycuda", SimpleNamespace(driver=fake.module))
    monkeypatch.setitem(sys.modules, "pycuda.driver", fake.module)
    monkeypatch.setattr("mimic_engine.gpu.device.DriverGraphs", lambda: DriverGraphs(Driver()))
    return fake


def test_a_thread_that_ends_takes_its_context_off_pycudas_stack(pycuda):
    seen = []

    def work():
        device = PycudaDevice(0)
        device.activate()
        seen.append((device.architecture, pycuda.stacks[threading.get_ident()]))
        del device  # the context stays this thread's until it ends
        seen.append(pycuda.stacks[threading.get_ident()])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert seen == [("sm_90", 1), 1]
    assert pycuda.stacks == {thread.ident: 0}


def test_a_device_that_another_thread_drops_leaves_that_threads_stack_alone(pycuda):
    opened, dropped, devices = threading.Event(), threading.Event(), []

    def work():
        devices.append(PycudaDevice(0))
        opened.set()
        assert dropped.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    assert opened.wait(10)
    devices.clear()
    assert pycuda.stacks == {thread.ident: 1}
    dropped.set()
    thread.join(10)
    assert pycuda.stacks == {thread.ident: 0}
