"""The test catalogue: what its entities and mentions promise, its references, and what is written of it."""

import os
import re
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from PIL import Image

from benchmarks.catalogue.__main__ import main
from benchmarks.catalogue.catalogue import (
    Catalogue,
    CatalogueEntity,
    CatalogueMention,
    read_catalogue,
    style_of,
    write_catalogue,
)
from mimic_engine.data.images import ReadCounts
from mimic_engine.data.records import NIL, read_entities, read_mentions
from mimic_engine.demo.render import IconSet, image_path
from mimic_engine.errors import DataError

CATALOGUE = read_catalogue()
HANDS = {"noto", "twemoji", "fluent-emoji-flat", "openmoji"}
ENTITIES = {entity.id: entity for entity in CATALOGUE.entities}
ANSWERED = [m for m in CATALOGUE.mentions if m.answer != NIL]
LEFT_OUT = [m for m in CATALOGUE.mentions if m.answer == NIL]
SQUARE = {"body": '<path fill="#ff0000" d="M0 0h16v16H0z"/>'}


def names(entity: CatalogueEntity) -> set[str]:
    return {name.casefold() for name in (entity.name, *entity.aliases)}


BEARERS = defaultdict(set)
for _entity in CATALOGUE.entities:
    for _name in names(_entity):
        BEARERS[_name].add(_entity.id)


def bearers(surface: str) -> set[str]:
    """Ids of those that bear the name, or its singular."""
    return BEARERS.get(surface.casefold(), set()) | BEARERS.get(surface.casefold().removesuffix("s"), set())


def of(kind: str) -> list[CatalogueMention]:
    return [m for m in CATALOGUE.mentions if m.id.startswith(kind + "/")]


def test_ids_are_unique_and_alike() -> None:
    assert len(ENTITIES) == len(CATALOGUE.entities)
    assert all(re.fullmatch(r"P-\d{4}", name) for name in ENTITIES)
    assert len({m.id for m in CATALOGUE.mentions}) == len(CATALOGUE.mentions)


def test_entities_are_as_many_and_as_uneven_as_was_meant() -> None:
    words = [len(e.description.split()) for e in CATALOGUE.entities if e.description is not None]
    assert 80 <= len(ENTITIES) <= 100
    assert sum(count >= 80 for count in words) == 10
    assert min(words) >= 10
    assert len(ENTITIES) - len(words) == 8
    assert sum(len(e.images) > 1 for e in CATALOGUE.entities) == 15
    assert sum(not e.images for e in CATALOGUE.entities) == 10
    assert sum(bool(e.aliases) for e in CATALOGUE.entities) > len(ENTITIES) / 2


def test_names_are_shared() -> None:
    shared = {name for name, ids in BEARERS.items() if len(ids) > 1}
    assert len(shared) >= 40
    assert all(names(entity) & shared for entity in CATALOGUE.entities)
    assert all(len(names(e)) == 1 + len(e.aliases) for e in CATALOGUE.entities)


def test_images_of_an_entity_are_the_same_thing_by_different_hands() -> None:
    shown = Counter()
    for entity in CATALOGUE.entities:
        assert len({style_of(d) for d in entity.images}) == len(entity.images)
        shown.update({d.partition(":")[2] for d in entity.images})
        assert len({d.partition(":")[2] for d in entity.images}) <= 1
    assert set(shown.values()) == {1}  # no two entities look alike
    assert CATALOGUE.styles() == HANDS


def test_descriptions_and_sentences_are_said_once() -> None:
    texts = [e.description for e in CATALOGUE.entities if e.description is not None]
    texts += [m.sentence for m in CATALOGUE.mentions]
    assert len({" ".join(re.findall(r"\w+", text.lower())) for text in texts}) == len(texts)


@pytest.mark.parametrize("mention", CATALOGUE.mentions, ids=lambda m: m.id)
def test_a_mention_stands_once_in_its_sentence(mention: CatalogueMention) -> None:
    assert len(re.findall(rf"(?<![\w-]){re.escape(mention.mention)}(?![\w-])", mention.sentence)) == 1


def test_mentions_are_as_many_of_each_kind_as_was_meant() -> None:
    kinds = Counter(m.id.rpartition("/")[0] for m in CATALOGUE.mentions)
    assert kinds == {"text": 60, "image": 35, "both": 25, "nil/borne": 15, "nil/unknown": 15}
    assert len(ANSWERED) == 120
    assert {m.id.partition("/")[0] for m in LEFT_OUT} == {"nil"}
    assert sum(m.image is not None for m in ANSWERED) == 60
    assert all((m.image is None) == m.id.startswith("text/") for m in ANSWERED)


def test_every_answer_is_an_entity_and_every_entity_an_answer() -> None:
    assert {m.answer for m in ANSWERED} == set(ENTITIES)


def test_an_image_of_a_mention_is_by_a_hand_that_its_entity_does_not_know() -> None:
    for mention in ANSWERED:
        if mention.image is not None:
            images = ENTITIES[mention.answer].images
            assert style_of(mention.image) not in {style_of(d) for d in images}, mention.id
            assert {d.partition(":")[2] for d in images} == {mention.image.partition(":")[2]}, mention.id


