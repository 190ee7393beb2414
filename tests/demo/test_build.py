"""Building the demo: from a made-up package in every run, from the real one where its cache is at hand."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from mimic_engine.demo import DemoData, DemoFiles, build_demo, read_demo
from mimic_engine.demo import build as build_module
from mimic_engine.demo.archives import ICON_SETS
from mimic_engine.demo.challenge import ChallengeItem, sentence_hash
from mimic_engine.demo.match import slug
from mimic_engine.errors import DataError
from mimic_engine.types import LabelledMention

SPLITS = ("train", "dev", "test")
SENTENCES = [f"Story number {i} is about Peru." for i in range(40)]
CHALLENGE = ChallengeItem(
    "challenge/1", "Story 3", 0, 24, 28, sentence_hash(SENTENCES[3]), "Peru"
)  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> DemoFiles:
    wiki = {f"Story {i}": {"extract": text, "description": None} for i, text in enumerate(SENTENCES)}
    wiki["Peru"] = {"extract": "Peru is a country. It is high.", "description": "Country in South America"}
    emoji = [{"label": "flag: Peru", "hexcode": "1F1F5-1F1EA", "group": 9}]
    body = {"body": '<path fill="#ff0000" d="M0 0h16v16H0z"/>'}
    icons = {style: {"icons": {"flag-peru": body, "pe-4x3": body, "pe-1x1": body}} for style in ICON_SETS}
    folder = tmp_path / "files"
    folder.mkdir()
    for name, data in {"wiki": wiki, "emojibase": emoji, **icons}.items():
        (folder / f"{name}.json").write_text(json.dumps(data), encoding="utf-8")
    paths = {style: folder / f"{style}.json" for style in icons}
    return DemoFiles(folder / "wiki.json", folder / "emojibase.json", paths)


@pytest.fixture(autouse=True)
def one_challenge_item(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "load_items", lambda: (CHALLENGE,))


def sentences(demo: DemoData) -> dict[str, set[str]]:
    return {
        name: {m.mention.sentence for m in mentions}
        for name, mentions in {**demo.mentions, "challenge": demo.challenge}.items()
    }


def styles(mentions: tuple[LabelledMention, ...]) -> set[str]:
    return {Path(str(m.mention.image)).parent.name for m in mentions if m.mention.image is not None}


def assert_disjoint(parts: Mapping[str, set[str]]) -> None:
    assert sum(len(part) for part in parts.values()) == len(set().union(*parts.values()))


def test_build_gives_entities_mentions_and_pictures(files: DemoFiles, tmp_path: Path) -> None:
    demo = build_demo(files, tmp_path / "cache", progress=False)
    (peru,) = demo.entities
    assert (peru.id, peru.name, peru.type) == ("peru", "Peru", "country")
    assert peru.description == "Country in South America. Peru is a country."
    assert sum(len(mentions) for mentions in demo.mentions.values()) == len(SENTENCES) - 1
    assert {s: styles(demo.mentions[s]) for s in SPLITS} == {
        "train": {"twemoji"},
        "dev": {"flag"},
        "test": {"openmoji"},
    }
    assert [m.mention.mention for m in demo.challenge] == ["Peru"]
    assert_disjoint(sentences(demo))
    for image in peru.images:
        with Image.open(Path(str(image))) as picture:
            assert picture.size == (224, 224)


def test_second_build_reads_and_a_moved_cache_still_works(files: DemoFiles, tmp_path: Path) -> None:
    first = build_demo(files, tmp_path / "cache", progress=False)
    for path in (files.wiki, files.emojibase, *files.icons.values()):
        path.unlink()
    assert build_demo(files, tmp_path / "cache", progress=False) == first
    moved = (tmp_path / "cache").rename(tmp_path / "moved")
    assert [e.id for e in build_demo(files, moved, progress=False).entities] == ["peru"]


@pytest.mark.parametrize("damage", ["train.jsonl", "demo.json", "picture", "recipe"])
def test_damaged_or_outdated_demo_is_built_again(
    files: DemoFiles, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    first = build_demo(files, cache, progress=False)
    if damage == "picture":
        (cache / "pictures" / "flag" / "pe-4x3.png").unlink()
    elif damage == "recipe":
        monkeypatch.setattr(build_module, "RECIPE", -1)
    else:
        (cache / damage).write_text("{", encoding="utf-8")
    assert not build_module._is_built(cache)
    assert build_demo(files, cache, progress=False) == first
    assert build_module._is_built(cache)


def test_reading_a_demo_that_was_never_built_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not built"):
        read_demo(tmp_path)


def test_challenge_answer_must_be_an_entity(
    files: DemoFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = ChallengeItem("c", "Story 3", 0, 0, 5, CHALLENGE.sha256, "Story 3")
    monkeypatch.setattr(build_module, "load_items", lambda: (item,))
    with pytest.raises(DataError, match="Story 3"):
        build_demo(files, tmp_path / "cache", progress=False)


def test_unreadable_texts_are_named(files: DemoFiles, tmp_path: Path) -> None:
    files.wiki.write_text("[", encoding="utf-8")
    with pytest.raises(DataError, match=r"wiki\.json"):
        build_demo(files, tmp_path / "cache", progress=False)


@pytest.fixture(scope="module")
def real() -> DemoData:
    folder = os.environ.get("MIMIC_DEMO_CACHE")
    if folder is None:
        pytest.skip("MIMIC_DEMO_CACHE (a folder that `python -m mimic_engine.demo` filled) is not set")
    return read_demo(Path(folder))


def test_real_demo_has_its_size_and_consistent_ids(real: DemoData) -> None:
    ids = [entity.id for entity in real.entities]
    mentions = [m for split in SPLITS for m in real.mentions[split]]
    assert len(ids) == len(set(ids)) >= 590
    assert len({m.id for m in mentions}) == len(mentions) >= 5000
    assert {m.answer for m in (*mentions, *real.challenge)} <= set(ids)
    assert all(e.id == slug(e.name) and e.description for e in real.entities)
    assert all(m.mention.mention in m.mention.sentence for m in (*mentions, *real.challenge))


def test_real_splits_share_no_sentence_and_test_styles_are_unseen(real: DemoData) -> None:
    assert_disjoint(sentences(real))
    assert styles(real.mentions["train"]) == {"twemoji"}
    assert not styles(real.mentions["test"]) & styles(real.mentions["train"])
    assert styles(real.mentions["test"]) == {"openmoji", "simple-icons"}
    assert styles(real.challenge) == {"openmoji", "simple-icons"}


def test_real_gold_has_no_ambiguous_name(real: DemoData) -> None:
    surfaces = {m.mention.mention.lower() for split in SPLITS for m in real.mentions[split]}
    assert not surfaces & {"georgia", "amazon", "java", "c", "ireland", "guinea", "niger", "jordan", "turkey"}
    assert not surfaces & {"chad", "apple", "apples", "orange", "cricket", "mouse", "football", "windows"}


def test_real_challenge_is_large_and_always_has_a_picture(real: DemoData) -> None:
    assert len(real.challenge) >= 100
    assert all(m.mention.image is not None for m in real.challenge)


def test_real_pictures_open(real: DemoData) -> None:
    images = {Path(str(image)) for entity in real.entities for image in entity.images}
    for image in sorted(images)[::37]:
        with Image.open(image) as picture:
            assert (picture.size, picture.mode) == ((224, 224), "RGB")
