"""Made-up names in the proportions of real ones: Zipf's law over words, one to four words a name."""

from __future__ import annotations

import numpy as np

_ONSETS = [
    "b",
    "br",
    "c",
    "ch",
    "d",
    "dr",
    "f",
    "fl",
    "g",
    "gr",
    "h",
    "j",
    "k",
    "kl",
    "l",
    "m",
    "n",
    "p",
    "pr",
]
_ONSETS += ["r", "s", "sch", "st", "t", "tr", "v", "w", "z"]
_VOWELS = ["a", "e", "i", "o", "u", "ai", "ei", "ou", "ie", "ea"]
_CODAS = ["", "", "", "n", "r", "l", "s", "t", "m", "nd", "rt", "ck", "ng", "ss", "tz"]
_LENGTHS = (0.15, 0.6, 0.18, 0.07)  # shares of names of one to four words
_ZIPF = 0.8


def make_names(count: int, seed: int = 0) -> list[str]:
    """``count`` names, the same for the same seed."""
    rng = np.random.default_rng(seed)
    words = _vocabulary(max(50, count // 5), rng)
    chances = np.arange(1, len(words) + 1) ** -_ZIPF
    lengths = rng.choice(len(_LENGTHS), count, p=_LENGTHS) + 1
    drawn = rng.choice(len(words), int(lengths.sum()), p=chances / chances.sum())
    ends = np.cumsum(lengths)
    return [" ".join(words[w] for w in drawn[end - n : end]) for end, n in zip(ends, lengths, strict=True)]


def make_surfaces(names: list[str], count: int, seed: int = 1) -> tuple[list[int], list[str]]:
    """Numbers of some names, and surfaces that mean them: a third as it is, or its last word, or misspelt."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, len(names), count).tolist()
    return chosen, [_changed(names[row], i % 3, rng) for i, row in enumerate(chosen)]


def _changed(name: str, how: int, rng: np.random.Generator) -> str:
    if how == 0:
        return name
    if how == 1:
        return name.rpartition(" ")[2]
    at = int(rng.integers(0, len(name)))
    return name[:at] + name[at + 1 :] if len(name) > 3 else name


def _vocabulary(count: int, rng: np.random.Generator) -> list[str]:
    syllables = rng.integers(1, 4, count)
    parts = [rng.choice(len(choices), int(syllables.sum())) for choices in (_ONSETS, _VOWELS, _CODAS)]
    texts = [_ONSETS[o] + _VOWELS[v] + _CODAS[c] for o, v, c in zip(*parts, strict=True)]
    ends = np.cumsum(syllables)
    return ["".join(texts[end - n : end]) for end, n in zip(ends, syllables, strict=True)]
