"""Sets of entities that share name and type with the gold one."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.experiments.probes import PROBES
from benchmarks.experiments.probes.answers import TOP, answers, same_entities
from benchmarks.experiments.probes.base import folded, scanning
from mimic_engine.types import Entity
from tests.tiny_training import FIRST, LAST


def _named(dataset, names, types=None):
    types = types or [""] * len(names)
    made = zip(dataset.entities, names, types, strict=True)
    return replace(dataset, entities=tuple(replace(e, name=n, type=t) for e, n, t in made))


def _brute(scores, gold, members, k):
    """Counted mention by mention: top-1 in set, any and whole of the set among the k best."""
    first = whole = some = 0
    for row, right in zip(scores, gold, strict=True):
        best = sorted(range(len(row)), key=lambda n: (-row[n], n))[:k]
        first += best[0] in members[right]
        some += bool(members[right] & set(best))
        whole += members[right] <= set(best)
    return np.array([first, some, whole]) / len(gold)


@pytest.mark.parametrize("typed", [False, True])
def test_figures_are_those_of_a_count_one_by_one(tiny, make_run, brute_scores, typed):
    others = [f"{first} {last}" for first in FIRST[1:] for last in LAST]  # which the tokenizer tells apart
    names = ["Anna Stone", " anna stone", "ANNA STONE ", *[others[i // 2] for i in range(15)]]
    types = ["person", "ship", "person", *["person"] * 15] if typed else None
    run = make_run(_named(tiny, names, types))
    result = answers(run, "dev")
    split = run.encode.corpus.splits["dev"]
    keys = [(n.strip().lower(), t) for n, t in zip(names, types or [""] * 18, strict=True)]
    members = {i: {j for j in range(18) if keys[j] == keys[i]} for i in range(18)}
    mentions = folded(run, split.records)
    with scanning(run) as scan:
        scores = scan.totals(mentions)  # entities of one text tie in these to the last bit or not at all
    np.testing.assert_allclose(scores, brute_scores(run, split.records), rtol=0, atol=1e-3)
    several = np.array([len(members[g]) > 1 for g in split.gold])
    assert 0 < several.sum() < len(several)
    for part, chosen in (("all", np.full(len(several), True)), ("several", several)):
        figures = result[part]
        assert figures["mentions"] == chosen.sum()
        assert figures["mean_size"] == pytest.approx(np.mean([len(members[g]) for g in split.gold[chosen]]))
        assert figures["top1_is_gold"] == pytest.approx(
            (scores[chosen].argmax(1) == split.gold[chosen]).mean()
        )
        for k in TOP:
            first, some, whole = _brute(scores[chosen], split.gold[chosen], members, k)
            assert figures["top1_in_set"] == pytest.approx(first)
            assert figures["top"][str(k)]["any"] == pytest.approx(some)
            assert figures["top"][str(k)]["whole"] == pytest.approx(whole)
    assert result["by"] == ("name and type" if typed else "name")
    assert sum(result["sizes"].values()) == len(split.gold)
    assert max(map(int, result["sizes"])) == (2 if typed else 3)
    assert result["several"]["top"]["1"] | {"any": 0} == {"any": 0, "whole": 0.0, "fits": 0.0}


def test_equal_scores_are_ordered_by_id(tiny, make_run):
    """A matcher of zeros gives every pair the same bits; "E10" comes before "E2", whatever their rows."""
    names = [f"name {i}" for i in range(18)]
    names[17] = names[0]  # E17 is the tenth by id, E0 the first
    run = make_run(_named(tiny, names))
    with torch.no_grad():
        for weights in run.encode.model.matcher.parameters():
            weights.zero_()
    figures = answers(run, "dev")["several"]
    assert figures["mentions"] == 2
    assert {k: (top["any"], top["whole"]) for k, top in figures["top"].items()} == {
        "1": (1.0, 0.0),
        "3": (1.0, 0.0),
        "5": (1.0, 0.0),
        "10": (1.0, 1.0),
    }
    assert figures["top1_is_gold"] == 0.5


def test_without_namesakes_the_set_is_the_gold_entity(tiny, make_run):
    result = PROBES["answers"](make_run(tiny), "test")
    assert result["sizes"] == {"1": 12}
    assert result["several"] is None
    assert result["all"]["top1_in_set"] == result["all"]["top1_is_gold"]
    assert all(top["any"] == top["whole"] for top in result["all"]["top"].values())
    assert json.loads(json.dumps(result, allow_nan=False)) == result


@pytest.mark.parametrize(
    ("types", "by", "expected"),
    [
        (["", "", ""], "name", [0, 0, 1]),
        (["entity", "entity", "entity"], "name", [0, 0, 1]),
        (["entity", "", "entity"], "name", [0, 0, 1]),  # one type alone tells nothing apart
        (["film", "ship", "film"], "name and type", [0, 1, 2]),
        (["film", "film", "ship"], "name and type", [0, 0, 1]),
    ],
)
def test_a_type_counts_where_the_knowledge_base_knows_two(types, by, expected):
    entities = [
        Entity(str(i), n, type=t) for i, (n, t) in enumerate(zip(["Jaws", "jaws", "Ran"], types, strict=True))
    ]
    said, group = same_entities(entities)
    assert (said, group.tolist()) == (by, expected)


def test_fewer_entities_than_the_largest_k(tiny, make_run):
    kept = {f"E{i}" for i in range(4)}
    splits = {name: tuple(m for m in ms if m.answer in kept) for name, ms in tiny.splits.items()}
    run = make_run(replace(tiny, entities=tiny.entities[:4], splits=splits))
    figures = answers(run, "dev")["all"]
    assert figures["top"]["10"] == {"any": 1.0, "whole": 1.0, "fits": 1.0}
