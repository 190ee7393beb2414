"""The gate of a pair, from folded arrays, against the unit itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.experiments.probes.gates import distribution, gate_weights
from mimic_engine.config import MatcherConfig
from mimic_engine.model.fold import FoldEntity, FoldMention, fold_constants
from mimic_engine.types import EntityArrays, MentionArrays


def _unit_gates(matcher, mention, entity):
    """What the units' own gate layers give for all pairs, (B, N) in each direction."""
    caught = []
    vdlu = matcher.vdlu
    hooks = [
        dual.gate_fc.register_forward_hook(lambda _m, _i, out: caught.append(torch.tanh(out)[..., 0].numpy()))
        for dual in (vdlu.dual_ent2men, vdlu.dual_men2ent)
    ]
    vdlu(matcher.normalise(mention), matcher.normalise(entity))
    for hook in hooks:
        hook.remove()
    return {"entity to mention": caught[0].T, "mention to entity": caught[1]}


@torch.no_grad()
@pytest.mark.parametrize(("hidden", "mentions", "entities"), [(8, 5, 7), (13, 1, 1), (96, 3, 17)])
def test_gates_of_pairs_are_those_of_the_unit(make_matcher, make_features, hidden, mentions, entities):
    config = MatcherConfig(hidden=hidden, text_width=10, text_token_width=6)
    matcher = make_matcher(config)
    mention, entity = make_features(config, mentions, seed=1), make_features(config, entities, seed=2)
    expected = _unit_gates(matcher, mention, entity)
    b, n = (i.ravel() for i in np.indices((mentions, entities)))
    folded = [
        {name: value.numpy() for name, value in fold(matcher)(*features).items()}
        for fold, features in ((FoldMention, mention), (FoldEntity, entity))
    ]
    pairs = MentionArrays(**folded[0]).take(b), EntityArrays(**folded[1]).take(n)
    gates = gate_weights(*pairs, fold_constants(matcher))
    assert gates.keys() == expected.keys()
    for name in gates:
        np.testing.assert_allclose(gates[name], expected[name][b, n], rtol=1e-9)
    if mentions > 1:
        assert np.abs(gates["entity to mention"] - gates["mention to entity"]).max() > 0.01


def test_a_closed_gate_has_a_distribution_at_zero():
    assert distribution(np.zeros(3, np.float32)) == {
        "mean": 0.0,
        "mean_absolute": 0.0,
        "std": 0.0,
        "quantiles": {"5": 0.0, "25": 0.0, "50": 0.0, "75": 0.0, "95": 0.0},
    }


def test_a_distribution_tells_sign_from_size():
    found = distribution(np.array([-0.5, 0.5, -0.5, 0.5], np.float32))
    assert (found["mean"], found["mean_absolute"], found["std"]) == (0.0, 0.5, 0.5)
    assert found["quantiles"]["5"] == -0.5
    assert found["quantiles"]["95"] == 0.5
