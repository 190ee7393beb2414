"""A calibration: how it is kept, and refused where it does not belong."""

import json

import pytest

from mimic_engine.calibration.nil import NilThreshold
from mimic_engine.calibration.stored import Calibration, Fit
from mimic_engine.calibration.weights import Probability, ScoreWeights
from mimic_engine.errors import ModelError

STORED = Calibration(
    "abc",
    ScoreWeights(4.0, 3.0, 2.0, 1.0, 0.5),
    Probability(1.5, -3.0),
    NilThreshold(0.25, 0.9, 0.95, 40, 20),
    Fit(40, 2, 13, 0.9, 0.7, 0.03),
)


def test_what_is_stored_is_read_back(tmp_path):
    STORED.write(tmp_path)
    assert Calibration.read(tmp_path, "abc") == STORED
    assert [p.name for p in tmp_path.iterdir()] == ["calibration.json"]


def test_a_model_without_one_is_the_model_alone(tmp_path):
    found = Calibration.read(tmp_path, "abc")
    assert not found.weights
    assert (found.probability, found.nil, found.fit) == (None, None, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2; this program reads version 1; run mimic-engine calibrate"),
        ({"format": "x"}, "format 'x', expected 'mimic-calibration'"),
        ({"weights": {"exact": "high"}}, "weights.exact 'high': Expected `float`"),
        ({"weights": {"exact": -1.0}}, "weight exact: -1.0 is not a finite number from 0 on"),
        ({"weights": {"fame": 1.0}}, "fame"),
        ({"probability": {"temperature": 0.0, "nil_score": 1.0}}, "temperature 0.0"),
        ({"model_hash": "def"}, "belongs to model def, not to abc"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, change, message):
    STORED.write(tmp_path)
    file = tmp_path / "calibration.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ModelError, match=message):
        Calibration.read(tmp_path, "abc")


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00"])
def test_a_damaged_file_is_refused(tmp_path, text):
    (tmp_path / "calibration.json").write_text(text)
    with pytest.raises(ModelError, match=r"calibration\.json"):
        Calibration.read(tmp_path, "abc")


def test_the_file_of_an_earlier_version_is_not_passed_over(tmp_path):
    (tmp_path / "nil.json").write_text("{}")
    with pytest.raises(ModelError, match=r"nil\.json: of an earlier version; delete it and run"):
        Calibration.read(tmp_path, "abc")
