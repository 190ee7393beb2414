"""Data sets and knowledge bases are opened whatever their format; real ones give their known counts."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mimic_engine.data.images import ReadCounts
from mimic_engine.data.source import entity_stream, open_dataset
from mimic_engine.errors import DataError
from mimic_engine.types import Entity

MEL = os.environ.get("MIMIC_MEL_DATA", "")
# (train, dev, test) mentions and how many have a picture; entities and how many have one.
REAL = {
    "WikiMEL": ({"train": (18092, 50), "dev": (2585, 9), "test": (5169, 10)}, (20818, 1596)),
    "RichpediaMEL": ({"train": (12463, 0), "dev": (1780, 0)}, (20483, 229)),
    "WikiDiverse": ({"train": (11351, 0), "dev": (1664, 0)}, (10644, 161)),
}


def lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def own(tmp_path):
    """A data set of own records: kb and train in JSON Lines, dev in Parquet, no test."""
    lines(tmp_path / "kb.jsonl", [{"id": "a", "name": "A", "images": ["gone.png"]}, {"id": "b", "name": "B"}])
    rows = [
        {"mention": "x", "sentence": "s", "answer": "b"},
        {"mention": "y", "sentence": "s", "answer": "nil"},
    ]
    lines(tmp_path / "train.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows[:1]), tmp_path / "dev.parquet")
    return tmp_path


@pytest.fixture
def published(tmp_path):
    """A data set in MIMIC's format, without pictures."""
    folder = tmp_path / "published"
    folder.mkdir()
    record = {"id": 0, "qid": "Q1", "entity_name": "A%20B", "attr": "", "image_list": []}
    (folder / "kb_entity.json").write_text(json.dumps([record]), encoding="utf-8")
    mention = {"id": 1, "sentence": "s", "imgPath": "m.jpg", "mentions": "m", "answer": "Q1"}
    (folder / "set_train.json").write_text(json.dumps([mention]), encoding="utf-8")
    return folder


def test_own_records(own):
    data = open_dataset(own)
    assert data.entities == (Entity("a", "A"), Entity("b", "B"))
    assert list(data.splits) == ["train", "dev"]
    assert [len(mentions) for mentions in data.splits.values()] == [1, 1]
    assert data.report.entities == ReadCounts(records=2, missing_images=1)
    assert data.report.splits["train"] == ReadCounts(records=1, nil_skipped=1)
    assert str(data.report).splitlines() == [
        "entities: 2, 0 with image, 1 images missing",
        "train mentions: 1, 0 with image, 0 images missing, 1 nil skipped",
        "dev mentions: 1, 0 with image, 0 images missing",
    ]
    assert json.loads(json.dumps(data.report.to_json()))["splits"]["train"]["nil_skipped"] == 1


def test_published_format(published):
    data = open_dataset(str(published))
    assert data.entities == (Entity("Q1", "A B"),)
    assert data.splits["train"][0].answer == "Q1"
    assert data.report.splits == {"train": ReadCounts(records=1, missing_images=1)}


def test_named_splits(own, published):
    assert list(open_dataset(own, splits=["dev"]).splits) == ["dev"]
    assert open_dataset(own, splits=[]).splits == {}
    with pytest.raises(DataError, match=r"one file test\.jsonl or test\.parquet is needed, found neither$"):
        open_dataset(own, splits=["test"])
    with pytest.raises(DataError, match=r"\*_dev\.json is needed"):
        open_dataset(published, splits=["dev"])


def test_folders_that_are_no_data_set(own, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(
        DataError, match=r"kb\.jsonl or kb\.parquet is needed, found neither \(nor kb_entity\.json\)"
    ):
        open_dataset(empty)
    with pytest.raises(DataError, match=r"data set .*gone: is not a folder"):
        open_dataset(tmp_path / "gone")
    with pytest.raises(DataError, match=r"data set .*kb\.jsonl: is not a folder"):
        open_dataset(own / "kb.jsonl")
    (own / "kb.parquet").touch()
    with pytest.raises(DataError, match=r"found kb\.jsonl and kb\.parquet$"):
        open_dataset(own)


def test_unknown_answers_and_double_ids_stop_the_opening(own):
    lines(own / "train.jsonl", [{"mention": "x", "sentence": "s", "answer": "c"}])
    with pytest.raises(DataError, match=r"train\.jsonl:1: answer 'c'"):
        open_dataset(own)
    lines(own / "kb.jsonl", [{"id": "a", "name": "A"}, {"id": "a", "name": "B"}])
    with pytest.raises(DataError, match=r"kb\.jsonl:2: id 'a' comes twice"):
        open_dataset(own)


def test_streams_start_anew_at_each_call(own, published):
    for path in (own, own / "kb.jsonl", str(own / "kb.jsonl")):
        stream = entity_stream(path)
        first, second = list(stream()), list(stream())
        assert first == second == [Entity("a", "A"), Entity("b", "B")]
        assert stream.counts == ReadCounts(records=2, missing_images=1)
    for path in (published, published / "kb_entity.json"):
        assert list(entity_stream(path)()) == [Entity("Q1", "A B")]


def test_two_passes_do_not_mix(own):
    stream = entity_stream(own)
    a, b = stream(), stream()
    assert [next(a).id, next(b).id, next(a).id, next(b).id] == ["a", "a", "b", "b"]


def test_paths_that_are_no_knowledge_base(own, tmp_path):
    with pytest.raises(DataError, match="gone: no such file or folder"):
        entity_stream(tmp_path / "gone")
    (own / "kb.csv").touch()
    with pytest.raises(
        DataError, match=r"kb\.csv: not a knowledge base; .*kb_entity\.json.*\.jsonl, \.parquet"
    ):
        entity_stream(own / "kb.csv")


def test_entity_file_in_the_working_folder(published, monkeypatch):
    monkeypatch.chdir(published)
    assert [e.id for e in entity_stream("kb_entity.json")()] == ["Q1"]


@pytest.mark.skipif(not MEL, reason="MIMIC_MEL_DATA does not name the folder of the real data sets")
@pytest.mark.parametrize("name", sorted(REAL))
def test_real_data_sets(name):
    data = open_dataset(Path(MEL) / name)
    splits, entities = REAL[name]
    assert (data.report.entities.records, data.report.entities.with_image) == entities
    assert data.report.entities.missing_images == 0
    assert {k: (c.records, c.with_image) for k, c in data.report.splits.items()} == splits
    assert all(len(data.splits[k]) == count for k, (count, _) in splits.items())
    assert all("%20" not in e.name for e in data.entities)
