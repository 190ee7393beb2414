"""NIF documents: what is read of the formats, what is refused and how it is named, and the way back."""

import logging
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mimic_engine.errors import DataError, MissingDependencyError
from mimic_engine.nif.documents import NifAnnotation, NifDocument, check_output, read_documents
from mimic_engine.nif.writer import write_documents

HEAD = """
@prefix nif: <http://persistence.uni-leipzig.org/nlp2rdf/ontologies/nif-core#> .
@prefix itsrdf: <http://www.w3.org/2005/11/its/rdf#> .
@prefix xsd: <http://www.w3.org/2001/XMLSchema#> .
@prefix wd: <http://www.wikidata.org/entity/> .
"""
TEXT = "🏀 Jordan left Jordan."
CONTEXT = """
<http://x.test/d#char=0,21> a nif:Context, nif:String ; nif:isString "🏀 Jordan left Jordan."@en ;
    nif:beginIndex "0"^^xsd:nonNegativeInteger ; nif:endIndex "21"^^xsd:nonNegativeInteger .
"""
FIRST = """
<http://x.test/d#char=2,8> a nif:Phrase ; nif:anchorOf "Jordan"@en ;
    nif:beginIndex "2"^^xsd:int ; nif:endIndex "8"^^xsd:int ;
    nif:referenceContext <http://x.test/d#char=0,21> ;
    itsrdf:taIdentRef wd:Q41421, <http://dbpedia.org/resource/Michael_Jordan> ; itsrdf:taConfidence 0.25 .
"""
SECOND = """
<http://x.test/d#char=14,20> a nif:Phrase ; nif:anchorOf "Jordan" ;
    nif:beginIndex 14 ; nif:endIndex 20 ; nif:referenceContext <http://x.test/d#char=0,21> .
"""
EXPECTED = NifDocument(
    "http://x.test/d#char=0,21",
    TEXT,
    (
        NifAnnotation(
            2,
            8,
            ("http://dbpedia.org/resource/Michael_Jordan", "http://www.wikidata.org/entity/Q41421"),
            0.25,
            "http://x.test/d#char=2,8",
        ),
        NifAnnotation(14, 20, (), None, "http://x.test/d#char=14,20"),
    ),
    "en",
)


@pytest.fixture
def read(tmp_path):
    """Read Turtle that is given as text."""

    def run(text: str, name: str = "d.ttl") -> list[NifDocument]:
        (tmp_path / name).write_text(text, "utf-8")
        return read_documents(tmp_path / name)

    return run


def test_a_document_of_gerbils_kind(read):
    assert read(HEAD + SECOND + CONTEXT + FIRST) == [EXPECTED]


@pytest.mark.parametrize(("name", "kind"), [("d.nt", "nt"), ("d.rdf", "xml"), ("d.xml", "xml")])
def test_the_other_formats_say_the_same(read, tmp_path, name, kind):
    import rdflib

    graph = rdflib.Graph().parse(data=HEAD + CONTEXT + FIRST + SECOND, format="turtle")
    assert read(graph.serialize(format=kind), name) == [EXPECTED]


@pytest.mark.parametrize("encoding", ["ISO-8859-1", "UTF-16", "utf-8-sig"])
def test_xml_is_read_in_the_encoding_that_it_names(tmp_path, encoding):
    names = 'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:n="http://persistence.uni-leipzig.org/nlp2rdf/ontologies/nif-core#"'
    body = '<n:Context rdf:about="http://x.test/d"><n:isString>Müller</n:isString></n:Context>'
    declared = "UTF-8" if encoding == "utf-8-sig" else encoding
    text = f'<?xml version="1.0" encoding="{declared}"?><rdf:RDF {names}>{body}</rdf:RDF>'
    (tmp_path / "d.rdf").write_bytes(text.encode(encoding))
    assert read_documents(tmp_path / "d.rdf") == [NifDocument("http://x.test/d", "Müller")]


def test_a_byte_order_mark_is_passed_over(tmp_path):
    (tmp_path / "d.ttl").write_text(HEAD + CONTEXT + FIRST + SECOND, "utf-8-sig")
    assert read_documents(tmp_path / "d.ttl") == [EXPECTED]


def test_structure_is_no_annotation_but_a_blank_node_is(read):
    sentence = SECOND.replace("nif:Phrase", "nif:Sentence").replace("14,20>", "sentence>")
    blank = SECOND.replace("<http://x.test/d#char=14,20> a", "[] a")
    [document] = read(HEAD + CONTEXT + sentence + blank)
    assert document.annotations == (NifAnnotation(14, 20),)


def test_a_mention_may_be_all_of_a_text(read):
    whole = "<http://x.test/d#char=0,21> nif:referenceContext <http://x.test/d#char=0,21> "
    assert read(HEAD + CONTEXT + whole + ".")[0].annotations == ()
    for says in ("; itsrdf:taIdentRef wd:Q1 .", "; a nif:Phrase ."):
        [document] = read(HEAD + CONTEXT + whole + says)
        [annotation] = document.annotations
        assert (annotation.start, annotation.stop, annotation.uri) == (0, 21, document.uri)


