"""The rival from end to end on made-up sets, with encoders that count words; and what became of expectations."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from benchmarks.rival.__main__ import main
from benchmarks.rival.encoders import unit
from benchmarks.rival.latency import check
from benchmarks.rival.measure import measure, outcome
from benchmarks.rival.sets import open_set
from mimic_engine.errors import EngineError

KB = """{"id": "rome", "name": "Rome", "description": "city of Italy", "images": ["rome.png"]}
{"id": "rome-ny", "name": "Rome (New York)", "description": "city of America"}
{"id": "caesar", "name": "Julius Caesar", "description": "general of Italy", "aliases": ["Caesar"]}
"""
MENTIONS = """{"mention": "Rome", "sentence": "Rome is a city in Italy", "answer": "rome", "image": "rome.png"}
{"mention": "Rome", "sentence": "Rome is a city in America", "answer": "rome-ny"}
{"mention": "Caesar", "sentence": "he was a general", "answer": "caesar"}
"""


class WordCounts:
    """Encoders that need no model: a text is its words, an image its first byte."""

    text_width, image_width = 64, 8

    def texts(self, texts):
        rows = np.zeros((len(texts), self.text_width), np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().replace(":", "").split():
                rows[row, hashlib.sha256(word.encode()).digest()[0] % self.text_width] += 1
        return unit(rows)

    def images(self, images):
        return np.eye(self.image_width, dtype=np.float32)[[Path(i).read_bytes()[0] % 8 for i in images]]

    def cached_texts(self, texts, name):
        return self.texts(texts)

    def cached_images(self, images, name):
        return self.images(images)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "kb.jsonl").write_text(KB)
    (tmp_path / "rome.png").write_bytes(b"\3")
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.jsonl").write_text(MENTIONS)
    return tmp_path


def test_every_tested_split_has_its_rows_and_every_set_its_latency(folder):
    sets = [open_set(folder, name, None) for name in ("WikiMEL", "RichpediaMEL", "shop")]
    rows = list(measure(sets, WordCounts()))
    kinds = [(r["set"], r["kind"], r["variant"], r.get("tuned")) for r in rows]
    variants = ("sentence", "sentence_and_surface")
    assert kinds == [
        (name, *rest)
        for name in ("WikiMEL", "RichpediaMEL", "shop")
        for rest in (
            *(("accuracy", variant, way) for variant in variants for way in ("left_out", "own")),
            *(("latency", variant, None) for variant in variants),
        )
    ]
    accuracy = [r for r in rows if r["kind"] == "accuracy"]
    assert {(r["split"], r["mentions"], r["candidates"], r["pictured"]) for r in accuracy} == {
        ("test", 3, 3, 1)
    }
    assert {r["hits@1"] for r in accuracy} == {1.0}
    # The other sets of the three tune for each, and both of them for a set of own records.
    assert [r["tuned_on"]["mentions"] for r in accuracy if r["tuned"] == "left_out"] == [3, 3, 3, 3, 6, 6]
    assert accuracy[1]["tuned_on"] == {"mentions": 3, "pictured": 1, "split": "dev"}
    latency = rows[-1]
    assert latency["vector_bytes"] == 3 * (64 + 8) * 4
    assert (latency["without_image"]["mentions"], latency["with_image"]["mentions"]) == (3, 1)


def test_a_set_without_anything_to_tune_on_has_no_rows(folder):
    for split in ("train", "dev"):
        (folder / f"{split}.jsonl").unlink()
    assert list(measure([open_set(folder, "shop", None)], WordCounts())) == []


def test_the_command_writes_a_result_or_says_what_is_missing(tmp_path, capsys):
    out = tmp_path / "rival.json"
    assert main(["--data", str(tmp_path), "--cache", str(tmp_path), "--out", str(out)]) == 1
    assert "lacks WikiMEL, RichpediaMEL, WikiDiverse" in capsys.readouterr().err
    assert not out.exists()


def test_an_answer_that_is_not_the_best_is_refused():
    exact = np.array([0.1, 0.5, 0.3], np.float32)
    check(np.array([1, 2]), exact[[1, 2]], exact)
    with pytest.raises(EngineError, match="best"):
        check(np.array([1, 0]), exact[[1, 0]], exact)
    with pytest.raises(EngineError, match="best"):
        check(np.array([1, 0]), exact[[1, 2]], exact)


def test_the_outcome_is_that_of_the_rows():
    def row(name, way, hits):
        return {
            "kind": "accuracy",
            "set": name,
            "split": "test",
            "variant": "sentence",
            "tuned": way,
            "hits@1": hits,
        }

    found = outcome([row("WikiMEL", "left_out", 0.6), row("WikiMEL", "own", 0.7), {"kind": "latency"}])
    assert (found["left_out"], found["left_out_below_met"]) == ({"WikiMEL": 0.6}, {"WikiMEL": True})
    assert found["own_not_below_left_out_met"] is True
    assert outcome([row("WikiMEL", "left_out", 0.9)])["left_out_below_met"] == {"WikiMEL": False}
    assert outcome([])["own_not_below_left_out_met"] is None
