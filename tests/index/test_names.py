"""Names, aliases and popularity in an index: found the same however it was cut, changed or compacted."""

from __future__ import annotations

import mmap

import numpy as np
import pytest

from mimic_engine.errors import DataError
from mimic_engine.index.build import build_index
from mimic_engine.index.store import Index
from mimic_engine.index.writer import IndexWriter
from mimic_engine.names.features import FEATURES
from mimic_engine.types import Entity
from tests.index.changes import compact, delete, upsert
from tests.index.contents import live

pytestmark = pytest.mark.usefixtures("quick_disk")

TEXTS = ("alias 3 of 1", "name 4 é", "Alias", "jordan", "name", "nothing like it")


def found(index: Index) -> dict[str, list]:
    """What the lookup says of some texts: ids and features."""
    said = {}
    for text in TEXTS:
        features = index.name_lookup.features(text, "alias of jordan")
        said[text] = [index.ids(features.rows), *(getattr(features, n).tobytes() for n in FEATURES)]
        said[text].append([(index.ids([row])[0], form) for row, form in index.name_lookup.find(text, 100)])
    return said


def test_forms_do_not_depend_on_how_segments_are_cut(tiny, tmp_path):
    said = []
    for rows in (1, 4, 100):
        build_index(
            tiny.HashFold(), tiny.knowledge_base(23), tmp_path / str(rows), segment_rows=rows, progress=False
        )
        said.append(found(Index.open(tmp_path / str(rows))))
    assert said[0] == said[1] == said[2] and said[0]["alias 3 of 1"][0]


def test_changes_carry_names_and_popularity(built, tiny):
    index = built(23)
    new = Entity("new", "Jordan", aliases=("al-Urdunn", "Hashemite Kingdom"), popularity=7)
    index = upsert(index, [new, Entity("Q21", "Jordan River", popularity=0.5)], tiny.HashFold())
    index = delete(index, ["Q0", "Q35"])
    rows = index.rows(["new", "Q21", "Q7"])
    assert index.entity(int(rows[0])) == new and index.entity(int(rows[2])).aliases == ("Alias 1 of 0",)
    assert index.popularity[rows].tolist() == [7, 0.5, 0.0] and np.isnan(
        index.popularity[index.rows(["Q42"])]
    )
    assert index.popularity.shape == (index.row_count,)
    before, popular = found(index), index.popularity[live(index)]
    assert set(before["jordan"][0]) == {"Q21", "new"}
    assert not {"Q0", "Q35"} & {i for ids, *_ in before.values() for i in ids}
    compacted = compact(index)
    assert compacted.alive is None and found(compacted) == before
    np.testing.assert_array_equal(compacted.popularity, popular)
    living = [index.entity(row) for row in live(index)]
    assert [compacted.entity(row) for row in range(len(compacted))] == living


def test_compacted_names_are_those_of_a_fresh_build(tiny, tmp_path, built):
    index = compact(delete(built(11), ["Q7", "Q70"]))
    kept = [tiny.entity(row) for row in range(11) if row not in (1, 10)]
    build_index(tiny.HashFold(), lambda: kept, tmp_path / "fresh", progress=False)
    same = "names.safetensors"
    (one,), (other,) = index.manifest.segments, Index.open(tmp_path / "fresh").manifest.segments
    assert one.files[same] == other.files[same]


def test_names_are_maps_of_the_file(built):
    for array in built().name_lookup._segments[0].arrays.items().values():
        assert not array.flags.writeable
        while isinstance(array, np.ndarray):
            array = array.base
        assert isinstance(array.obj if isinstance(array, memoryview) else array, mmap.mmap)


def test_a_build_that_goes_on_writes_the_same_names(tiny, tmp_path):
    def broken(batch):
        if batch[0].id == f"Q{7 * 12}":
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        build(tiny, tmp_path / "kb", tiny.HashFold(broken))
    build(tiny, tmp_path / "kb", tiny.HashFold())
    build(tiny, tmp_path / "whole", tiny.HashFold())
    one, other = (Index.open(tmp_path / n).manifest.segments for n in ("kb", "whole"))
    assert one == other


def build(tiny, out, fold):
    build_index(fold, tiny.knowledge_base(23), out, segment_rows=10, batch_size=2, progress=False)


def test_what_may_be_no_name_is_no_change(built, tiny):
    with IndexWriter(built(), tiny.HashFold()) as writer:
        for entity, fault in (
            (Entity("a", "\t"), "record 1 .*name: holds the control"),
            (Entity("a", "x", aliases=("",)), r"\(id 'a'\): aliases\[0\]: is empty"),
            (Entity("a", "x", popularity=float("nan")), "popularity: .*, got nan"),
        ):
            with pytest.raises(DataError, match=fault):
                writer.upsert([entity])
        assert writer.index.manifest.generation == 1
