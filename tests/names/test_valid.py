"""Names, aliases and popularity that cannot be stored are named: field, limit, value."""

import math

import pytest

from mimic_engine.names.valid import MAX_ALIASES, MAX_NAME_CHARS, name_fault


@pytest.mark.parametrize("name", ["Jordan", "東京", "!!!", "AC/DC", "x" * MAX_NAME_CHARS, "🍎"])
def test_what_can_be_read_is_a_name(name):
    assert name_fault(name, [name] * MAX_ALIASES, 0) is None
    assert name_fault(name, [], 1e300) is None


@pytest.mark.parametrize(
    ("name", "aliases", "popularity", "fault"),
    [
        ("", [], None, "name: is empty"),
        (" \u200b ", [], None, "name: is empty"),
        ("a\x07b", [], None, "name: holds the control character U+0007"),
        ("a\nb", [], None, "name: holds the control character U+000A"),
        (7, [], None, "name: expected text, got int"),
        ("x" * 10_001, [], None, "name: at most 10,000 characters, got 10,001"),
        ("a", ["b", ""], None, "aliases[1]: is empty"),
        ("a", [None], None, "aliases[0]: expected text, got NoneType"),
        ("a", ["b"] * 100_000, None, "aliases: at most 1,000, got 100,000"),
        ("a", [], -0.5, "popularity: expected a number from 0 on, got -0.5"),
        ("a", [], math.nan, "popularity: expected a number from 0 on, got nan"),
        ("a", [], math.inf, "popularity: expected a number from 0 on, got inf"),
        ("a", [], 10**400, f"popularity: expected a number from 0 on, got {10**400}"),
        ("a\ud800", [], None, "name: is not valid Unicode: holds a surrogate"),
        ("a", [], True, "popularity: expected a number from 0 on, got bool"),
        ("a", [], "9", "popularity: expected a number from 0 on, got str"),
    ],
)
def test_what_cannot_is_named(name, aliases, popularity, fault):
    assert name_fault(name, aliases, popularity) == fault
