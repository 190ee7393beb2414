"""Backends: by name an error where one does not work, ``auto`` proves and logs; and the device layer under them."""

import logging
import sys

import numpy as np
import onnxruntime
import pytest

from mimic_engine import Linker, Mention
from mimic_engine.backends import encoders as backends
from mimic_engine.backends.encoders import (
    BackendOptions,
    check_packages,
    open_backend,
    outputs,
    warm_up_input,
)
from mimic_engine.encoding.onnx import OnnxSession, cpu_options, open_session
from mimic_engine.errors import BackendError, InvalidInputError, MissingDependencyError, ModelError
from mimic_engine.gpu.onnx_cuda import CUDA
from tests.gpu.bound import bound_session
from tests.gpu.fakes import FakeDevice

HAS_CUDA = CUDA in onnxruntime.get_available_providers()


def test_auto_takes_the_cpu_where_there_is_nothing_else_and_says_why(tiny_model, caplog):
    if HAS_CUDA:
        pytest.skip("this machine has more")
    with caplog.at_level(logging.INFO, logger="mimic_engine.backends.encoders"):
        session = open_backend(tiny_model, "auto", BackendOptions(threads=1))
    assert session.backend == "onnx"
    [line] = [r.getMessage() for r in caplog.records]
    assert "backend onnx" in line and "no engines in" in line and "has no CUDA" in line and "torch (" in line


@pytest.mark.parametrize("backend", ["cuda", "tensorrt"])
def test_a_backend_asked_for_by_name_never_falls_back(tiny_model, backend):
    if backend == "cuda" and HAS_CUDA:
        pytest.skip("there is CUDA")
    with pytest.raises((BackendError, MissingDependencyError, ModelError)):
        open_backend(tiny_model, backend, BackendOptions(threads=1))


def test_a_provider_that_does_not_come_up_is_an_error(tiny_model):
    if HAS_CUDA:
        pytest.skip("there is CUDA")
    path = tiny_model / "graphs" / "mention_fold.fp32.onnx"
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # onnxruntime's own, about the provider that is not there
        with pytest.raises(BackendError, match="CUDAExecutionProvider"):
            open_session(path, cpu_options(1), [(CUDA, {}), ("CPUExecutionProvider", {})])


def test_torch_needs_a_checkpoint_of_the_same_model(tiny_model, tiny_checkpoint, masked_checkpoint):
    with pytest.raises(InvalidInputError, match="--checkpoint"):
        open_backend(tiny_model, "torch", BackendOptions())
    with pytest.raises(ModelError, match="is model"):
        open_backend(tiny_model, "torch", BackendOptions(checkpoint=masked_checkpoint))
    session = open_backend(tiny_model, "torch", BackendOptions(checkpoint=tiny_checkpoint, threads=1))
    reference = OnnxSession.open(tiny_model, threads=1)
    for found, expected in zip(
        *(outputs(s, *warm_up_input(reference)) for s in (session, reference)), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))


@pytest.fixture(scope="module")
def masked_checkpoint(tiny_checkpoint, tmp_path_factory):
    from mimic_engine.model.checkpoint import load_checkpoint, save_checkpoint

    loaded = load_checkpoint(tiny_checkpoint)
    loaded.model.matcher.cmfu.text_fc.bias.data += 1
    folder = tmp_path_factory.mktemp("other") / "checkpoint"
    save_checkpoint(loaded.model, folder, tokenizer_json=loaded.tokenizer_json.read_text())
    return folder


def test_an_unknown_backend_is_named(tiny_model):
    with pytest.raises(InvalidInputError, match="'openvino'") as caught:
        open_backend(tiny_model, "openvino", BackendOptions())
    assert caught.value.field == "backend"


def test_bf16_is_refused_on_the_cpu(tiny_model):
    with pytest.raises(InvalidInputError, match="'bf16' needs a GPU"):
        open_backend(tiny_model, "auto", BackendOptions(precision="bf16"))


class Twin:
    """A session that answers like another one, but for what it is told to change."""

    def __init__(self, session, change=lambda a: a, delay=0.0):
        self._session, self._change, self._delay = session, change, delay
        self.tokenizer_json = session.tokenizer_json

    def __getattr__(self, name):
        return getattr(self._session, name)

    def encode_text(self, tokens):
        import dataclasses
        import time

        time.sleep(self._delay)
        text = self._session.encode_text(tokens)
        return dataclasses.replace(text, cls=self._change(text.cls))


def fastest(monkeypatch, caplog, tiny_model, sessions):
    monkeypatch.setattr(backends, "_open_all", lambda model, options: (sessions, {}))
    with caplog.at_level(logging.INFO, logger="mimic_engine.backends.encoders"):
        chosen = open_backend(tiny_model, "auto", BackendOptions(threads=1))
    return next(name for name, s in sessions.items() if s is chosen), caplog.records[-1].getMessage()


