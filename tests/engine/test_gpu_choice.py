"""A linker over the GPU pipeline takes the place of one whose parts are all there, and of no other."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from mimic_engine.engine import gpu_choice
from mimic_engine.engine.gpu_choice import choose_pipeline


@pytest.mark.parametrize("fits", [True, False])
def test_the_linker_is_taken_over_or_left_as_it_is(monkeypatch, fits):
    asked, made = [], object()
    linker = SimpleNamespace(featurizer="featurizer", _scan="scan")
    pipeline = SimpleNamespace(
        GpuLinker=SimpleNamespace(over=lambda given: made if given is linker else None)
    )
    monkeypatch.setitem(sys.modules, "mimic_engine.engine.gpu_linker", pipeline)
    monkeypatch.setattr(gpu_choice, "takes_pipeline", lambda *given: (asked.append(given), fits)[1])
    assert choose_pipeline(linker, "auto") is (made if fits else linker)
    assert asked == [("auto", "featurizer", "scan")]


def test_encoders_on_the_cpu_need_no_torch(tiny_model, tiny_index):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from mimic_engine import Linker\n"
        "from mimic_engine.engine.gpu_choice import choose_pipeline\n"
        f"linker = Linker.open({str(tiny_model)!r}, {str(tiny_index)!r}, backend='onnx', threads=1)\n"
        "assert choose_pipeline(linker, 'auto') is linker\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
