"""The device layer: both implementations over their libraries or fakes of them, and which one is chosen."""

import functools
import gc
import importlib
import inspect
import logging
import re
import threading
import warnings
from types import ModuleType

import numpy as np
import pytest

from mimic_engine.errors import BackendError, InvalidInputError, MissingDependencyError
from mimic_engine.gpu.device import CudaCoreDevice, PycudaDevice, open_device
from tests.gpu.fakes import FakeDevice
from tests.gpu.library_fakes import CudaCore, Pycuda

LAYERS = ("pycuda", "cuda-core")


OPENED = {
    "fake": FakeDevice,
    "pycuda over a fake": lambda: PycudaDevice(Pycuda(), 0),
    "cuda-core over a fake": lambda: CudaCoreDevice(CudaCore(), 0),
    **{layer: functools.partial(open_device, layer) for layer in LAYERS},
}


@pytest.fixture(params=OPENED, scope="module")
def opened(request):
    """The fake, each layer over a fake library, and over its own where there is a device."""
    try:
        return OPENED[request.param]()
    except (BackendError, MissingDependencyError) as error:
        pytest.skip(str(error))


@pytest.fixture
def device(opened):
    opened.activate()
    return opened


@pytest.mark.parametrize("size", [1, 60, 1 << 20])
def test_what_is_uploaded_comes_back(device, size):
    host, back, memory = device.pinned(size), device.pinned(size), device.allocate(size)
    host[:], back[:] = np.arange(size) % 251, 0
    device.upload(host, memory)
    device.download(memory, back)
    device.synchronize()
    np.testing.assert_array_equal(back, host)


def test_the_first_bytes_alone_may_be_copied(device):
    host, back, memory = device.pinned(8), device.pinned(8), device.allocate(8)
    host[:], back[:] = 7, 0
    device.upload(host, memory)
    device.download(memory, back[:5])
    device.synchronize()
    assert back.tolist() == [7] * 5 + [0] * 3


def test_pinned_memory_lives_as_long_as_a_view_of_it(device):
    views = [device.pinned(64)[8:16].view(np.float32) for _ in range(50)]
    for number, view in enumerate(views):
        view[:] = number
    gc.collect()
    memory = device.allocate(8)
    device.upload(views[3].view(np.uint8), memory)
    device.download(memory, views[4].view(np.uint8))
    device.synchronize()
    assert [view.tolist() for view in views[3:6]] == [[3, 3], [3, 3], [5, 5]]


def test_it_is_used_in_another_thread_than_the_one_that_opened_it(device):
    seen = []

    def work():
        device.activate()
        device.activate()
        host, memory = device.pinned(4), device.allocate(4)
        host[:] = 9
        device.upload(host, memory)
        device.synchronize()
        seen.append(host[0])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert seen == [9]


def test_a_stream_and_an_architecture_are_there_for_libraries(device):
    assert device.stream > 0
    assert re.fullmatch(r"sm_\d+", device.architecture)


def test_too_much_memory_is_an_error(device):
    with pytest.raises(BackendError, match="bytes of device memory"):
        device.allocate(1 << 50)


@pytest.mark.parametrize(("layer", "fake"), [(PycudaDevice, Pycuda), (CudaCoreDevice, CudaCore)])
def test_a_device_that_is_not_there_is_named(layer, fake):
    with pytest.raises(BackendError, match="CUDA device 3"):
        layer(fake(), 3)


# -- which one --------------------------------------------------------------------------------------------


@pytest.fixture
def libraries(monkeypatch):
    """Say which libraries there are: a fake, or what importing one raises."""

    def there(**given):
        modules = {"pycuda": "pycuda.driver", "core": "cuda.core"}
        real = importlib.import_module

        def fake(name):
            for key, module in modules.items():
                if name == module:
                    if isinstance(given[key], Exception):
                        raise given[key]
                    return given[key]
            return real(name)

        monkeypatch.setattr(importlib, "import_module", fake)

    return there


ABSENT = ModuleNotFoundError("No module named 'pycuda'", name="pycuda")
BROKEN = ImportError("libcuda.so.1: cannot open shared object file")


def test_pycuda_comes_first_where_it_is_installed(libraries):
    libraries(pycuda=Pycuda(), core=CudaCore())
    assert open_device().layer == "pycuda"
    assert open_device("cuda-core").layer == "cuda-core"


def test_else_cuda_core_and_a_broken_pycuda_is_said(libraries, caplog):
    caplog.set_level(logging.INFO)
    libraries(pycuda=ABSENT, core=CudaCore())
    assert open_device().layer == "cuda-core"
    assert not caplog.records
    libraries(pycuda=BROKEN, core=CudaCore())
    assert open_device().layer == "cuda-core"
    [record] = caplog.records
    assert "PyCUDA cannot be imported: libcuda.so.1" in record.getMessage()


