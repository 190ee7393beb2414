"""The blocked in-batch scores against the readable matcher: scores and gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mimic_engine.config import MatcherConfig
from mimic_engine.model.units import Features, Matcher
from mimic_engine.train import matching
from mimic_engine.train.matching import batch_scores

CONFIG = MatcherConfig(text_width=20, text_token_width=14, hidden=8)


def _features(rows: int, tokens: int) -> Features:
    mask = (torch.arange(tokens)[None] < torch.randint(1, tokens + 1, (rows, 1))).long()
    floats = [
        torch.randn(*shape, dtype=torch.float64, requires_grad=True)
        for shape in ((rows, 20), (rows, tokens, 14), (rows, 8), (rows, 5, 8))
    ]
    return Features(floats[0], floats[1], mask, floats[2], floats[3])


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(CONFIG, mask_padding=True),
        replace(CONFIG, vision="concat"),
        replace(CONFIG, vision="off", cmfu=False),
        replace(CONFIG, tglu=False),
    ],
)
@pytest.mark.parametrize(
    ("b", "n", "lengths"), [(1, 1, (1, 1)), (3, 5, (7, 7)), (5, 2, (4, 9)), (13, 11, (9, 8))]
)
@pytest.mark.parametrize(("kept", "block"), [(1 << 28, 1 << 18), (0, 1 << 18), (0, 1), (1 << 28, 300)])
def test_scores_and_gradients_equal_the_matchers(
    config: MatcherConfig,
    b: int,
    n: int,
    lengths: tuple[int, int],
    kept: int,
    block: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(matching, "KEPT_BYTES", kept)
    monkeypatch.setattr(matching, "BLOCK_VALUES", block)
    torch.manual_seed(b)
    matcher = Matcher(config).double()
    mention, entity = _features(b, lengths[0]), _features(n, lengths[1])
    inputs = [t for t in (*mention, *entity, *matcher.parameters()) if t.requires_grad]
    direction = torch.randn(b, n, dtype=torch.float64)
    want, got = matcher(mention, entity), batch_scores(matcher, mention, entity)
    torch.testing.assert_close(got.total, want.total, rtol=1e-10, atol=1e-10)
    assert got.units.keys() == want.units.keys()
    for name, unit in want.units.items():
        torch.testing.assert_close(got.units[name], unit, rtol=1e-10, atol=1e-10)
    for a, w in zip(
        torch.autograd.grad((got.total * direction).sum(), inputs, allow_unused=True),
        torch.autograd.grad((want.total * direction).sum(), inputs, allow_unused=True),
        strict=True,
    ):
        assert (a is None) == (w is None)
        if a is not None:
            torch.testing.assert_close(a, w, rtol=1e-8, atol=1e-9)


def test_masks_with_holes_and_float32_rounding() -> None:
    torch.manual_seed(0)
    matcher = Matcher(replace(CONFIG, mask_padding=True))
    mention, entity = (
        Features(f.text_cls, f.text_tokens, (torch.rand(rows, 9) < 0.5).long(), *f[3:])
        for rows, f in ((6, _features(6, 9)), (7, _features(7, 9)))
    )
    for side in (mention, entity):
        side.text_mask[:, 4] = 1  # no text without a token
    want = matcher.double()(mention, entity)
    got = batch_scores(matcher, mention, entity)
    torch.testing.assert_close(got.total, want.total, rtol=1e-10, atol=1e-10)
    matcher.float()
    coarse = [
        Features(*(t.float() if t.is_floating_point() else t for t in side)) for side in (mention, entity)
    ]
    torch.testing.assert_close(
        batch_scores(matcher, *coarse).total.double(), want.total, rtol=1e-4, atol=1e-4
    )
