"""The engine's side of the comparison: published weights folded and scored, and what counts as agreement."""

import numpy as np
import pytest

from benchmarks.scan.published_inputs import Widths
from benchmarks.scan.published_loop import published_scores, random_features, random_weights
from benchmarks.service.engine_side import (
    check_ranks,
    compare_top_k,
    fold_entities,
    fold_mentions,
    load_matcher,
    make_kernels,
    nbytes,
)
from mimic_engine.errors import EngineError, InvalidInputError
from mimic_engine.model.fold import fold_constants

SMALL = Widths(text_cls=7, text_tokens=5, image_cls=6, image_tokens=6, tglu=6, vdlu=6, cmfu=6)


@pytest.fixture(scope="module")
def weights():
    return random_weights(SMALL, seed=3)


@pytest.mark.parametrize("backend", ["cpu", "onnx", "numpy", "torch"])
def test_every_backend_scores_as_the_published_loop(weights, tmp_path, backend):
    matcher, kernels = load_matcher(weights), None
    for mentions, entities in ((1, 1), (3, 257)):
        men = random_features(mentions, SMALL, length=9, patches=4, seed=4)
        ent = random_features(entities, SMALL, length=9, patches=4, seed=5)
        folded = fold_mentions(matcher, men), fold_entities(matcher, ent)
        kernels = kernels or make_kernels(backend, fold_constants(matcher), *folded, tmp_path)
        found = kernels.scores(kernels.prepare(folded[0]), folded[1], slice(0, entities))
        expected = published_scores(weights, men, ent)
        for name, scores in {"total": found.total, **found.units}.items():
            np.testing.assert_allclose(scores, expected[name].numpy(), rtol=0, atol=1e-4)


def test_the_norm_that_nothing_uses_may_be_absent(weights):
    few = {k: v for k, v in weights.items() if "context_layer_norm" not in k}
    assert load_matcher(few).cmfu.context_layer_norm.weight.shape == (6,)


def test_half_precision_halves_the_vectors_alone():
    matcher = load_matcher(random_weights())
    entities = random_features(2)
    assert nbytes(fold_entities(matcher, entities)) == 2 * 20_540
    assert nbytes(fold_entities(matcher, entities, "float16")) == 2 * 10_300


def test_unknown_backend_is_refused(weights, tmp_path):
    matcher = load_matcher(weights)
    features = random_features(1, SMALL)
    folded = fold_mentions(matcher, features), fold_entities(matcher, features)
    with pytest.raises(InvalidInputError, match="backend: 'abacus' is not one of cpu, onnx, numpy, torch"):
        make_kernels("abacus", fold_constants(matcher), *folded, tmp_path)


REFERENCE = np.array([[0.0, 3.0, 2.0, 1.0], [5.0, 4.99, 1.0, 0.0]])


def test_same_lists_agree():
    agreement = compare_top_k(np.array([[1, 2], [0, 1]]), REFERENCE)
    assert (agreement.identical, agreement.worst_gap) == (1.0, 0.0)


def test_a_swap_of_near_equals_is_told_by_its_gap():
    agreement = compare_top_k(np.array([[1, 2], [1, 0]]), REFERENCE)
    assert agreement.identical == 0.5
    assert agreement.worst_gap == pytest.approx(0.01)
    agreement.check(0.02)
    with pytest.raises(EngineError, match=r"differ by 1\.00e-02 .* the limit is 5\.00e-03"):
        agreement.check(0.005)


def test_a_wrong_entity_is_no_near_equal():
    with pytest.raises(EngineError, match="differ by"):
        compare_top_k(np.array([[1, 0], [0, 1]]), REFERENCE).check(0.02)


def test_ranks_may_differ_only_among_near_equals():
    gold = np.array([2, 1])
    assert check_ranks(np.array([2, 2]), REFERENCE, gold, 0.02) == 1.0
    assert check_ranks(np.array([2, 1]), REFERENCE, gold, 0.02) == 0.5
    with pytest.raises(EngineError, match=r"rank of mention 1: 1, .* lies in \[2, 2\]"):
        check_ranks(np.array([2, 1]), REFERENCE, gold, 0.001)
    with pytest.raises(EngineError, match=r"rank of mention 0: 3, .* lies in \[2, 2\]"):
        check_ranks(np.array([3, 2]), REFERENCE, gold, 0.02)
