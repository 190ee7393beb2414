"""How many entities bear a mention's name."""

from __future__ import annotations

import numpy as np
import pytest

from mimic_engine.evaluate.ambiguity import GROUPS, SurfaceAmbiguity, in_group

NAMES = ("Elle Fanning", "Dakota Fanning", "Fanning", "José López", "Lopez, Jennifer", "李小龙", "Ibn Sina")


@pytest.mark.parametrize(
    ("surface", "count"),
    [
        ("Fanning", 3),
        ("FANNING!", 3),
        ("Dakota Fanning", 1),
        ("Fanning Dakota", 1),
        ("Dakota Johnson", 0),
        ("lopez", 2),
        ("Jose", 1),
        ("Fann", 0),
        ("李小龙", 1),
        ("", 0),
        ("...", 0),
    ],
)
def test_names_that_hold_every_word_are_counted_without_case_and_accents(surface: str, count: int) -> None:
    assert SurfaceAmbiguity(NAMES).count(surface) == count


def test_counts_are_those_of_each_surface_form() -> None:
    assert SurfaceAmbiguity(NAMES).counts(["Fanning", "Sina", "Nobody"]).tolist() == [3, 1, 0]
    assert SurfaceAmbiguity([]).counts([]).shape == (0,)


def test_every_count_is_in_exactly_one_group() -> None:
    counts = np.arange(100)
    groups = np.array([in_group(counts, group) for group in GROUPS])
    assert (groups.sum(0) == 1).all()
    assert [int(g.sum()) for g in groups] == [1, 1, 3, 15, 80]
