"""The command line: every command on a tiny model; exit status and message where it is used wrongly."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mimic_engine import Linker, Mention, __version__
from mimic_engine.cli.main import main
from mimic_engine.index.manifest import read_manifest, write_manifest


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
    assert info["names"] == {
        "entities_with_aliases": 0,
        "aliases": 0,
        "forms": 13,
        "entities_with_popularity": 0,
    }

    assert main(["index", "verify", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and all(line.startswith("ok ") for line in lines)

    assert main(["index", "build", *options]) == 2
    assert "already exists" in capsys.readouterr().err
    assert main(["index", "build", *options, "--overwrite", "--dtype", "float32"]) == 0
    main(["index", "info", str(out)])
    assert json.loads(capsys.readouterr().out)["dtype"] == "float32"


def codes_of(index: Path, capsys) -> tuple[dict | None, dict]:
    main(["index", "info", str(index)])
    info = json.loads(capsys.readouterr().out)
    return info["codes"], info["agreement"]


@pytest.fixture
def build(tiny_model, tiny_kb, tmp_path):
    """Build an index of the tiny knowledge base with more options; its folder."""

    def run(*options: str, status: int = 0) -> Path:
        command = ["index", "build", "--model", str(tiny_model), "--kb", str(tiny_kb), "--quiet"]
        assert main([*command, "--out", str(tmp_path / "index"), "--threads", "1", *options]) == status
        return tmp_path / "index"

    return run


@pytest.fixture
def mentions_file(tmp_path) -> Path:
    path = tmp_path / "mine.jsonl"
    path.write_text(
        "".join(json.dumps({"mention": c, "sentence": f"{c} a b"}) + "\n" for c in "abcdefg"), "utf-8"
    )
    return path


def test_build_codes_the_tokens_and_says_what_they_promise(build, tiny_model, capsys):
    index = build()
    said = capsys.readouterr().err
    codes, agreement = codes_of(index, capsys)
    assert codes["dtype"] == "uint8" and 20 < codes["centroids"] <= 13 * 9 and codes["error"] == 0
    assert agreement["coded"]["source"] == "entities" and agreement["coded"]["mentions"] == 13
    assert f"{codes['centroids']} centroids" in said
    assert (
        f"the exact top 10 is in the coded top {agreement['coded']['r_999']} for 99.9 % of 13 mentions"
        in said
    )


def test_build_with_own_mentions_or_without_codes(build, mentions_file, capsys):
    index = build("--centroids", "3", "--mentions", str(mentions_file))
    codes, agreement = codes_of(index, capsys)
    assert codes["centroids"] == 3
    assert (agreement["coded"]["source"], agreement["coded"]["mentions"]) == ("mine.jsonl", 7)
    build("--overwrite", "--centroids", "3", "--no-calibrate")
    assert "3 centroids" in capsys.readouterr().err
    codes, agreement = codes_of(index, capsys)
    assert codes["centroids"] == 3 and agreement == {}
    build("--overwrite", "--centroids", "0")
    codes, agreement = codes_of(index, capsys)
    assert codes is None and list(agreement) == ["storage"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--centroids", "-1"], "centroids: -1 is not between 0 and 65536"),
        (["--no-calibrate", "--mentions", "x.jsonl"], "--mentions: to measure with"),
        (["--mentions", "no-such.jsonl"], "no-such.jsonl"),
    ],
)
def test_wrong_options_of_codes_stop_before_anything_is_encoded(build, capsys, options, message):
    index = build(*options, status=2)
    assert message in capsys.readouterr().err
    assert not index.exists() and not index.with_name("index.partial").exists()


def test_recode_and_verify_agreement(build, tiny_model, mentions_file, capsys):
    index = build()
    before, _ = codes_of(index, capsys)
    assert main(["index", "recode", str(index), "--centroids", "4", "--threads", "1", "--quiet"]) == 0
    assert "the new codes promise nothing yet" in capsys.readouterr().err
    codes, agreement = codes_of(index, capsys)
    assert codes["centroids"] == 4 < before["centroids"] and list(agreement) == ["storage"]
    verify = ["index", "verify", str(index), "--agreement", "--model", str(tiny_model), "--threads", "1"]
    assert main(verify) == 0
    assert "promised: nothing" in capsys.readouterr().out

    recode = ["index", "recode", str(index), "--centroids", "3", "--model", str(tiny_model), "--quiet"]
    assert main([*recode, "--mentions", str(mentions_file), "--threads", "1"]) == 0
    assert "7 mentions (mine.jsonl)" in capsys.readouterr().err
    assert main([*verify, "--mentions", str(mentions_file)]) == 0
    printed = capsys.readouterr().out
    promised, measured = printed[printed.index("promised:") :].split("measured: ")
    assert promised.removeprefix("promised: ") == measured
    assert main(verify) == 0  # with other mentions: nothing that chance could not do
    assert "13 mentions (entities)" in capsys.readouterr().out


def test_a_promise_that_is_not_kept_exits_1(build, tiny_model, capsys):
    index = build("--centroids", "2")
    manifest = read_manifest(index)
    coded = dict(manifest.agreement["coded"])
    perfect = {"r": 1, "top1_identical": 1.0, "top10_contained": 1.0, "mentions_contained": 1.0}
    coded |= {"mentions": 500, "r_999": 1, "rows": [perfect], "k": 3}
    write_manifest(index, replace(manifest, agreement={"coded": coded}))
    assert main(["index", "verify", str(index), "--agreement", "--model", str(tiny_model)]) == 1
    printed = capsys.readouterr().out
    assert "BAD mentions_contained at R = 1: 0.0000% of 13 mentions, promised 100.0000% of 500" in printed


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["verify", "INDEX", "--agreement"], "--model: missing"),
        (["verify", "INDEX", "--model", "m"], "--model: goes with --agreement"),
        (["verify", "INDEX", "--mentions", "m.jsonl"], "--mentions: goes with --agreement"),
        (["recode", "INDEX", "--mentions", "m.jsonl"], "--mentions: goes with --model"),
        (["recode", "INDEX", "--centroids", "0"], "centroids: 0 is not between 1 and 65536"),
        (["recode", "no-such"], "no-such"),
    ],
)
def test_wrong_recode_and_verify(tiny_index, tiny_model, tmp_path, capsys, command, message):
    shutil.copytree(tiny_index, tmp_path / "index")
    places = {"INDEX": str(tmp_path / "index"), "MODEL": str(tiny_model)}
    assert main(["index", *(places.get(part, part) for part in command)]) == 2
    assert message in capsys.readouterr().err


def test_link_in_coded_mode(build, tiny_model, capsys):
    index = build("--centroids", "5")
    capsys.readouterr()
    command = [
        "link",
        "--model",
        str(tiny_model),
        "--index",
        str(index),
        "--mention",
        "a",
        "--sentence",
        "a b",
    ]
    answers = []
    for mode in ("exact", "coded"):
        assert main([*command, "--mode", mode, "--top-k", "2"]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert [a["mode"] for a in answers] == ["exact", "coded"]
    assert answers[0]["candidates"] == answers[1]["candidates"]


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
