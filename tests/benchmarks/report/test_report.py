"""The report over result files in a temporary folder, whole, partial and damaged."""

from __future__ import annotations

import json
import sys
from io import BytesIO

import pytest
from PIL import Image

from benchmarks.report import report
from mimic_engine.errors import DataError, MissingDependencyError
from mimic_engine.provenance import write_result

SPLIT = {"hits@1": 0.9, "hits@3": 0.93, "hits@5": 0.95, "hits@10": 0.97, "hits@20": 0.98}
SPLIT |= {"mrr": 0.925, "mr": 12.5, "mentions": 5169, "candidates": 20818}
MODALITY = {"hits@1": 0.8, "hits@3": 0.85, "mrr": 0.8275, "mentions": 1801}
MODALITIES = {"text": MODALITY, "image": {**MODALITY, "hits@1": 0.5}, "both": {**MODALITY, "hits@1": 0.95}}
ROW = {"mode": "exact", "backend": "onnx", "dtype": "float16", "n": 2000, "b": 1, "pairs_per_s": 250000.0}
ROW |= {"ms": 8.0, "features": "random", "ratio_to_baseline": 70.25, "identical_top10": 1.0}
ROW |= {"survivor_share": 0.0123, "agreement_top1": None, "top10_contained": None}
PAYLOADS = {
    "wikimel": {"test": SPLIT, "dev": {**SPLIT, "hits@1": 0.91}, "train_seconds": 3600},
    "demo": {"test": MODALITIES, "challenge": MODALITIES},
    "scan_cpu": {
        "sgemm_gflops": 137.2,
        "rows": [
            ROW,
            {**ROW, "b": 8, "identical_top10": 0.995},
            {**ROW, "backend": "numpy", "ratio_to_baseline": None},
        ],
    },
}
TIMINGS = {
    "machine_info": {},
    "benchmarks": [
        {
            "name": "test_scan[1|2]",
            "stats": {"median": 0.0125, "min": 0.012, "rounds": 7},
            "extra_info": {"ratio": 41.23456, "backend": "onnx"},
        },
        {"name": "test_link", "stats": {"median": 0.05, "min": 0.04, "rounds": 3}},
    ],
}


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    for name, payload in PAYLOADS.items():
        write_result(folder / f"{name}.json", payload, command_line=f"python -m make.{name}")
    return folder


def edit(file, change):
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def run(*arguments):
    return report.main([str(a) for a in arguments])


def test_whole_report(results, tmp_path, capsys):
    (results / "pytest.json").write_text(json.dumps(TIMINGS))
    (results / "other.json").write_text("{}")
    out = tmp_path / "made" / "here"
    assert run(results, "--out", out) == 0
    page = (out / "report.md").read_text()
    assert "| test | 0.9000 | 0.9300 | 0.9500 | 0.9700 | 0.9800 | 0.9250 | 12.50 | 5,169 | 20,818 |" in page
    assert "| challenge, both | 0.9500 | 0.8500 | 0.8275 | 1,801 |" in page
    assert (
        "| exact onnx float16, random features | 2,000 | 1 | 250,000 | 8.00 | 70.2 | 1.23% | 100.0% | - | - |"
        in page
    )
    assert (
        "| exact onnx float16, random features | 2,000 | 8 | 250,000 | 8.00 | 70.2 | 1.23% | 99.5% | - | - |"
        in page
    )
    assert (
        "| exact numpy float16, random features | 2,000 | 1 | 250,000 | 8.00 | - | 1.23% | 100.0% | - | - |"
        in page
    )
    assert "| test_scan[1\\|2] | 12.500 | 12.000 | 7 | ratio 41.23, backend onnx |" in page
    assert "137 GFLOP/s" in page
    assert "Training took 3,600 s." in page
    assert "not shown here: `other.json`" in page
    assert all(f"`python -m make.{name}`" in page for name in PAYLOADS)
    assert "](report.png)" in page
    with Image.open(out / "report.png") as plot:
        assert plot.format == "PNG"
        assert len(plot.convert("RGB").getcolors(2**20)) > 3
    assert capsys.readouterr().out.split() == [str(out / "report.md"), str(out / "report.png")]


def test_every_table_has_one_width(results):
    (results / "pytest.json").write_text(json.dumps(TIMINGS))
    widths = set()
    for line in [*report.to_markdown(report.read_results(results), "x.png").splitlines(), ""]:
        if line.startswith("|"):
            widths.add(line.replace("\\|", "").count("|"))
            assert len(widths) == 1, line
        else:
            widths = set()