def test_a_phrase_with_a_text_of_its_own_is_no_document(read):
    phrase = FIRST.replace("nif:anchorOf", 'nif:isString "Jordan" ; nif:anchorOf')
    untyped = CONTEXT.replace("a nif:Context, nif:String ;", "")
    assert read(HEAD + CONTEXT + phrase + SECOND) == read(HEAD + untyped + phrase + SECOND) == [EXPECTED]


def test_long_texts_are_quoted_in_part(read):
    long = CONTEXT.replace("🏀 Jordan left Jordan.", "🏀 Jordan " + 1000 * "x")
    whole = FIRST.replace('"8"^^', '"900"^^')
    with pytest.raises(DataError, match=r"x'\.\.\., but nif:anchorOf is 'Jordan'") as caught:
        read(HEAD + long + whole)
    assert len(str(caught.value)) < 500


def test_documents_come_by_uri_and_may_have_no_annotation(read):
    other = CONTEXT.replace("x.test/d", "x.test/a").replace("@en", "")
    found = read(HEAD + CONTEXT + other)
    assert [(d.uri, d.language) for d in found] == [
        ("http://x.test/a#char=0,21", ""),
        ("http://x.test/d#char=0,21", "en"),
    ]


def test_relative_names_show_no_folder(read):
    text = (CONTEXT + SECOND).replace("http://x.test/d", "")
    [document] = read(HEAD + text)
    assert document.uri == "http://document.invalid/d.ttl#char=0,21"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"2"^^xsd:int', '"3"^^xsd:int', "characters 3 to 8 of the text are 'ordan', but nif:anchorOf is 'Jordan'"),
        ('"2"^^xsd:int', '"-1"^^xsd:int', "characters -1 to 8 are no place in a text of 21 characters"),
        ('"8"^^xsd:int', '"2"^^xsd:int', "characters 2 to 2 are no place"),
        ('"8"^^xsd:int', '"22"^^xsd:int', "characters 2 to 22 are no place"),
        ('"8"^^xsd:int', '"eight"^^xsd:int', "nif:endIndex 'eight' is no whole number"),
        ('"8"^^xsd:int', '"8"^^xsd:int, 9', "has 2 values of nif:endIndex"),
        ('nif:beginIndex "2"^^xsd:int ;', "", "has no nif:beginIndex"),
        ("taConfidence 0.25", 'taConfidence "high"', "itsrdf:taConfidence 'high' is no finite number"),
        ("taConfidence 0.25", 'taConfidence "NaN"^^xsd:double', "is no finite number"),
        ("char=0,21> ;\n    itsrdf", "char=0,99> ;\n    itsrdf", "its nif:referenceContext http://x.test/d#char=0,99 is no"),
        ("Michael_Jordan>", "Michael Jordan>", "d.ttl: "),
        ('nif:isString "🏀 Jordan left Jordan."@en ;', "", "document http://x.test/d#char=0,21: has no nif:isString"),
        ("<http://x.test/d#char=0,21> a nif:Context", "[] a nif:Context", "a nif:Context has no URI"),
        ("a nif:Context", "a a nif:Context", "d.ttl: not turtle (BadSyntax: "),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(read, caplog, old, new, message):
    text = (HEAD + CONTEXT + FIRST).replace(old, new, 1)
    assert text != HEAD + CONTEXT + FIRST
    if "[]" in new:
        text = text.replace(FIRST, "")
    with caplog.at_level(logging.WARNING), pytest.raises(DataError) as caught:
        read(text)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert "document http://x.test/d#char=0,21" in message or "d.ttl" in str(caught.value)
    assert not caplog.records


def test_offsets_in_utf16_units_are_recognised(read):
    counted = FIRST.replace('"2"^^', '"3"^^').replace('"8"^^', '"9"^^')
    with pytest.raises(DataError, match=r"'ordan '.*'Jordan'; the offsets seem to count UTF-16 units"):
        read(HEAD + CONTEXT + counted)


def test_without_anchors_the_texts_end_must_be_counted_in_code_points(read):
    bare = FIRST.replace('nif:anchorOf "Jordan"@en ;', "")
    assert len(read(HEAD + CONTEXT + bare)[0].annotations) == 1
    longer = CONTEXT.replace('"21"^^', '"22"^^')
    assert len(read(HEAD + longer + FIRST)[0].annotations) == 1
    with pytest.raises(DataError, match="endIndex is 22, but the text has 21 characters"):
        read(HEAD + longer + bare)


def test_files_that_hold_nothing_of_use(read, tmp_path):
    for text in (HEAD, "", "\x00\x01\x02", "<" * 5000):
        with pytest.raises(DataError) as caught:
            read(text)
        assert len(str(caught.value)) < 500 + len(str(tmp_path))
    with pytest.raises(DataError, match=r"must end in one of \.ttl, \.nt, \.rdf, \.xml"):
        read(HEAD, "d.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_documents(tmp_path / "gone.ttl")


def test_an_entity_bomb_is_refused(read):
    lines = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 12))
    bomb = f'<!DOCTYPE r [<!ENTITY e0 "ha">{lines}]><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description>&e11;</rdf:Description></rdf:RDF>'
    with pytest.raises(DataError, match="not xml"):
        read(bomb, "d.rdf")