def test_auto_passes_over_what_is_wrong_however_fast(monkeypatch, caplog, tiny_model):
    good = OnnxSession.open(tiny_model, threads=1)
    wrong, nan = Twin(good, lambda a: a * 1.01), Twin(good, lambda a: a * np.nan)
    sessions = {"tensorrt": wrong, "cuda": nan, "onnx": Twin(good, delay=0.02)}
    name, line = fastest(monkeypatch, caplog, tiny_model, sessions)
    assert name == "onnx"
    assert "tensorrt (differs from the CPU by" in line and "cuda (differs from the CPU by inf" in line


def test_auto_takes_the_fastest_that_is_right(monkeypatch, caplog, tiny_model):
    good = OnnxSession.open(tiny_model, threads=1)
    sessions = {"cuda": Twin(good, delay=0.001), "onnx": Twin(good, delay=0.5)}
    name, line = fastest(monkeypatch, caplog, tiny_model, sessions)
    assert name == "cuda" and "onnx (slower, " in line


def test_auto_with_nothing_right_is_an_error(monkeypatch, caplog, tiny_model):
    wrong = Twin(OnnxSession.open(tiny_model, threads=1), lambda a: a + 1)
    with pytest.raises(BackendError, match="none works here"):
        fastest(monkeypatch, caplog, tiny_model, {"cuda": wrong})


def test_both_distributions_of_onnx_runtime_are_an_error():
    check_packages({"onnxruntime": "1.30.0"})
    with pytest.raises(BackendError, match=r"onnxruntime 1\.30\.0 and onnxruntime-gpu 1\.31\.1"):
        check_packages({"onnxruntime": "1.30.0", "onnxruntime-gpu": "1.31.1"})


def test_linker_and_command_line_take_a_backend_and_a_layer(
    tiny_model, tiny_index, tiny_checkpoint, capsys, monkeypatch
):
    from mimic_engine.cli.main import main

    mention = Mention("a b", "c a b d")
    answers = []
    for backend in ("onnx", "auto", "torch"):
        linker = Linker.open(tiny_model, tiny_index, threads=1, backend=backend, checkpoint=tiny_checkpoint)
        assert linker.info()["backend"] == ("torch" if backend == "torch" else "onnx")
        [result] = linker.link([mention], 5)
        answers.append([c.id for c in result.candidates])
        linker.close()
    assert answers[0] == answers[1] == answers[2]
    link = [
        "link",
        "--model",
        str(tiny_model),
        "--index",
        str(tiny_index),
        "--mention",
        "a",
        "--sentence",
        "a b",
    ]
    assert main([*link, "--backend", "tensorrt"]) == 2
    assert "mimic-engine: error: " in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    assert main([*link, "--backend", "cuda", "--device-layer", "pycuda"]) == 2
    assert "mimic-engine: error: device_layer: 'pycuda' needs" in capsys.readouterr().err
    assert main([*link, "--backend", "onnx", "--threads", "1", "--top-k", "2"]) == 0


# -- the device layer -------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["auto", "cuda", "tensorrt"])
def test_a_device_layer_that_is_asked_for_and_missing_is_an_error(tiny_model, monkeypatch, backend):
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(
        MissingDependencyError, match=r"device_layer: 'pycuda' needs .*mimic-engine\[pycuda\]"
    ):
        open_backend(tiny_model, backend, BackendOptions(threads=1, device_layer="pycuda"))


def test_encoders_on_the_cpu_need_no_device_layer(tiny_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    session = open_backend(tiny_model, "onnx", BackendOptions(threads=1, device_layer="pycuda"))
    assert session.backend == "onnx"


@pytest.mark.parametrize("layer", ["pycuda", "cuda-core"])
def test_the_layer_that_is_asked_for_is_taken_and_logged_once(tiny_model, monkeypatch, caplog, layer):
    taken = []

    def opened(name):
        taken.append(name)
        device = FakeDevice()
        device.layer = name
        return device

    monkeypatch.setattr(backends, "import_layer", lambda name: None)
    monkeypatch.setattr(backends, "open_device", opened)
    monkeypatch.setattr(backends, "check_provider", lambda: None)
    monkeypatch.setattr(
        backends.CudaSession, "open", lambda folder, device, **_: bound_session(folder, device)
    )
    with caplog.at_level(logging.INFO, logger="mimic_engine.backends.encoders"):
        open_backend(tiny_model, "cuda", BackendOptions(device_layer=layer))
    assert taken == [layer]
    [record] = caplog.records
    assert record.getMessage() == f"encoders on backend cuda, fp32, device layer {layer}"
