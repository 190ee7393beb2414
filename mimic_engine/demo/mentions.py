"""Mentions with gold labels, found in article texts by rules that prefer silence to a wrong label.

Two kinds: *self*, a later sentence of an entity's own article that names its
subject; *cross*, another article that names a country or brand. A name inside
a longer name, next to other capitalised words, or ambiguous by
``tables.json`` (or because two entities share it) gives no mention.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mimic_engine.demo.match import SPLITS, DrawnArticle, Tables, base_name

_SENTENCE_END = re.compile(r"(?<=[.!?])[\"”)]?\s+(?=[A-Z0-9“\"(])")
_ABBREVIATION = re.compile(
    r"(?:\b[A-Z]|\b(?:St|Dr|Mr|Mrs|Ms|Jr|Sr|Mt|No|vs|c|ca|cf|e\.g|i\.e|lit|Inc|Ltd|Co))\.$"
)
_PREVIOUS_WORD = re.compile(r"([\w'’.-]+)\s+(of\s+(?:the\s+)?)?$")
_NEXT_CAPITAL = re.compile(r"(?:\s+[A-Z]|[–—/&]|\s+&)")
_OPENERS = frozenset(
    {"After", "Although", "And", "Apart", "As", "At", "Before", "Besides", "Between", "But", "By", "Both"}
    | {"During", "For", "From", "Historically", "If", "In", "Inside", "Into", "It", "Like", "Most", "Near"}
    | {"Of", "On", "Outside", "Over", "Since", "The", "Though", "Through", "Throughout", "To", "Today"}
    | {"Under", "Unlike", "Until", "When", "Where", "While", "With", "Within"}
)
TRAIN_PERCENT, DEV_PERCENT = 70, 10


@dataclass(frozen=True, slots=True)
class FoundMention:
    """A name at ``sentence[start:end]``, in sentence ``index`` of an article, and the title it means."""

    title: str  # of the gold entity
    article: str  # where the sentence stands
    index: int
    sentence: str
    start: int
    end: int
    kind: str  # "self", "cross" or "challenge"

    @property
    def surface(self) -> str:
        """The text that names the entity."""
        return self.sentence[self.start : self.end]


def split_sentences(text: str) -> list[str]:
    """Cut a text into sentences; not after an initial or a common abbreviation."""
    sentences, start = [], 0
    stripped = text.strip()
    for match in _SENTENCE_END.finditer(stripped):
        if _ABBREVIATION.search(stripped[start : match.start()]):
            continue
        sentences.append(stripped[start : match.end()].strip())
        start = match.end()
    rest = stripped[start:].strip()
    return [*sentences, rest] if rest else sentences


def split_of(sentence: str) -> str:
    """The split of a sentence, by a hash of its text: every mention in it goes to the same one."""
    percent = int.from_bytes(hashlib.sha256(sentence.encode()).digest()[:8], "big") % 100
    train, dev, test = SPLITS
    return train if percent < TRAIN_PERCENT else dev if percent < TRAIN_PERCENT + DEV_PERCENT else test


def surfaces(article: DrawnArticle) -> frozenset[str]:
    """The names an article may be mentioned by, as written in running text (things also in lower case)."""
    base = base_name(article.title)
    names = {base, re.sub(r",? Inc\.?$", "", base), re.sub(r"^The ", "", base)}
    if article.type == "thing":
        names |= {name[0].lower() + name[1:] for name in names}
        names |= {name + ending for name in tuple(names) for ending in ("s", "es")}
    return frozenset(names)


class MentionFinder:
    """Finds mentions of the demo's entities in sentences.

    Parameters
    ----------
    articles
        The entities.
    titles
        Titles of all articles: names of several words hide the shorter names inside them.
    tables
        The facts checked by hand.
    """

    def __init__(self, articles: Sequence[DrawnArticle], titles: Iterable[str], tables: Tables) -> None:
        owners = Counter(base_name(a.title).lower() for a in articles)
        self.ambiguous = {name.lower() for name in tables.ambiguous} | {n for n, k in owners.items() if k > 1}
        longer = {base_name(title) for title in titles if " " in base_name(title)} | set(tables.longer_names)
        by_word: dict[str, set[str]] = defaultdict(set)
        for phrase in longer:
            for word in re.findall(r"\w+", phrase.lower()):
                by_word[word].add(phrase)
        self._articles = {a.title: a for a in articles}
        self._names: dict[str, re.Pattern[str]] = {}
        self._longer: dict[str, re.Pattern[str] | None] = {}
        self._by_first_word: dict[str, list[str]] = defaultdict(list)
        for article in articles:
            names = {n for n in surfaces(article) if not self._is_ambiguous(n)}
            if not names:
                continue
            self._names[article.title] = _whole_words(names)
            self._longer[article.title] = _longer_names(names, by_word)
            for first in {re.findall(r"\w+", name)[0] for name in names}:
                self._by_first_word[first].append(article.title)

    def find_self(self, title: str, sentences: Sequence[str]) -> Iterator[FoundMention]:
        """Later sentences of the entity's own article that name it; the first is its description."""
        for index, sentence in enumerate(sentences[1:], start=1):
            place = self._find(title, sentence, beside_capitals=True)
            if place is not None:
                yield FoundMention(title, title, index, sentence, *place, kind="self")

    def find_cross(self, article: str, sentences: Sequence[str]) -> Iterator[FoundMention]:
        """Countries and brands that another article names: the first clear mention of each."""
        seen = {article}
        for index, sentence in enumerate(sentences):
            words = set(re.findall(r"\w+", sentence))
            candidates = {t for word in words & self._by_first_word.keys() for t in self._by_first_word[word]}
            for title in sorted(candidates - seen):
                if self._articles[title].type not in ("country", "brand"):
                    continue
                place = self._find(title, sentence, beside_capitals=False)
                if place is not None:
                    seen.add(title)
                    yield FoundMention(title, article, index, sentence, *place, kind="cross")

    def _is_ambiguous(self, name: str) -> bool:
        return any(form in self.ambiguous for form in (name.lower(), name.lower().removesuffix("s")))

    def _find(self, title: str, sentence: str, *, beside_capitals: bool) -> tuple[int, int] | None:
        if title not in self._names:
            return None
        longer = self._longer[title]
        hidden = [m.span() for m in longer.finditer(sentence)] if longer is not None else []
        for match in self._names[title].finditer(sentence):
            start, end = match.span()
            if any(a <= start and end <= b for a, b in hidden):
                continue
            if beside_capitals or stands_alone(sentence, start, end):
                return start, end
        return None


