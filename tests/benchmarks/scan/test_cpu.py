"""The command that measures the scan: what it writes, and that a wrong scan gives no result."""

import json
from dataclasses import replace
from itertools import accumulate, chain

import numpy as np
import pytest

from benchmarks.report.result_files import read_scan
from benchmarks.scan import index as scan_index
from benchmarks.scan import random_features as scan_random
from benchmarks.scan.cpu import EXPECTED, OPERATIONS_A_PAIR, main, outcome
from benchmarks.scan.rows import BaselineRow, Row
from benchmarks.scan.tiled import tile
from benchmarks.timing import Timed, repeat
from mimic_engine.kernels.reference import NumpyScorer
from mimic_engine.scan.blocks import BlockKernels
from mimic_engine.scan.passes import Passes
from mimic_engine.scan.scan import TopK
from mimic_engine.types import EntityArrays, Scores
from tests.scan.compiled import compiled

QUICK = ["--n", "12", "--b", "1,2", "--backends", "numpy", "--threads", "1", "--seconds", "0"]
BYTES = {"baseline": 1000.0, "float32": 200.0, "float16": 100.0}
FOUND = TopK(np.zeros((2, 1), int), np.zeros((2, 1), "f"), {}, ("exact", "certified"), np.array([20, 4]))
BASE = BaselineRow(20_000, 2, 1.0, 100.0, 120.0, 3)
TIMED = Timed((0.001, 0.002))
ROW = Row.of("exact", "cpu avx2", "float16", "real", BASE, TIMED, FOUND, identical_top10=1.0)


def test_result_file_is_what_the_report_reads(tmp_path):
    out = tmp_path / "scan_cpu.json"
    assert main(["--out", str(out), *QUICK]) == 0
    result = read_scan(out)
    assert [(r.dtype, r.b, r.mode) for r in result.rows] == [
        (dtype, b, mode)
        for dtype in ("float32", "float16")
        for b in (1, 2)
        for mode in ("exact", "certified")
    ]
    assert all(r.n == 12 and r.features == "random" and r.backend == "numpy" for r in result.rows)
    assert [r.identical_top10 for r in result.rows[:4]] == [1.0] * 4
    data = json.loads(out.read_text())
    baseline = {(row["n"], row["b"]): row for row in data["baseline"]}
    for row in data["rows"]:
        base = baseline[row["n"], row["b"]]
        assert row["ratio_to_baseline"] == pytest.approx(base["ms"] / row["ms"])
        assert row["ratio_of_medians"] == pytest.approx(base["median_ms"] / row["median_ms"])
        assert row["pairs_per_s"] == pytest.approx(1e3 * row["n"] * row["b"] / row["ms"])
        assert row["runs"] == base["runs"] == 2
    assert data["feature_bytes_per_entity"] == {"baseline": 103_552, "float32": 20_540, "float16": 10_300}
    assert data["outcome"]["exact_ratio_b1"] is None  # no compiled row was asked for


class Off(NumpyScorer):
    """Every score with the wrong sign."""

    def score(self, mentions, entities):
        scores = super().score(mentions, entities)
        return Scores(-scores.total, scores.units)


def test_a_wrong_scan_is_an_error_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scan_random, "make_kernels", lambda _, c, *rest: BlockKernels(Off(c), c))
    assert main(["--out", str(tmp_path / "r.json"), *QUICK]) == 2
    assert "the published loop's lies in" in capsys.readouterr().err
    assert not (tmp_path / "r.json").exists()


@pytest.fixture
def mentions_file(tmp_path, tiny_kb):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "kb.jsonl").write_text(tiny_kb.read_text().replace('"images"', '"images_elsewhere"'), "utf-8")
    lines = [json.dumps({"mention": c, "sentence": f"{c} d e", "answer": "E01"}) + "\n" for c in "abc"]
    (folder / "test.jsonl").write_text("".join(lines), "utf-8")
    return folder


