"""MIMIC's published format: what is read, what is counted, what is refused and how it is named."""

import json

import pytest

from mimic_engine.data.images import ReadCounts
from mimic_engine.data.mimic_format import read_entities, read_mentions
from mimic_engine.errors import DataError
from mimic_engine.types import Entity, LabelledMention, Mention


def entity(number, qid, name="Name", attr="", images=()):
    return {
        "id": number,
        "official_id": number,
        "qid": qid,
        "type": "entity",
        "entity_name": name,
        "attr": attr,
        "image_list": list(images),
    }


def mention(record_id, answer, text="Name", sentence="A sentence.", image=""):
    return {
        "id": record_id,
        "sentence": sentence,
        "imgPath": image,
        "mentions": text,
        "entities": "Name",
        "answer": answer,
    }


@pytest.fixture
def folder(tmp_path):
    """A data set of three entities and five test mentions, its pictures beside it."""
    data = tmp_path / "WikiMEL"
    data.mkdir()
    (tmp_path / "kb_image").mkdir()
    (tmp_path / "mention_image").mkdir()
    (tmp_path / "kb_image" / "a.jpg").touch()
    (tmp_path / "kb_image" / "b.jpg").touch()
    (tmp_path / "mention_image" / "m.JPG").touch()
    write(
        data / "kb_entity.json",
        [
            entity(0, "Q1", "Caf%C3%A9%20M%C3%BCller", "attr%20stays", ["a.jpg", "b.jpg"]),
            entity(1, "Q2", "100% Cotton", images=["gone.jpg", "b.jpg"]),
            entity(2, "Q3"),
        ],
    )
    write(data / "qid2id.json", {"Q1": 0, "Q2": 1, "Q3": 2})
    write(
        data / "WIKIMEL_test.json",
        [
            mention("7", "Q1", " David James\nDai James (David James", "two\n\nlines ", "m.JPG"),
            mention(8, "Q2", image="gone.jpg"),
            mention(8, "Q3", image=None),
            mention(9, "nil"),
            mention(10, "NIL", image="m.JPG"),
        ],
    )
    return data


def write(file, value):
    file.write_text(json.dumps(value), encoding="utf-8")


def mentions_of(folder, split="test", **options):
    return list(read_mentions(folder, split, entity_ids={"Q1", "Q2", "Q3"}, **options))


def test_entities(folder):
    counts = ReadCounts()
    a = folder.parent / "kb_image" / "a.jpg"
    assert list(read_entities(folder, counts=counts)) == [
        Entity("Q1", "Café Müller", "attr%20stays", (a, a.with_name("b.jpg")), "entity"),
        Entity("Q2", "100% Cotton", "", (), "entity"),
        Entity("Q3", "Name", "", (), "entity"),
    ]
    assert counts == ReadCounts(records=3, with_image=1, missing_images=1)


def test_without_the_first_picture_the_others_do_not_count(folder):
    second = list(read_entities(folder))[1]
    assert second.images == ()
    (folder.parent / "kb_image" / "gone.jpg").touch()
    second = list(read_entities(folder))[1]
    assert [image.name for image in second.images] == ["gone.jpg", "b.jpg"]


def test_mentions(folder):
    counts = ReadCounts()
    picture = folder.parent / "mention_image" / "m.JPG"
    assert mentions_of(folder, counts=counts) == [
        LabelledMention(Mention(" David James\nDai James (David James", "two\n\nlines ", picture), "Q1", "7"),
        LabelledMention(Mention("Name", "A sentence.", None), "Q2", "8"),
        LabelledMention(Mention("Name", "A sentence.", None), "Q3", "8"),
    ]
    assert counts == ReadCounts(records=3, with_image=1, missing_images=1, nil_skipped=2)


def test_pictures_inside_the_folder_come_first(folder):
    (folder / "kb_image").mkdir()
    (folder / "kb_image" / "gone.jpg").touch()
    first, second, _ = read_entities(folder)
    assert first.images == ()
    assert second.images == (folder / "kb_image" / "gone.jpg",)


def test_pictures_elsewhere(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "kb_image").mkdir(parents=True)
    (elsewhere / "kb_image" / "a.jpg").touch()
    assert next(read_entities(folder, images=elsewhere)).images == (elsewhere / "kb_image" / "a.jpg",)
    with pytest.raises(DataError, match="has no folder mention_image"):
        mentions_of(folder, images=elsewhere)