def test_surfaces_are_ambiguous_and_varied() -> None:
    borne = [bearers(m.mention) for m in ANSWERED]
    assert sum(len(ids) > 1 for ids in borne) >= 100
    assert all(m.answer in ids for m, ids in zip(ANSWERED, borne, strict=True) if ids)
    assert all(len(bearers(m.mention)) > 1 for m in of("image"))
    assert sorted(m.mention for m, ids in zip(ANSWERED, borne, strict=True) if not ids) == [
        "Medjool",  # the first part of a name
        "Traffic",
        "set sqaure",
        "stpowatch",
    ]


def test_what_is_not_in_the_list_bears_a_name_of_it_or_not() -> None:
    assert all(bearers(m.mention) for m in of("nil/borne"))
    assert not any(bearers(m.mention) for m in of("nil/unknown"))
    assert [sum(m.image is not None for m in of(k)) for k in ("nil/borne", "nil/unknown")] == [8, 7]
    assert not {str(m.image).partition(":")[2] for m in LEFT_OUT} & {
        d.partition(":")[2] for e in CATALOGUE.entities for d in e.images
    }


@pytest.fixture
def small() -> Catalogue:
    """One entity, a mention of it, and one of something else."""
    entity = CatalogueEntity("P-1", "Key", ("church key",), "home", ("ink:key",), None)
    mentions = (
        CatalogueMention("image/1", "key", "The key.", "oil:key", "P-1"),
        CatalogueMention("nil/borne/1", "key", "A song’s key.", None, NIL),
    )
    return Catalogue((entity,), mentions)


@pytest.fixture
def sets() -> dict[str, IconSet]:
    return {style: IconSet(style, {"icons": {"key": SQUARE}}) for style in ("ink", "oil")}


def test_what_is_written_is_read_by_the_reader_of_records(
    small: Catalogue, sets: dict[str, IconSet], tmp_path: Path
) -> None:
    write_catalogue(small, sets, tmp_path, progress=False)
    (entity,) = read_entities(tmp_path / "kb.jsonl")
    assert (entity.id, entity.name, entity.description, entity.type) == ("P-1", "Key", "", "home")
    assert entity.aliases == ("church key",)
    assert entity.images == (image_path(tmp_path / "pictures", "ink:key"),)
    first, second = read_mentions(tmp_path / "test.jsonl")
    assert (first.mention.mention, first.mention.sentence, first.answer) == ("key", "The key.", "P-1")
    assert first.mention.image == image_path(tmp_path / "pictures", "oil:key")
    assert (second.mention.sentence, second.mention.image, second.answer) == ("A song’s key.", None, NIL)


@pytest.mark.parametrize("drawing", ["ink:lock", "chalk:key", "key", ""])
def test_a_drawing_that_is_not_there_is_named_with_its_owner(
    small: Catalogue, sets: dict[str, IconSet], tmp_path: Path, drawing: str
) -> None:
    entity = msgspec.structs.replace(small.entities[0], images=(drawing,))
    with pytest.raises(DataError, match=f"entity 'P-1' names '{drawing}'"):
        write_catalogue(replace(small, entities=(entity,)), sets, tmp_path / "out", progress=False)
    mention = msgspec.structs.replace(small.mentions[0], image=drawing)
    with pytest.raises(DataError, match=f"mention 'image/1' names '{drawing}'"):
        write_catalogue(replace(small, mentions=(mention,)), sets, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_a_style_that_the_demo_does_not_have_fails_in_words(
    small: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.catalogue.__main__.read_catalogue", lambda: small)
    assert main(["--out", str(tmp_path / "out"), "--cache", str(tmp_path)]) == 1
    assert "no drawing styles ['ink', 'oil']" in capsys.readouterr().err


@pytest.fixture(scope="module")
def cache() -> Path:
    folder = os.environ.get("MIMIC_DEMO_CACHE")
    if folder is None:
        pytest.skip("MIMIC_DEMO_CACHE is not set: no folder to fetch the demo's drawings into")
    return Path(folder)


@pytest.fixture(scope="module")
def written(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("catalogue")
    assert main(["--out", str(folder), "--cache", str(cache), "--quiet"]) == 0
    return folder


def test_real_references_resolve_and_drawings_are_images(written: Path) -> None:
    drawings = {drawing for _, drawing in CATALOGUE.drawings()}
    files = {path for path in (written / "pictures").rglob("*") if path.is_file()}
    assert files == {image_path(written / "pictures", drawing) for drawing in drawings}
    for file in files:
        with Image.open(file) as image:
            assert (image.size, image.mode) == ((224, 224), "RGB")
            assert len(image.getcolors(224 * 224)) > 1, file  # something is drawn
    assert len({file.read_bytes() for file in files}) == len(files)  # no hand copies another


def test_real_records_are_read_in_full(written: Path) -> None:
    counts, images = ReadCounts(), sum(len(e.images) for e in CATALOGUE.entities)
    entities = list(read_entities(written / "kb.jsonl", counts=counts))
    assert [e.id for e in entities] == list(ENTITIES)
    assert sum(len(e.images) for e in entities) == images
    answered = list(read_mentions(written / "test.jsonl", entity_ids=set(ENTITIES), counts=counts))
    assert [m.id for m in answered] == [m.id for m in ANSWERED]
    assert counts.nil_skipped == 30
    assert len(list(read_mentions(written / "test.jsonl"))) == 150


def test_real_output_is_the_same_each_time(written: Path, cache: Path, tmp_path: Path) -> None:
    assert main(["--out", str(tmp_path), "--cache", str(cache), "--quiet"]) == 0
    contents = [
        {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        for folder in (written, tmp_path)
    ]
    assert contents[0] == contents[1]
