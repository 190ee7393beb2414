"""The published loop against scalar float64 loops over single pairs, and the loop around it."""

from __future__ import annotations

import math
from itertools import count

import numpy as np
import pytest
import torch

from benchmarks.scan import published_loop as baseline
from benchmarks.scan.published_inputs import published_shapes
from benchmarks.scan.published_loop import (
    Features,
    Widths,
    published_loop,
    published_ranks,
    published_scores,
    random_features,
    random_weights,
)
from mimic_engine.errors import EngineError, InvalidInputError, ModelError

SMALL = Widths(text_cls=7, text_tokens=5, image_cls=6, image_tokens=4, tglu=3, vdlu=5, cmfu=2)
UNITS = ("tglu", "vdlu", "cmfu")


class ScalarMatcher:
    """One pair at a time in Python floats: every sum is written out, nothing is batched."""

    def __init__(self, weights):
        self.weights = {name: value.double().numpy() for name, value in weights.items()}

    def linear(self, name, x):
        weight, bias = self.weights[f"matcher.{name}.weight"], self.weights[f"matcher.{name}.bias"]
        return [
            sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in zip(weight, bias, strict=True)
        ]

    def norm(self, name, x):
        weight, bias = self.weights[f"matcher.{name}.weight"], self.weights[f"matcher.{name}.bias"]
        mean = sum(x) / len(x)
        deviation = math.sqrt(sum((v - mean) ** 2 for v in x) / len(x) + 1e-5)
        return [(v - mean) / deviation * w + b for v, w, b in zip(x, weight, bias, strict=True)]

    def side(self, features, row):
        raw = {name: getattr(features, name)[row].double().tolist() for name in Features.__slots__}
        return {
            "text_cls": self.norm("text_cls_layernorm", raw["text_cls"]),
            "text_tokens": [self.norm("text_tokens_layernorm", x) for x in raw["text_tokens"]],
            "image_cls": self.norm("image_cls_layernorm", raw["image_cls"]),
            "image_tokens": [self.norm("image_tokens_layernorm", x) for x in raw["image_tokens"]],
        }

    def tglu(self, m, e):
        keys = [self.linear("tglu.fc_key", x) for x in m["text_tokens"]]
        values = [self.linear("tglu.fc_value", x) for x in m["text_tokens"]]
        contexts = []
        for token in e["text_tokens"]:
            query = self.linear("tglu.fc_query", token)
            contexts.append(attend([dot(query, k) / math.sqrt(len(query)) for k in keys], values))
        context = self.norm("tglu.layer_norm", mean(contexts))
        return (
            dot(e["text_cls"], m["text_cls"]) + dot(self.linear("tglu.fc_cls", e["text_cls"]), context)
        ) / 2

    def dual(self, name, a, b):
        query = self.linear(f"{name}.cls_fc", a["image_cls"])
        key = self.linear(f"{name}.cls_fc", b["image_cls"])
        value = mean([self.linear(f"{name}.tokens_fc", x) for x in b["image_tokens"]])
        added = [v + q for v, q in zip(value, query, strict=True)]
        context = self.linear(f"{name}.fc", self.norm(f"{name}.add_layer_norm", added))
        gate = math.tanh(self.linear(f"{name}.gate_fc", context)[0])
        fused = self.norm(f"{name}.layer_norm", [gate * c + k for c, k in zip(context, key, strict=True)])
        return dot(fused, self.norm(f"{name}.layer_norm", query))

    def vdlu(self, m, e):
        return (self.dual("vdlu.dual_ent2men", e, m) + self.dual("vdlu.dual_men2ent", m, e)) / 2

    def fused(self, side):
        text = self.linear("cmfu.text_fc", side["text_cls"])
        image = [self.linear("cmfu.image_fc", x) for x in side["image_tokens"]]
        context = attend([dot(text, p) for p in image], image)
        gate = math.tanh(self.linear("cmfu.gate_fc", text)[0])
        return self.norm("cmfu.gate_layer_norm", [t * gate + c for t, c in zip(text, context, strict=True)])

    def cmfu(self, m, e):
        return dot(self.fused(m), self.fused(e))

    def scores(self, mentions, entities):
        """(B, N) by unit, and their mean."""
        sides_m = [self.side(mentions, i) for i in range(len(mentions))]
        sides_e = [self.side(entities, j) for j in range(len(entities))]
        units = {u: np.array([[getattr(self, u)(m, e) for e in sides_e] for m in sides_m]) for u in UNITS}
        return {"total": sum(units.values()) / 3, **units}


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def mean(rows):
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def attend(logits, values):
    weights = [math.exp(x) for x in logits]
    return [dot(weights, column) / sum(weights) for column in zip(*values, strict=True)]


def random_sides(mentions, entities, length, patches, dtype=torch.float64, widths=SMALL):
    shape = {"length": length, "patches": patches, "dtype": dtype}
    return (
        random_features(mentions, widths, seed=1, **shape),
        random_features(entities, widths, seed=2, **shape),
    )


