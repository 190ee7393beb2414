"""The nil threshold: how it is chosen, kept, and refused where it does not belong."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimic_engine import Linker, Mention
from mimic_engine.calibration.nil import NilThreshold, choose
from mimic_engine.cli.calibrate import calibrate
from mimic_engine.cli.main import main
from mimic_engine.errors import DataError, InvalidInputError, ModelError

STORED = NilThreshold(0.25, 0.9, 0.95, 40, 20, "abc", 13)


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


def test_what_is_stored_is_read_back(tmp_path):
    assert NilThreshold.read(tmp_path, "abc") is None
    STORED.write(tmp_path)
    assert NilThreshold.read(tmp_path, "abc") == STORED
    assert [p.name for p in tmp_path.iterdir()] == ["nil.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2; this program reads version 1; run mimic-engine calibrate"),
        ({"format": "x"}, "format 'x', expected 'mimic-nil'"),
        ({"threshold": "high"}, "threshold 'high': Expected `float`"),
        ({"threshold": None}, "threshold None: Expected `float`"),
        ({"threshold": float("nan")}, "NaN is not allowed"),
        ({"mentions": -1}, "mentions -1: Expected `int` >= 0"),
        ({"model_hash": "def"}, "belongs to model def, not to abc"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, change, message):
    STORED.write(tmp_path)
    file = tmp_path / "nil.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ModelError, match=message):
        NilThreshold.read(tmp_path, "abc")


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00"])
def test_a_damaged_file_is_refused(tmp_path, text):
    (tmp_path / "nil.json").write_text(text)
    with pytest.raises(ModelError, match=r"nil\.json"):
        NilThreshold.read(tmp_path, "abc")


@pytest.fixture
def own_model(tiny_model, tmp_path):
    """The tiny model in a folder of the test's own, without its big files copied."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in tiny_model.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture
def labelled(tiny_model, tiny_index, tmp_path):
    """Mentions of which the linker gets half right; one is nil."""
    linker = Linker.open(tiny_model, tiny_index, threads=1)
    lines = []
    for n, letters in enumerate(["a b", "c d", "e f", "g h", "i j", "a j"]):
        record = {"mention": letters, "sentence": f"{letters} b c"}
        best = linker.link([Mention(**record)], 1)[0].candidates[0].id
        answer = best if n % 2 else ("nil" if n == 0 else "E01" if best != "E01" else "E02")
        lines.append(json.dumps({**record, "answer": answer}))
    linker.close()
    file = tmp_path / "labelled.jsonl"
    file.write_text("\n".join(lines))
    return file


def test_calibrate_stores_what_the_linker_then_reads(own_model, tiny_index, labelled, capsys):
    options = ["--model", str(own_model), "--index", str(tiny_index), "--mentions", str(labelled)]
    assert main(["calibrate", *options, "--wanted-precision", "0.5", "--threads", "1"]) == 0
    printed = json.loads(capsys.readouterr().out)
    linker = Linker.open(own_model, tiny_index, threads=1)
    assert linker.nil_threshold == printed["threshold"]
    assert (linker.nil.mentions, linker.nil.answered, linker.nil.precision) == (6, 6, 0.5)
    assert linker.info()["nil_threshold"]["entities"] == 13
    assert main(["calibrate", *options, "--wanted-precision", "1.5"]) == 2
    assert "precision" in capsys.readouterr().err
    assert Linker.open(own_model, tiny_index, threads=1).nil == linker.nil  # a refusal changes nothing


def test_a_mention_without_answer_is_named(own_model, tiny_index, tmp_path):
    file = tmp_path / "m.jsonl"
    file.write_text('{"mention": "a", "sentence": "a b"}\n')
    linker = Linker.open(own_model, tiny_index, threads=1)
    with pytest.raises(DataError, match="mention 1 has no answer; write 'nil'"):
        calibrate(linker, own_model, file, 0.5)
    linker.close()
