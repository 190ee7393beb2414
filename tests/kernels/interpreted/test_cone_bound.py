"""The cone bound: never below a score, near the bound that many sweeps find, +infinity where input is not finite."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mimic_engine.kernels.cone_bound import CANDIDATES, Cones, cone_axes, cone_bound
from mimic_engine.kernels.cone_bound_ref import cone_norm_bound, cone_of
from mimic_engine.kernels.tglu_attention import pack_text, tglu_attention


def bound(value, mask, cls, bias, **options):
    text = pack_text(value, value, mask, torch.float32)
    cones = Cones.empty(text, cls.dtype)
    for tensor in (cones.directions, cones.gram, cones.along, cones.numbers):
        tensor.fill_(torch.nan)
    cone_axes(text, cones)
    out = torch.full((len(value), len(cls)), torch.nan)
    cone_bound(cones, cls, bias, out, **options)
    return out.numpy(), cones


def tightest(value, mask, cls, bias):
    """The same bound after many sweeps, in float64."""
    masks = [None] * len(value) if mask is None else mask.numpy()
    cones = [cone_of(v, m) for v, m in zip(value.numpy(), masks, strict=True)]
    u = cls.double().numpy()
    return np.sqrt(u.shape[1]) * np.stack([cone_norm_bound(c, u, sweeps=60) for c in cones]) + bias.numpy()


def random(seed, mentions, entities, tokens, width, common, *, masked=False, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g)

    shared = normal(width)
    value = normal(mentions, tokens, width) + common * shared
    value -= value.mean(-1, keepdim=True)
    cls = normal(entities, width) + 0.5 * shared
    cls -= cls.mean(-1, keepdim=True)
    mask = None
    if masked:
        mask = (torch.rand(mentions, tokens, generator=g) < 0.6).float()
        mask[:, 0] = 1
    return value, mask, cls.to(dtype), normal(entities)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("mentions", "entities", "tokens", "width", "common", "masked"),
    [
        (1, 1, 1, 8, 0.0, False),
        (2, 65, 40, 96, 1.0, False),
        (3, 37, 13, 64, 2.0, True),
        (2, 9, 77, 100, 0.3, True),
    ],
)
def test_is_above_the_tightest_and_not_far(dtype, mentions, entities, tokens, width, common, masked):
    value, mask, cls, bias = random(0, mentions, entities, tokens, width, common, masked=masked, dtype=dtype)
    found, _ = bound(value, mask, cls, bias)
    least = tightest(value, mask, cls, bias)
    assert (found >= least - 1e-6).all()
    length = np.sqrt(width) * cls.float().norm(dim=1).numpy()
    assert (found - bias.numpy() <= 1.001 * length).all()
    assert (found - least).mean() <= 0.12 * length.mean()


@pytest.mark.parametrize("tile", CANDIDATES, ids=str)
def test_every_tile_gives_the_same(tile):
    case = random(1, 1, 33, 11, 24, 1.0)
    np.testing.assert_allclose(bound(*case, tile=tile)[0], bound(*case)[0], rtol=1e-5)


def test_more_steps_are_tighter():
    case = random(2, 1, 32, 40, 96, 0.5)
    means = [bound(*case, steps=steps)[0].mean() for steps in (1, 4, 12)]
    assert means == sorted(means, reverse=True)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@settings(
    max_examples=8,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    seed=st.integers(0, 2**20),
    tokens=st.integers(1, 9),
    width=st.integers(2, 12),
    common=st.sampled_from([0.0, 0.1, 1.0, 10.0]),
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
    twins=st.booleans(),
    half=st.booleans(),
)
def test_no_score_exceeds_it(seed, tokens, width, common, scale, twins, half):
    """Adversarial heads, cones that are not pointed, near-duplicates, one token; against the kernel's own scores."""
    dtype = torch.float16 if half else torch.float32
    value, _, cls, bias = random(seed, 2, 7, tokens, width, common)
    value, cls = value * scale, (cls * min(scale, 100)).to(dtype)
    if twins and tokens > 1:
        value[:, 1] = value[:, 0] * (1 + 1e-6)
    if twins:
        value[0] = 0
    g = torch.Generator().manual_seed(seed)
    query = (torch.randn(7, 3, width, generator=g) * 3).to(dtype)
    key = torch.randn(2, tokens, width, generator=g) * 3
    out = torch.full((2, 7), torch.nan)
    tglu_attention(
        pack_text(key, value, None, dtype), query, cls, bias, out, base=torch.ones(2, 7), factor=0.5
    )
    above, _ = bound(value, None, cls, bias, base=torch.ones(2, 7), factor=0.5)
    assert (above >= out.numpy()).all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_always_scored(value):
    values, mask, cls, bias = random(3, 3, 5, 7, 16, 1.0)
    values[1, 2, 3], cls[4, 5] = value, value
    found, _ = bound(values, mask, cls, bias)
    assert (found[1] == np.inf).all()
    assert (found[:, 4] == np.inf).all()
    assert np.isfinite(found[[0, 2], :4]).all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_flat_cone_is_bounded_by_length():
    value = torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]])
    cls, bias = torch.tensor([[3.0, -3.0]]), torch.zeros(1)
    found, cones = bound(value, None, cls, bias)
    assert cones.numbers[0, 0] == np.inf
    np.testing.assert_allclose(found, 6.0, rtol=1e-3)