def real_part(model, index, data):
    real = ["--model", str(model), "--index", str(index), "--data", str(data), "--scorer", "onnx"]
    return [*QUICK, *real, "--sizes", "13,40", "--batches", "1,3", "--baseline-pairs", "60"]


def test_a_real_index_is_measured_as_it_is_and_made_larger(tmp_path, tiny_model, tiny_index, mentions_file):
    out = tmp_path / "scan_cpu.json"
    assert main(["--out", str(out), *real_part(tiny_model, tiny_index, mentions_file)]) == 0
    rows = [r for r in json.loads(out.read_text())["rows"] if r["features"] != "random"]
    assert {(r["features"], r["n"], r["b"], r["mode"], r["baseline_scaled"]) for r in rows} == {
        (kind, n, b, mode, (n, b) == (40, 3))
        for kind, n in (("real", 13), ("tiled", 40))
        for b in (1, 3)
        for mode in ("exact", "certified")
    }
    assert all(r["identical_top10"] == (None if r["mode"] == "exact" else 1) for r in rows)
    assert all(r["survivor_share"] == 1 for r in rows if r["mode"] == "exact")


def test_an_exact_mode_that_differs_from_the_exported_graph_is_an_error(
    tmp_path, monkeypatch, capsys, tiny_model, tiny_index, mentions_file
):
    real = scan_index.open_kernels
    wrong = lambda s, m, c: BlockKernels(Off(c), c) if s == "auto" else real(s, m, c)  # noqa: E731
    monkeypatch.setattr(scan_index, "open_kernels", wrong)
    arguments = [*real_part(tiny_model, tiny_index, mentions_file), "--scorer", "auto"]
    assert main(["--out", str(tmp_path / "r.json"), *arguments]) == 2
    assert "from those of the exported graph" in capsys.readouterr().err


@compiled
def test_a_certified_answer_that_is_not_the_exact_one_is_an_error(
    tmp_path, monkeypatch, capsys, tiny_model, tiny_index, mentions_file
):
    monkeypatch.setattr(Passes, "bounds", lambda passes, prepared: -passes.totals(prepared))
    monkeypatch.setattr(scan_index, "TOP_K", 1)
    monkeypatch.setattr("mimic_engine.scan.certified._FIRST_ROWS", 1)
    arguments = [*real_part(tiny_model, tiny_index, mentions_file), "--scorer", "cpu"]
    assert main(["--out", str(tmp_path / "r.json"), *arguments]) == 2
    assert "certified" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--n", "1,0"], "needs numbers of at least 1, got 1,0"),
        (["--backends", "abacus"], r"['abacus'] are not among"),
        (["--threads", "0"], "threads: must be at least 1, got 0"),
        (["--index", "x"], "--model, --data: needed with --index"),
    ],
)
def test_wrong_options_are_named(tmp_path, capsys, arguments, message):
    try:
        assert main(["--out", str(tmp_path / "r.json"), *QUICK, *arguments]) == 2
    except SystemExit as stop:
        assert stop.code == 2
    assert message in capsys.readouterr().err


def test_a_larger_index_starts_with_the_real_one_and_repeats_no_row(make_entities):
    small = make_entities(7, np.float16)
    large = tile(small, 9000)
    again = tile(small, 9000)
    for name, array in large.items():
        real = getattr(small, name)
        assert array.dtype == real.dtype and array.shape == (9000, *real.shape[1:])
        np.testing.assert_array_equal(array[:7], real)
        np.testing.assert_array_equal(array, getattr(again, name))
    assert len(np.unique(large.tglu_query.reshape(9000, -1), axis=0)) == 9000
    assert {r.tobytes() for r in large.vdlu_key} == {r.tobytes() for r in small.vdlu_key}
    pairs = zip(large.vdlu_key.reshape(9000, -1), large.vdlu_query.reshape(9000, -1), strict=True)
    assert {(a.tobytes(), b.tobytes()) for a, b in pairs} == {
        (a.tobytes(), b.tobytes()) for a, b in zip(small.vdlu_key, small.vdlu_query, strict=True)
    }
    assert tile(small, 3).rows == 3


