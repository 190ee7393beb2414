"""The sentence of a mention in a long text: what the model is given to read beside the mention.

Training data has one sentence or caption a mention: 7 to 13 words in the median of the published
sets, at most 35 for 95 % of them. So a mention gets the sentences that it lies in, as sentencex finds
them, and of a longer stretch the words around the mention: the model reads 40 tokens from the start,
and would otherwise see another part of a long sentence than that of its mention.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from mimic_engine.errors import InvalidInputError, MissingDependencyError

WORDS = 32
_WORD = re.compile(r"\S+")
Bounds = tuple[int, int]  # start and stop, in code points


class SentenceFinder:
    """Finds the sentence of each mention of one text.

    Parameters
    ----------
    text : the whole text.
    language : a tag such as "en" or "pt-BR", which decides what ends a sentence.
    words : most words of a sentence that are kept, those around the mention; 0 keeps all. A mention
        of more words is kept whole. Where a script sets no spaces between words, nothing is cut.

    Raises
    ------
    InvalidInputError
        If ``words`` is negative.
    MissingDependencyError
        If sentencex is not installed.
    """

    def __init__(self, text: str, language: str = "en", words: int = WORDS) -> None:
        if words < 0:
            raise InvalidInputError(f"words: must be at least 0, got {words}", field="words")
        self.text = text
        self.words = words
        bounds = _load_splitter()(language.partition("-")[0].lower() or "en", text)
        self._sentences = [(int(s["start_index"]), int(s["end_index"])) for s in bounds]

    def __call__(self, start: int, stop: int) -> str:
        """Text around the mention ``text[start:stop]``, which is part of it; ends are stripped."""
        touched = [s for s in self._sentences if s[0] < stop and s[1] > start]
        first = min([start, *(s[0] for s in touched)])
        last = max([stop, *(s[1] for s in touched)])
        if self.words:
            first, last = self._window(first, last, start, stop)
        while first < start and self.text[first].isspace():
            first += 1
        while last > stop and self.text[last - 1].isspace():
            last -= 1
        return self.text[first:last]

    def _window(self, first: int, last: int, start: int, stop: int) -> Bounds:
        """Of ``text[first:last]`` the words around the mention; what one side lacks the other gets."""
        spans = [m.span() for m in _WORD.finditer(self.text, first, last)]
        if len(spans) <= self.words:
            return first, last
        before, after = sum(b <= start for _, b in spans), sum(a >= stop for a, _ in spans)
        own = len(spans) - before - after
        room = max(0, self.words - own)
        left = min(before, max(room // 2, room - after))
        right = min(after, room - left)
        shown = spans[before - left : before + own + right]
        return min(start, shown[0][0]), max(stop, shown[-1][1])


def _load_splitter() -> Callable[[str, str], list[dict[str, int]]]:
    try:
        from sentencex import get_sentence_boundaries
    except ImportError as error:
        raise MissingDependencyError(
            "sentences of NIF documents need sentencex: pip install 'mimic-engine[nif]'"
        ) from error
    split: Callable[[str, str], list[dict[str, int]]] = get_sentence_boundaries
    return split
