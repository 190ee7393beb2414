"""Rows by number across segments, whatever they are stored in."""

import numpy as np
import pytest

from mimic_engine.scan.passes import Segments
from mimic_engine.types import EntityArrays


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("weighted", [False, True])
def test_token_queries_are_those_of_the_rows_in_float32(dtype, weighted):
    rng = np.random.default_rng(3)
    parts, wide = [], []
    for rows in (3, 1, 5):
        scale = rng.random((rows, 2), np.float32)
        query = rng.integers(-127, 128, (rows, 2, 7)).astype(dtype)
        wide.append(query.astype(np.float32) * (scale[..., None] if dtype == "int8" else 1))
        weight = rng.random((rows, 2), np.float32) if weighted else None
        scales = scale if dtype == "int8" else None
        parts.append(EntityArrays(tglu_query=query, tglu_query_scale=scales, tglu_token_weight=weight))
    rows = np.array([8, 0, 3, 3, 2])
    found = Segments(parts).token_queries(rows)
    assert found.tglu_query.dtype == np.float32
    np.testing.assert_array_equal(found.tglu_query, np.concatenate(wide)[rows])
    assert found.tglu_query_scale is None
    if weighted:
        weights = np.concatenate([p.tglu_token_weight for p in parts])
        np.testing.assert_array_equal(found.tglu_token_weight, weights[rows])
    else:
        assert found.tglu_token_weight is None


def test_a_model_without_tglu_has_none():
    found = Segments([EntityArrays(cmfu=np.ones((4, 3), np.float32))]).token_queries(np.array([1]))
    assert found.tglu_query is None
