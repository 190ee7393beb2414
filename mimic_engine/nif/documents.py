"""NIF 2.0 documents, as GERBIL gives and takes them: texts, and where in them something is named.

A document is a ``nif:Context`` with its text (``nif:isString``); an annotation of it is whatever has it
for ``nif:referenceContext``, at ``nif:beginIndex`` to ``nif:endIndex``, counted in code points. What it
names is its ``itsrdf:taIdentRef``: none where nobody has said, several where several knowledge bases
have it. Sentences, paragraphs and titles that name nothing are structure and no annotations.

Files are Turtle, N-Triples and RDF/XML, parsed and serialised by rdflib. Nothing is fetched: what a file
names elsewhere stays a name. RDF/XML is not written, for it can hold neither control characters nor
carriage returns, and offsets count both.

How annotations become mentions is in :mod:`mimic_engine.nif.mentions`, writing in
:mod:`mimic_engine.nif.writer`.
"""

from __future__ import annotations

import io
import logging
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from mimic_engine.errors import DataError, MissingDependencyError
from mimic_engine.files import write_atomic

if TYPE_CHECKING:
    from rdflib import Graph

NIF = "http://persistence.uni-leipzig.org/nlp2rdf/ontologies/nif-core#"
ITSRDF = "http://www.w3.org/2005/11/its/rdf#"
READS = {".ttl": "turtle", ".nt": "nt", ".rdf": "xml", ".xml": "xml"}
WRITES = {".ttl": "turtle", ".nt": "nt"}
# What no IRI holds in Turtle and N-Triples; a lone surrogate fits in no file.
ILLEGAL = re.compile('[\x00-\x20<>"{}|^`\\\\\ud800-\udfff]')
_STRUCTURE = ("Sentence", "Paragraph", "Title", "Structure")
_QUOTED = 100  # characters of a text that a message quotes
_LONGEST_REASON = 200  # characters of a parser's complaint


@dataclass(frozen=True, slots=True)
class NifAnnotation:
    """A place in a text, ``text[start:stop]``, and what it names.

    ``refs`` are URIs, sorted; none says that what is named is in no knowledge base, or unknown.
    ``uri`` is the annotation's own; where empty, the writer makes one from document and offsets.
    """

    start: int
    stop: int
    refs: tuple[str, ...] = ()
    confidence: float | None = None
    uri: str = ""


@dataclass(frozen=True, slots=True)
class NifDocument:
    """A text with its annotations, in the order of their places; ``uri`` is the context's own.

    ``language`` is a tag such as "en", or empty.
    """

    uri: str
    text: str
    annotations: tuple[NifAnnotation, ...] = ()
    language: str = ""


def read_documents(path: Path) -> list[NifDocument]:
    """All documents of a ``.ttl``, ``.nt``, ``.rdf`` or ``.xml`` file, by URI.

    Raises
    ------
    DataError
        If the file cannot be read or parsed, holds no context, or a context or annotation lacks what
        it needs; where offsets and ``nif:anchorOf`` contradict each other, with document, offsets and
        both texts.
    MissingDependencyError
        If rdflib is not installed.
    """
    reader = _Reader(path, read_graph(path))
    documents = reader.documents()
    if not documents:
        raise DataError(f"{path}: holds no nif:Context")
    return documents


