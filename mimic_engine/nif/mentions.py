"""Mentions of NIF documents: the surface form and its sentence, and which entities of ours are meant.

An entity id and a URI stand for each other by a prefix alone (:class:`EntityUris`). An annotation that
names nothing under the prefix is a NIL mention; one that names something elsewhere (another knowledge
base, or GERBIL's ``http://aksw.org/notInWiki/``) is told apart, so that a wrong prefix is noticed.
NIF has no images.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit

from mimic_engine.data.records import NIL
from mimic_engine.errors import InvalidInputError
from mimic_engine.nif.documents import ILLEGAL, NifAnnotation, NifDocument
from mimic_engine.nif.sentences import WORDS, SentenceFinder
from mimic_engine.types import LabelledMention, Mention

WIKIDATA = "http://www.wikidata.org/entity/"
_ESCAPED = re.compile(r"%(?:[01][0-9A-F]|20|22|3C|3E|5C|5E|60|7B|7C|7D)")


@dataclass(frozen=True, slots=True)
class EntityUris:
    """Entity ids as URIs: ``prefix`` and the id; characters that no URI holds are percent-encoded.

    Raises
    ------
    InvalidInputError
        If the prefix is no absolute URI.

    Examples
    --------
    >>> EntityUris().uri("Q810")
    'http://www.wikidata.org/entity/Q810'
    >>> EntityUris().id("http://dbpedia.org/resource/Jordan") is None
    True
    """

    prefix: str = WIKIDATA

    def __post_init__(self) -> None:
        try:
            scheme = urlsplit(self.prefix).scheme
        except ValueError:
            scheme = ""
        if not scheme or ILLEGAL.search(self.prefix):
            raise InvalidInputError(f"prefix: {self.prefix!r} is no absolute URI", field="prefix")

    def uri(self, entity_id: str) -> str:
        """The URI of an entity; InvalidInputError where :meth:`id` would not give the same id back."""
        try:
            uri = self.prefix + ILLEGAL.sub(lambda illegal: quote(illegal[0], safe=""), entity_id)
        except UnicodeEncodeError:
            uri = ""
        if not entity_id or self.id(uri) != entity_id:
            raise InvalidInputError(f"entity id {entity_id!r}: has no URI of its own", field="id")
        return uri

    def id(self, uri: str) -> str | None:
        """The entity's id; None where the URI does not begin with the prefix."""
        if not uri.startswith(self.prefix) or uri == self.prefix:
            return None
        return _ESCAPED.sub(lambda escaped: unquote(escaped[0]), uri[len(self.prefix) :])


@dataclass(frozen=True, slots=True)
class NifMention:
    """An annotation as the linker reads it; ``answers`` are entity ids, none for NIL.

    ``elsewhere`` says that it names something, but nothing under the prefix.
    """

    mention: Mention
    answers: tuple[str, ...]
    elsewhere: bool
    document: NifDocument
    annotation: NifAnnotation

    @property
    def id(self) -> str:
        """Document and place, as a URI."""
        place = f"{self.annotation.start},{self.annotation.stop}"
        return self.annotation.uri or f"{self.document.uri.partition('#')[0]}#char={place}"

    def labelled(self) -> LabelledMention:
        """The mention with its answer: of several the first by URI, ``nil`` where there is none."""
        return LabelledMention(self.mention, self.answers[0] if self.answers else NIL, self.id)


def read_mentions(
    document: NifDocument, uris: EntityUris | None = None, *, words: int = WORDS
) -> Iterator[NifMention]:
    """One mention an annotation, in order.

    Parameters
    ----------
    document : the text and its annotations.
    uris : how URIs stand for entity ids; Wikidata's by default.
    words : most words of a mention's sentence, see :class:`~mimic_engine.nif.sentences.SentenceFinder`.

    Raises
    ------
    InvalidInputError
        If ``words`` is negative.
    MissingDependencyError
        If sentencex is not installed.
    """
    uris = uris or EntityUris()
    sentence = SentenceFinder(document.text, document.language or "en", words)
    for one in document.annotations:
        answers = tuple(dict.fromkeys(i for i in map(uris.id, one.refs) if i is not None))
        mention = Mention(document.text[one.start : one.stop], sentence(one.start, one.stop))
        yield NifMention(mention, answers, bool(one.refs) and not answers, document, one)
