"""Own records in JSON Lines and Parquet: the same records, the same errors, one at a time."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimic_engine.data.images import ReadCounts
from mimic_engine.data.records import PARQUET_BLOCK_ROWS, read_entities, read_mentions
from mimic_engine.data.source import entity_stream
from mimic_engine.errors import DataError
from mimic_engine.names.valid import name_fault
from mimic_engine.types import Entity, LabelledMention, Mention

KINDS = ["jsonl", "parquet"]


def write(path: Path, rows: list[dict]) -> Path:
    """Write rows as the suffix says; Parquet columns take their types from the rows."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        names = dict.fromkeys(name for row in rows for name in row)
        pq.write_table(pa.table({n: [row.get(n) for row in rows] for n in names}), path)
    return path


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def test_entities(tmp_path, kind):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").touch()
    absolute = tmp_path / "b.png"
    absolute.touch()
    rows = [
        {"id": "1", "name": "Ünï", "images": ["gone.png", "pictures/a.png", str(absolute)], "url": "ignored"},
        {"id": "2", "name": "b", "description": "text\n", "type": "place", "aliases": ["B.", "bé"]},
        {"id": "3", "name": "c", "images": [], "aliases": [], "popularity": 12.5},
        {"id": "4", "name": "d", "images": None, "description": None, "type": None},
        {"id": "5", "name": "e", "images": [""]},
    ]
    counts = ReadCounts()
    entities = list(read_entities(write(tmp_path / f"kb.{kind}", rows), counts=counts))
    assert entities == [
        Entity("1", "Ünï", "", (tmp_path / "pictures" / "a.png", absolute)),
        Entity("2", "b", "text\n", (), "place", ("B.", "bé")),
        Entity("3", "c", popularity=12.5),
        Entity("4", "d"),
        Entity("5", "e"),
    ]
    assert counts == ReadCounts(records=5, with_image=1, missing_images=1)


def test_one_image_as_a_string(tmp_path, kind):
    (tmp_path / "a.png").touch()
    rows = [{"id": "1", "name": "a", "images": "a.png"}, {"id": "2", "name": "b", "images": "gone.png"}]
    counts = ReadCounts()
    first, second = read_entities(write(tmp_path / f"kb.{kind}", rows), counts=counts)
    assert first.images == (tmp_path / "a.png",)
    assert second.images == ()
    assert counts.missing_images == 1


def test_pictures_elsewhere(tmp_path, kind):
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.png").touch()
    kb = write(tmp_path / f"kb.{kind}", [{"id": "1", "name": "a", "images": ["a.png"]}])
    assert next(read_entities(kb, images=other)).images == (other / "a.png",)
    with pytest.raises(DataError, match="nowhere: is not a folder"):
        list(read_entities(kb, images=tmp_path / "nowhere"))


def test_mentions_with_answers(tmp_path, kind):
    (tmp_path / "m.jpg").touch()
    rows = [
        {"mention": " a\n", "sentence": "", "image": "m.jpg", "answer": "Q1", "id": "x"},
        {"mention": "b", "sentence": "s", "image": "gone.jpg", "answer": "Q2"},
        {"mention": "c", "sentence": "s", "answer": "nil"},
        {"mention": "d", "sentence": "s", "answer": "NIL"},
    ]
    file = write(tmp_path / f"test.{kind}", rows)
    counts = ReadCounts()
    assert list(read_mentions(file, entity_ids={"Q1", "Q2"}, counts=counts)) == [
        LabelledMention(Mention(" a\n", "", tmp_path / "m.jpg"), "Q1", "x"),
        LabelledMention(Mention("b", "s"), "Q2"),
    ]
    assert counts == ReadCounts(records=2, with_image=1, missing_images=1, nil_skipped=2)
    assert (
        len(list(read_mentions(file, entity_ids={"Q1", "Q2", "nil", "NIL"}))) == 4
    )  # an entity may be called nil


def test_mentions_to_link_need_no_answer(tmp_path, kind):
    rows = [
        {"mention": "a", "sentence": "s", "id": 7},
        {"mention": "b", "sentence": "s", "answer": "any", "id": 8},
    ]
    file = write(tmp_path / f"m.{kind}", rows)
    assert list(read_mentions(file)) == [
        LabelledMention(Mention("a", "s"), "", "7"),
        LabelledMention(Mention("b", "s"), "any", "8"),
    ]
    with pytest.raises(DataError, match=r"(:1|row 1): field 'answer' is missing"):
        list(read_mentions(file, entity_ids={"any"}))