def stands_alone(sentence: str, start: int, end: int) -> bool:
    """Whether the name at ``sentence[start:end]`` is no part of a longer proper name.

    Rejected: ``Kingdom of Italy``, ``West Java``, ``China Airlines``,
    ``Niger–Congo``, ``ancient Egypt``. A capitalised first word of the
    sentence that only opens it (``In``, ``The``) does no harm.
    """
    if _NEXT_CAPITAL.match(sentence, end) or sentence[max(0, start - 1) : start] in ("–", "—", "/"):
        return False
    previous = _PREVIOUS_WORD.search(sentence[:start])
    if previous is None:
        return True
    word = previous.group(1)
    if word.lower() == "ancient":
        return False
    opens = previous.start(1) == 0 and word in _OPENERS and not previous.group(2)
    return opens or not word[0].isupper()


def find_all(
    articles: Sequence[DrawnArticle], wiki: Mapping[str, Mapping[str, Any]], tables: Tables
) -> list[FoundMention]:
    """Every self and cross mention, in the order of the articles' titles.

    ``wiki`` maps an article's title to its record; only ``extract`` is read.
    """
    finder = MentionFinder(articles, wiki, tables)
    entities = {article.title for article in articles}
    mentions: list[FoundMention] = []
    for title in sorted(wiki):
        sentences = split_sentences(wiki[title]["extract"])
        if title in entities:
            mentions.extend(finder.find_self(title, sentences))
        mentions.extend(finder.find_cross(title, sentences))
    return mentions


def _whole_words(names: Iterable[str]) -> re.Pattern[str]:
    alternatives = "|".join(re.escape(name) for name in sorted(names, key=lambda n: (-len(n), n)))
    return re.compile(rf"(?<![\w-])(?:{alternatives})(?![\w-])")


def _longer_names(names: Iterable[str], by_word: Mapping[str, set[str]]) -> re.Pattern[str] | None:
    """A pattern of the names that contain one of these and more, in any case; None where there are none."""
    own = {name.lower() for name in names}
    pattern = re.compile(rf"(?<![\w])(?:{'|'.join(re.escape(n) for n in sorted(own))})(?![\w])")
    near = {phrase for name in own for phrase in by_word.get(re.findall(r"\w+", name)[0], ())}
    longer = {p for p in near if p.lower() not in own and pattern.search(p.lower())}
    if not longer:
        return None
    ordered = sorted(longer, key=lambda p: (-len(p), p))
    return re.compile("|".join(re.escape(p) for p in ordered), re.IGNORECASE)
