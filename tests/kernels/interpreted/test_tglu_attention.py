"""The fused attention kernel equals TGLU's global-local part of the reference."""

import numpy as np
import pytest
import torch

from mimic_engine.config import MatcherConfig
from mimic_engine.kernels.reference import g2l_ref
from mimic_engine.kernels.tglu_attention import CANDIDATES, DENSE, pack_text, tglu_attention
from tests.kernels.interpreted.folded import tensors, wide

WIDE = MatcherConfig(text_width=11, text_token_width=13, hidden=96)
MASKED = MatcherConfig(text_width=11, text_token_width=13, hidden=64, mask_padding=True)
TOLERANCE = {"float32": 2e-6, "float16": 1e-3, "int8": 1e-3}  # relative to the largest score


def packed(folded, stored):
    mention = tensors(folded.mentions)
    dtype = torch.float32 if stored.tglu_query.dtype == np.float32 else torch.float16
    return pack_text(mention["tglu_key"], mention["tglu_value"], mention.get("tglu_key_mask"), dtype)


def run(folded, stored, **options):
    entity = tensors(stored)
    columns = options["rows"].shape[1] if "rows" in options else stored.rows
    out = torch.full((folded.mentions.rows, columns), torch.nan)
    tglu_attention(
        packed(folded, stored), entity["tglu_query"], entity["tglu_cls"], entity["tglu_bias"], out,
        scale=entity.get("tglu_query_scale"), weight=entity.get("tglu_token_weight"),
        eps=folded.constants.layer_norm_eps, **options,
    )  # fmt: skip
    return out.numpy()


def expected(folded, stored):
    return g2l_ref(wide(folded.mentions), wide(stored), folded.constants)


def check(found, reference, dtype):
    assert np.abs(found - reference).max() <= TOLERANCE[dtype] * max(1, np.abs(reference).max())


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize(
    ("mentions", "entities", "tokens", "entity_tokens", "config"),
    [
        (1, 1, 1, 1, None),
        (2, 17, 40, 40, WIDE),
        (3, 33, 13, 7, MASKED),
        (2, 16, 8, 128, None),
        (1, 5, 128, 11, MASKED),
    ],
)
def test_equals_the_reference(make_folded, dtype, mentions, entities, tokens, entity_tokens, config):
    options = {} if config is None else {"config": config}
    folded = make_folded(mentions, entities, tokens=tokens, entity_tokens=entity_tokens, **options)
    stored = folded.stored(dtype)
    check(run(folded, stored), expected(folded, stored), dtype)


@pytest.mark.parametrize("tile", CANDIDATES, ids=str)
def test_every_tile_gives_the_same(make_folded, tile):
    folded = make_folded(5, 19, WIDE, tokens=11)
    stored = folded.stored("float16")
    check(run(folded, stored, tile=tile), expected(folded, stored), "float16")


def test_adds_to_a_base_in_place(make_folded):
    folded = make_folded(3, 18)
    stored, entity = folded.stored("float32"), tensors(folded.entities)
    out = torch.arange(3 * 20.0).reshape(3, 20)[:, :18]
    base = out.clone().numpy()
    tglu_attention(
        packed(folded, stored), entity["tglu_query"], entity["tglu_cls"], entity["tglu_bias"], out,
        base=out, factor=0.25,
    )  # fmt: skip
    np.testing.assert_allclose(out.numpy(), base + 0.25 * expected(folded, stored), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_listed_rows_only_are_scored(make_folded, dtype):
    folded = make_folded(3, 29, MASKED, tokens=9)
    stored = folded.stored(dtype)
    generator = np.random.default_rng(0)
    rows = generator.integers(0, 29, (3, 37)).astype(np.int32)
    counts = np.array([37, 0, 18], np.int32)
    found = run(folded, stored, rows=torch.from_numpy(rows), counts=torch.from_numpy(counts))
    reference = expected(folded, stored)
    for b, count in enumerate(counts):
        check_row = np.abs(found[b, :count] - reference[b, rows[b, :count]]).max(initial=0)
        assert check_row <= TOLERANCE[dtype] * np.abs(reference).max()
        assert np.isnan(found[b, count:]).all()


def test_bfloat16_queries_are_read(make_folded):
    """The interpreter multiplies no bfloat16, so the products are float32 here."""
    folded = make_folded(2, 7, WIDE, tokens=11)
    rounded = torch.from_numpy(folded.entities.tglu_query).bfloat16()
    entity = tensors(folded.entities)
    out = torch.full((2, 7), torch.nan)
    tglu_attention(
        packed(folded, folded.entities), rounded, entity["tglu_cls"], entity["tglu_bias"], out, tile=DENSE
    )
    stored = folded.stored("float32")
    reference = g2l_ref(
        wide(folded.mentions), wide(type(stored)(**dict(stored.items()) | {"tglu_query": rounded.float().numpy()})),
        folded.constants,
    )  # fmt: skip
    check(out.numpy(), reference, "float32")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["tglu_query", "tglu_cls", "tglu_bias", "tglu_key", "tglu_value"])
def test_what_is_not_finite_stays_visible(make_folded, where, value):
    folded = make_folded(3, 20, tokens=5)
    side = folded.mentions if where in ("tglu_key", "tglu_value") else folded.entities
    getattr(side, where)[1, ...] = value
    found = run(folded, folded.stored("float32"))
    if side is folded.mentions:
        assert not np.isfinite(found[1]).any()
        assert np.isfinite(found[[0, 2]]).all()
    else:
        assert not np.isfinite(found[:, 1]).any()
        assert np.isfinite(found[:, 16:]).all()  # another tile of entities


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_mention_whose_tokens_are_all_masked_has_no_score(make_folded):
    folded = make_folded(2, 5, MASKED, tokens=9)
    folded.mentions.tglu_key_mask[0] = 0
    found = run(folded, folded.stored("float32"))
    assert np.isnan(found[0]).all()
    assert np.isfinite(found[1]).all()