@pytest.mark.parametrize("name", sorted(PAYLOADS))
def test_one_result_alone(results, tmp_path, name):
    for other in set(PAYLOADS) - {name}:
        (results / f"{other}.json").unlink()
    assert run(results, "--out", tmp_path / "o", "--only", name) == 0
    assert (tmp_path / "o" / "report.md").read_text().count("## ") == 1


def test_timings_alone_and_panels_grow_the_plot(results, tmp_path):
    (results / "pytest.json").write_text(json.dumps(TIMINGS))
    one = report.to_png(report.read_results(results, ()))
    four = report.to_png(report.read_results(results))
    with Image.open(BytesIO(one)) as small, Image.open(BytesIO(four)) as large:
        assert large.height > 3 * small.height


@pytest.mark.parametrize("name", sorted(PAYLOADS))
def test_missing_file_is_named(results, tmp_path, name, capsys):
    (results / f"{name}.json").unlink()
    assert run(results, "--out", tmp_path / "o") == 2
    error = capsys.readouterr().err
    assert f"{name}.json: missing" in error
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("wikimel", lambda d: d["dev"].pop("hits@5"), r"wikimel\.json: dev\.hits@5: missing"),
        ("wikimel", lambda d: d["test"].update({"hits@1": 90.1}), r"test\.hits@1: .*\[0, 1\], got 90\.1"),
        ("wikimel", lambda d: d["test"].update(mr=0.5), r"test\.mr: .*got 0\.5"),
        ("wikimel", lambda d: d.pop("train_seconds"), r"wikimel\.json: train_seconds: missing"),
        ("wikimel", lambda d: d.pop("commit"), r"wikimel\.json: commit: missing"),
        ("wikimel", lambda d: d.update(commit=1), "commit: must be a string or null, got 1"),
        ("wikimel", lambda d: d.update(dirty="no"), "dirty: must be a boolean or null, got 'no'"),
        ("wikimel", lambda d: d.update(command=["a"]), "command: must be a string"),
        ("demo", lambda d: d["challenge"].pop("both"), r"demo\.json: challenge\.both: missing"),
        (
            "demo",
            lambda d: d["test"]["image"].update(mrr=True),
            r"test\.image\.mrr: must be a number, got True",
        ),
        (
            "demo",
            lambda d: d["test"]["text"].update(mentions=1.5),
            r"test\.text\.mentions: must be a whole number",
        ),
        ("demo", lambda d: d.update(test=[]), "test: must be an object, got list"),
        ("scan_cpu", lambda d: d["rows"][1].pop("ms"), r"scan_cpu\.json: rows\[1\]\.ms: missing"),
        ("scan_cpu", lambda d: d["rows"].clear(), "rows: must hold at least 1 row, got 0"),
        ("scan_cpu", lambda d: d.update(rows={}), "rows: must be a list, got dict"),
        ("scan_cpu", lambda d: d["rows"].append(3), r"rows\[3\]: must be an object, got int"),
        (
            "scan_cpu",
            lambda d: d["rows"][0].update(ms=float("nan")),
            r"rows\[0\]\.ms: must be a finite number",
        ),
        (
            "scan_cpu",
            lambda d: d["rows"][0].pop("ratio_to_baseline"),
            r"rows\[0\]\.ratio_to_baseline: missing",
        ),
    ],
)
def test_damaged_key_is_named(results, name, change, message):
    edit(results / f"{name}.json", change)
    with pytest.raises(DataError, match=message):
        report.read_results(results)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe{}"])
def test_file_that_is_no_result_is_named(results, content):
    (results / "demo.json").write_bytes(content)
    with pytest.raises(DataError, match=r"demo\.json"):
        report.read_results(results)


def test_damaged_timing_file_is_named(results):
    broken = {**TIMINGS, "benchmarks": [{"name": "a", "stats": {"median": 1.0, "min": 1.0}}]}
    (results / "pytest.json").write_text(json.dumps(broken))
    with pytest.raises(DataError, match=r"pytest\.json: benchmarks\[0\]\.stats\.rounds: missing"):
        report.read_results(results)


def test_nothing_to_show_and_no_folder(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty", "--out", tmp_path / "o", "--only") == 2
    assert "no pytest-benchmark file" in capsys.readouterr().err
    assert run(tmp_path / "absent", "--out", tmp_path / "o") == 2
    assert "no such folder" in capsys.readouterr().err


def test_absent_matplotlib_says_what_to_install(results, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match="pip install"):
        report.to_png(report.read_results(results))
