"""The compiled passes against the reference: values, bits that never vary, bounds that hold."""

import gc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mimic_engine.kernels.reference import scores_ref
from mimic_engine.types import EntityArrays, MentionArrays
from tests.scan.arrays import HALF, Pairs, Shape, wide
from tests.scan.compiled import SETS, changed, compiled, every_set, kernels

SHAPES = {
    "published": Shape(text=512, storage="float16"),
    "one of everything": Shape(1, 1, 1, 1, 1, 1),
    "odd": Shape(5, 37, 13, 7, 17, 19, mask=True),
    "a token more than a chunk": Shape(2, 33, 41, 9, 16, 5),
    "longest": Shape(2, 35, 128, 127, 64, 3, storage="float16", mask=True),
    "wide": Shape(18, 31, 24, 12, 130, 300, storage="float16"),
    "int8": Shape(4, 65, 33, 40, 96, 8, storage="int8"),
    "int8 masked": Shape(2, 5, 8, 3, 9, 8, storage="int8", mask=True),
    "large logits": Shape(2, 40, 39, 23, 96, 8, logits=9.0),
    "large logits, whole chunks": Shape(2, 40, 48, 24, 96, 8, logits=9.0),
    "text alone": Shape(2, 3, units=("tglu",)),
    "images alone": Shape(2, 33, units=("vdlu",)),
    "concatenation": Shape(2, 33, units=("tglu", "concat", "cmfu"), storage="float16"),
}


def totals(k, prepared, entities, rows):
    count = len(range(*rows.indices(entities.rows))) if isinstance(rows, slice) else len(rows)
    out = np.full((prepared.count, count), np.nan, np.float32)
    k.totals(prepared, entities, rows, out)
    return out


def bounds(k, prepared, entities, rows=slice(None)):
    out = np.full((prepared.count, len(range(*rows.indices(entities.rows)))), np.nan, np.float32)
    k.bounds(prepared, entities, rows, out)
    return out


def estimates(k, prepared, entities, codes):
    out = np.full((prepared.count, entities.rows), np.nan, np.float32)
    k.estimates(prepared, entities, codes, slice(None), out)
    return out


@compiled
@every_set
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_scores_are_those_of_the_reference(isa, shape):
    pairs = Pairs(shape)
    k = kernels(pairs, isa)
    prepared = k.prepare(pairs.mentions)
    found, expected = k.scores(prepared, pairs.entities, slice(None)), pairs.reference()
    assert found.total.dtype == np.float32
    assert list(found.units) == list(shape.units)
    allowed = pairs.bound()
    for name, unit in found.units.items():
        np.testing.assert_allclose(unit, expected.units[name], rtol=0, atol=allowed[name], err_msg=name)
    np.testing.assert_allclose(found.total, expected.total, rtol=0, atol=allowed["total"])
    np.testing.assert_array_equal(totals(k, prepared, pairs.entities, slice(None)), found.total)
    assert (bounds(k, prepared, pairs.entities) >= found.total).all()


@compiled
@every_set
def test_the_bits_of_a_pair_do_not_depend_on_its_company(isa):
    pairs = Pairs(Shape(mentions=23, entities=97, mention_tokens=21, text=64, storage="float16", mask=True))
    k = kernels(pairs, isa)
    prepared = k.prepare(pairs.mentions)
    whole = totals(k, prepared, pairs.entities, slice(None))
    upper = bounds(k, prepared, pairs.entities)
    rows = np.random.default_rng(1).permutation(97)[:50]
    np.testing.assert_array_equal(totals(k, prepared, pairs.entities, rows), whole[:, rows])
    np.testing.assert_array_equal(k.scores(prepared, pairs.entities, rows[:1]).total, whole[:, rows[:1]])
    np.testing.assert_array_equal(totals(k, prepared, pairs.entities, slice(5, 38)), whole[:, 5:38])
    np.testing.assert_array_equal(bounds(k, prepared, pairs.entities, slice(5, 38)), upper[:, 5:38])
    for b in (0, 7, 22):
        alone = k.prepare(MentionArrays(**{n: a[b : b + 1] for n, a in pairs.mentions.items()}))
        np.testing.assert_array_equal(totals(k, alone, pairs.entities, slice(None)), whole[b : b + 1])
        np.testing.assert_array_equal(bounds(k, alone, pairs.entities), upper[b : b + 1])
    moved = EntityArrays(**{n: _unaligned(a) for n, a in pairs.entities.items()})
    np.testing.assert_array_equal(totals(k, prepared, moved, slice(None)), whole)


