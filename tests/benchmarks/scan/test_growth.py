"""The growth benchmark: rows that are on disk, answers that are checked, wrong input."""

import json

import numpy as np
import pytest

from benchmarks.scan import growth as scan_growth
from benchmarks.scan.growth import GrownIndex, main
from mimic_engine.index.codes.write import recode_index
from mimic_engine.index.store import Index
from mimic_engine.scan.scan import Scan


@pytest.fixture
def coded_index(tiny_index, tmp_path):
    import shutil

    shutil.copytree(tiny_index, tmp_path / "index")
    recode_index(tmp_path / "index", 9)
    return tmp_path / "index"


@pytest.fixture
def data(tmp_path, tiny_kb):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "kb.jsonl").write_text(tiny_kb.read_text().replace('"images"', '"images_elsewhere"'), "utf-8")
    lines = [json.dumps({"mention": c, "sentence": f"{c} d e", "answer": "E01"}) + "\n" for c in "abc"]
    (folder / "test.jsonl").write_text("".join(lines), "utf-8")
    return folder


@pytest.fixture
def arguments(tiny_model, coded_index, data, tmp_path):
    (tmp_path / "scratch").mkdir()
    options = {"out": tmp_path / "growth.json", "model": tiny_model, "index": coded_index, "data": data}
    options |= {"folder": tmp_path / "scratch", "sizes": "7,20,40", "certified-to": 20, "mentions": 2}
    options |= {"scorer": "onnx", "threads": 1, "seconds": 0}
    return [str(x) for name, value in options.items() for x in (f"--{name}", value)]


def test_every_size_is_measured_in_its_modes(arguments, tmp_path):
    assert main(arguments) == 0
    data = json.loads((tmp_path / "growth.json").read_text())
    assert [(r["mode"], r["n"]) for r in data["rows"]] == [
        ("certified", 7),
        ("coded", 7),
        ("certified", 20),
        ("coded", 20),
        ("coded", 40),
    ]
    assert [r["same_best"] for r in data["rows"]] == [None, 1.0, None, 1.0, None]
    for row in data["rows"]:
        assert row["pass_bytes"] == row["n"] * data["bytes_per_entity"][row["mode"]]
        assert row["resident_bytes"] > 10**7
        assert row["ms"] > 0


def test_grown_rows_are_maps_of_files_and_begin_with_the_index(coded_index, tmp_path):
    index = Index.open(coded_index)
    (tmp_path / "grown").mkdir()
    grown = GrownIndex(index, tmp_path / "grown")
    segments, codes = grown.grow(30)
    assert [s.rows for s in segments] == [13, 13, 4]
    assert [c.shape[0] for c in codes.segments] == [13, 13, 4]
    assert all(isinstance(s.text_cls, np.memmap) for s in segments)
    np.testing.assert_array_equal(segments[0].text_cls, np.concatenate([s.text_cls for s in index.segments]))
    assert not np.array_equal(segments[1].text_cls, segments[0].text_cls)
    again, _ = grown.grow(13)
    assert [s.rows for s in again] == [13]


def test_a_wrong_answer_is_an_error(arguments, monkeypatch, capsys, tmp_path):
    real = Scan.search

    def wrong(scan, *args, **options):
        found = real(scan, *args, **options)
        found.scores[:] += 1
        return found

    monkeypatch.setattr(Scan, "search", wrong)
    assert main(arguments) == 2
    assert "from the reference" in capsys.readouterr().err
    assert not (tmp_path / "growth.json").exists()


def test_an_index_without_codes_and_a_missing_folder_are_named(arguments, tiny_index, capsys):
    at = arguments.index("--index") + 1
    assert main([*arguments[:at], str(tiny_index), *arguments[at + 1 :]]) == 2
    assert "has no codes" in capsys.readouterr().err
    assert main([*arguments, "--folder", "nowhere"]) == 2
    assert "--folder: nowhere is not a folder" in capsys.readouterr().err
    assert scan_growth.main([*arguments, "--sizes", "0"]) == 2
