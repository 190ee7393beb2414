"""Names, aliases and popularity in an index: found the same however it was cut, changed or compacted."""

from __future__ import annotations

import mmap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimic_engine.errors import DataError, InvalidInputError
from mimic_engine.index.build import build_index
from mimic_engine.index.name_search import NameMatch, find_names
from mimic_engine.index.store import Index, NameCounts
from mimic_engine.index.writer import IndexWriter
from mimic_engine.names.features import FEATURES
from mimic_engine.names.forms import FormArrays
from mimic_engine.names.lookup import NameLookup
from mimic_engine.names.text import normal_form
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


def test_names_of_living_entities_are_counted(built, tiny):
    index = built(23)
    everything = [tiny.entity(row) for row in range(23)]
    assert index.count_names() == counts(everything)
    index = delete(upsert(index, CALLED, tiny.HashFold()), ["Q7", "Q35", "gone"])
    left = [e for e in everything if e.id not in ("Q7", "Q35")] + [e for e in CALLED if e.id != "gone"]
    assert index.count_names() == counts(left) == compact(index).count_names()


def counts(entities):
    forms = sum(len({normal_form(n) for n in (e.name, *e.aliases)}) for e in entities)
    return NameCounts(
        sum(bool(e.aliases) for e in entities),
        sum(len(e.aliases) for e in entities),
        forms,
        sum(e.popularity is not None for e in entities),
    )


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


CALLED = (
    Entity("country", "Jordan", aliases=("Hashemite Kingdom of Jordan", "al-Urdunn"), popularity=50),
    Entity("river", "Jordan River", aliases=("Jordan",), popularity=90),
    Entity("name", "jordan!"),
    Entity("gone", "Jordan", popularity=1000),
    Entity("player", "Michael Jordan", aliases=("MJ", "Air Jordan"), popularity=80),
    Entity("actor", "Michael B. Jordan", popularity=0),
    Entity("town", "Jordanow", popularity=3),
    Entity("fruit", "Apple"),
)


@pytest.fixture(params=[1, 3, 100])
def called(request, tiny, tmp_path) -> Index:
    build_index(tiny.HashFold(), lambda: CALLED, tmp_path / "kb", segment_rows=request.param, progress=False)
    return delete(Index.open(tmp_path / "kb"), ["gone"])


def test_entities_are_found_by_how_they_are_called(called):
    found = called.find_names(" JÓRDAN ", 10)
    assert [m.id for m in found] == ["river", "country", "name", "town", "player", "actor"]
    assert found[0] == NameMatch("river", "Jordan River", "Jordan")
    assert found[2].matched_name == "jordan!" and found[4].matched_name in ("Michael Jordan", "Air Jordan")
    for limit in range(1, 6):
        assert called.find_names("jordan", limit) == found[:limit]
    assert called.find_names("al ur", 1) == [NameMatch("country", "Jordan", "al-Urdunn")]
    assert [m.id for m in called.find_names("micheal jordan", 2)] == ["player", "actor"]
    assert called.find_names("zzz", 5) == []


def test_what_cannot_be_searched_is_named(called):
    for limit in (0, -1):
        with pytest.raises(InvalidInputError, match=f"limit: {limit} is under 1") as caught:
            called.find_names("jordan", limit)
        assert caught.value.field == "limit"
    for text in ("", " \t", "\u200b"):
        with pytest.raises(InvalidInputError, match="text: is empty") as caught:
            called.find_names(text, 1)
        assert caught.value.field == "text"


NAME = st.lists(st.sampled_from(["jordan", "river", "a", "al", "air", "ü"]), min_size=1, max_size=3).map(
    " ".join
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(NAME, st.lists(NAME, max_size=2), st.none() | st.integers(0, 2)), min_size=1, max_size=12
    ),
    NAME,
    st.integers(1, 14),
)
def test_search_is_that_of_its_definition(entities, text, limit):
    entities = [Entity(str(i), n, "", (), "", tuple(a), p) for i, (n, a, p) in enumerate(entities)]
    names = [(e.name, *e.aliases) for e in entities]
    lookup = NameLookup([FormArrays.of(names)], [len(names)])
    popularity = np.array([np.nan if e.popularity is None else e.popularity for e in entities])
    wanted = normal_form(text)

    def rank(row):
        forms = sorted(f for n in names[row] if (f := normal_form(n)).startswith(wanted))
        known = -1 if entities[row].popularity is None else entities[row].popularity
        if forms:
            return (0, forms[0].encode(), -known, row)
        features = dict(zip(shared.rows.tolist(), (shared.words + shared.chars).tolist(), strict=True))
        return (1, -features[row], -known, row) if row in features else None

    shared = lookup.features(text)
    rows = sorted((row for row in range(len(entities)) if rank(row)), key=rank)
    found = find_names(lookup, popularity, entities.__getitem__, text, limit)
    assert [m.id for m in found] == [str(row) for row in rows[:limit]]
    assert all(m.name == names[int(m.id)][0] and m.matched_name in names[int(m.id)] for m in found)