@compiled
@every_set
def test_chosen_mentions_have_the_bits_that_they_have_in_their_batch(isa):
    """Also where they need fewer registers than the longest of the batch, which is gone by then."""
    pairs = Pairs(Shape(mentions=5, entities=70, mention_tokens=40, text=64, mask=True, spread=0.5))
    k = kernels(pairs, isa)
    centroids = np.random.default_rng(2).normal(size=(9, 96)).astype(np.float32)
    codes = np.random.default_rng(3).integers(0, 9, (70, 40)).astype(np.uint8)
    prepared = k.prepare(pairs.mentions, centroids)
    whole, upper = totals(k, prepared, pairs.entities, slice(None)), bounds(k, prepared, pairs.entities)
    estimated = estimates(k, prepared, pairs.entities, codes)
    rows = np.array([3, 0, 3])
    chosen = k.take(k.take(prepared, [4, 3, 0]), [1, 2, 1])
    del prepared
    gc.collect()
    assert chosen.count == 3
    np.testing.assert_array_equal(totals(k, chosen, pairs.entities, slice(None)), whole[rows])
    np.testing.assert_array_equal(bounds(k, chosen, pairs.entities), upper[rows])
    np.testing.assert_array_equal(estimates(k, chosen, pairs.entities, codes), estimated[rows])
    assert k.take(chosen, []).count == 0


def _unaligned(array):
    """The same values one item beyond where they were aligned, read-only."""
    memory = np.empty(array.nbytes + 64 + array.itemsize, np.uint8)
    start = (-memory.ctypes.data) % 64 + array.itemsize
    moved = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    moved[...] = array
    moved.flags.writeable = False
    return moved


@compiled
@every_set
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    shape=st.builds(
        Shape,
        mentions=st.integers(1, 3),
        entities=st.integers(1, 40),
        mention_tokens=st.integers(1, 43),
        entity_tokens=st.integers(1, 9),
        width=st.integers(1, 40),
        text=st.integers(1, 9),
        storage=st.sampled_from(["float32", "float16", "int8"]),
        mask=st.booleans(),
        logits=st.sampled_from([0.1, 1.0, 8.0]),
        spread=st.sampled_from([0.0, 1e-6, 1e-2, 0.3, 1.0, 30.0]),
        seed=st.integers(0, 1000),
    ),
    sweeps=st.integers(1, 3),
    aimed=st.booleans(),
    scale=st.sampled_from([1e-12, 1e-3, 1.0, 1e6]),
)
def test_no_total_is_above_its_bound(isa, shape, sweeps, aimed, scale):
    """Also where the bound is tight: entity vectors inside the cone, equal tokens, tiny and huge values."""
    pairs = Pairs(replace(shape, storage="float32") if scale != 1.0 else shape)
    value = pairs.mentions.tglu_value * np.float32(scale)
    mentions = changed(pairs.mentions, tglu_value=value)
    entities = pairs.entities
    if aimed:
        direction = value.mean(1)[np.arange(shape.entities) % shape.mentions]  # (N, D)
        vectors = direction / np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-30)
        entities = changed(entities, tglu_cls=vectors.astype(entities.tglu_cls.dtype))
    k = kernels(pairs, isa, sweeps=sweeps)
    prepared = k.prepare(mentions)
    total = totals(k, prepared, entities, slice(None))
    assert np.isfinite(total).all()
    assert (bounds(k, prepared, entities) >= total).all()


