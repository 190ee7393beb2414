"""``mimic-engine nif``: documents linked by a tiny model, their mentions as records, and wrong input."""

import json
import math
import sys
from pathlib import Path

import pytest

from mimic_engine import Linker, Mention
from mimic_engine.cli.main import main
from mimic_engine.data.records import read_mentions
from mimic_engine.nif.documents import NifAnnotation, NifDocument, read_documents
from mimic_engine.nif.link import NOT_IN_WIKI, NifAnswers, confidence, link_documents
from mimic_engine.nif.mentions import EntityUris
from mimic_engine.nif.writer import write_documents

PREFIX = "http://kb.test/"
DOCUMENTS = [
    NifDocument(
        "http://d.test/1#char=0,15",
        "a b c! 🏀 d e f.",
        (
            NifAnnotation(0, 1, (PREFIX + "E00",), None, "http://d.test/1#char=0,1"),
            NifAnnotation(0, 3, (), None, "http://d.test/1#char=0,3"),
            NifAnnotation(9, 12, ("http://dbpedia.org/resource/D",), 0.5, "http://d.test/1#char=9,12"),
        ),
        "en",
    ),
    NifDocument("http://d.test/2#char=0,3", "g h"),
]
SENTENCES = ["a b c!", "a b c!", "🏀 d e f."]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_documents(tmp_path / "in.ttl", DOCUMENTS)
    return tmp_path / "in.ttl"


@pytest.fixture
def command(tiny_model: Path, tiny_index: Path, source: Path, tmp_path: Path):
    """``nif link`` on the tiny model; later options win."""
    fixed = ["--model", str(tiny_model), "--index", str(tiny_index), "--input", str(source), "--threads", "1"]

    def run(*options: str) -> int:
        return main(
            ["nif", "link", *fixed, "--prefix", PREFIX, "--output", str(tmp_path / "out.ttl"), *options]
        )

    return run


def test_answers_are_those_of_the_linker(command, tiny_model, tiny_index, tmp_path, capsys):
    assert command() == 0
    assert "2 documents, 3 mentions, 0 of them nil" in capsys.readouterr().err
    linked = read_documents(tmp_path / "out.ttl")
    assert [(d.uri, d.text, d.language) for d in linked] == [(d.uri, d.text, d.language) for d in DOCUMENTS]
    surfaces = [DOCUMENTS[0].text[a.start : a.stop] for a in DOCUMENTS[0].annotations]
    linker = Linker.open(tiny_model, tiny_index, threads=1)
    results = linker.link([Mention(m, s) for m, s in zip(surfaces, SENTENCES, strict=True)], 10)
    linker.close()
    for found, given, result in zip(linked[0].annotations, DOCUMENTS[0].annotations, results, strict=True):
        assert (found.start, found.stop, found.uri) == (given.start, given.stop, given.uri)
        assert found.refs == (PREFIX + result.candidates[0].id,)
        scores = [c.score for c in result.candidates]
        share = math.exp(scores[0]) / sum(map(math.exp, scores))
        assert found.confidence == pytest.approx(share, rel=1e-5)


def test_below_the_threshold_nobody_is_named(command, tmp_path, capsys):
    assert command("--nil-threshold", "1e9", "--output", str(tmp_path / "out.nt")) == 0
    assert "3 of them nil" in capsys.readouterr().err
    [first, _] = read_documents(tmp_path / "out.nt")
    assert [a.refs for a in first.annotations] == [(NOT_IN_WIKI + s,) for s in ("a", "a_b", "d_e")]
    assert all(EntityUris(PREFIX).id(a.refs[0]) is None for a in first.annotations)


def test_more_mentions_than_a_batch_keep_their_documents(tiny_model, tiny_index):
    text = " ".join("abcdefghij" * 4)
    many = [
        NifDocument(f"http://d.test/{n}", text, tuple(NifAnnotation(2 * i, 2 * i + 1) for i in range(17)))
        for n in range(3)
    ]
    linker = Linker.open(tiny_model, tiny_index, threads=1)
    linked = link_documents(linker, iter(many), NifAnswers(EntityUris(PREFIX), words=3, mode="exact"))
    alone = [link_documents(linker, [d], NifAnswers(EntityUris(PREFIX), words=3))[0] for d in many]
    linker.close()
    for one, other in zip(linked, alone, strict=True):
        assert [(a.start, a.refs) for a in one.annotations] == [(a.start, a.refs) for a in other.annotations]
    assert len({a.refs for d in linked for a in d.annotations}) > 1


def test_confidence_is_a_share_and_never_overflows():
    assert confidence([3.0]) == 1
    assert confidence([1.0, 1.0]) == 0.5
    assert confidence([1e9, -1e9]) == 1
    assert confidence([2.0, 1.0]) == pytest.approx(math.e**2 / (math.e**2 + math.e))


def test_mentions_become_records(source, tmp_path, capsys):
    out = tmp_path / "mentions.jsonl"
    assert main(["nif", "mentions", "--input", str(source), "--prefix", PREFIX, "--output", str(out)]) == 0
    said = capsys.readouterr().err
    assert f"3 mentions, 2 nil (1 of them name something that is not under {PREFIX})" in said
    assert "0 with several answers" in said
    read = list(read_mentions(out))
    assert [(m.mention.mention, m.mention.sentence, m.answer) for m in read] == [
        ("a", "a b c!", "E00"),
        ("a b", "a b c!", "nil"),
        ("d e", "🏀 d e f.", "nil"),
    ]
    assert read[0].id == "http://d.test/1#char=0,1"
    assert set(json.loads(out.read_text("utf-8").splitlines()[0])) == {"id", "mention", "sentence", "answer"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--input", "gone.ttl"], "gone.ttl: cannot be read"),
        (["--input", "mentions.jsonl"], "must end in one of .ttl, .nt, .rdf, .xml"),
        (["--output", "out.rdf"], "out.rdf: the name must end in one of .ttl, .nt"),
        (["--output", "{source}/out.ttl"], "in.ttl/out.ttl: cannot be written"),
        (["--prefix", "Q"], "prefix: 'Q' is no absolute URI"),
        (["--words", "-1"], "--words: must be at least 0, got -1"),
        (["--nil-threshold", "nan"], "--nil-threshold: must be finite, got nan"),
        (["--nil"], "--nil: this model has no threshold of its own"),
        (["--model", "nowhere"], "nowhere"),
        (["--index", "nowhere"], "nowhere"),
        (["--backend", "abacus"], "abacus"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(command, source, tmp_path, capsys, options, message):
    assert command(*(option.format(source=source) for option in options)) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("mimic-engine: error: ") and message in line
    assert not (tmp_path / "out.ttl").exists()


def test_a_damaged_document_is_named_before_a_model_is_opened(command, source, capsys):
    source.write_text(source.read_text("utf-8").replace('endIndex "3"', 'endIndex "4"'), "utf-8")
    assert command("--model", "nowhere") == 2
    assert "are 'a b ', but nif:anchorOf is 'a b'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["out.ttl", "folder.jsonl"])
def test_mentions_go_into_a_jsonl_file(source, tmp_path, capsys, name):
    (tmp_path / "folder.jsonl").mkdir()
    assert main(["nif", "mentions", "--input", str(source), "--output", str(tmp_path / name)]) == 2
    assert "must be a file whose name ends in .jsonl" in capsys.readouterr().err


def test_the_extra_is_named_where_it_is_missing(command, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rdflib", None)
    assert command() == 2
    assert "pip install 'mimic-engine[nif]'" in capsys.readouterr().err
