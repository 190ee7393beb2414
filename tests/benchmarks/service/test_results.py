"""Result files of the service in the report: their tables, the plot, and what is damaged."""

import json

import pytest

from benchmarks.report import report
from benchmarks.service.results import SERVICE, read_service, service_lines
from mimic_engine.errors import DataError
from mimic_engine.provenance import write_result

ROW = {
    "rate_per_s": 10.0,
    "throughput_per_s": 9.9,
    "accepted": 200,
    "rejected": 0,
    "expired": 0,
    "p50_ms": 40.0,
}
ROW |= {"p95_ms": 60.0, "p99_ms": 80.25, "queue_share": 0.125, "generator_late_p99_ms": 1.5}
FULL = {
    "rate_per_s": 2000.0,
    "rejected": 1800,
    "p50_ms": None,
    "p95_ms": None,
    "p99_ms": None,
    "queue_share": None,
}
OVERHEAD = {
    "rounds": 195,
    "link_ms": 30.0,
    "http_ms": 30.75,
    "decode_ms": 0.0,
    "difference_ms": 0.75,
    "ratio": 1.025,
}
PAYLOADS = {
    "load": {"input": "mixed", "peak_per_s": 31.5, "rows": [ROW, {**ROW, **FULL}]},
    "overload": {
        "times": 3.0,
        "peak_per_s": 31.5,
        "throughput_share": 0.975,
        "accepted_p99_ms": 512.0,
        "rejected_p99_ms": 12.5,
        "memory_before_bytes": 200_000_000,
        "memory_after_bytes": 201_500_000,
    },
    "soak": {
        "seconds": 1800.0,
        "rate_per_s": 15.0,
        "requests": 27000,
        "errors": 0,
        "changes": {"upserts": 900, "deletes": 850, "reloads": 180},
        "memory_first_bytes": 210e6,
        "memory_growth_share": -0.001,
    },
    "overhead": {"text": OVERHEAD, "jpeg": {**OVERHEAD, "decode_ms": 4.0, "difference_ms": -0.25}},
}
ROWS = {
    "load": "| 2,000.0 | 9.9 | 200 | 1,800 | 0 | - | - | - | - | 1.5 |",
    "overload": "| 31.5 | 97.5% | 512.0 | 12.5 | 1.5 |",
    "soak": "| 30.0 | 15.0 | 27,000 | 0 | 900 | 850 | 180 | 210 | -0.1% |",
    "overhead": "| jpeg | 30.00 | 30.75 | 4.00 | -0.25 | 1.025 | 195 |",
}


@pytest.fixture
def folder(tmp_path):
    for name, payload in PAYLOADS.items():
        write_result(
            tmp_path / "results" / f"{name}.json", payload, command_line=f"python -m benchmarks.{name}"
        )
    return tmp_path / "results"


@pytest.mark.parametrize("name", SERVICE)
def test_each_file_that_is_there_is_a_table(folder, name):
    for other in set(SERVICE) - {name}:
        (folder / f"{other}.json").unlink()
    [result] = read_service(folder)
    lines = service_lines(result)
    assert ROWS[name] in lines
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert f"`python -m benchmarks.{name}`" in "\n".join(lines)


def test_the_report_shows_them_and_plots_the_load(folder, tmp_path):
    assert report.main([str(folder), "--out", str(tmp_path / "out"), "--only"]) == 0
    page = (tmp_path / "out" / "report.md").read_text()
    assert page.count("## ") == 4
    assert "not shown here" not in page
    assert (tmp_path / "out" / "report.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_them_is_no_error(tmp_path):
    assert read_service(tmp_path) == ()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("load", lambda d: d["rows"].clear(), r"load\.json: rows: must hold at least 1 row"),
        ("load", lambda d: d["rows"][1].pop("p99_ms"), r"load\.json: rows\[1\]\.p99_ms: missing"),
        ("load", lambda d: d["rows"][0].update(p50_ms="fast"), r"rows\[0\]\.p50_ms: must be a number"),
        (
            "overload",
            lambda d: d.update(rejected_p99_ms=None),
            r"overload\.json: rejected_p99_ms: must be a number",
        ),
        ("soak", lambda d: d["changes"].pop("reloads"), r"soak\.json: changes\.reloads: missing"),
        ("soak", lambda d: d.pop("commit"), r"soak\.json: commit: missing"),
        ("overhead", lambda d: d["jpeg"].update(rounds=0), r"overhead\.json: jpeg\.rounds: "),
        ("overhead", lambda d: d.pop("text"), r"overhead\.json: text: missing"),
    ],
)
def test_a_damaged_key_is_named(folder, name, change, message):
    file = folder / f"{name}.json"
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    with pytest.raises(DataError, match=message):
        read_service(folder)