@pytest.fixture
def make_entities():
    def make(rows, dtype):
        rng = np.random.default_rng(0)
        shapes = {"tglu_query": (3, 4), "tglu_cls": (4,), "vdlu_key": (3, 4), "vdlu_query": (3, 4)}
        return EntityArrays(**{n: rng.standard_normal((rows, *s)).astype(dtype) for n, s in shapes.items()})

    return make


def test_shares_of_the_work_and_ratios_are_those_of_the_scan():
    row = Row.of("certified", "cpu", "float16", "real", BASE, TIMED, FOUND, identical_top10=None)
    assert (row.survivor_share, row.survivor_share_max, row.dense_share) == pytest.approx((6e-4, 1e-3, 0.5))
    assert (row.ratio_to_baseline, row.ratio_of_medians) == (pytest.approx(100), pytest.approx(80))
    assert "same top 10: not compared" in str(row)
    scaled = BASE.for_pairs(40_000, 1)
    assert (scaled.ms, scaled.pairs_per_s, scaled.scaled) == (100.0, 1.0, True)
    assert BASE.for_pairs(20_000, 2) is BASE


def test_outcome_is_that_of_the_worst_compiled_row():
    share = 0.9 * 1e9 / OPERATIONS_A_PAIR  # pairs/s at 0.9 of 1 GFLOP/s
    rows = [
        replace(ROW, b=1, pairs_per_s=share, ratio_to_baseline=79.0),
        replace(ROW, b=20, pairs_per_s=2 * share, ratio_to_baseline=41.0),
        replace(ROW, n=100, pairs_per_s=1.0, ratio_to_baseline=1.0),
        replace(ROW, backend="onnx", ms=6.0, pairs_per_s=1.0, ratio_to_baseline=1.0),
        replace(ROW, backend="onnx", mode="certified", ms=8.0),
        replace(ROW, backend="onnx", mode="certified", b=1, ms=1e9),
        replace(ROW, mode="certified", n=110_000, b=1, ratio_to_baseline=800.0),
        replace(ROW, mode="coded", n=110_000, b=1, ratio_to_baseline=499.0),
    ]
    found = outcome(rows, 1.0, BYTES)
    assert found["exact_sgemm_share"] == pytest.approx(0.9) and found["exact_sgemm_share_met"]
    assert (found["exact_ratio_b1"], found["exact_ratio_b1_met"]) == (79.0, False)
    assert (found["exact_ratio_b20"], found["exact_ratio_b20_met"]) == (41.0, True)
    assert (found["shortcut_ratio_b1"], found["shortcut_ratio_b1_met"]) == (499.0, False)
    assert (found["shortcut_ratio_b20"], found["shortcut_ratio_b20_met"]) == (None, None)
    assert (found["default_ratio_uncompiled"], found["default_ratio_uncompiled_met"]) == (0.75, False)
    assert found["float16_feature_bytes_ratio_met"]
    assert not outcome([], 1.0, BYTES | {"float16": 101.0})["float16_feature_bytes_ratio_met"]
    assert {name.removesuffix("_min").removesuffix("_max") for name in EXPECTED} < set(found)


@pytest.mark.parametrize(("budget_s", "runs"), [(0.0, 2), (7.0, 3), (7.5, 4)])
def test_repeats_at_least_twice_and_until_the_time_is_spent(budget_s, runs):
    lengths = [4.0, 1.0, 2.0, 3.0]  # 4, 5, 7, 10 in sum
    ticks = accumulate(chain.from_iterable((0.5, length) for length in lengths))  # half a second between runs
    clock = iter(ticks)
    timed, last = repeat(lambda: "answer", budget_s, clock=lambda: next(clock))
    assert timed.seconds == tuple(lengths[:runs])
    assert timed.least_ms == 1000.0
    assert last == "answer"
