"""The lookup gives the features of its readable twin, for every row and no other."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimic_engine.names.features import FEATURES, name_features
from mimic_engine.names.forms import FormArrays
from mimic_engine.names.lookup import NameLookup
from mimic_engine.scan.cpu import CpuKernels

ROUNDING = 2.0**-23  # of float32, on numbers of at most 1

WORDS = st.sampled_from(
    [
        "adam",
        "alec",
        "baldwin",
        "anna",
        "baldvin",
        "of",
        "the",
        "jürgen",
        "東京",
        "o'neil",
        "x",
        "jordan",
        "stuart",
        "pearce",
    ]
)
NAMES = st.builds(
    lambda ws, tail: " ".join(ws) + tail,
    st.lists(WORDS, min_size=1, max_size=4),
    st.sampled_from(["", " (actor)", "!", " Ⅳ"]),
)
ENTITIES = st.lists(st.lists(NAMES, min_size=1, max_size=3), min_size=1, max_size=14)


def cut(entities, cuts):
    bounds = sorted({0, len(entities), *(c % (len(entities) + 1) for c in cuts)})
    parts = [entities[a:b] for a, b in itertools.pairwise(bounds)]
    return [FormArrays.of(p) for p in parts], [len(p) for p in parts]


COMPILED = pytest.param(
    True, marks=pytest.mark.skipif(not CpuKernels.available(), reason="no compiled kernels")
)


@pytest.mark.parametrize("compiled", [False, COMPILED])
@settings(max_examples=300, deadline=None)
@given(
    entities=ENTITIES,
    surface=NAMES,
    around=st.lists(WORDS, max_size=6),
    cuts=st.lists(st.integers(0, 20), max_size=2),
    data=st.data(),
)
def test_features_are_those_of_the_twin(compiled, entities, surface, around, cuts, data):
    segments, rows = cut(entities, cuts)
    dead = data.draw(st.sets(st.integers(0, len(entities) - 1), max_size=len(entities) - 1))
    alive = np.array([i not in dead for i in range(len(entities))])
    lookup = NameLookup(segments, rows, alive if dead else None, compiled=compiled)
    text = " ".join(around)
    found = lookup.features(surface, text)
    got = {int(r): tuple(float(getattr(found, f)[i]) for f in FEATURES) for i, r in enumerate(found.rows)}
    for row, names in enumerate(entities):
        expected = name_features(surface, text, names, lookup.idf) if alive[row] else (0.0,) * 4
        for a, b in zip(got.get(row, (0.0,) * 4), expected, strict=True):
            assert abs(a - b) <= ROUNDING
    assert list(found.rows) == sorted(set(found.rows.tolist()))
    assert all(any(v) for v in got.values())


@settings(max_examples=100, deadline=None)
@given(ENTITIES, NAMES, st.lists(st.integers(0, 20), max_size=3))
def test_the_cut_into_segments_changes_no_bit(entities, surface, cuts):
    whole = NameLookup(*cut(entities, [])).features(surface, "adam pearce")
    parts = NameLookup(*cut(entities, cuts)).features(surface, "adam pearce")
    for name in ("rows", *FEATURES):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))


def test_an_upsert_then_dead_rows_count_as_never_there():
    old = [["Alec Baldwin"], ["Adam Baldwin"], ["Anna"]]
    segments = [FormArrays.of(old), FormArrays.of([["Alexander Baldwin", "Alec Baldwin"]])]
    changed = NameLookup(segments, [3, 1], np.array([False, True, True, True])).features("Baldwin")
    anew = NameLookup(
        [FormArrays.of([["Adam Baldwin"], ["Anna"], ["Alexander Baldwin", "Alec Baldwin"]])], [3]
    )
    fresh = anew.features("Baldwin")
    assert changed.rows.tolist() == [1, 3]
    assert fresh.rows.tolist() == [0, 2]
    for name in FEATURES:
        np.testing.assert_array_equal(getattr(changed, name), getattr(fresh, name))


def test_find_gives_forms_by_prefix():
    lookup = NameLookup(
        [FormArrays.of([["Jordan (country)", "Hashemite Kingdom"], ["Jordan Peele"], ["Joan"]])], [3]
    )
    assert lookup.find("jord", 5) == [(0, "jordan"), (1, "jordan peele")]
    assert lookup.find("JO", 1) == [(2, "joan")]
    assert lookup.find("zz", 3) == []