def test_rdflib_is_only_asked_for_when_it_is_needed(monkeypatch, tmp_path):
    (tmp_path / "d.ttl").write_text(HEAD + CONTEXT, "utf-8")
    monkeypatch.setitem(sys.modules, "rdflib", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'mimic-engine\[nif\]'"):
        read_documents(tmp_path / "d.ttl")


# Any text that a file can hold: other planes, quotes, backslashes, line ends of every kind, controls.
texts = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]), st.sampled_from("🏀𝒳\"\\\n\r\t\x0b\x0c\x85\u2028'\x00")
    ),
    min_size=1,
    max_size=30,
)


@st.composite
def documents(draw) -> NifDocument:
    """A document with overlapping annotations, some of the same place."""
    number, text = draw(st.integers(0, 10**6)), draw(texts)
    annotations = []
    for n in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(text) - 1))
        stop = draw(st.integers(start + 1, len(text)))
        refs = draw(st.sets(st.sampled_from(["http://a.test/1", "http://a.test/Ünï(2)", "urn:b:3"])))
        confidence = draw(st.none() | st.floats(-1e6, 1e6))
        annotations.append(
            NifAnnotation(start, stop, tuple(sorted(refs)), confidence, f"http://d.test/{number}#{n}")
        )
    annotations.sort(key=lambda a: (a.start, a.stop, a.uri, a.refs))
    return NifDocument(f"http://d.test/{number}", text, tuple(annotations), draw(st.sampled_from(["", "en"])))


def close(one: float | None, other: float | None) -> bool:
    return one == other if one is None or other is None else one == pytest.approx(other, rel=1e-6)


@pytest.mark.parametrize("name", ["d.ttl", "d.nt"])
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.lists(documents(), min_size=1, max_size=3, unique_by=lambda d: d.uri))
def test_what_is_written_is_read_back(tmp_path, name, written):
    write_documents(tmp_path / name, written)
    found = read_documents(tmp_path / name)
    for one, other in zip(found, sorted(written, key=lambda d: d.uri), strict=True):
        assert (one.uri, one.text, one.language) == (other.uri, other.text, other.language)
        for a, b in zip(one.annotations, other.annotations, strict=True):
            assert (a.start, a.stop, a.refs, a.uri) == (b.start, b.stop, b.refs, b.uri)
            assert close(a.confidence, b.confidence)


def test_an_annotation_without_a_uri_gets_one_of_its_place(tmp_path):
    write_documents(
        tmp_path / "d.ttl", [NifDocument("http://d.test/1#char=0,3", "abc", (NifAnnotation(1, 2),))]
    )
    [document] = read_documents(tmp_path / "d.ttl")
    assert document.annotations == (NifAnnotation(1, 2, uri="http://d.test/1#char=1,2"),)


def test_annotations_without_a_uri_at_one_place_are_numbered(tmp_path):
    """And none gets the name that another, written later, has of its own."""
    unnamed = [NifAnnotation(1, 2, (f"http://e.test/{n}",)) for n in range(3)]
    own = NifAnnotation(0, 1, uri="http://d.test/1#char=1,2;2")
    write_documents(tmp_path / "d.ttl", [NifDocument("http://d.test/1", "abc", (*unnamed, own))])
    [document] = read_documents(tmp_path / "d.ttl")
    places = {a.uri.partition("#")[2]: a.refs for a in document.annotations}
    names = ("char=1,2", "char=1,2;3", "char=1,2;4")
    assert places == {"char=1,2;2": ()} | {n: (f"http://e.test/{i}",) for i, n in enumerate(names)}


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([NifDocument("http://d.test/1", "a")] * 2, "'http://d.test/1' is empty or comes twice"),
        ([NifDocument("", "a")], "URI '' is empty"),
        ([NifDocument("http://d.test/a b", "a")], "character ' ' cannot stand in the URI"),
        (
            [NifDocument("http://d.test/1", "a", (NifAnnotation(0, 1, uri="http://d.test/2"),) * 2)],
            "'http://d.test/2' is empty or comes twice",
        ),
        ([NifDocument("http://d.test/1", "a", (NifAnnotation(0, 2),))], "0 to 2 is no place in 1 characters"),
        ([NifDocument("http://d.test/1", "a", (NifAnnotation(0, 1, ("x:<",)),))], "character '<'"),
        ([NifDocument("http://d.test/1", "a\ud83d")], "lone surrogate"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_no_file(tmp_path, documents, message):
    with pytest.raises(DataError, match=message):
        write_documents(tmp_path / "d.ttl", documents)
    assert not list(tmp_path.iterdir())


def test_the_output_is_checked_before_anything_is_computed(tmp_path):
    (tmp_path / "folder.ttl").mkdir()
    for path, message in (
        (tmp_path / "d.rdf", "must end in one of"),
        (tmp_path / "folder.ttl", "is a folder"),
    ):
        with pytest.raises(DataError, match=message):
            check_output(path)
    check_output(tmp_path / "d.nt")
