"""Linking of the annotations of NIF documents: the same documents back, with what the linker says they name.

The confidence of an answer is its share among the best ten candidates under a softmax of their scores: it
lies in (0, 1], as ITS asks for, and orders answers, but is not calibrated. A NIL answer names
``http://aksw.org/notInWiki/`` and the surface form, which GERBIL takes for an emerging entity; without a
URI it would take the mention for one that nobody has linked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from urllib.parse import quote

import numpy as np

from mimic_engine.engine.linker import Linker
from mimic_engine.nif.documents import NifAnnotation, NifDocument
from mimic_engine.nif.mentions import EntityUris, NifMention, read_mentions
from mimic_engine.nif.sentences import WORDS
from mimic_engine.types import LinkResult, Mode

NOT_IN_WIKI = "http://aksw.org/notInWiki/"
AMONG = 10  # candidates that share the confidence
BATCH = 32


@dataclass(frozen=True, slots=True)
class NifAnswers:
    """Options of the answers to annotations.

    ``words`` bounds a mention's sentence; below ``nil_threshold`` the best candidate is no answer.
    """

    uris: EntityUris = field(default_factory=EntityUris)
    words: int = WORDS
    mode: Mode = "certified"
    nil_threshold: float | None = None


def link_documents(
    linker: Linker, documents: Iterable[NifDocument], answers: NifAnswers | None = None
) -> list[NifDocument]:
    """Every document with its annotations answered; what they named before is dropped.

    Raises
    ------
    InvalidInputError
        If the mode cannot be answered in, ``words`` is negative, or an entity id has no URI.
    MissingDependencyError
        If sentencex is not installed.
    """
    answers = answers or NifAnswers()
    documents = list(documents)
    mentions = chain.from_iterable(read_mentions(d, answers.uris, words=answers.words) for d in documents)
    annotations = _linked(linker, mentions, answers)
    return [replace(d, annotations=tuple(islice(annotations, len(d.annotations)))) for d in documents]


def confidence(scores: Sequence[float]) -> float:
    """Share of the first of descending scores under a softmax of them all, in (0, 1]."""
    values = np.asarray(scores, np.float64)
    return float(1 / np.exp(values - values[0]).sum())


def _linked(linker: Linker, mentions: Iterator[NifMention], answers: NifAnswers) -> Iterator[NifAnnotation]:
    top_k = min(AMONG, len(linker.index))
    while batch := list(islice(mentions, BATCH)):
        results = linker.link([one.mention for one in batch], top_k, mode=answers.mode)
        for one, result in zip(batch, results, strict=True):
            yield _answered(one, result, answers)


def _answered(one: NifMention, result: LinkResult, answers: NifAnswers) -> NifAnnotation:
    best = result.candidates[0]
    share = confidence([c.score for c in result.candidates])
    if answers.nil_threshold is not None and best.score < answers.nil_threshold:
        surface = "_".join(one.mention.mention.split())
        return replace(one.annotation, refs=(NOT_IN_WIKI + quote(surface, safe=""),), confidence=share)
    return replace(one.annotation, refs=(answers.uris.uri(best.id),), confidence=share)
