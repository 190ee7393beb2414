"""Ranks among given candidates: against scores of all pairs, and by ``python -m mimic_engine.evaluate``."""

import json
from pathlib import Path

import numpy as np
import pytest

from mimic_engine.backends.encoders import open_featurizer
from mimic_engine.data.images import BrokenImages
from mimic_engine.data.source import entity_stream
from mimic_engine.data.with_candidates import MentionWithCandidates
from mimic_engine.encoding.featurizer import Featurizer
from mimic_engine.errors import InvalidInputError
from mimic_engine.evaluate.candidates import CandidateSetRanks, rank_among
from mimic_engine.evaluate.evaluate import fold_in_memory, main
from mimic_engine.kernels.reference import scores_ref
from mimic_engine.scan.blocks import BlockKernels
from mimic_engine.scan.scan import Scan
from mimic_engine.types import Entity, EntityArrays, LabelledMention, Mention
from tests.alike import OneByOne, TwinsAlone
from tests.ranking import assert_apart


@pytest.fixture(scope="module")
def featurizer(tiny_model: Path) -> Featurizer:
    return open_featurizer(tiny_model, threads=1)


@pytest.fixture(scope="module")
def entities(tiny_kb: Path) -> list[Entity]:
    return list(entity_stream(tiny_kb)())


@pytest.fixture(scope="module")
def folded(featurizer: Featurizer, entities: list[Entity]) -> EntityArrays:
    [segment] = fold_in_memory(TwinsAlone(featurizer, BrokenImages()), entities, progress=False)
    return segment


@pytest.fixture(scope="module")
def parts(featurizer: Featurizer, entities: list[Entity], folded: EntityArrays):
    """Featurizer, scan over the 13 entities, and what gives rows of ids; E99 and E05 tie."""
    scan = Scan([folded], BlockKernels(OneByOne(featurizer.constants), featurizer.constants), threads=1)
    row = {e.id: i for i, e in enumerate(entities)}
    yield featurizer, scan, lambda ids: np.array([row[i] for i in ids], np.int64)
    scan.close()


@pytest.mark.parametrize("count", [1, 2, 7, 13])
def test_a_rank_among_some_is_counted_from_the_scores_of_all(parts, count):
    featurizer, scan, _ = parts
    mention = featurizer.mentions([Mention("a b", "c a b d")])
    totals = scan.totals(mention)[0]  # (13,)
    rng = np.random.default_rng(count)
    for gold in range(13):
        rows = np.concatenate([[gold], rng.permutation(np.delete(np.arange(13), gold))[: count - 1]])
        expected = int((totals[rows] >= totals[gold]).sum())
        assert rank_among(scan, mention, rng.permutation(rows), gold) == expected


def test_ties_count_against_the_gold_entity(parts):
    featurizer, scan, rows_of = parts
    mention = featurizer.mentions([Mention("a", "a b")])
    twins = rows_of(["E05", "E99"])
    assert [rank_among(scan, mention, twins, int(row)) for row in twins] == [2, 2]


def given(answer: str, *candidates: str) -> MentionWithCandidates:
    return MentionWithCandidates(LabelledMention(Mention("a", "a b"), answer), candidates)


def test_an_answer_that_was_not_given_is_a_miss(parts):
    featurizer, scan, rows_of = parts
    ranks = CandidateSetRanks(scan, rows_of)
    mentions = [given("E00", "E00"), given("E00", "E01", "E02", "E03"), given("E01"), given("", "E01")]
    arrays = featurizer.mentions([m.labelled.mention for m in mentions])
    ranks.add(arrays.take([0, 1]), mentions[:2])
    ranks.add(arrays.take([2, 3]), mentions[2:])
    result = ranks.result().to_json()
    assert (result["hits@1"], result["hits@20"], result["mrr"], result["answer_given"]) == (0.25,) * 4
    assert (result["mentions"], result["candidates_per_mention"]) == (4, 5 / 4)
    assert (result["answerable"]["hits@1"], result["answerable"]["mentions"]) == (1, 1)
    assert result["answerable"]["candidates"] == 3


