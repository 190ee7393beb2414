"""The device layer: what it checks, what it says where there is no device, and the names it uses."""

import numpy as np
import pytest

from mimic_engine.errors import BackendError, InvalidInputError, MissingDependencyError
from mimic_engine.gpu.device import BACKENDS, open_device
from tests.gpu import fakes


def the_devices():
    """The fake, and every real one that opens here."""
    found = [fakes.FakeDevice()]
    for backend in BACKENDS:
        try:
            found.append(open_device(backend))
        except (BackendError, MissingDependencyError):
            continue
    return found


@pytest.fixture(params=the_devices(), ids=lambda d: d.name)
def device(request):
    return request.param


@pytest.mark.parametrize(("shape", "dtype"), [((1,), np.uint8), ((3, 5), np.float32), ((7, 2, 3), np.int64)])
def test_what_is_uploaded_comes_back(device, shape, dtype):
    stream, host, back = device.stream(), device.pinned(shape, dtype), device.pinned(shape, dtype)
    buffer = device.allocate(host.nbytes)
    host[...] = np.arange(host.size).reshape(shape)
    device.upload(host, buffer, stream)
    device.download(buffer, back, stream)
    device.synchronize(stream)
    np.testing.assert_array_equal(back, host)


def test_the_first_rows_alone_may_be_copied(device):
    stream, host = device.stream(), device.pinned((4, 3), np.float32)
    back = device.pinned((4, 3), np.float32)
    buffer = device.allocate(host.nbytes)
    host[...], back[...] = 7, 0
    device.upload(host, buffer, stream)
    device.download(buffer, back[:2], stream)
    device.synchronize(stream)
    np.testing.assert_array_equal(back, np.repeat([7, 0], 2)[:, None] * np.ones(3))


def test_a_captured_graph_runs_when_it_is_replayed(device):
    stream, host, back = device.stream(), device.pinned((5,), np.int64), device.pinned((5,), np.int64)
    buffer = device.allocate(host.nbytes)
    host[...], back[...] = 1, 0

    def work():
        device.upload(host, buffer, stream)
        device.download(buffer, back, stream)

    graph = device.capture(stream, work)
    device.synchronize(stream)
    assert (back == 0).all()
    for value in (3, 4):
        host[...] = value
        device.replay(graph, stream)
        device.synchronize(stream)
        assert (back == value).all()


def test_a_stream_waits_for_an_event(device):
    first, second = device.stream(), device.stream()
    device.wait(second, device.record(first))
    device.synchronize(second)
    assert first.handle != second.handle


def test_a_copy_of_other_memory_is_refused(device):
    stream, buffer = device.stream(), device.allocate(64)
    with pytest.raises(InvalidInputError, match="pinned"):
        device.upload(np.zeros(4, np.float32), buffer, stream)
    host = device.pinned((32,), np.float32)
    with pytest.raises(InvalidInputError, match="128 bytes, the buffer holds 64"):
        device.upload(host, buffer, stream)
    with pytest.raises(InvalidInputError, match="contiguous"):
        device.upload(host[::2], buffer, stream)


def test_a_buffer_is_offered_as_an_array(device):
    array = device.allocate(24).view((2, 3), np.float32)
    interface = array.__cuda_array_interface__
    assert interface["shape"] == (2, 3) and interface["typestr"] == "<f4"
    assert interface["data"] == (array.buffer.address, False)


def test_too_much_memory_is_an_error(device):
    with pytest.raises(BackendError, match="bytes of device memory"):
        device.allocate(1 << 50)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_a_device_the_error_says_what_to_do(backend):
    try:
        open_device(backend)
    except MissingDependencyError as error:
        assert "pip install" in str(error)
    except BackendError as error:
        assert "CUDA device 0" in str(error)


def test_an_unknown_backend_is_named():
    with pytest.raises(InvalidInputError, match="'opencl'"):
        open_device("opencl")


def test_the_names_of_cuda_core_are_there():
    """Its wheels import without a driver, so the names that we use can be looked up anywhere."""
    core = pytest.importorskip("cuda.core")
    graph = pytest.importorskip("cuda.core.graph")
    names = {
        core.Device: ("set_current", "compute_capability", "create_stream", "allocate"),
        core.Stream: ("handle", "sync", "record", "wait", "create_graph_builder"),
        core.Buffer: ("handle", "from_handle", "copy_from"),
        core.LegacyPinnedMemoryResource: ("allocate",),
        core.ObjectCode: ("from_cubin", "get_kernel"),
        graph.GraphBuilder: ("begin_building", "end_building", "complete"),
        graph.Graph: ("launch",),
    }
    missing = [f"{c.__name__}.{n}" for c, needed in names.items() for n in needed if not hasattr(c, n)]
    assert not missing and core.launch and core.LaunchConfig