GOOD = {"id": "1", "name": "a"}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"id": "1", "name": "b"}, "id '1' comes twice"),
        ({"id": "", "name": "b"}, "id is empty"),
        ({"id": None, "name": "b"}, r"Expected `str`, got `null` - at `\$\.id`"),
        ({"id": "2", "name": None}, r"Expected `str`, got `null` - at `\$\.name`"),
        (
            {"id": "2", "name": "b", "description": 5},
            r"Expected `str \| null`, got `int` - at `\$\.description`",
        ),
        ({"id": "2", "name": "b", "images": 5}, r"`\$\.images`"),
        ({"id": "2", "name": "b", "images": ["a", None]}, r"`\$\.images\[1\]`"),
        ({"id": "2", "name": "b", "image": "a.png"}, "'images', not in 'image'"),
    ],
)
def test_bad_entities_are_named(tmp_path, kind, bad, message):
    file = write(tmp_path / f"kb.{kind}", [GOOD, bad])
    place = r"kb\.jsonl:2: " if kind == "jsonl" else r"kb\.parquet: row 2: "
    with pytest.raises(DataError, match=place + ".*" + message):
        list(read_entities(file))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"mention": "b", "sentence": "s", "answer": "Q9"}, "answer 'Q9' is not in the knowledge base"),
        ({"mention": "b", "sentence": "s", "answer": ""}, "answer '' is not in"),
        ({"mention": "b", "sentence": "s"}, "field 'answer' is missing"),
        ({"mention": "b", "sentence": "s", "answer": "Q1", "id": "m1"}, "id 'm1' comes twice"),
        ({"mention": "b", "sentence": None, "answer": "Q1"}, r"`\$\.sentence`"),
        ({"mention": "b", "sentence": "s", "answer": "Q1", "images": ["x"]}, "'image', not in 'images'"),
    ],
)
def test_bad_mentions_are_named(tmp_path, kind, bad, message):
    good = {"mention": "a", "sentence": "s", "answer": "Q1", "id": "m1"}
    file = write(tmp_path / f"train.{kind}", [good, bad])
    place = r"train\.jsonl:2: " if kind == "jsonl" else r"train\.parquet: row 2: "
    with pytest.raises(DataError, match=place + ".*" + message):
        list(read_mentions(file, entity_ids={"Q1"}))


def test_a_missing_field(tmp_path):
    with pytest.raises(DataError, match=r"kb\.jsonl:1: .*missing required field `name`"):
        list(read_entities(write(tmp_path / "kb.jsonl", [{"id": "1"}])))
    with pytest.raises(DataError, match=r"kb\.parquet: columns \['name'\] are missing; it has \['id'\]"):
        list(read_entities(write(tmp_path / "kb.parquet", [{"id": "1"}])))


@pytest.mark.parametrize(
    "line", [b"{", b"[]", b"3", b'{"id": "2", "name": "\xff"}', b'{"id": "2", "name": "\\ud800"}']
)
def test_damaged_lines_are_named(tmp_path, line):
    file = tmp_path / "kb.jsonl"
    file.write_bytes(b'{"id": "1", "name": "a"}\n\n' + line + b"\n")
    with pytest.raises(DataError, match=r"kb\.jsonl:3: "):
        list(read_entities(file))


def test_byte_order_mark_blank_lines_and_no_last_newline(tmp_path):
    file = tmp_path / "kb.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"id": "1", "name": "a"}\r\n \n\n{"id": "2", "name": "b"}')
    assert [e.id for e in read_entities(file)] == ["1", "2"]


def test_empty_files(tmp_path):
    (tmp_path / "kb.jsonl").touch()
    assert list(read_entities(tmp_path / "kb.jsonl")) == []
    table = pa.table({"id": pa.array([], pa.string()), "name": pa.array([], pa.string())})
    pq.write_table(table, tmp_path / "kb.parquet")
    assert list(read_entities(tmp_path / "kb.parquet")) == []


def test_files_that_cannot_be_read(tmp_path, kind):
    with pytest.raises(DataError, match=rf"gone\.{kind}: cannot be read"):
        list(read_entities(tmp_path / f"gone.{kind}"))
    (tmp_path / f"folder.{kind}").mkdir()
    with pytest.raises(DataError, match=rf"folder\.{kind}: cannot be read"):
        list(read_entities(tmp_path / f"folder.{kind}"))
    with pytest.raises(DataError, match=r"kb\.csv: the name must end in one of \.jsonl, \.parquet"):
        list(read_entities(tmp_path / "kb.csv"))


@pytest.mark.parametrize("keep", [0, 3, 50, 0.5, -5])
def test_parquet_cut_short(tmp_path, keep):
    file = write(tmp_path / "kb.parquet", [{"id": str(i), "name": "n" * 50} for i in range(300)])
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(DataError, match=r"kb\.parquet: cannot be read"):
        list(read_entities(file))


def test_parquet_text_that_is_not_utf8(tmp_path):
    broken = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe"))
    pq.write_table(pa.table({"id": pa.array(["1"]), "name": broken}), tmp_path / "kb.parquet")
    with pytest.raises(DataError, match=r"kb\.parquet: cannot be read"):
        list(read_entities(tmp_path / "kb.parquet"))


def test_parquet_string_types(tmp_path):
    columns = {
        "id": pa.array(["1", "2"], pa.large_string()),
        "name": pa.array(["a", "a"]).dictionary_encode(),
        "images": pa.array([["x"], None], pa.large_list(pa.string())),
    }
    pq.write_table(pa.table(columns), tmp_path / "kb.parquet")
    assert [(e.id, e.name) for e in read_entities(tmp_path / "kb.parquet")] == [("1", "a"), ("2", "a")]


