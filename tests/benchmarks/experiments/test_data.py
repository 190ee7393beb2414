"""Splits of data sets without a test, joins, and fingerprints."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.experiments.data import HALF_OF_DEV, TEST, join, open_data, with_test
from mimic_engine.data.images import ReadCounts
from mimic_engine.data.source import DataReport, Dataset, open_dataset
from mimic_engine.errors import DataError
from mimic_engine.types import Entity, LabelledMention, Mention


def _dataset(entities, dev, test=None) -> Dataset:
    splits = {"train": tuple(dev), "dev": tuple(dev)} | ({"test": tuple(test)} if test else {})
    return Dataset(Path("set"), tuple(entities), splits, DataReport(ReadCounts(), {}))


def _labelled(i: int, answer: str = "E") -> LabelledMention:
    return LabelledMention(Mention(f"m{i}", "s"), answer, str(i))


def test_dev_is_halved_by_mention_id_where_there_is_no_test():
    dev = [_labelled(i // 2) for i in range(400)]  # two mentions of each id
    halved, test_is = with_test(_dataset([Entity("E", "e")], dev))
    assert test_is == HALF_OF_DEV == "half of dev"
    ids = [{m.id for m in halved.splits[s]} for s in ("dev", "test")]
    assert not ids[0] & ids[1] and len(ids[0] | ids[1]) == 200
    assert all(70 < len(half) < 130 for half in ids)
    again, _ = with_test(_dataset([Entity("E", "e")], dev[::-1]))
    assert {m.id for m in again.splits["test"]} == ids[1]
    assert halved.splits["train"] == tuple(dev)


def test_mentions_without_an_id_are_halved_by_their_text():
    dev = [replace(_labelled(i), id="") for i in range(40)]
    halved, _ = with_test(_dataset([Entity("E", "e")], dev))
    assert halved.splits["dev"] and halved.splits["test"]


def test_a_test_split_of_its_own_is_kept():
    dataset = _dataset([Entity("E", "e")], [_labelled(0)], [_labelled(1)])
    assert with_test(dataset) == (dataset, TEST)


def test_one_mention_cannot_be_halved():
    with pytest.raises(DataError, match="set: has no test split, and its 1 dev mentions cannot be halved"):
        with_test(_dataset([Entity("E", "e")], [_labelled(0)]))


def test_a_join_keeps_the_first_entity_of_an_id_and_all_mentions():
    one = _dataset([Entity("A", "a"), Entity("B", "b")], [_labelled(0, "A")])
    two = _dataset([Entity("B", "other"), Entity("C", "c")], [_labelled(1, "C")])
    joined = join([one, two])
    assert [(e.id, e.name) for e in joined.entities] == [("A", "a"), ("B", "b"), ("C", "c")]
    assert [m.id for m in joined.splits["train"]] == ["0", "1"]
    assert set(joined.splits) == {"train", "dev"}


def test_a_data_set_that_lacks_a_split_is_refused(data, tmp_path):
    folder = tmp_path / "part"
    shutil.copytree(data, folder)
    (folder / "dev.jsonl").unlink()
    with pytest.raises(DataError, match=r"part: has no mentions in split 'dev'; .* train, test"):
        open_data(folder, "part")
    (folder / "train.jsonl").write_text("")
    with pytest.raises(DataError, match="no mentions in split 'train'"):
        open_data(folder, "part")


def test_fingerprints_follow_the_records_and_not_the_place(data, tmp_path):
    before = open_data(data, "a").fingerprints("own")
    folder = tmp_path / "moved"
    shutil.copytree(data, folder)
    assert open_data(folder, "b").fingerprints("own") == before
    lines = (folder / "kb.jsonl").read_text().splitlines()
    (folder / "kb.jsonl").write_text(
        "\n".join([json.dumps(json.loads(lines[0]) | {"name": "x"}), *lines[1:]])
    )
    after = open_data(folder, "b").fingerprints("own")
    assert {k for k in before if before[k] != after[k]} == {"entities"}


def test_the_report_says_what_the_test_is_and_how_many(data, tmp_path):
    folder = tmp_path / "two"
    shutil.copytree(data, folder)
    (folder / "test.jsonl").unlink()
    found = open_data(folder, "two", [data])
    report = found.to_json()
    assert report["test_is"] == "half of dev"
    assert report["mentions"]["dev"] + report["mentions"]["test"] == 18
    assert report["splits"]["dev"]["records"] == 18
    assert report["others"]["answered_here"] == 36
    assert open_dataset(folder).splits["train"] == found.tested("own").splits["train"]