def test_nothing_given_is_nothing_found(parts):
    _, scan, rows_of = parts
    ranks = CandidateSetRanks(scan, rows_of)
    with pytest.raises(InvalidInputError, match="no mentions to evaluate"):
        ranks.result()
    featurizer = parts[0]
    ranks.add(featurizer.mentions([Mention("a", "b")]), [given("E00")])
    result = ranks.result().to_json()
    assert result["hits@1"] == result["mrr"] == 0 and result["answerable"] is None


@pytest.fixture
def evaluate(tiny_model: Path, tiny_kb: Path, tmp_path: Path, capsys):
    """Run the command on a file of these records; status, result and errors."""

    def run(records: object, *options: str) -> tuple[int, dict, str]:
        file = tmp_path / "t_test_with_candidates.json"
        file.write_text(json.dumps(records), "utf-8")
        fixed = ["--model", str(tiny_model), "--data", str(tiny_kb.parent), "--threads", "1", "--quiet"]
        status = main([*fixed, "--candidates", str(file), *options])
        printed = capsys.readouterr()
        return status, json.loads(printed.out) if status == 0 else {}, printed.err

    return run


def records(count: int = 9) -> list[dict]:
    """Mentions whose answers are among three candidates, but for every fourth; one is nil."""
    letters = "abcdefghij"
    made = []
    for n in range(count):
        ids = [f"E{(n + i) % 12:02}" for i in range(3)]
        answer = "E11" if n % 4 == 3 else ids[n % 3]
        text = {"sentence": f"{letters[n]} a b c", "mentions": letters[n], "imgPath": ""}
        made.append({"id": n, **text, "answer": answer, "candidates": ids})
    return [*made, {**made[0], "answer": "nil"}]


def test_the_command_ranks_each_among_its_own(evaluate, parts, folded):
    featurizer, scan, rows_of = parts
    status, result, _ = evaluate(records(), "--batch-size", "4")
    assert status == 0
    ranks = []
    for one in records()[:-1]:
        if one["answer"] in one["candidates"]:
            mention = featurizer.mentions([Mention(one["mentions"], one["sentence"])])
            rows, own = rows_of(one["candidates"]), one["candidates"].index(one["answer"])
            totals = scores_ref(
                _wide(mention), _wide(folded.take(rows)), featurizer.constants
            ).total  # (1, 3)
            assert_apart(scan.totals(mention)[:, rows], totals, np.array([own]))
            ranks.append(int((totals[0] >= totals[0, own]).sum()))
    found = result["candidates"]
    assert len(ranks) == 7 and len(set(ranks)) > 1
    assert found["hits@1"] == pytest.approx(sum(r == 1 for r in ranks) / 9)
    assert found["mrr"] == pytest.approx(sum(1 / r for r in ranks) / 9)
    assert (found["file"], found["mentions"]) == ("t_test_with_candidates.json", 9)
    assert found["answer_given"] == pytest.approx(7 / 9)
    assert result["data"]["candidates"]["nil_skipped"] == 1
    assert "test" not in result


def _wide(arrays):
    """The same in float64."""
    return type(arrays)(**{name: array.astype(np.float64) for name, array in arrays.items()})


def test_an_index_and_a_limit(evaluate, tiny_index):
    whole = evaluate(records())[1]["candidates"]
    assert evaluate(records(), "--index", str(tiny_index))[1]["candidates"] == whole
    assert evaluate(records(), "--limit", "2")[1]["candidates"]["mentions"] == 2


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ([], [], "t_test_with_candidates.json: no mentions"),
        ({"a": 1}, [], "not a JSON list of records"),
        ([{"id": 1}], [], "record 0: "),
        (records(), ["--split", "test"], "--split: of the data set's own mentions"),
        (records(), ["--candidates", "gone.json"], "gone.json: cannot be read"),
    ],
)
def test_errors_are_one_line_and_status_1(evaluate, content, options, message):
    status, _, error = evaluate(content, *options)
    [line] = error.strip().splitlines()
    assert status == 1 and line.startswith("error: ") and message in line
