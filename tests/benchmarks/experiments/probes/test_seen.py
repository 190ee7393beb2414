"""Metrics by whether training had the gold entity."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.experiments.probes import PROBES
from benchmarks.experiments.probes.seen import seen
from mimic_engine.errors import InvalidInputError
from mimic_engine.metrics import ranking_metrics


def _unseen(dataset, hidden):
    kept = tuple(m for m in dataset.splits["train"] if m.answer not in hidden)
    return replace(dataset, splits={**dataset.splits, "train": kept})


def test_each_part_holds_the_mentions_of_its_entities(tiny, make_run, brute_scores):
    hidden = {"E0", "E3", "E5", "E9", "E14"}
    run = make_run(_unseen(tiny, hidden))
    result = seen(run, "test")
    split = run.encode.corpus.splits["test"]
    scores = brute_scores(run, split.records)
    ranks = (scores >= scores[np.arange(len(split.gold)), split.gold][:, None]).sum(1)
    unseen = np.array([m.answer in hidden for m in run.dataset.splits["test"]])
    assert 0 < unseen.sum() < len(unseen)
    assert result["all"] == ranking_metrics(ranks, 18).to_json()
    assert result["seen"] == ranking_metrics(ranks[~unseen], 18).to_json()
    assert result["unseen"] == ranking_metrics(ranks[unseen], 18).to_json()
    assert result["seen"]["mr"] != result["unseen"]["mr"]
    answers = {m.answer for m in run.dataset.splits["test"]}
    assert result["entities"] == {"train": 13, "seen": len(answers - hidden), "unseen": len(answers & hidden)}


def test_where_all_are_seen_there_is_no_other_part(tiny, make_run):
    result = PROBES["seen"](make_run(tiny), "test")
    assert result["unseen"] is None
    assert result["seen"] == result["all"]
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_a_split_that_was_not_read_or_is_empty_is_named(tiny, make_run):
    run = make_run(_unseen(tiny, {e.id for e in tiny.entities}))
    with pytest.raises(InvalidInputError, match=r"'later' is not among those .*'dev', 'test', 'train'"):
        seen(run, "later")
    with pytest.raises(InvalidInputError, match="'train' has no mentions"):
        seen(run, "test")
