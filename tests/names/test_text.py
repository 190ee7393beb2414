"""Which names are the same name."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mimic_engine.names.text import gram_codes, grams, normal_form, words


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Jordan (country)", "JORDAN"),
        ("Éric  Cantona", "eric cantona"),
        ("ﬁre", "fire"),
        ("St. John's", "st john s"),
        ("Straße", "STRASSE"),
        ("Ёлка", "елка"),
        ("AC/DC", "ac dc"),
        ("Ⅳ", "iv"),
        ("a (b) c", "A B C"),
    ],
)
def test_these_are_the_same(one, other):
    assert normal_form(one) == normal_form(other)


@pytest.mark.parametrize(
    ("one", "other"), [("がく", "かく"), ("कि", "क"), ("東京", "京都"), ("!!!", "???"), ("(x)", "(y)")]
)
def test_these_are_not(one, other):
    assert normal_form(one) != normal_form(other)
    assert normal_form(one)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.text())
@example("\u0384:")
@example(" \u0301:")
def test_a_normal_form_is_its_own_normal_form_but_for_brackets(name):
    normal = normal_form(name)
    if "(" not in normal:
        assert normal_form(normal) == normal
    assert " ".join(normal.split()) == normal


@given(st.text(min_size=1))
def test_codes_of_grams_are_as_many_as_grams(name):
    normal = normal_form(name)
    assert len(gram_codes(normal)) == len(grams(normal))
    assert len(words(normal)) == len(set(normal.split()))