class _Reader:
    """One graph being read; ``path`` names it in messages."""

    def __init__(self, path: Path, graph: Graph) -> None:
        self.path, self.graph = path, graph
        rdflib = load_rdflib()
        self._uri: Any = rdflib.URIRef
        self._type = rdflib.RDF.type

    def documents(self) -> list[NifDocument]:
        has_text, refers = self._uri(NIF + "isString"), self._uri(NIF + "referenceContext")
        contexts = set(self.graph.subjects(self._type, self._uri(NIF + "Context")))
        contexts |= {c for c in self.graph.objects(None, refers) if (c, has_text, None) in self.graph}
        members: dict[Any, list[Any]] = {context: [] for context in contexts}
        for subject, context in self.graph.subject_objects(refers):
            if context not in members:
                raise DataError(
                    f"{self.path}: annotation {subject}: its nif:referenceContext {context} is no nif:Context"
                )
            if subject != context or self._names(subject):
                members[context].append(subject)
        return [self._document(context, members[context]) for context in sorted(contexts, key=str)]

    def _document(self, context: Any, members: list[Any]) -> NifDocument:
        where = f"{self.path}: document {context}"
        if not isinstance(context, self._uri):
            raise DataError(f"{self.path}: a nif:Context has no URI")
        literal = self._one(context, NIF + "isString", where)
        if literal is None:
            raise DataError(f"{where}: has no nif:isString")
        text = check_text(str(literal), where)
        placed = [self._annotation(m, text, where) for m in members if not self._is_structure(m)]
        if not all(anchored for _, anchored in placed):
            self._check_unit(context, text, where)
        annotations = sorted((a for a, _ in placed), key=lambda a: (a.start, a.stop, a.uri, a.refs))
        language = getattr(literal, "language", None) or ""
        return NifDocument(check_uri(str(context), where), text, tuple(annotations), language)

    def _annotation(self, subject: Any, text: str, where: str) -> tuple[NifAnnotation, bool]:
        """An annotation, and whether ``nif:anchorOf`` confirms its place."""
        own = str(subject) if isinstance(subject, self._uri) else ""
        where = f"{where}: annotation {own or '(without a URI)'}"
        start, stop = (self._index(subject, name, where) for name in ("beginIndex", "endIndex"))
        if not 0 <= start < stop <= len(text):
            raise DataError(
                f"{where}: characters {start} to {stop} are no place in a text of {len(text)} characters"
            )
        anchor = self._one(subject, NIF + "anchorOf", where)
        if anchor is not None and str(anchor) != text[start:stop]:
            raise DataError(_mismatch(where, text, start, stop, str(anchor)))
        refs = sorted(
            check_uri(str(ref), where)
            for ref in self.graph.objects(subject, self._uri(ITSRDF + "taIdentRef"))
        )
        confidence = self._confidence(subject, where)
        return NifAnnotation(
            start, stop, tuple(refs), confidence, own and check_uri(own, where)
        ), anchor is not None

    def _is_structure(self, subject: Any) -> bool:
        return not self._names(subject) and any(self._is_a(subject, kind) for kind in _STRUCTURE)

    def _names(self, subject: Any) -> bool:
        """Whether it names something or is a phrase, as a context is too where a mention is all of a text."""
        refers = (subject, self._uri(ITSRDF + "taIdentRef"), None) in self.graph
        return refers or self._is_a(subject, "Phrase")

    def _is_a(self, subject: Any, kind: str) -> bool:
        return (subject, self._type, self._uri(NIF + kind)) in self.graph

    def _check_unit(self, context: Any, text: str, where: str) -> None:
        """Without anchors, only the end of the whole text can show in what its offsets count."""
        if self._one(context, NIF + "endIndex", where) is None:
            return
        end = self._index(context, "endIndex", where)
        if end != len(text):
            raise DataError(
                f"{where}: nif:endIndex is {end}, but the text has {len(text)} characters (code points), "
                "and an annotation has no nif:anchorOf that would show in what its offsets count"
            )

    def _index(self, subject: Any, name: str, where: str) -> int:
        literal = self._one(subject, NIF + name, where)
        if literal is None:
            raise DataError(f"{where}: has no nif:{name}")
        try:
            return int(str(literal))
        except ValueError:
            raise DataError(f"{where}: nif:{name} {str(literal)!r} is no whole number") from None

    def _confidence(self, subject: Any, where: str) -> float | None:
        literal = self._one(subject, ITSRDF + "taConfidence", where)
        if literal is None:
            return None
        try:
            value = float(str(literal))
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise DataError(f"{where}: itsrdf:taConfidence {str(literal)!r} is no finite number")
        return value

    def _one(self, subject: Any, name: str, where: str) -> Any:
        values = list(self.graph.objects(subject, self._uri(name)))
        if len(values) > 1:
            short = name.replace(NIF, "nif:").replace(ITSRDF, "itsrdf:")
            raise DataError(f"{where}: has {len(values)} values of {short}")
        return values[0] if values else None