@pytest.mark.parametrize(("mentions", "entities"), [(1, 1), (1, 5), (3, 1), (3, 7)])
@pytest.mark.parametrize(("length", "patches"), [(1, 1), (4, 3)])
@pytest.mark.parametrize("chunk", [1, 3, 6000])
def test_scores_equal_scalar_loops(mentions, entities, length, patches, chunk):
    weights = random_weights(SMALL, seed=3, dtype=torch.float64)
    m, e = random_sides(mentions, entities, length, patches)
    scores = published_scores(weights, m, e, chunk)
    expected = ScalarMatcher(weights).scores(m, e)
    assert scores.keys() == expected.keys()
    for name, value in scores.items():
        assert value.shape == (mentions, entities)
        assert value.dtype == torch.float64
        np.testing.assert_allclose(value.numpy(), expected[name], rtol=0, atol=1e-11, err_msg=name)


def test_mentions_and_entities_may_have_other_lengths():
    weights = random_weights(SMALL, seed=3, dtype=torch.float64)
    mentions = random_features(2, SMALL, length=3, patches=2, dtype=torch.float64)
    entities = random_features(3, SMALL, length=5, patches=7, seed=9, dtype=torch.float64)
    expected = ScalarMatcher(weights).scores(mentions, entities)
    np.testing.assert_allclose(
        published_scores(weights, mentions, entities)["total"].numpy(), expected["total"], rtol=0, atol=1e-11
    )


