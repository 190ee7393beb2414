"""RDF files as graphs: Turtle, N-Triples and RDF/XML in, Turtle and N-Triples out; rdflib does the work.

Which triples make a document is in :mod:`mimic_engine.data.nif`. Nothing is fetched: what a file
names elsewhere stays a name. RDF/XML is not written, for it can hold neither control characters nor
carriage returns, and offsets count both.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING
from urllib.parse import quote

from mimic_engine.errors import DataError, MissingDependencyError
from mimic_engine.record import replace_file

if TYPE_CHECKING:
    from rdflib import Graph

NIF = "http://persistence.uni-leipzig.org/nlp2rdf/ontologies/nif-core#"
ITSRDF = "http://www.w3.org/2005/11/its/rdf#"
READS = {".ttl": "turtle", ".nt": "nt", ".rdf": "xml", ".xml": "xml"}
WRITES = {".ttl": "turtle", ".nt": "nt"}
# What no IRI holds in Turtle and N-Triples; a lone surrogate fits in no file.
ILLEGAL = re.compile('[\x00-\x20<>"{}|^`\\\\\ud800-\udfff]')
_LONGEST_REASON = 200  # characters of a parser's complaint


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
        replace_file(path, graph.serialize(format=name, encoding="utf-8"))
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
    found = ILLEGAL.search(uri)
    if found:
        raise DataError(f"{what}: character {found[0]!r} cannot stand in the URI {uri!r}")
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
