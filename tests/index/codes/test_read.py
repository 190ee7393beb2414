"""Codes: every token has the nearest centroid, and the estimates are what that makes of the scores."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from mimic_engine.errors import InvalidInputError
from mimic_engine.index.codes import read as codes
from mimic_engine.index.codes.read import mean_error, nearest
from mimic_engine.index.codes.write import add_segment_codes, recode_index
from mimic_engine.index.manifest import read_manifest
from mimic_engine.index.verify import verify_index
from mimic_engine.kernels.reference import NumpyScorer, scores_ref
from mimic_engine.scan.blocks import BlockKernels
from mimic_engine.scan.scan import Scan
from mimic_engine.types import EntityArrays, FoldConstants, MentionArrays

SCORED = FoldConstants(8, ("tglu", "cmfu"))


def random_mentions(rows: int, tokens: int, seed: int = 0) -> MentionArrays:
    """Folded mentions that fit the entities of ``tiny.py``, for the units whose arrays may be any."""
    rng = np.random.default_rng(seed)
    shapes = {"text_cls": (6,), "tglu_key": (tokens, 8), "tglu_value": (tokens, 8), "cmfu": (8,)}
    return MentionArrays(**{n: rng.normal(size=(rows, *s)).astype(np.float32) for n, s in shapes.items()})


def estimated(index, mentions):
    """Totals by the codes of an opened index, (B, N), as the scan gives them."""
    scan = Scan(index.segments, BlockKernels(NumpyScorer(SCORED), SCORED), threads=2, codes=index.codes)
    try:
        return scan.estimates(mentions)
    finally:
        scan.close()


def brute_force(vectors, centroids):
    return np.linalg.norm(vectors[:, None].astype(np.float64) - centroids[None], axis=2)  # (T, C)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 70), st.integers(1, 300), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_the_code_is_that_of_the_nearest_centroid(tokens, centroids, width, seed):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(tokens, width)).astype(np.float32)
    table = rng.normal(size=(centroids, width)).astype(np.float32)
    found = nearest(vectors, table)
    assert found.shape == (tokens,) and found.dtype == (np.uint8 if centroids <= 256 else np.uint16)
    distances = brute_force(vectors, table)
    chosen = distances[np.arange(tokens), found]
    np.testing.assert_allclose(chosen, distances.min(axis=1), atol=1e-5)
    expected = chosen.mean() if tokens else 0
    assert mean_error(vectors, table) == pytest.approx(expected, abs=1e-5)


def test_equal_centroids_give_the_first(monkeypatch):
    monkeypatch.setattr(codes, "_BLOCK_TOKENS", 2)
    table = np.array([[5, 5], [1, 0], [1, 0], [0, 1]], np.float32)
    assert nearest(np.array([[0.9, 0], [1, 0], [0, 3], [9, 9], [1, 0]], np.float16), table).tolist() == [
        1,
        1,
        3,
        0,
        1,
    ]


@pytest.mark.parametrize(
    ("count", "segment_rows", "wanted"), [(1, 5, 3), (1, 5, 1024), (2, 1, 5), (13, 5, 300), (61, 60, 7)]
)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_an_index_holds_the_nearest_centroid_of_every_token(
    tiny, tmp_path, count, segment_rows, wanted, dtype
):
    index = tiny.coded_index(tmp_path / "kb", count, segment_rows=segment_rows, centroids=wanted, dtype=dtype)
    record, coded = index.manifest.codes, index.codes
    weighted = np.concatenate([s.tglu_query[s.tglu_token_weight > 0] for s in index.segments]).astype(
        np.float32
    )
    assert coded.centroids.shape == (min(wanted, len(weighted)), 8) and coded.centroids.dtype == np.float32
    assert (record.centroids, record.sample) == (len(coded.centroids), len(weighted))
    assert record.dtype == ("uint8" if record.centroids <= 256 else "uint16")
    assert len(coded.segments) == len(index.segments)
    for arrays, own in zip(index.segments, coded.segments, strict=True):
        assert own.dtype == record.dtype and not own.flags.writeable
        np.testing.assert_array_equal(own, coded.assign(arrays.tglu_query))
    assert coded.error == record.error == pytest.approx(mean_error(weighted, coded.centroids))
    assert record.norm == pytest.approx(np.linalg.norm(weighted, axis=1).mean(), rel=1e-5)
    assert verify_index(tmp_path / "kb").ok


def test_official_library_reads_the_files(tiny, tmp_path):
    index = tiny.coded_index(tmp_path / "kb", 13, segment_rows=7)
    folder = tmp_path / "kb" / "codes" / "00000"
    assert sorted(p.name for p in folder.iterdir()) == [
        "00000.safetensors",
        "00001.safetensors",
        "centroids.safetensors",
    ]
    np.testing.assert_array_equal(
        load_file(folder / "centroids.safetensors")["centroids"], index.codes.centroids
    )
    np.testing.assert_array_equal(load_file(folder / "00001.safetensors")["codes"], index.codes.segments[1])


@pytest.mark.parametrize(
    ("count", "dtype", "mentions"), [(1, "float32", 1), (7, "float16", 3), (60, "float32", 2)]
)
def test_the_estimate_is_the_exact_score_where_every_token_is_a_centroid(
    tiny, tmp_path, count, dtype, mentions
):
    index = tiny.coded_index(tmp_path / "kb", count, dtype=dtype, segment_rows=41, centroids=65_536)
    assert len(index.codes.centroids) == sum(int((s.tglu_token_weight > 0).sum()) for s in index.segments)
    assert index.codes.error == 0
    arrays, constants = random_mentions(mentions, 5), SCORED
    exact = [scores_ref(arrays, segment, constants).total for segment in index.segments]
    np.testing.assert_allclose(estimated(index, arrays), np.concatenate(exact, 1), rtol=2e-5, atol=2e-5)


def test_few_centroids_only_estimate(tiny, tmp_path):
    index = tiny.coded_index(tmp_path / "kb", 37, segment_rows=20)
    arrays, constants = random_mentions(3, 7), SCORED
    found = estimated(index, arrays)
    moved = [
        EntityArrays(**dict(s.items()) | {"tglu_query": index.codes.centroids[c]})
        for s, c in zip(index.segments, index.codes.segments, strict=True)
    ]
    expected = np.concatenate([scores_ref(arrays, s, constants).total for s in moved], 1)
    exact = np.concatenate([scores_ref(arrays, s, constants).total for s in index.segments], 1)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
    assert np.abs(found - exact).max() > 1e-3


def test_no_codes_where_none_are_wanted_or_no_token_is_scored(tiny, tmp_path):
    assert tiny.coded_index(tmp_path / "none", 3, centroids=0).codes is None
    assert not (tmp_path / "none" / "codes").exists()

    class Fused(tiny.HashFold):
        constants = FoldConstants(8, ("cmfu",))

        def entities(self, batch):
            return EntityArrays(cmfu=super().entities(batch).cmfu)

    assert tiny.coded_index(tmp_path / "fused", 3, fold=Fused()).codes is None
    with pytest.raises(InvalidInputError, match="without the unit tglu"):
        recode_index(tmp_path / "fused", 3)


@pytest.mark.parametrize("centroids", [-1, 65_537])
def test_centroids_outside_their_limits(tiny, tmp_path, centroids):
    with pytest.raises(InvalidInputError, match=f"centroids: {centroids} is not between 0 and 65536"):
        tiny.coded_index(tmp_path / "kb", 3, centroids=centroids)
    tiny.coded_index(tmp_path / "kb", 3)
    for wrong in (centroids, 0):
        with pytest.raises(InvalidInputError, match=f"centroids: {wrong} is not between 1 and 65536"):
            recode_index(tmp_path / "kb", wrong)


def test_drift(tiny, tmp_path):
    index = tiny.coded_index(tmp_path / "kb", 300, centroids=20)
    tokens = [(s.tglu_query, s.tglu_token_weight) for s in index.segments]
    assert index.codes.drift(*tokens[0]) == pytest.approx(1.0)
    assert index.codes.drift(tokens[0][0] + np.float16(3)) > 2
    assert index.codes.drift(index.codes.centroids[None]) == pytest.approx(0, abs=1e-6)
    padded = np.where(tokens[0][1][..., None] > 0, tokens[0][0], np.float16(1000))
    assert index.codes.drift(padded, tokens[0][1]) == pytest.approx(1.0)
    assert index.codes.drift(padded) > 100
    exact = replace(index.codes, centroids=tokens[0][0].reshape(-1, 8).astype(np.float32), error=0.0)
    assert exact.drift(tokens[0][0]) == 0
    assert 1 < exact.drift(tokens[0][0] + np.float16(1)) < np.inf


def test_codes_of_a_segment_added_later(tiny, tmp_path):
    index = tiny.coded_index(tmp_path / "kb", 20)
    later = tiny.stored_queries(9, 3)
    record = add_segment_codes(index.path, index.manifest.codes, index.codes.centroids, "00007", later)
    assert set(record.files) == {*index.manifest.codes.files, "00007.safetensors"}
    file = tmp_path / "kb" / "codes" / "00000" / "00007.safetensors"
    np.testing.assert_array_equal(load_file(file)["codes"], index.codes.assign(later.tglu_query))
    assert record.files["00007.safetensors"].bytes == file.stat().st_size


def test_opening_and_coding_need_no_faiss(tiny, tmp_path):
    tiny.coded_index(tmp_path / "kb", 20)
    code = (
        "import sys; sys.modules['faiss'] = None\n"
        "from mimic_engine.index.store import Index\n"
        "index = Index.open(sys.argv[1])\n"
        "print(index.codes.drift(index.segments[0].tglu_query) > 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "kb")], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


def test_the_manifest_says_it_again(tiny, tmp_path):
    index = tiny.coded_index(tmp_path / "kb", 9)
    assert read_manifest(tmp_path / "kb") == index.manifest
    assert index.manifest.codes.drift == 1.0
