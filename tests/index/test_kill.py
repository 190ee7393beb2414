"""The short form of ``benchmarks.durability.kill``: a writer killed -9 loses nothing, and a reader sees nothing half done."""

from __future__ import annotations

import json

import pytest

from benchmarks.durability.kill import KillOptions, main, run
from benchmarks.durability.kill_parties import Change, build, group_ids, versions_of
from mimic_engine.errors import InvalidInputError
from mimic_engine.index.arrays import read_array_file
from mimic_engine.index.store import Index
from mimic_engine.index.writer import IndexWriter
from mimic_engine.types import Entity, EntityArrays
from tests.index.changes import delete


def test_killed_writers_lose_nothing(tmp_path):
    result = run(KillOptions(kills=6, seed=20230806), tmp_path)
    assert result["kills"] == 6
    assert result["changes_found"] == result["changes_acknowledged"] > 6
    assert result["reader"]["queries"] > 0 and result["reader"]["snapshots"] > 1


def test_the_result_file(tmp_path):
    out = tmp_path / "kill.json"
    assert main(["--kills", "1", "--longest-ms", "50", "--out", str(out)]) == 0
    assert json.loads(out.read_text("utf-8"))["kills"] == 1


@pytest.mark.parametrize("name", ["kills", "most_changes", "longest_ms"])
def test_options_outside_limits(name):
    with pytest.raises(InvalidInputError, match=f"{name}: must be at least 1, got 0"):
        KillOptions(**{name: 0})


class TestWhatWouldBeNoticed:
    """The checks themselves: half a change, a foreign array, a lost change."""

    @pytest.fixture
    def index(self, tmp_path) -> Index:
        build(tmp_path / "index")
        return Index.open(tmp_path / "index")

    def change(self, index: Index, entities: list[Entity], fold=None) -> Index:
        from benchmarks.durability.kill_parties import HashFold

        with IndexWriter(index, fold or HashFold()) as writer:
            writer.upsert(entities)
            return writer.index

    def test_half_a_group(self, index):
        with pytest.raises(AssertionError, match="half a change: group 3"):
            versions_of(self.change(index, [Entity(i, "version 1") for i in group_ids(3)[:2]]))

    def test_two_versions(self, index):
        two = [Entity(i, f"version {n}") for n, i in enumerate(group_ids(3))]
        with pytest.raises(AssertionError, match="half a change: group 3"):
            versions_of(self.change(index, two))

    def test_an_entity_that_is_gone(self, index):
        with pytest.raises(AssertionError, match="left"):
            versions_of(delete(index, ["stays/3"]))

    def test_arrays_of_another_entity(self, index):
        from benchmarks.durability.kill_parties import HashFold

        class Foreign(HashFold):
            def entities(self, batch):
                arrays = dict(super().entities(batch).items())
                arrays["cmfu"] = arrays["cmfu"][::-1].copy()
                return EntityArrays(**arrays)

        with pytest.raises(AssertionError, match="cmfu is not that of its entities"):
            versions_of(self.change(index, [Entity(i, "version 1") for i in group_ids(0)], Foreign()))

    def test_a_lost_change(self):
        first, second = Change("upsert", 1, 5), Change("delete", 1, 6)
        assert first.is_in({1: 5}, []) and not first.is_in({1: 4}, []) and not first.is_in({}, [])
        assert first.is_in({}, [second]) and not first.is_in({1: 5}, [second])
        assert second.is_in({}, []) and not second.is_in({1: 5}, [])
        assert second.apply(first.apply({2: 1})) == {2: 1}

    def test_the_index_has_codes(self, index):
        file = index.path / "codes" / "00000" / "centroids.safetensors"
        assert read_array_file(file)["centroids"].shape == (8, 8)
        assert index.codes is not None
