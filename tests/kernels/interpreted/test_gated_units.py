"""The fused global units equal the reference: each part, and their sum."""

import numpy as np
import pytest
import torch

from mimic_engine.config import MatcherConfig
from mimic_engine.kernels.gated_units import (
    CANDIDATES,
    gated_units,
    global_entities,
    pack_globals,
    split_terms,
)
from mimic_engine.kernels.reference import scores_ref
from tests.kernels.interpreted.folded import SMALL, tensors, wide

PUBLISHED = MatcherConfig(text_width=80, text_token_width=13, hidden=96)
ABLATED = MatcherConfig(text_width=33, text_token_width=13, hidden=40, vision="concat")


def parts_ref(folded, stored):
    mention, entity = wide(folded.mentions), wide(stored)
    units = scores_ref(mention, entity, folded.constants).units
    g2g = mention.text_cls @ entity.text_cls.T
    return {"g2g": g2g, "vision": units.get("vdlu", units.get("concat")), "cmfu": units["cmfu"]}


def packed(folded, stored):
    entity = tensors(stored)
    return pack_globals(tensors(folded.mentions), entity["text_cls"].dtype), global_entities(entity)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    ("mentions", "entities", "config"),
    [(1, 1, SMALL), (3, 65, PUBLISHED), (17, 9, ABLATED), (33, 7, SMALL)],
)
def test_parts_and_total_equal_the_reference(make_folded, dtype, mentions, entities, config):
    folded = make_folded(mentions, entities, config, tokens=3)
    stored = folded.stored(dtype)
    parts = parts_ref(folded, stored)
    tolerance = 2e-6 * max(1, *(np.abs(p).max() for p in parts.values()))
    sides = packed(folded, stored)
    found = torch.full((3, mentions, entities), torch.nan)
    gated_units(*sides, folded.constants, found, units=True)
    for out, reference in zip(found.numpy(), parts.values(), strict=True):
        np.testing.assert_allclose(out, reference, rtol=0, atol=tolerance)
    total = torch.full((mentions, entities), torch.nan)
    gated_units(*sides, folded.constants, total)
    reference = (parts["g2g"] / 2 + parts["vision"] + parts["cmfu"]) / 3
    np.testing.assert_allclose(total.numpy(), reference, rtol=0, atol=tolerance)


@pytest.mark.parametrize("tile", CANDIDATES, ids=str)
def test_every_tile_and_a_list_give_the_same(make_folded, tile):
    folded = make_folded(3, 67, ABLATED, tokens=3)
    sides = packed(folded, folded.stored("float16"))
    total = torch.full((3, 67), torch.nan)
    gated_units(*sides, folded.constants, total, tile=tile)
    rows = torch.from_numpy(np.random.default_rng(0).integers(0, 67, (3, 41)).astype(np.int32))
    counts = torch.tensor([41, 0, 17], dtype=torch.int32)
    listed = torch.full((3, 41), torch.nan)
    gated_units(*sides, folded.constants, listed, rows=rows, counts=counts, tile=tile)
    for b, count in enumerate(counts.tolist()):
        np.testing.assert_allclose(listed[b, :count], total[b, rows[b, :count].long()], rtol=0, atol=1e-5)
        assert listed[b, count:].isnan().all()


@pytest.mark.parametrize("units", [("tglu",), ("vdlu", "cmfu"), ("cmfu",)])
def test_units_that_are_off_are_left_out(make_folded, units):
    config = MatcherConfig(
        text_width=11, text_token_width=13, hidden=8, tglu="tglu" in units,
        vision="vdlu" if "vdlu" in units else "off", cmfu="cmfu" in units,
    )  # fmt: skip
    folded = make_folded(2, 9, config, tokens=3)
    mention, entity = wide(folded.mentions), wide(folded.entities)
    parts = dict(scores_ref(mention, entity, folded.constants).units)
    if "tglu" in parts:
        parts["tglu"] = mention.text_cls @ entity.text_cls.T / 2
    first = next(a for n, a in folded.entities.items() if n in ("text_cls", "vdlu_query", "cmfu"))
    sides = (
        pack_globals(tensors(folded.mentions), torch.from_numpy(first).dtype),
        global_entities(tensors(folded.entities)),
    )
    total = torch.full((2, 9), torch.nan)
    gated_units(*sides, folded.constants, total)
    np.testing.assert_allclose(total.numpy(), sum(parts.values()) / len(units), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["text_cls", "vdlu_query", "vdlu_key_scalars", "cmfu"])
def test_what_is_not_finite_stays_visible(make_folded, where, value):
    folded = make_folded(3, 5, tokens=3)
    getattr(folded.entities, where)[2] = value
    getattr(folded.mentions, where)[1] = value
    total = torch.zeros((3, 5))
    gated_units(*packed(folded, folded.entities), folded.constants, total)
    finite = np.ones((3, 5), bool)
    finite[1], finite[:, 2] = False, False
    np.testing.assert_array_equal(np.isfinite(total.numpy()), finite)


def test_terms_add_up_to_the_number():
    values = torch.randn(1000) * torch.logspace(-3, 3, 1000)
    for dtype, error in ((torch.float16, 2**-21), (torch.bfloat16, 2**-22), (torch.float32, 0)):
        terms = split_terms(values, dtype)
        assert (
            (terms.double().sum(0) - values.double()).abs() <= error * values.abs() + 1e-7 * (error > 0)
        ).all()