@pytest.mark.parametrize(
    ("layer", "install"), [("pycuda", r"mimic-engine\[pycuda\]"), ("cuda-core", r"mimic-engine\[gpu\]")]
)
def test_a_layer_that_is_asked_for_and_missing_says_what_to_install(libraries, layer, install):
    libraries(pycuda=ABSENT, core=ModuleNotFoundError("No module named 'cuda'", name="cuda"))
    with pytest.raises(
        MissingDependencyError, match=rf"device_layer: '{layer}' needs .*pip install '{install}'"
    ):
        open_device(layer)
    with pytest.raises(MissingDependencyError, match=r"mimic-engine\[gpu\]"):
        open_device()


def test_an_unknown_layer_is_named():
    with pytest.raises(InvalidInputError, match="device_layer: 'opencl' is not one of auto, pycuda"):
        open_device("opencl")


# -- PyCUDA's stack of contexts ---------------------------------------------------------------------------


def test_a_thread_that_ends_takes_its_context_off_pycudas_stack():
    driver, seen = Pycuda(), []

    def work():
        device = PycudaDevice(driver, 0)
        device.activate()
        seen.append((device.architecture, driver.stacks[threading.get_ident()]))
        del device  # the context stays this thread's until it ends
        seen.append(driver.stacks[threading.get_ident()])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert seen == [("sm_90", 1), 1]
    assert driver.stacks == {thread.ident: 0}


def test_a_device_that_another_thread_drops_leaves_that_threads_stack_alone():
    driver, opened, dropped, devices = Pycuda(), threading.Event(), threading.Event(), []

    def work():
        devices.append(PycudaDevice(driver, 0))
        opened.set()
        assert dropped.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    assert opened.wait(10)
    devices.clear()
    assert driver.stacks == {thread.ident: 1}
    dropped.set()
    thread.join(10)
    assert driver.stacks == {thread.ident: 0}


# -- the fakes are like what they stand for ---------------------------------------------------------------


def parameters(function):
    """Names, without self, and which of them must be given."""
    found = [p for p in inspect.signature(function).parameters.values() if p.name not in ("self", "cls")]
    return [(p.name, p.kind.name, p.default is p.empty) for p in found]


def counted(doc):
    """Parameters and those that may be left out, as Boost.Python writes them: ``f( (int)a [, (int)b=0])``."""
    inner = re.search(r"\w+\((.*)\) ->", doc).group(1)
    return len(re.findall(r"\(\w+\)", inner)), inner.count("[")


def installed(module) -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(module)
        except ImportError as error:
            pytest.skip(f"{module} cannot be imported: {error}")


@pytest.mark.parametrize(
    "name",
    [
        *("init", "mem_alloc", "pagelocked_empty", "memcpy_htod_async", "memcpy_dtoh_async"),
        *("Device.compute_capability", "Device.retain_primary_context", "Stream.__init__"),
        *("Stream.synchronize", "Context.push", "Context.pop", "Context.detach", "DeviceAllocation.__int__"),
    ],
)
def test_the_fake_takes_what_pycuda_takes(name):
    real, fake = installed("pycuda.driver"), Pycuda()
    for part in name.split("."):
        real, fake = getattr(real, part), getattr(fake, part)
    own = list(inspect.signature(fake).parameters.values())
    assert counted(real.__doc__) == (len(own), sum(p.default is not p.empty for p in own))


@pytest.mark.parametrize(
    "name",
    [
        *("Device.set_current", "Device.create_stream", "Device.allocate", "Stream.sync"),
        *("Buffer.from_handle", "Buffer.copy_from", "LegacyPinnedMemoryResource.allocate"),
    ],
)
def test_the_fake_takes_what_cuda_core_takes(name):
    """Its wheels import without a driver."""
    real, fake = installed("cuda.core"), CudaCore()
    for part in name.split("."):
        real, fake = getattr(real, part), getattr(fake, part)
    assert parameters(fake) == parameters(real)


@pytest.mark.parametrize(
    ("module", "owner", "attribute"),
    [
        ("pycuda.driver", "Stream", "handle"),
        ("cuda.core", "Device", "compute_capability"),
        ("cuda.core", "Stream", "handle"),
        ("cuda.core", "Buffer", "handle"),
    ],
)
def test_what_is_read_off_a_library_is_there(module, owner, attribute):
    assert hasattr(getattr(installed(module), owner), attribute)