@pytest.mark.parametrize("name", sorted(n for n in published_shapes(SMALL) if "context_layer_norm" not in n))
def test_every_tensor_of_the_matcher_counts(name):
    weights = random_weights(SMALL, seed=3, dtype=torch.float64)
    mentions, entities = random_sides(2, 3, 4, 3)
    before = published_scores(weights, mentions, entities)["total"]
    noise = torch.randn(weights[name].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    after = published_scores({**weights, name: weights[name] + noise}, mentions, entities)["total"]
    change = float((after - before).abs().max())
    if name == "matcher.tglu.fc_key.bias":  # adds one number to a whole softmax row
        assert change < 1e-12
    else:
        assert change > 1e-6


def test_published_configuration_has_its_known_sizes():
    weights = random_weights()
    assert sum(value.numel() for value in weights.values()) == 315_491
    assert random_features(1).values_per_row == 25_888
    assert Widths.of(weights) == Widths()


def test_float32_is_float64_up_to_rounding_at_published_widths():
    mentions, entities = random_features(2, seed=1), random_features(5, seed=2)
    single = published_scores(random_weights(), mentions, entities)
    double = published_scores(
        random_weights(dtype=torch.float64), mentions.to(torch.float64), entities.to(torch.float64)
    )
    for name, value in single.items():
        assert value.dtype == torch.float32
        limit = 1e-5 * max(1.0, float(double[name].abs().max()))
        assert float((value.double() - double[name]).abs().max()) < limit, name


def test_other_tensors_of_a_checkpoint_and_the_unused_norm_are_ignored():
    weights = random_weights(SMALL, dtype=torch.float64)
    mentions, entities = random_sides(2, 3, 4, 3)
    before = published_scores(weights, mentions, entities)["total"]
    fewer = {k: v for k, v in weights.items() if "context_layer_norm" not in k}
    fewer["encoder.image_cls_fc.weight"] = torch.zeros(3)
    assert torch.equal(published_scores(fewer, mentions, entities)["total"], before)


def test_missing_and_contradicting_tensors_are_all_named():
    weights = random_weights(SMALL)
    mentions, entities = random_sides(1, 1, 2, 2, torch.float32)
    gone = ("matcher.cmfu.gate_fc.bias", "matcher.tglu.fc_cls.weight")
    with pytest.raises(ModelError, match="missing") as missing:
        published_scores({k: v for k, v in weights.items() if k not in gone}, mentions, entities)
    assert all(name in str(missing.value) for name in gone)
    wrong = {
        **weights,
        "matcher.tglu.fc_key.weight": torch.zeros(3, 9),
        "matcher.cmfu.image_fc.bias": torch.zeros(1),
    }
    with pytest.raises(ModelError, match=r"fc_key\.weight: shape \(3, 9\), expected \(3, 5\).*") as shapes:
        published_scores(wrong, mentions, entities)
    assert "matcher.cmfu.image_fc.bias" in str(shapes.value)


def test_features_that_do_not_fit_are_refused():
    weights = random_weights(SMALL)
    mentions, entities = random_sides(2, 3, 4, 3, torch.float32)
    with pytest.raises(InvalidInputError, match=r"entities\.text_cls: dtype torch\.float64"):
        published_scores(weights, mentions, entities.to(torch.float64))
    with pytest.raises(InvalidInputError, match=r"mentions\.text_cls: shape \(2, 512\).*7"):
        published_scores(weights, random_features(2, length=4, patches=3), entities)
    with pytest.raises(InvalidInputError, match="chunk: must be at least 1, got 0"):
        published_scores(weights, mentions, entities, chunk=0)
    with pytest.raises(InvalidInputError, match="first axes must be equal"):
        Features(mentions.text_cls, entities.text_tokens, mentions.image_cls, mentions.image_tokens)
    empty = Features(
        mentions.text_cls, mentions.text_tokens[:, :0], mentions.image_cls, mentions.image_tokens
    )
    with pytest.raises(InvalidInputError, match=r"mentions\.text_tokens: shape \(2, 0, 5\)"):
        published_scores(weights, empty, entities)
    with pytest.raises(InvalidInputError, match="patches: must be at least 1, got 0"):
        random_features(1, SMALL, patches=0)


@pytest.mark.parametrize(("batch", "chunk"), [(1, 1), (3, 4), (20, 6000)])
def test_ranks_are_positions_in_the_sorted_scores(batch, chunk):
    weights = random_weights(SMALL, seed=3, dtype=torch.float64)
    mentions, entities = random_sides(7, 11, 4, 3)
    gold = torch.tensor([0, 10, 3, 3, 7, 1, 5])
    total = ScalarMatcher(weights).scores(mentions, entities)["total"]
    expected = [
        list(np.argsort(-row, kind="stable")).index(g) + 1
        for row, g in zip(total, gold.tolist(), strict=True)
    ]
    ranks = published_ranks(weights, mentions, entities, gold, batch=batch, chunk=chunk)
    assert ranks.dtype == torch.int64
    assert ranks.tolist() == expected
    assert len(set(expected)) > 1


def test_ties_count_against_the_model():
    weights = random_weights(SMALL, dtype=torch.float64)
    mentions, one = random_sides(2, 1, 4, 3)
    twins = Features(*(getattr(one, name).repeat_interleave(5, 0) for name in Features.__slots__))
    # One entity a chunk: within a larger one, twins may differ in the last bit by their place in it.
    assert published_ranks(weights, mentions, twins, torch.tensor([0, 4]), chunk=1).tolist() == [5, 5]


def test_loop_times_every_batch_and_counts_every_pair():
    weights = random_weights(SMALL)
    mentions, entities = random_sides(5, 3, 2, 2, torch.float32)
    ticks = count(step=2)
    result = published_loop(
        weights,
        mentions,
        entities,
        torch.zeros(5, dtype=torch.int64),
        batch=2,
        clock=lambda: float(next(ticks)),
    )
    assert result.batch_seconds == (2.0, 2.0, 2.0)
    assert result.pairs == 15
    assert result.pairs_per_s == 2.5


def test_loop_refuses_bad_gold_batch_and_scores():
    weights = random_weights(SMALL)
    mentions, entities = random_sides(2, 3, 2, 2, torch.float32)
    with pytest.raises(InvalidInputError, match=r"gold: rows must lie in \[0, 3\), got 3"):
        published_ranks(weights, mentions, entities, torch.tensor([0, 3]))
    with pytest.raises(InvalidInputError, match=r"gold: .*got \(1,\) for 2"):
        published_ranks(weights, mentions, entities, torch.tensor([0]))
    with pytest.raises(InvalidInputError, match=r"gold: .*got \(0,\) for 0"):
        published_ranks(weights, mentions.block(0, 0), entities, torch.zeros(0, dtype=torch.int64))
    with pytest.raises(InvalidInputError, match="batch: must be at least 1, got 0"):
        published_ranks(weights, mentions, entities, torch.tensor([0, 1]), batch=0)
    broken = {**weights, "matcher.cmfu.gate_fc.bias": torch.tensor([float("nan")])}
    with pytest.raises(EngineError, match="not all finite"):
        published_ranks(broken, mentions, entities, torch.tensor([0, 1]))


def test_random_input_repeats_with_its_seed():
    first, again, other = (random_features(3, SMALL, seed=s) for s in (4, 4, 5))
    assert torch.equal(first.text_tokens, again.text_tokens)
    assert not torch.equal(first.text_tokens, other.text_tokens)
    double, single = random_weights(SMALL, dtype=torch.float64), random_weights(SMALL)
    assert all(torch.equal(double[name].float(), single[name]) for name in double)


def test_command_line_prints_speed_and_writes_a_result(capsys, tmp_path):
    out = tmp_path / "baseline.json"
    assert baseline.main(["--entities", "11", "--batch", "1", "--batches", "2", "--out", str(out)]) == 0
    assert "pairs/s" in capsys.readouterr().out
    assert '"features_bytes_per_entity": 103552' in out.read_text()


def test_command_line_names_a_bad_option(capsys):
    assert baseline.main(["--entities", "0"]) == 2
    assert "--entities: must be at least 1, got 0" in capsys.readouterr().err
