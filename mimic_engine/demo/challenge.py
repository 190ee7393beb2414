"""The challenge set: mentions of ambiguous names, each read and labelled by hand.

``challenge.json`` holds our ids and gold labels and the way to each sentence
(article title, sentence index, character span, the head of the sentence's
SHA-256); the sentences themselves stay in the downloaded package.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from mimic_engine.demo.mentions import FoundMention, split_sentences
from mimic_engine.errors import DataError

HASH_CHARACTERS = 16


@dataclass(frozen=True, slots=True)
class ChallengeItem:
    """Where one challenge mention stands, and the title of the entity it means."""

    id: str
    article: str
    sentence: int  # index among the article's sentences
    start: int  # characters
    end: int
    sha256: str  # first 16 hex digits of the sentence's hash
    answer: str  # title of the gold entity


def load_items() -> tuple[ChallengeItem, ...]:
    """Read the challenge table that ships with the package."""
    text = resources.files(__package__).joinpath("challenge.json").read_text(encoding="utf-8")
    return tuple(ChallengeItem(**item) for item in json.loads(text))


def sentence_hash(sentence: str) -> str:
    """The table's entry for a sentence: the head of its SHA-256."""
    return hashlib.sha256(sentence.encode()).hexdigest()[:HASH_CHARACTERS]


def locate(item: ChallengeItem, wiki: Mapping[str, Mapping[str, Any]]) -> FoundMention:
    """Find the sentence of a challenge item; DataError where the article's text is another one."""
    if item.article not in wiki:
        raise DataError(f"challenge mention {item.id}: no article {item.article!r}")
    sentences = split_sentences(wiki[item.article]["extract"])
    if item.sentence >= len(sentences):
        raise DataError(
            f"challenge mention {item.id}: article {item.article!r} has {len(sentences)} sentences, "
            f"wanted index {item.sentence}"
        )
    sentence = sentences[item.sentence]
    if sentence_hash(sentence) != item.sha256:
        raise DataError(
            f"challenge mention {item.id}: sentence {item.sentence} of {item.article!r}: "
            f"sha256 expected {item.sha256}, got {sentence_hash(sentence)}"
        )
    return FoundMention(
        item.answer, item.article, item.sentence, sentence, item.start, item.end, kind="challenge"
    )
