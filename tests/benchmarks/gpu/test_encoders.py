"""The encoder benchmark: what is wrong is not timed, what does not open is listed, rows say what they should."""

import json

import numpy as np
import pytest

from benchmarks.gpu import encoders as gpu_encoders
from mimic_engine.errors import EngineError

ROW = {"backend", "precision", "device", "batch", "length", "p50_ms", "p99_ms", "per_s", "max_abs_error"}
SMALL = ("--layers", "1", "--image-width", "64", "--seconds", "0", "--threads", "1")


def test_a_small_run_on_the_cpu(tmp_path, capsys):
    out = tmp_path / "encoders.json"
    options = ("--batches", "1,3", "--backends", "torch,onnx,tensorrt", "--device", "cpu", "--out", str(out))
    assert gpu_encoders.main([*SMALL, *options]) == 0
    result = json.loads(out.read_text())
    rows = [r for r in result["rows"] if r["device"] == "cpu"]
    assert {(r["backend"], r["graph"], r["batch"]) for r in rows if r["precision"] == "fp32"} >= {
        ("onnx", g, b) for g in gpu_encoders.GRAPHS for b in (1, 3)
    }
    for row in result["rows"]:
        assert row.keys() >= ROW and row["length"] == 40 and row["runs"] >= gpu_encoders.RUNS
        assert 0 <= row["relative_error"] < (0.5 if row["precision"] == "int8" else 0.1)
        assert (
            row["first_ratio"] == pytest.approx(row["first_ms"] / row["p50_ms"])
            and row["p50_ms"] <= row["p99_ms"]
        )
        assert row["per_s"] == pytest.approx(1e3 * row["batch"] / row["p50_ms"])
    measured = {(r["backend"], r["precision"]) for r in rows}
    assert measured >= {("torch", "fp32"), ("onnx", "fp32"), ("onnx", "int8")}
    named = {r["backend"] for r in result["rows"]} | {k.split()[0] for k in result["skipped"]}
    assert named == {"torch", "onnx", "tensorrt"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_model_is_timed_on_the_cpu_too(tmp_path):
    out = tmp_path / "encoders.json"
    options = ("--batches", "2", "--backends", "torch-compile", "--device", "cpu", "--out", str(out))
    assert gpu_encoders.main([*SMALL, *options]) == 0
    result = json.loads(out.read_text())
    assert {(r["backend"], r["precision"], r["device"]) for r in result["rows"]} == {
        ("torch-compile", "fp32", "cpu")
    }, result["skipped"]
    assert len(result["rows"]) == len(gpu_encoders.GRAPHS)


@pytest.mark.parametrize("wrong", [1.001, np.nan])
def test_a_wrong_answer_is_not_timed(wrong):
    expected = [np.ones((2, 3), np.float32)]
    assert gpu_encoders.check(expected, expected, "fp32") == (0, 0)
    with pytest.raises(EngineError, match="not timed"):
        gpu_encoders.check([expected[0] * np.float32(wrong)], expected, "fp32")


def test_wrong_options_are_named(capsys):
    assert gpu_encoders.main(["--layers", "0"]) == 2
    assert "--layers" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gpu_encoders.main(["--backends", "openvino"])
