"""The commands that change an index, on a tiny model: what they do, what they say, what they refuse."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mimic_engine.cli.main import main
from mimic_engine.index.manifest import read_manifest, write_manifest
from mimic_engine.index.store import Index
from mimic_engine.index.writer import IndexWriter


@pytest.fixture
def index(tiny_index: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_index, tmp_path / "index"))


def write_kb(path: Path, *records: dict) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), "utf-8")
    return path


def test_an_upserted_entity_is_linked_and_a_deleted_one_is_not(
    tiny_model, index, tiny_picture, tmp_path, capsys
):
    kb = write_kb(
        tmp_path / "kb.jsonl",
        {"id": "new", "name": "a b", "images": [str(tiny_picture)], "aliases": ["b a"], "popularity": 2},
        {"id": "E03", "name": "c d", "images": ["nowhere.png"]},
    )
    assert main(["index", "upsert", str(index), "--model", str(tiny_model), "--kb", str(kb)]) == 0
    assert capsys.readouterr().err == (
        f"{index}: snapshot 2: 1 added, 1 replaced, 1 with a picture, "
        "1 pictures named but not there, 0 broken; 14 entities\n"
    )
    assert main(["index", "info", str(index)]) == 0
    assert json.loads(capsys.readouterr().out)["names"] == {
        "entities_with_aliases": 1,
        "aliases": 1,
        "forms": 15,
        "entities_with_popularity": 1,
    }
    assert main(["index", "delete", str(index), "E01", "E02"]) == 0
    assert capsys.readouterr().err == f"{index}: snapshot 3: 2 deleted; 12 entities\n"

    link = ["link", "--model", str(tiny_model), "--index", str(index), "--mention", "a", "--sentence", "a"]
    assert main([*link, "--candidates", "new,E03", "--top-k", "2"]) == 0
    [printed] = capsys.readouterr().out.splitlines()
    assert {c["id"]: c["name"] for c in json.loads(printed)["candidates"]} == {"new": "a b", "E03": "c d"}
    assert main([*link, "--candidates", "E01", "--top-k", "1"]) == 2
    assert "'E01' is not in the index" in capsys.readouterr().err

    assert main(["index", "snapshots", str(index)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "3"]
    assert lines[-1].endswith("12 entities    4 segments        3 dead rows")
    assert main(["index", "compact", str(index)]) == 0
    assert capsys.readouterr().err == f"{index}: snapshot 4: compacted to 1 segments; 12 entities\n"
    assert main(["index", "snapshots", str(index)]) == 0
    [line] = capsys.readouterr().out.splitlines()
    assert line.endswith("12 entities    1 segments        0 dead rows")
    assert main(["index", "verify", str(index)]) == 0


def test_older_snapshots_are_forgotten_when_asked(index, capsys):
    for entity in ("E01", "E02", "E03"):
        main(["index", "delete", str(index), entity, "--keep", "3"])
    assert [m.generation for m in Index.open(index).snapshots()] == [2, 3, 4]
    capsys.readouterr()
    assert main(["index", "snapshots", str(index), "--keep", "2"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["3", "4"]


def test_a_broken_picture_is_refused_or_counted(tiny_model, index, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 40)
    kb = write_kb(tmp_path / "kb.jsonl", {"id": "new", "name": "a", "images": ["broken.png"]})
    upsert = ["index", "upsert", str(index), "--model", str(tiny_model), "--kb", str(kb)]
    assert main(upsert) == 2
    assert "broken.png" in capsys.readouterr().err
    assert Index.open(index).manifest.generation == 1
    assert main([*upsert, "--broken-images", "as-missing"]) == 0
    said = capsys.readouterr().err
    assert "1 broken; 14 entities" in said
    assert "taken for missing" in said


def test_new_entities_are_encoded_in_the_precision_of_the_others(tiny_model, index, tmp_path, capsys):
    write_manifest(index, replace(read_manifest(index), extra={"precision": "int8"}))
    kb = write_kb(tmp_path / "kb.jsonl", {"id": "E00", "name": "a"})
    assert main(["index", "upsert", str(index), "--model", str(tiny_model), "--kb", str(kb)]) == 2
    assert "was not exported in 'int8'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["delete", "INDEX", "E77"], "'E77' is not in the index"),
        (["delete", "INDEX", "E01", "--keep", "0"], "keep_snapshots: 0"),
        (["delete", "no-such", "E01"], "no-such"),
        (["compact", "no-such"], "no-such"),
        (["snapshots", "no-such"], "no-such"),
        (["snapshots", "INDEX", "--keep", "0"], "keep: 0"),
        (["upsert", "INDEX", "--model", "MODEL", "--kb", "EMPTY"], "holds no entities"),
        (["upsert", "INDEX", "--model", "MODEL", "--kb", "no-such.jsonl"], "no-such.jsonl"),
        (["upsert", "INDEX", "--model", "no-such", "--kb", "KB"], "no-such"),
        (["upsert", "INDEX", "--model", "MODEL", "--kb", "TWICE"], "'E00' comes twice"),
        (["upsert", "INDEX", "--model", "MODEL", "--kb", "KB", "--batch-size", "0"], "batch_size: 0"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(tiny_model, index, tmp_path, capsys, command, message):
    paths = {
        "INDEX": index,
        "MODEL": tiny_model,
        "KB": write_kb(tmp_path / "kb.jsonl", {"id": "E00", "name": "a"}),
        "EMPTY": write_kb(tmp_path / "empty.jsonl"),
        "TWICE": write_kb(tmp_path / "twice.jsonl", *[{"id": "E00", "name": "a"}] * 2),
    }
    assert main(["index", *(str(paths.get(word, word)) for word in command)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("mimic-engine: error: ") and message in line
    assert Index.open(index).manifest.generation == 1


def test_a_second_writer_is_told(index, capsys):
    with IndexWriter(Index.open(index)):
        assert main(["index", "compact", str(index)]) == 2
    assert "another writer is changing this index" in capsys.readouterr().err
