"""Writer of NIF 2.0 documents: what :func:`mimic_engine.nif.documents.read_documents` reads."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

from mimic_engine.errors import DataError
from mimic_engine.nif.documents import (
    ITSRDF,
    NIF,
    NifAnnotation,
    NifDocument,
    check_text,
    check_uri,
    load_rdflib,
    write_graph,
)


def write_documents(path: Path, documents: Sequence[NifDocument]) -> None:
    """Write documents into one ``.ttl`` or ``.nt`` file, whole or not at all.

    An annotation of a whole text may have the URI of its document; one without a URI is called by its
    place, numbered from the second on. Confidences keep seven digits in Turtle.

    Raises
    ------
    DataError
        If a URI comes twice or holds what no URI can, a place is not in its text, or the file
        cannot be written.
    MissingDependencyError
        If rdflib is not installed.
    """
    rdflib = load_rdflib()
    graph = rdflib.Graph(bind_namespaces="none")
    for prefix, name in (("nif", NIF), ("itsrdf", ITSRDF), ("xsd", str(rdflib.XSD))):
        graph.bind(prefix, name)
    writer = _Writer(rdflib, graph, named(documents))
    for document in documents:
        writer.add(document)
    write_graph(path, graph)


def named(documents: Sequence[NifDocument]) -> set[str]:
    """URIs that documents and annotations have of their own."""
    return {d.uri for d in documents} | {a.uri for d in documents for a in d.annotations if a.uri}


class _Writer:
    """A graph to which documents are added; ``named`` are URIs that nothing else is called by."""

    def __init__(self, rdflib: Any, graph: Any, named: set[str]) -> None:
        self._rdf, self._graph = rdflib, graph
        self._named = named
        self._taken: set[str] = set()
        self._whole: set[str] = set()  # documents that are an annotation as well

    def add(self, document: NifDocument) -> None:
        where = f"document {document.uri}"
        context = self._subject(document.uri, where)
        kinds = ("Context", "String", "RFC5147String")
        self._string(context, kinds, 0, len(document.text))
        self._set(context, NIF + "isString", self._text(check_text(document.text, where), document.language))
        for annotation in document.annotations:
            self._annotation(context, document, annotation, where)

    def _annotation(self, context: Any, document: NifDocument, annotation: NifAnnotation, where: str) -> None:
        start, stop = annotation.start, annotation.stop
        if not 0 <= start < stop <= len(document.text):
            raise DataError(f"{where}: {start} to {stop} is no place in {len(document.text)} characters")
        all_of_it = (start, stop) == (0, len(document.text))
        place = f"{document.uri.partition('#')[0]}#char={start},{stop}"
        own = annotation.uri or self._unnamed(place, document.uri if all_of_it else "")
        if own == document.uri and all_of_it and own not in self._whole:
            self._whole.add(own)
            subject = context
        else:
            subject = self._subject(own, where)
        self._string(subject, ("Phrase", "String", "RFC5147String"), start, stop)
        self._set(subject, NIF + "anchorOf", self._text(document.text[start:stop], document.language))
        self._set(subject, NIF + "referenceContext", context)
        for ref in annotation.refs:
            self._set(subject, ITSRDF + "taIdentRef", self._rdf.URIRef(check_uri(ref, where)))
        if annotation.confidence is not None:
            confidence = self._rdf.Literal(float(annotation.confidence), datatype=self._rdf.XSD.double)
            self._set(subject, ITSRDF + "taConfidence", confidence)

    def _unnamed(self, place: str, whole: str) -> str:
        """A URI for what stands at a place and has none; numbered where others are called by that place.

        ``whole`` is the document's where the place is all of it: the first there shares the name.
        """
        names = chain([place], (f"{place};{n}" for n in count(2)))
        return next(n for n in names if self._free(n) or (n == whole and n not in self._whole))

    def _free(self, uri: str) -> bool:
        return uri not in self._named and uri not in self._taken

    def _subject(self, uri: str, where: str) -> Any:
        if not uri or uri in self._taken:
            raise DataError(f"{where}: URI {uri!r} is empty or comes twice")
        self._taken.add(uri)
        return self._rdf.URIRef(check_uri(uri, where))

    def _string(self, subject: Any, kinds: Sequence[str], start: int, stop: int) -> None:
        for kind in kinds:
            self._graph.add((subject, self._rdf.RDF.type, self._rdf.URIRef(NIF + kind)))
        for name, value in (("beginIndex", start), ("endIndex", stop)):
            index = self._rdf.Literal(str(value), datatype=self._rdf.XSD.nonNegativeInteger)
            self._set(subject, NIF + name, index)

    def _text(self, text: str, language: str) -> Any:
        if language:
            return self._rdf.Literal(text, lang=language)
        return self._rdf.Literal(text, datatype=self._rdf.XSD.string)

    def _set(self, subject: Any, name: str, value: Any) -> None:
        self._graph.add((subject, self._rdf.URIRef(name), value))
