"""Tables and embedding bags equal the readable coded pass."""

import numpy as np
import pytest
import torch

from mimic_engine.config import MatcherConfig
from mimic_engine.kernels.coded_tglu import CANDIDATES, coded_table, coded_tglu, table_shape
from mimic_engine.kernels.coded_tglu_ref import coded_context_ref, tables_ref
from mimic_engine.kernels.reference import normed_ref
from mimic_engine.kernels.tglu_attention import pack_text
from tests.kernels.interpreted.folded import SMALL, tensors, wide

PUBLISHED = MatcherConfig(text_width=11, text_token_width=13, hidden=96)
MASKED = MatcherConfig(text_width=11, text_token_width=13, hidden=64, mask_padding=True)


def run(folded, stored, centroids, codes, **options):
    mention, entity = tensors(folded.mentions), tensors(stored)
    text = pack_text(mention["tglu_key"], mention["tglu_value"], mention.get("tglu_key_mask"), torch.float32)
    table = torch.full(table_shape(text, len(centroids)), torch.nan, dtype=torch.float16)
    coded_table(text, torch.from_numpy(centroids), table)
    weight = entity.get("tglu_token_weight")
    out = torch.full((folded.mentions.rows, stored.rows), torch.nan)
    coded_tglu(
        text, table, torch.from_numpy(codes.T.copy()), entity["tglu_cls"], entity["tglu_bias"], out,
        weight=None if weight is None else weight.T.contiguous(), eps=folded.constants.layer_norm_eps, **options,
    )  # fmt: skip
    return out.numpy()


def expected(folded, stored, centroids, codes):
    mention, entity = wide(folded.mentions), wide(stored)
    context = coded_context_ref(tables_ref(mention, centroids.astype(float)), codes, entity.tglu_token_weight)
    return normed_ref(context, entity, folded.constants)


def clustering(folded, count, seed=0):
    generator = np.random.default_rng(seed)
    query = folded.entities.tglu_query
    centroids = generator.normal(size=(count, query.shape[2])).astype(np.float32) * query.std()
    dtype = np.uint8 if count <= 256 else np.uint16
    return centroids, generator.integers(0, count, query.shape[:2]).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    ("mentions", "entities", "tokens", "count", "config"),
    [(1, 1, 1, 1, SMALL), (2, 67, 40, 256, PUBLISHED), (3, 5, 7, 257, MASKED), (2, 9, 80, 3, SMALL)],
)
def test_equals_the_reference(make_folded, dtype, mentions, entities, tokens, count, config):
    folded = make_folded(mentions, entities, config, tokens=tokens, entity_tokens=min(tokens, 13))
    stored = folded.stored(dtype)
    centroids, codes = clustering(folded, count)
    reference = expected(folded, stored, centroids, codes)
    found = run(folded, stored, centroids, codes)
    assert np.abs(found - reference).max() <= 5e-4 * max(1, np.abs(reference).max())


@pytest.mark.parametrize("tile", CANDIDATES, ids=str)
def test_every_tile_gives_the_same(make_folded, tile):
    folded = make_folded(2, 67, MASKED, tokens=5)
    centroids, codes = clustering(folded, 20)
    plain = run(folded, folded.entities, centroids, codes)
    np.testing.assert_allclose(
        run(folded, folded.entities, centroids, codes, tile=tile), plain, rtol=0, atol=1e-5
    )


def test_adds_to_a_base(make_folded):
    folded = make_folded(2, 5, tokens=5)
    centroids, codes = clustering(folded, 4)
    base = torch.arange(10.0).reshape(2, 5)
    plain = run(folded, folded.entities, centroids, codes)
    found = run(folded, folded.entities, centroids, codes, base=base, factor=0.5)
    np.testing.assert_allclose(found, base.numpy() + 0.5 * plain, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_is_not_finite_stays_visible(make_folded):
    folded = make_folded(2, 5, tokens=5)
    centroids, codes = clustering(folded, 4)
    centroids[3] = np.nan
    found = run(folded, folded.entities, centroids, codes)
    np.testing.assert_array_equal(np.isnan(found), np.broadcast_to((codes == 3).any(1), found.shape))
