"""The command that measures the scan: what it writes, and that a wrong scan gives no result."""

import json
from dataclasses import replace
from itertools import accumulate, chain

import pytest

from benchmarks import scan_cpu
from benchmarks.result_files import read_scan
from benchmarks.scan_cpu import Row, ScanOptions, main, outcome, repeat
from mimic_engine.errors import InvalidInputError
from mimic_engine.scoring.blocks import BlockKernels
from mimic_engine.scoring.numpy import NumpyScorer
from mimic_engine.types import Scores

QUICK = ["--n", "12", "--b", "1,2", "--backends", "numpy", "--threads", "1", "--seconds", "0"]
ROW = Row("exact", "onnx", "float16", 5, 1, 1.0, 1.0, 1.0, 2, 50.0, 49.0, 1.0, 1.0, 0.0)
BYTES = {"baseline": 1000.0, "float32": 200.0, "float16": 100.0}


def test_result_file_is_what_the_report_reads(tmp_path):
    out = tmp_path / "scan_cpu.json"
    assert main(["--out", str(out), *QUICK]) == 0
    result = read_scan(out)
    assert [(r.dtype, r.b) for r in result.rows] == [
        ("float32", 1),
        ("float32", 2),
        ("float16", 1),
        ("float16", 2),
    ]
    assert all(r.n == 12 and r.mode == "exact" and r.backend == "numpy" for r in result.rows)
    assert [r.identical_top10 for r in result.rows[:2]] == [1.0, 1.0]
    data = json.loads(out.read_text())
    baseline = {(row["n"], row["b"]): row for row in data["baseline"]}
    for row in data["rows"]:
        base = baseline[row["n"], row["b"]]
        assert row["ratio_to_baseline"] == pytest.approx(base["ms"] / row["ms"])
        assert row["ratio_of_medians"] == pytest.approx(base["median_ms"] / row["median_ms"])
        assert row["pairs_per_s"] == pytest.approx(1e3 * row["n"] * row["b"] / row["ms"])
        assert row["runs"] == base["runs"] == 2
    assert data["feature_bytes_per_entity"] == {"baseline": 103_552, "float32": 20_540, "float16": 10_300}
    assert data["outcome"]["ratio_at_b1"] is None  # no ONNX row was asked for


def test_a_wrong_scan_is_an_error_and_writes_nothing(tmp_path, monkeypatch, capsys):
    class Off(NumpyScorer):
        def score(self, mentions, entities):
            scores = super().score(mentions, entities)
            return Scores(-scores.total, scores.units)

    monkeypatch.setattr(scan_cpu, "make_kernels", lambda _, c, *rest: BlockKernels(Off(c), c))
    assert main(["--out", str(tmp_path / "r.json"), *QUICK]) == 2
    assert "the published loop's lies in" in capsys.readouterr().err
    assert not (tmp_path / "r.json").exists()


def test_outcome_is_that_of_the_worst_onnx_row_in_half_precision():
    rows = [
        ROW,
        replace(ROW, n=7, ratio_to_baseline=39.0),
        replace(ROW, dtype="float32", ratio_to_baseline=1.0),
        replace(ROW, backend="torch", ratio_to_baseline=1.0),
        replace(ROW, b=20, ratio_to_baseline=20.0),
    ]
    found = outcome(rows, BYTES)
    assert (found["ratio_at_b1"], found["ratio_at_b1_met"]) == (39.0, False)
    assert (found["ratio_at_b20"], found["ratio_at_b20_met"]) == (20.0, True)
    assert found["float16_feature_bytes_ratio_met"]
    found = outcome([], BYTES | {"float16": 101.0})
    assert (found["ratio_at_b20"], found["ratio_at_b20_met"]) == (None, None)
    assert not found["float16_feature_bytes_ratio_met"]


@pytest.mark.parametrize(("budget_s", "runs"), [(0.0, 2), (7.0, 3), (7.5, 4)])
def test_repeats_at_least_twice_and_until_the_time_is_spent(budget_s, runs):
    lengths = [4.0, 1.0, 2.0, 3.0]  # 4, 5, 7, 10 in sum
    ticks = accumulate(chain.from_iterable((0.5, length) for length in lengths))  # half a second between runs
    clock = iter(ticks)
    timed, last = repeat(lambda: "answer", budget_s, clock=lambda: next(clock))
    assert timed.seconds == tuple(lengths[:runs])
    assert timed.least_ms == 1000.0
    assert last == "answer"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"entities": ()}, "entities: needs numbers of at least 1"),
        ({"batches": (1, 0)}, r"batches: needs numbers of at least 1, got \(1, 0\)"),
        ({"threads": 0}, "threads: must be at least 1, got 0"),
        ({"backends": ("abacus",)}, r"backends: \['abacus'\] are not among"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(InvalidInputError, match=message):
        ScanOptions(**options)
