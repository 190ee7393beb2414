"""Mentions of NIF documents: ids and URIs, the sentence that a mention is read in, and the round trip."""

import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mimic_engine.errors import InvalidInputError, MissingDependencyError
from mimic_engine.nif.documents import NifAnnotation, NifDocument, read_documents
from mimic_engine.nif.mentions import WIKIDATA, EntityUris, read_mentions
from mimic_engine.nif.sentences import SentenceFinder
from mimic_engine.nif.writer import write_documents
from mimic_engine.types import LabelledMention, Mention


@given(st.text(st.one_of(st.characters(), st.sampled_from('%20 "<>\\^`{|}\n')), max_size=12))
def test_ids_and_uris_stand_for_each_other_or_the_id_is_refused(entity_id):
    uris = EntityUris("http://a.test/e/")
    try:
        uri = uris.uri(entity_id)
    except InvalidInputError as error:
        assert repr(entity_id) in str(error)
        assert not entity_id or "%" in entity_id or any("\ud800" <= c <= "\udfff" for c in entity_id)
        return
    assert uris.id(uri) == entity_id and not set(uri) & set(' "<>\\^`{|}\n')


def test_what_a_data_set_percent_encodes_stays_as_it_is():
    uris = EntityUris("http://dbpedia.org/resource/")
    for uri in ("Orange_(fruit)", "Caf%C3%A9", "AC%2FDC", "Müller"):
        assert uris.uri(uris.id(uris.prefix + uri)) == uris.prefix + uri
    assert uris.uri("a b") == uris.prefix + "a%20b" and uris.id(uris.prefix + "a%20b") == "a b"


@pytest.mark.parametrize("prefix", ["", "Q", "no scheme/", "http://a b/", "http://[::1"])
def test_a_prefix_is_an_absolute_uri(prefix):
    with pytest.raises(InvalidInputError, match=r"prefix: .* is no absolute URI"):
        EntityUris(prefix)


LONG = (
    "The ship sailed at dawn. Mr. 🏀 Smith, who knew J. R. Jordan well, met him in the U.S. twice.\n\n"
    "Nobody else was there! “Was it?” he asked.\r\nThen all left"
)


@pytest.mark.parametrize(
    ("surface", "sentence"),
    [
        ("dawn", "The ship sailed at dawn."),
        ("Jordan", "Mr. 🏀 Smith, who knew J. R. Jordan well, met him in the U.S. twice."),
        ("Nobody", "Nobody else was there!"),
        ("left", "Then all left"),
        ("dawn. Mr. 🏀", "The ship sailed at dawn. Mr. 🏀 Smith, who knew J. R. Jordan well, met him in the U.S. twice."),
    ],
)  # fmt: skip
def test_a_mention_is_read_in_its_sentence(surface, sentence):
    start = LONG.index(surface)
    assert SentenceFinder(LONG)(start, start + len(surface)) == sentence


@pytest.mark.parametrize(
    ("words", "surface", "expected"),
    [
        (5, "w10", "w8 w9 w10 w11 w12"),
        (4, "w10", "w9 w10 w11 w12"),
        (1, "w10", "w10"),
        (5, "w0", "w0 w1 w2 w3 w4"),
        (5, "w19.", "w15 w16 w17 w18 w19."),
        (5, "w18", "w15 w16 w17 w18 w19."),
        (2, "w4 w5 w6 w7", "w4 w5 w6 w7"),
        (5, "10", "w8 w9 w10 w11 w12"),
    ],
)
def test_of_a_long_sentence_the_words_around_the_mention(words, surface, expected):
    text = "One. " + " ".join(f"w{i}" for i in range(20)) + ". Three."
    start = text.index(surface)
    assert SentenceFinder(text, "en", words)(start, start + len(surface)) == expected
    assert SentenceFinder(text, "en", 0)(start, start + len(surface)).startswith("w0 w1")
    assert SentenceFinder(text, "en", 20)(start, start + len(surface)).startswith("w0 w1")


