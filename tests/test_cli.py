"""The command line: every command on a tiny model; exit status and message where it is used wrongly."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mimic_engine import Linker, Mention, __version__
from mimic_engine.cli import main


@pytest.fixture
def link(tiny_model: Path, tiny_index: Path, capsys):
    """Run ``mimic-engine link`` and read what it printed."""

    def run(*options: str) -> list[dict]:
        assert main(["link", "--model", str(tiny_model), "--index", str(tiny_index), *options]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


@pytest.fixture
def damaged_index(tiny_index: Path, tmp_path: Path) -> Path:
    """The index with one bit of its largest file flipped."""
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_index, folder)
    file = max(folder.rglob("*.safetensors"), key=lambda p: p.stat().st_size)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    return folder


def test_build_info_and_verify(tiny_model, tiny_kb, tmp_path, capsys):
    out = tmp_path / "index"
    options = ["--model", str(tiny_model), "--kb", str(tiny_kb), "--out", str(out), "--quiet"]
    assert main(["index", "build", *options]) == 0
    assert (
        "13 entities, 9 with a picture, 0 pictures named but not there, 0 broken in this run"
        in capsys.readouterr().err
    )

    assert main(["index", "info", str(out)]) == 0
    info = json.loads(capsys.readouterr().out)
    assert (info["count"], info["dtype"], info["extra"]) == (13, "float16", {"precision": "fp32"})

    assert main(["index", "verify", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and all(line.startswith("ok ") for line in lines)

    assert main(["index", "build", *options]) == 2
    assert "already exists" in capsys.readouterr().err
    assert main(["index", "build", *options, "--overwrite", "--dtype", "float32"]) == 0
    main(["index", "info", str(out)])
    assert json.loads(capsys.readouterr().out)["dtype"] == "float32"


def test_verify_names_the_flipped_file_and_exits_1(damaged_index, capsys):
    assert main(["index", "verify", str(damaged_index)]) == 1
    [bad] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("BAD")]
    assert "arrays.safetensors" in bad and "sha256" in bad


def test_a_damaged_index_is_not_opened(tiny_model, damaged_index, capsys):
    arguments = [
        "--model",
        str(tiny_model),
        "--index",
        str(damaged_index),
        "--mention",
        "a",
        "--sentence",
        "a",
    ]
    assert main(["link", *arguments]) == 2
    assert "damaged" in capsys.readouterr().err


def test_link_from_flags_is_what_the_linker_says(link, tiny_model, tiny_index, tiny_picture):
    flags = ["--mention", "a b", "--sentence", "c a b d", "--image", str(tiny_picture), "--top-k", "4"]
    [printed] = link(*flags)
    linker = Linker.open(tiny_model, tiny_index, threads=1)
    [result] = linker.link([Mention("a b", "c a b d", tiny_picture)], 4)
    linker.close()
    assert (printed["mention"], printed["sentence"], printed["has_image"]) == ("a b", "c a b d", True)
    assert [c["id"] for c in printed["candidates"]] == [c.id for c in result.candidates]
    assert printed["candidates"][0]["score"] == pytest.approx(result.candidates[0].score, abs=1e-5)
    assert set(printed["candidates"][0]["units"]) == {"tglu", "vdlu", "cmfu"}  # those that are on


def test_link_among_candidates(link):
    [printed] = link(
        "--mention", "a", "--sentence", "a", "--candidates", "E03,E99", "--top-k", "2", "--threads", "1"
    )
    assert {c["id"] for c in printed["candidates"]} == {"E03", "E99"}


def test_link_from_a_file_of_more_than_one_batch(link, tmp_path, tiny_picture):
    shutil.copy(tiny_picture, tmp_path / "picture.png")
    records = [{"mention": f"{c}", "sentence": f"{c} a é", "image": None} for c in "abcdefg" * 5]
    records[33]["image"] = "picture.png"
    path = tmp_path / "mentions.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records), "utf-8")
    printed = link("--input", str(path), "--top-k", "1")
    assert [p["mention"] for p in printed] == [r["mention"] for r in records]
    assert [p["has_image"] for p in printed] == [i == 33 for i in range(35)]
    assert printed[0]["sentence"] == "a a é"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "either --input, or --mention"),
        (["--input", "x.jsonl", "--mention", "a"], "either --input, or --mention"),
        (["--mention", "a"], "--sentence: missing"),
        (["--mention", "a", "--sentence", "a", "--top-k", "14"], "top_k: 14 is not between 1 and the 13"),
        (["--mention", "a", "--sentence", "a", "--candidates", "E77", "--top-k", "1"], "'E77'"),
        (["--mention", "a", "--sentence", "a", "--image", "no-such.png"], "no-such.png"),
        (["--input", "no-such.jsonl"], "no-such.jsonl"),
        (["--input", "mentions.csv"], ".jsonl, .parquet"),
    ],
)
def test_wrong_link_is_one_line_and_exit_2(tiny_model, tiny_index, capsys, options, message):
    assert main(["link", "--model", str(tiny_model), "--index", str(tiny_index), *options]) == 2
    captured = capsys.readouterr()
    [line] = captured.err.splitlines()
    assert line.startswith("mimic-engine: error: ") and message in line
    assert captured.out == ""


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["index", "info", "no-such"], "no-such"),
        (["index", "verify", "no-such"], "no-such"),
        (["link", "--model", "no-such", "--index", "none", "--mention", "a", "--sentence", "a"], "no such"),
        (["index", "build", "--model", "no-such", "--kb", "kb.txt", "--out", "o"], "kb.txt"),
    ],
)
def test_missing_folders_are_named(capsys, command, message):
    assert main(command) == 2
    assert message in capsys.readouterr().err


def test_a_wrong_record_of_a_knowledge_base_is_named(tiny_model, tmp_path, capsys):
    kb = tmp_path / "kb.jsonl"
    kb.write_text('{"id": "1", "name": "a"}\n{"id": "2"}\n', "utf-8")
    build = ["index", "build", "--model", str(tiny_model), "--kb", str(kb), "--out", str(tmp_path / "i")]
    assert main([*build, "--quiet"]) == 2
    assert f"{kb}:2" in capsys.readouterr().err
    assert not (tmp_path / "i").exists()


def test_a_broken_picture_stops_the_build_or_is_counted(tiny_model, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 40)
    kb = tmp_path / "kb.jsonl"
    kb.write_text('{"id": "1", "name": "a", "images": ["broken.png", "other.png"]}\n', "utf-8")
    build = ["index", "build", "--model", str(tiny_model), "--kb", str(kb), "--out", str(tmp_path / "i")]
    assert main([*build, "--quiet"]) == 2
    assert "broken.png" in capsys.readouterr().err
    assert main([*build, "--quiet", "--broken-images", "as-missing"]) == 0
    said = capsys.readouterr().err
    assert "1 pictures named but not there, 1 broken" in said
    assert "taken for missing" in said and "broken.png" in said


@pytest.mark.parametrize(
    "arguments", [[], ["index"], ["link"], ["index", "build", "--dtype", "int4"], ["fly"]]
)
def test_usage_is_explained_with_exit_2(capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: mimic-engine" in capsys.readouterr().err


def test_version_and_module_start():
    done = subprocess.run(
        [sys.executable, "-m", "mimic_engine.cli", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == __version__
