"""Whether requests stay on the GPU: what decides, and what is said where they do not."""

import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest

from mimic_engine.engine.gpu_choice import choose_chain
from mimic_engine.errors import BackendError, EngineError, InvalidInputError, MissingDependencyError

CHAIN = object()


def linker(backend="cuda", cache=None):
    return SimpleNamespace(featurizer=SimpleNamespace(backend=backend), cache=cache)


@pytest.fixture
def opened(monkeypatch):
    """What opens chains, replaced; the calls are kept, and ``fail`` is raised if it is set."""
    calls = SimpleNamespace(made=[], fail=None)

    def chain_over(linker, model, **options):
        calls.made.append((linker, str(model), options))
        if calls.fail is not None:
            raise calls.fail
        return CHAIN

    monkeypatch.setitem(sys.modules, "mimic_engine.engine.gpu_open", SimpleNamespace(chain_over=chain_over))
    return calls


@pytest.mark.parametrize("choice", ["auto", "on"])
@pytest.mark.parametrize("backend", ["cuda", "tensorrt"])
def test_a_linker_on_the_gpu_becomes_a_chain(opened, choice, backend):
    before = linker(backend)
    assert choose_chain(before, "model", choice, precision="fp16", engines="there") is CHAIN
    assert opened.made == [(before, "model", {"precision": "fp16", "engines": "there"})]


def test_off_leaves_it_as_it_is(opened, caplog):
    caplog.set_level(logging.INFO)
    before = linker()
    assert choose_chain(before, "model", "off") is before
    assert not opened.made and not caplog.records


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (linker("onnx"), "the encoders run on 'onnx', not on cuda or tensorrt"),
        (linker("torch"), "the encoders run on 'torch'"),
        (linker(cache=object()), "mention_cache_bytes=0"),
    ],
)
def test_what_stands_in_the_way_is_said(opened, caplog, before, reason):
    caplog.set_level(logging.INFO)
    assert choose_chain(before, "model", "auto") is before
    [record] = caplog.records
    assert reason in record.getMessage()
    with pytest.raises(BackendError, match=reason):
        choose_chain(before, "model", "on")
    assert not opened.made


@pytest.mark.parametrize(
    "failure", [BackendError("no provider"), EngineError("no room"), MissingDependencyError("no device")]
)
def test_a_chain_that_cannot_be_opened_is_passed_over_or_an_error(opened, caplog, failure):
    caplog.set_level(logging.INFO)
    opened.fail, before = failure, linker()
    assert choose_chain(before, "model", "auto") is before
    assert str(failure) in caplog.text
    with pytest.raises(type(failure), match=str(failure)):
        choose_chain(before, "model", "on")


def test_without_its_libraries_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mimic_engine.engine.gpu_open", None)
    before = linker()
    assert choose_chain(before, "model", "auto") is before
    with pytest.raises(MissingDependencyError, match=r"torch and Triton .*pip install 'mimic-engine\[gpu\]'"):
        choose_chain(before, "model", "on")


def test_another_choice_is_refused():
    with pytest.raises(InvalidInputError, match="chain: 'yes' is not one of auto, on, off"):
        choose_chain(linker(), "model", "yes")


def test_encoders_on_the_cpu_need_no_torch(tiny_model, tiny_index):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from mimic_engine import Linker\n"
        "from mimic_engine.engine.gpu_choice import choose_chain\n"
        f"linker = Linker.open({str(tiny_model)!r}, {str(tiny_index)!r}, backend='onnx', threads=1)\n"
        f"assert choose_chain(linker, {str(tiny_model)!r}, 'auto') is linker\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