def test_a_relative_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    counts = ReadCounts()
    list(read_entities(folder.relative_to(folder), counts=counts))
    assert counts.with_image == 1


def test_without_numbers(folder):
    (folder / "qid2id.json").unlink()
    assert len(list(read_entities(folder))) == 3


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"Q1": 0, "Q2": 5, "Q3": 2}, r"kb_entity\.json: record 1: id 1 of 'Q2' is 5 in qid2id\.json"),
        ({"Q1": 0, "Q3": 2}, "record 1: id 1 of 'Q2' is None"),
        ({"Q1": "zero"}, r"qid2id\.json: Expected `int`"),
        ([], r"qid2id\.json: Expected `object`"),
    ],
)
def test_numbers_that_disagree(folder, numbers, message):
    write(folder / "qid2id.json", numbers)
    with pytest.raises(DataError, match=message):
        list(read_entities(folder))


def without(record, field):
    return {k: v for k, v in record.items() if k != field}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (entity(1, "Q1"), r"kb_entity\.json: record 1: qid 'Q1' comes twice"),
        (entity(1, ""), "record 1: qid is empty"),
        (without(entity(1, "Q9"), "attr"), r"record 1: .*missing required field `attr`.*id 'Q9'"),
        (without(entity(1, "Q9"), "qid"), r"record 1: .*missing required field `qid`.*id 1\)"),
        (entity(1, "Q9", name=3), r"record 1: Expected `str`, got `int` - at `\$\.entity_name`.*'Q9'"),
        (entity(1, "Q9") | {"image_list": "a.jpg"}, r"record 1: .*`array`.*image_list"),
        (entity("1", "Q9"), r"record 1: .*`int`"),
        (["a list"], "record 1: Expected `object`"),
        (entity(1, "Q9", name="\ud800"), r"kb_entity\.json: not a JSON list of records .*byte"),
    ],
)
def test_bad_entities(folder, bad, message):
    (folder / "qid2id.json").unlink()
    write(folder / "kb_entity.json", [entity(0, "Q1"), bad])
    with pytest.raises(DataError, match=message):
        list(read_entities(folder))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            mention(4, "Q404"),
            r"WIKIMEL_test\.json: record 1 \(id 4\): answer 'Q404' is not in kb_entity\.json",
        ),
        (mention(4, ""), "answer '' is not in"),
        (mention(4, None), r"record 1: Expected `str`, got `null` - at `\$\.answer` \(id 4\)"),
        (without(mention(4, "Q1"), "sentence"), "record 1: .*missing required field `sentence`"),
        (without(mention(4, "Q1"), "imgPath"), "record 1: .*missing required field `imgPath`"),
        (mention(4, "Q1", text=["a"]), "record 1: .*mentions"),
        (mention(4.5, "Q1"), "record 1: .*`int | str`"),
    ],
)
def test_bad_mentions(folder, bad, message):
    write(folder / "WIKIMEL_test.json", [mention(1, "Q1"), bad])
    with pytest.raises(DataError, match=message):
        mentions_of(folder)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1, 2", b"null", b'["\xff"]', b"[{}] trailing"])
def test_damaged_files(folder, content):
    (folder / "kb_entity.json").write_bytes(content)
    with pytest.raises(DataError, match=r"kb_entity\.json"):
        list(read_entities(folder))


def test_missing_files(folder, tmp_path):
    with pytest.raises(DataError, match=r"kb_entity\.json: cannot be read"):
        list(read_entities(tmp_path))
    with pytest.raises(DataError, match=r"one file \*_dev\.json is needed for split 'dev', found none"):
        mentions_of(folder, "dev")
    write(folder / "other_test.json", [])
    with pytest.raises(DataError, match=r"found WIKIMEL_test\.json, other_test\.json"):
        mentions_of(folder)


def test_empty_lists(folder):
    (folder / "qid2id.json").unlink()
    write(folder / "kb_entity.json", [])
    write(folder / "WIKIMEL_test.json", [])
    assert list(read_entities(folder)) == []
    assert mentions_of(folder) == []
