"""The matcher against the independently written published loop, options, and batches of one."""

import pytest
import torch

from benchmarks.scan import published_loop as baseline
from benchmarks.scan.published_inputs import Features as PublishedFeatures
from mimic_engine.config import MatcherConfig
from mimic_engine.errors import ModelError
from mimic_engine.model.units import Matcher, unit_consistent_loss

PUBLISHED = MatcherConfig(text_width=14, text_token_width=10, hidden=8)


def published(features):
    return PublishedFeatures(
        features.text_cls, features.text_tokens, features.image_cls, features.image_tokens
    )


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (3, 1), (4, 13)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_scores_equal_the_published_loop(make_matcher, make_features, shape, dtype):
    matcher = make_matcher(PUBLISHED, dtype=dtype)
    mention, entity = (make_features(PUBLISHED, rows, seed=rows, dtype=dtype) for rows in shape)
    weights = {f"matcher.{k}": v.detach() for k, v in matcher.state_dict().items()}
    expected = baseline.published_scores(weights, published(mention), published(entity), chunk=4)
    with torch.no_grad():
        scores = matcher(mention, entity)
    atol = 1e-10 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(scores.total, expected["total"], rtol=0, atol=atol)
    for name, unit in scores.units.items():
        torch.testing.assert_close(unit, expected[name], rtol=0, atol=atol)


def test_default_matcher_has_the_published_number_of_parameters():
    assert sum(p.numel() for p in Matcher(MatcherConfig()).parameters()) == 315_491


def test_every_unit_off_is_an_error():
    with pytest.raises(ModelError, match="every unit is off"):
        MatcherConfig(tglu=False, vision="off", cmfu=False)


@pytest.mark.parametrize("mask", [False, True])
def test_padding_counts_only_where_it_is_not_masked(make_matcher, make_features, mask):
    config = MatcherConfig(text_width=6, text_token_width=6, hidden=4, mask_padding=mask)
    matcher = make_matcher(config)
    mention, entity = make_features(config, 2), make_features(config, 3, seed=1)
    mention = mention._replace(
        text_mask=torch.ones_like(mention.text_mask).index_fill_(1, torch.tensor([6]), 0)
    )
    tokens = mention.text_tokens.clone()
    tokens[:, 6, 0] += 1  # of one channel: the same for all would go with the layer norm
    with torch.no_grad():
        before = matcher(mention, entity).units["tglu"]
        after = matcher(mention._replace(text_tokens=tokens), entity).units["tglu"]
    assert torch.equal(before, after) == mask


def test_loss_sums_the_total_and_the_chosen_units(make_matcher, make_features):
    matcher = make_matcher(PUBLISHED)
    scores = matcher(make_features(PUBLISHED, 4), make_features(PUBLISHED, 4, seed=1))
    everything = unit_consistent_loss(scores)
    assert list(everything) == ["total", "tglu", "vdlu", "cmfu"]
    assert list(unit_consistent_loss(scores, ["vdlu"])) == ["total", "vdlu"]
    by_hand = -scores.total.log_softmax(-1).diagonal().mean()
    torch.testing.assert_close(everything["total"], by_hand.float())


def test_loss_with_a_target_column(make_matcher, make_features):
    matcher = make_matcher(PUBLISHED)
    scores = matcher(make_features(PUBLISHED, 2), make_features(PUBLISHED, 5, seed=1))
    target = torch.tensor([3, 0])
    by_hand = -scores.units["cmfu"].log_softmax(-1)[torch.arange(2), target].mean()
    torch.testing.assert_close(unit_consistent_loss(scores, None, target)["cmfu"], by_hand.float())
