"""The nil threshold: how it is chosen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimic_engine.calibration.nil import choose
from mimic_engine.errors import InvalidInputError


def test_the_threshold_lies_between_what_is_answered_and_what_is_not():
    choice = choose([0.9, 0.1, 0.7, 0.5], [True, False, True, False], 1.0)
    assert (choice.threshold, choice.precision, choice.answered) == (pytest.approx(0.6), 1.0, 2)


def test_the_most_is_answered_that_the_precision_allows():
    scores, right = [9, 8, 7, 6, 5], [True, False, True, True, False]
    assert choose(scores, right, 0.75).answered == 4
    assert choose(scores, right, 0.6).answered == 5
    assert choose(scores, right, 0.6).threshold == 5  # nothing lies below: the last answer itself
    assert choose(scores, right, 0.8).answered == 1


def test_equal_scores_are_answered_together():
    assert choose([2.0, 1.0, 1.0], [True, True, False], 0.6).answered == 3
    assert choose([2.0, 1.0, 1.0], [True, True, False], 0.9).answered == 1


@given(
    st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=1, max_size=30),
    st.floats(0.01, 1),
)
def test_the_choice_keeps_its_promise_and_no_lower_one_does(pairs, precision):
    scores, right = zip(*pairs, strict=True)

    def reached(threshold):
        answered = [r for s, r in pairs if s >= threshold]
        return sum(answered) / len(answered)

    lower = sorted(set(scores))
    try:
        choice = choose(scores, right, precision)
    except InvalidInputError as error:
        assert "no threshold reaches" in str(error)
        assert all(reached(t) < precision for t in lower)
        return
    assert reached(choice.threshold) == choice.precision >= precision
    assert sum(s >= choice.threshold for s in scores) == choice.answered
    assert all(reached(t) < precision for t in lower if sum(s >= t for s in scores) > choice.answered)


@pytest.mark.parametrize("precision", [0, -1, 1.01, float("nan")])
def test_a_precision_out_of_range_is_refused(precision):
    with pytest.raises(InvalidInputError, match="precision: must be above 0, at most 1"):
        choose([1.0], [True], precision)


def test_nothing_to_calibrate_on_is_refused():
    with pytest.raises(InvalidInputError, match="mentions: there is none"):
        choose([], [], 0.5)