def test_records_come_one_at_a_time(tmp_path):
    """The bad last line is met only when it is reached."""
    file = tmp_path / "kb.jsonl"
    file.write_text('{"id": "1", "name": "a"}\n{"id": "2", "name": "b"}\nbad\n', encoding="utf-8")
    counts = ReadCounts()
    entities = read_entities(file, counts=counts)
    assert next(entities).id == "1"
    assert counts.records == 1
    assert next(entities).id == "2"
    with pytest.raises(DataError, match=":3: "):
        next(entities)


def test_parquet_rows_are_numbered_across_blocks(tmp_path):
    count = PARQUET_BLOCK_ROWS + 3
    rows = [{"id": str(i), "name": "n"} for i in range(count)] + [{"id": "0", "name": "n"}]
    file = write(tmp_path / "kb.parquet", rows)
    with pytest.raises(DataError, match=f"row {count + 1}: id '0' comes twice"):
        list(read_entities(file))


texts = st.text(max_size=20)


names = texts.filter(lambda text: name_fault(text, (), None) is None)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries({"id": st.text(min_size=1, max_size=8), "name": names, "description": texts}),
        max_size=5,
        unique_by=lambda row: row["id"],
    )
)
@pytest.mark.parametrize("own_kind", KINDS)
def test_any_text_comes_back(tmp_path_factory, own_kind, rows):
    if not rows and own_kind == "parquet":
        return
    file = write(tmp_path_factory.mktemp("kb") / f"kb.{own_kind}", rows)
    assert [(e.id, e.name, e.description) for e in read_entities(file)] == [
        (row["id"], row["name"], row["description"]) for row in rows
    ]


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        ("name", "", "name: is empty"),
        ("name", "a\x07", "name: holds the control character U+0007"),
        ("aliases", ["a", " "], "aliases[1]: is empty"),
        ("aliases", ["a"] * 1001, "aliases: at most 1,000, got 1,001"),
        ("popularity", -1.0, "popularity: expected a number from 0 on, got -1.0"),
    ],
)
def test_names_and_popularity_that_cannot_be_are_named(tmp_path, kind, field, value, fault):
    good = {"id": "1", "name": "a", "aliases": ["x"], "popularity": 1.0}
    file = write(tmp_path / f"kb.{kind}", [good, {**good, "id": "2", field: value}])
    place = f"{file}:2" if kind == "jsonl" else f"{file}: row 2"
    with pytest.raises(DataError, match=re.escape(f"{place}: {fault}")):
        list(read_entities(file))


@pytest.mark.parametrize("number", [pa.int64(), pa.uint8(), pa.float32(), pa.float64()], ids=str)
@pytest.mark.parametrize("texts", [pa.list_(pa.string()), pa.large_list(pa.large_string())], ids=str)
def test_parquet_columns_of_any_width(tmp_path, number, texts):
    columns = {
        "id": ["1", "2", "3"],
        "name": ["a", "b", "c"],
        "aliases": pa.array([["x", "y"], None, []], texts),
        "popularity": pa.array([7, None, 0], number),
    }
    pq.write_table(pa.table(columns), tmp_path / "kb.parquet")
    found = [(e.aliases, e.popularity) for e in entity_stream(tmp_path / "kb.parquet")()]
    assert found == [(("x", "y"), 7.0), ((), None), ((), 0.0)]


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        ("name", "a\0", "name: holds the control character"),
        ("aliases", ["b"] * 100_000, "aliases: at most 1,000, got 100,000"),
        ("popularity", 10**400, "Number out of range"),
    ],
)
def test_what_json_can_say_and_a_name_cannot_be(tmp_path, field, value, fault):
    record = {"id": "2", "name": "a", field: value}
    lines = [json.dumps({"id": "1", "name": "a"}), json.dumps(record)]
    (tmp_path / "kb.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=rf"kb\.jsonl:2: .*{fault}"):
        list(read_entities(tmp_path / "kb.jsonl"))


def test_an_alias_or_popularity_of_another_type_is_named(tmp_path):
    file = tmp_path / "kb.jsonl"
    file.write_text('{"id": "1", "name": "a", "aliases": ["b", 3]}\n')
    with pytest.raises(DataError, match=r"kb\.jsonl:1: Expected `str`, got `int` - at `\$\.aliases\[1\]`"):
        list(read_entities(file))
    file.write_text('\n{"id": "1", "name": "a", "popularity": "many"}\n')
    with pytest.raises(DataError, match=r"kb\.jsonl:2: Expected .*float.* - at `\$\.popularity`"):
        list(read_entities(file))


def test_a_popularity_that_is_no_number_is_named_in_parquet(tmp_path):
    pq.write_table(
        pa.table({"id": ["1"], "name": ["a"], "popularity": [float("nan")]}), tmp_path / "kb.parquet"
    )
    with pytest.raises(DataError, match="row 1: popularity: expected a number from 0 on, got nan"):
        list(read_entities(tmp_path / "kb.parquet"))
