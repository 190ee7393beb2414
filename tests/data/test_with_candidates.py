"""Published mentions with candidates: both layouts, what is counted, what is refused and how it is named."""

import hashlib
import json
from pathlib import Path

import pytest

from mimic_engine.data.mimic_format import read_entities
from mimic_engine.data.with_candidates import CandidateCounts, MentionWithCandidates, read_with_candidates
from mimic_engine.errors import DataError
from mimic_engine.types import Entity, LabelledMention, Mention

ENTITIES = [
    Entity("Q1", "Detroit Lions"),
    Entity("Q2", "Café Müller"),
    Entity("Q3", "Lion"),
    Entity("Q4", "Twin"),
    Entity("Q5", "Twin"),
]


def record(answer="Q1", candidates=("Q1", "Q3"), **other):
    fields = {"id": 7, "sentence": "The Lions.", "imgPath": "", "mentions": "Lions", "entities": "x"}
    return fields | {"answer": answer, "candidates": list(candidates)} | other


def row(
    entity="https://en.wikipedia.org/wiki/Detroit_Lions",
    candidates=("Lion",),
    image="http://i.test/a%20b.SVG",
):
    return ["The Lions (2007).", image, "Lions", "Organization", "The", ["(", "2007"], entity, list(candidates), "sports", 4, 9]  # fmt: skip


@pytest.fixture
def read(tmp_path):
    """Read records that are given as data; the mentions and the counts."""

    def run(records: object) -> tuple[list[MentionWithCandidates], CandidateCounts]:
        path = tmp_path / "x_test_with_candidates.json"
        path.write_text(json.dumps(records, ensure_ascii=False), "utf-8")
        counts = CandidateCounts()
        return list(read_with_candidates(path, ENTITIES, counts=counts)), counts

    return run


def test_mimics_records_with_candidates(read, tmp_path):
    (tmp_path / "mention_image").mkdir()
    (tmp_path / "mention_image" / "m.jpg").touch()
    found, counts = read(
        [
            record(candidates=["Q3", {"qid": "Q1", "label": "Detroit Lions"}, "Q3", "Q99"], imgPath="m.jpg"),
            record("Q2", [], id="b", imgPath="gone.jpg"),
            record("Q99", ["Q1"], imgPath=None),
            record("nil", ["Q1"]),
        ]
    )
    picture = tmp_path / "mention_image" / "m.jpg"
    assert found == [
        MentionWithCandidates(
            LabelledMention(Mention("Lions", "The Lions.", picture), "Q1", "7"), ("Q3", "Q1")
        ),
        MentionWithCandidates(LabelledMention(Mention("Lions", "The Lions."), "Q2", "b"), ()),
        MentionWithCandidates(LabelledMention(Mention("Lions", "The Lions."), "", "7"), ("Q1",)),
    ]
    assert counts == CandidateCounts(3, 1, 1, 1, 3, 1, 1, 1)


def test_wikidiverses_rows(read, tmp_path):
    name = hashlib.md5(b"a%20b.SVG").hexdigest() + ".png"
    (tmp_path / "mention_image").mkdir()
    (tmp_path / "mention_image" / name).touch()
    candidates = [
        "Lion",
        "ttps://en.wikipedia.org/wiki/Caf%C3%A9_M%C3%BCller",
        " https://en.wikipedia.org/wiki/Lion",
        "Twin",
    ]
    found, counts = read(
        [
            row(candidates=candidates),
            row("]https://en.wikipedia.org/wiki/Lion", image="", candidates=[]),
            row("nil"),
            row("Nowhere", image=None),
        ]
    )
    mention = Mention("Lions", "The Lions (2007).")
    with_picture = Mention(mention.mention, mention.sentence, tmp_path / "mention_image" / name)
    assert found == [
        MentionWithCandidates(LabelledMention(with_picture, "Q1", "0"), ("Q3", "Q2")),
        MentionWithCandidates(LabelledMention(mention, "Q3", "1"), ()),
        MentionWithCandidates(LabelledMention(mention, "", "3"), ("Q3",)),
    ]
    assert counts == CandidateCounts(3, 1, 0, 1, 3, 1, 1, 1)


def test_longer_rows_are_read_too(read):
    assert len(read([[*row(), "path", True]])[0]) == 1


def test_an_id_wins_over_a_name(tmp_path):
    (tmp_path / "f.json").write_text(json.dumps([record("Q1", ["Q1"])]), "utf-8")
    entities = [Entity("Q9", "Q1"), Entity("Q1", "x")]
    assert next(read_with_candidates(tmp_path / "f.json", entities)).candidates == ("Q1",)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ({"a": 1}, "not a JSON list of records"),
        (
            [record(), {k: v for k, v in record().items() if k != "candidates"}],
            "record 1: .*`candidates`.*id 7",
        ),
        ([record(candidates=[3])], r"record 0: .*\$\.candidates\[0\]"),
        ([record(candidates=[{"id": "Q1"}])], "record 0: .*`qid`"),
        ([row()[:7]], "record 0: "),
        ([row(candidates=[1])], "record 0: "),
        (["Q1"], "record 0: "),
    ],
)
def test_what_is_wrong_is_named(read, records, message):
    with pytest.raises(DataError, match=message) as caught:
        read(records)
    assert "x_test_with_candidates.json" in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match=r"gone\.json: cannot be read"):
        list(read_with_candidates(tmp_path / "gone.json", ENTITIES))


def test_real_titles_name_real_entities(mel_data: Path, tmp_path: Path):
    """WikiDiverse's entities bear the titles of their articles, all but a few."""
    folder = mel_data / "WikiDiverse"
    mentions = json.loads((folder / "wiki_diverse_dev.json").read_text("utf-8"))
    url = "https://en.wikipedia.org/wiki/"
    rows = [row(url + m["entities"].replace(" ", "_"), [m["entities"]], "") for m in mentions]
    (tmp_path / "dev_w_10cands.json").write_text(json.dumps(rows), "utf-8")
    found = list(read_with_candidates(tmp_path / "dev_w_10cands.json", read_entities(folder)))
    right = [one.labelled.answer == m["answer"] for one, m in zip(found, mentions, strict=True)]
    assert len(found) == 1664 and sum(right) / len(right) > 0.99
    assert all(one.candidates == (one.labelled.answer,) for one in found if one.labelled.answer)