@compiled
@every_set
def test_the_bound_is_the_length_of_the_projection_on_the_cone(isa):
    """With sweeps enough it comes close to the least bound there is, which non-negative least squares give."""
    pairs = Pairs(Shape(2, 32, 11, 6, 24, 8, units=("tglu",), spread=0.5))
    projected = np.empty((2, 32))
    for b in range(2):
        z = pairs.mentions.tglu_value[b].astype(np.float64)
        for n, u in enumerate(pairs.entities.tglu_cls.astype(np.float64)):
            projected[b, n] = np.sqrt(24) * np.linalg.norm(z.T @ _nnls(z.T, u))
    g2g = pairs.mentions.text_cls @ pairs.entities.text_cls.T
    least = (g2g + projected + pairs.entities.tglu_bias) / 2
    gaps = []
    for sweeps in (1, 2, 200):
        k = kernels(pairs, isa, sweeps=sweeps)
        gap = bounds(k, k.prepare(pairs.mentions), pairs.entities) - least
        assert gap.min() > -1e-4
        gaps.append(gap.mean())
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 0.02


def _nnls(a, b):
    """min |a x - b| over x >= 0, by projected coordinate descent."""
    gram, target = a.T @ a, a.T @ b
    x = np.zeros(a.shape[1])
    for _ in range(3000):
        for j in range(len(x)):
            x[j] = max(0.0, x[j] + (target[j] - gram[j] @ x) / gram[j, j])
    return x