@given(st.data())
def test_the_mention_is_in_its_sentence_and_that_in_the_text(data):
    text = data.draw(
        st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("🏀. \n!?a")), min_size=1)
    )
    start = data.draw(st.integers(0, len(text) - 1))
    stop = data.draw(st.integers(start + 1, len(text)))
    words = data.draw(st.integers(0, 5))
    language = data.draw(st.sampled_from(["en", "de-AT", "zz", ""]))
    sentence = SentenceFinder(text, language, words)(start, stop)
    assert text[start:stop] in sentence and sentence in text
    if words:
        assert len(sentence.split()) <= max(words, len(text[start:stop].split()))


def test_a_mention_without_a_word_has_words_around_it_too():
    assert SentenceFinder("a b c d e", "en", 2)(3, 4) == "b c"


def test_words_are_not_negative():
    with pytest.raises(InvalidInputError, match="words: must be at least 0, got -1"):
        SentenceFinder("a", words=-1)


def test_sentencex_is_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencex", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'mimic-engine\[nif\]'"):
        SentenceFinder("a")


def test_answers_are_what_lies_under_the_prefix():
    text = "Jordan left. Jordan stayed. Jordan slept. Jordan woke."
    refs = [
        (WIKIDATA + "Q810", "http://dbpedia.org/resource/Jordan"),
        (),
        ("http://aksw.org/notInWiki/Jordan",),
        (WIKIDATA + "Q1", WIKIDATA + "Q2"),
    ]
    starts = [0, 13, 28, 42]
    annotations = tuple(NifAnnotation(s, s + 6, r) for s, r in zip(starts, refs, strict=True))
    found = list(read_mentions(NifDocument("http://d.test/1#char=0,54", text, annotations)))
    assert [m.answers for m in found] == [("Q810",), (), (), ("Q1", "Q2")]
    assert [m.elsewhere for m in found] == [False, False, True, False]
    assert [m.labelled().answer for m in found] == ["Q810", "nil", "nil", "Q1"]
    assert found[1].labelled() == LabelledMention(
        Mention("Jordan", "Jordan stayed."), "nil", "http://d.test/1#char=13,19"
    )
    other = list(
        read_mentions(NifDocument("d", text, annotations), EntityUris("http://dbpedia.org/resource/"))
    )
    assert [m.answers for m in other] == [("Jordan",), (), (), ()]
    assert [m.elsewhere for m in other] == [False, False, True, True]


texts = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("🏀𝒳\"\\\n\r' .")),
    min_size=1,
    max_size=40,
)


@st.composite
def documents(draw) -> NifDocument:
    """A text with overlapping and nested mentions, each place once."""
    text = draw(texts)
    places = draw(st.sets(st.tuples(st.integers(0, len(text) - 1), st.integers(1, len(text))), max_size=5))
    ids = st.lists(st.sampled_from(["Q1", "Q22", "a b", "Ü🏀"]), unique=True, max_size=2)
    annotations = [
        NifAnnotation(a, b, tuple(sorted(EntityUris().uri(i) for i in draw(ids)))) for a, b in places if a < b
    ]
    annotations.sort(key=lambda a: (a.start, a.stop))
    return NifDocument(
        f"http://d.test/{draw(st.integers(0, 99))}#char=0,{len(text)}", text, tuple(annotations)
    )


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(documents())
def test_documents_to_mentions_to_nif_to_mentions(tmp_path, document):
    mentions = list(read_mentions(document))
    uris = EntityUris()
    written = NifDocument(
        document.uri,
        document.text,
        tuple(
            NifAnnotation(m.annotation.start, m.annotation.stop, tuple(map(uris.uri, m.answers)))
            for m in mentions
        ),
        document.language,
    )
    write_documents(tmp_path / "d.ttl", [written])
    [read] = read_documents(tmp_path / "d.ttl")
    again = list(read_mentions(read))
    assert [(m.mention, m.answers, m.id) for m in again] == [(m.mention, m.answers, m.id) for m in mentions]
    assert [m.labelled() for m in again] == [m.labelled() for m in mentions]