def load_rdflib() -> ModuleType:
    """Give rdflib, or say what to install.

    Raises
    ------
    MissingDependencyError
        If it is not installed.
    """
    try:
        import rdflib
    except ImportError as error:
        raise MissingDependencyError("NIF documents need rdflib: pip install 'mimic-engine[nif]'") from error
    return rdflib


def read_graph(path: Path) -> Graph:
    """Parse a file; its name says in which format it is.

    Raises
    ------
    DataError
        If the name ends otherwise, or the file cannot be read or parsed.
    MissingDependencyError
        If rdflib is not installed.
    """
    name = _format(path, READS)
    rdflib = load_rdflib()
    try:
        content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    graph: Graph = rdflib.Graph()
    base = f"http://document.invalid/{quote(path.name)}"  # of relative names, which then show no folder
    try:
        with _silence():
            graph.parse(source=io.BytesIO(content), format=name, publicID=base)
    except Exception as error:  # each of the library's parsers raises its own kinds
        reason = " ".join(str(error).split())[:_LONGEST_REASON]
        raise DataError(f"{path}: not {name} ({type(error).__name__}: {reason})") from error
    return graph


def write_graph(path: Path, graph: Graph) -> None:
    """Write a file whole or not at all; its name says in which format.

    Raises
    ------
    DataError
        If the name ends otherwise, or the folder cannot be written to.
    """
    name = _format(path, WRITES)
    try:
        write_atomic(path, graph.serialize(format=name, encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error})") from error


def check_output(path: Path) -> None:
    """Refuse a name that :func:`write_graph` would refuse; before anything is computed."""
    _format(path, WRITES)
    if path.is_dir():
        raise DataError(f"{path}: is a folder")


def check_uri(uri: str, what: str) -> str:
    """Give the URI back.

    Raises
    ------
    DataError
        If it holds a character that no URI can; names what has it.
    """
    if illegal := ILLEGAL.search(uri):
        raise DataError(f"{what}: character {illegal[0]!r} cannot stand in the URI {uri!r}")
    return uri


def check_text(text: str, what: str) -> str:
    """Give the text back.

    Raises
    ------
    DataError
        If it holds a lone surrogate, which fits in no file; names what has it.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{what}: character {error.start} of its text is a lone surrogate") from None
    return text


def _mismatch(where: str, text: str, start: int, stop: int, anchor: str) -> str:
    units = text.encode("utf-16-le")[2 * start : 2 * stop].decode("utf-16-le", "replace")
    hint = "; the offsets seem to count UTF-16 units, NIF counts code points" if units == anchor else ""
    return (
        f"{where}: characters {start} to {stop} of the text are {_quoted(text[start:stop])}, "
        f"but nif:anchorOf is {_quoted(anchor)}{hint}"
    )


def _quoted(text: str) -> str:
    return repr(text) if len(text) <= _QUOTED else f"{text[:_QUOTED]!r}..."


def _format(path: Path, formats: dict[str, str]) -> str:
    if path.suffix not in formats:
        raise DataError(f"{path}: the name must end in one of {', '.join(formats)}")
    return formats[path.suffix]


@contextmanager
def _silence() -> Iterator[None]:
    """Without the library's log lines on odd names and numbers, which are checked where they are used."""
    logger = logging.getLogger("rdflib.term")

    def refuse(_: logging.LogRecord) -> bool:
        return False

    logger.addFilter(refuse)
    try:
        yield
    finally:
        logger.removeFilter(refuse)