@compiled
@every_set
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    "shape",
    [
        Shape(3, 37, 13, 7, 17, 19, mask=True),
        Shape(2, 35, text=64, storage="float16"),
        Shape(1, 1, 1, 1, 1, 1),
    ],
    ids=["odd", "published", "one"],
)
def test_estimates_are_the_scores_of_the_named_centroids(isa, dtype, shape):
    pairs = Pairs(shape)
    rng = np.random.default_rng(3)
    count = 255 if dtype == np.uint8 else 301
    centroids = rng.normal(size=(count, shape.width)).astype(np.float32) / shape.width**0.5
    codes = rng.integers(0, count, (shape.entities, shape.entity_tokens)).astype(dtype)
    expected = scores_ref(
        MentionArrays(**{n: a.astype(np.float64) for n, a in pairs.mentions.items()}),
        EntityArrays(**(wide(pairs.entities) | {"tglu_query": centroids[codes].astype(np.float64)})),
        pairs.constants,
    )
    k = kernels(pairs, isa)
    prepared = k.prepare(pairs.mentions, centroids)
    out = np.empty((shape.mentions, shape.entities), np.float32)
    k.estimates(prepared, pairs.entities, codes, slice(None), out)
    # Tables of 8 bits, against how far a global-local score reaches: sqrt(D) |u|.
    lengths = np.linalg.norm(pairs.entities.tglu_cls.astype(np.float64), axis=1)
    reach = np.sqrt(shape.width) * lengths.mean() / 2 / len(shape.units)
    assert np.abs(out - expected.total).max() < 1e-2 * reach + 1e-5
    assert np.square(out - expected.total).mean() ** 0.5 < 1e-3 * reach + 1e-5
    part = np.empty((shape.mentions, shape.entities // 2), np.float32)
    k.estimates(prepared, pairs.entities, codes, slice(0, shape.entities // 2), part)
    np.testing.assert_array_equal(part, out[:, : shape.entities // 2])


@compiled
def test_instruction_sets_agree():
    pairs = Pairs(Shape(storage="float16"))
    results = []
    for isa in SETS:
        k = kernels(pairs, isa)
        assert k.name == f"cpu-{isa}"
        results.append(totals(k, k.prepare(pairs.mentions), pairs.entities, slice(None)))
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], rtol=0, atol=2 * pairs.bound()["total"])


@compiled
def test_scores_are_written_in_place_by_many_threads():
    pairs = Pairs(Shape(mentions=5, entities=400, entity_tokens=5, mention_tokens=9))
    k = kernels(pairs, None)
    prepared = k.prepare(pairs.mentions)
    whole = totals(k, prepared, pairs.entities, slice(None))
    out = np.full((7, 400), -1.0, np.float32)
    with ThreadPoolExecutor(4) as pool:
        cuts = [slice(i, min(i + 37, 400)) for i in range(0, 400, 37)]
        list(pool.map(lambda cut: k.totals(prepared, pairs.entities, cut, out[1:6, cut]), cuts))
    np.testing.assert_array_equal(out[1:6], whole)
    assert (out[[0, 6]] == -1).all()


@compiled
@every_set
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "name", ["text_cls", "tglu_key", "tglu_value", "vdlu_key", "vdlu_query_scalars", "cmfu"]
)
def test_a_mention_that_is_not_finite_shows(isa, bad, name):
    pairs = Pairs(Shape(mentions=2, entities=33, mention_tokens=11, entity_tokens=5))
    values = getattr(pairs.mentions, name).copy()
    values[1].flat[-1] = bad
    k = kernels(pairs, isa)
    prepared = k.prepare(changed(pairs.mentions, **{name: values}))
    total, upper = totals(k, prepared, pairs.entities, slice(None)), bounds(k, prepared, pairs.entities)
    assert np.isfinite(total[0]).all() and np.isfinite(upper[0]).all()
    assert not np.isfinite(total[1]).any()
    assert not np.isfinite(upper[1]).any()


@compiled
@every_set
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("storage", ["float32", "float16"])
@pytest.mark.parametrize("name", [*sorted(set(HALF) - {"concat"}), "tglu_bias", "vdlu_key_scalars"])
def test_an_entity_that_is_not_finite_shows(isa, bad, storage, name):
    pairs = Pairs(Shape(mentions=2, entities=33, mention_tokens=11, entity_tokens=5, storage=storage))
    values = getattr(pairs.entities, name).copy()
    values[7:8].flat[-1] = bad
    entities = changed(pairs.entities, **{name: values})
    k = kernels(pairs, isa)
    prepared = k.prepare(pairs.mentions)
    total, upper = totals(k, prepared, entities, slice(None)), bounds(k, prepared, entities)
    sound = np.arange(33) != 7
    assert np.isfinite(total[:, sound]).all() and np.isfinite(upper[:, sound]).all()
    assert not np.isfinite(total[:, 7]).any()
    if name != "tglu_query":  # which no bound reads
        assert not np.isfinite(upper[:, 7]).any()


@compiled
def test_a_mention_without_a_token_to_attend_to_has_no_score():
    pairs = Pairs(Shape(mentions=2, entities=5, mask=True))
    mask = pairs.mentions.tglu_key_mask.copy()
    mask[1] = 0
    k = kernels(pairs, None)
    prepared = k.prepare(changed(pairs.mentions, tglu_key_mask=mask))
    assert np.isnan(totals(k, prepared, pairs.entities, slice(None))[1]).all()
    assert np.isnan(bounds(k, prepared, pairs.entities)[1]).all()


@compiled
def test_nothing_to_do_is_no_error():
    pairs = Pairs(Shape(mentions=2, entities=3))
    k = kernels(pairs, None)
    prepared = k.prepare(pairs.mentions)
    assert k.scores(prepared, pairs.entities, slice(2, 2)).total.shape == (2, 0)
    assert k.scores(prepared, pairs.entities, np.empty(0, np.int64)).total.shape == (2, 0)
    none = k.prepare(MentionArrays(**{n: a[:0] for n, a in pairs.mentions.items()}))
    assert k.scores(none, pairs.entities, slice(None)).total.shape == (0, 3)
