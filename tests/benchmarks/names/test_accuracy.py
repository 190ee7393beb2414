"""The benchmark of accuracy with names: ranks by name alone, and the outcome of its rows."""

import numpy as np

from benchmarks.names.accuracy import outcome, rank_by_name
from mimic_engine.scan.terms import NameScores


def test_ties_and_sharing_nothing_count_against_a_name():
    names = NameScores(np.array([2, 5, 9]), np.array([0.5, 2.0, 0.5], np.float32))
    assert [rank_by_name(names, row, 100) for row in (5, 2, 9, 3)] == [1, 3, 3, 100]


def test_the_outcome_is_that_of_the_rows():
    def row(data_set, named, alone, error):
        return {
            "model": "demo",
            "set": data_set,
            "with_names": {"hits@1": named},
            "names_alone": {"hits@1": alone},
            "calibration_error": error,
        }

    found = outcome([row("WikiMEL", 0.86, 0.83, 0.03), row("WikiDiverse", 0.75, 0.76, 0.2)])
    assert (found["with_names"], found["with_names_met"]) == (0.86, True)
    assert found["above_names_alone_met"] is False
    assert found["calibration_error_met"] is False
    assert outcome([])["with_names"] is None
