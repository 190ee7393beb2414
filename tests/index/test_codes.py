"""Codes: what is clustered, what is written, and that neither a kill nor a new clustering loses anything."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from mimic_engine.errors import IndexFormatError, InvalidInputError
from mimic_engine.index import cluster, codes, recode
from mimic_engine.index.build import build_index
from mimic_engine.index.cluster import cluster_tokens
from mimic_engine.index.codes import mean_error, nearest, open_codes, token_queries
from mimic_engine.index.format import read_manifest
from mimic_engine.index.progress import build_lock
from mimic_engine.index.recode import add_segment_codes, recode_index
from mimic_engine.index.store import Index
from mimic_engine.index.verify import verify_index
from mimic_engine.kernels.reference import scores_ref
from mimic_engine.scoring.blocks import BlockKernels
from mimic_engine.scoring.numpy import NumpyScorer
from mimic_engine.scoring.scan import Scan
from mimic_engine.types import EntityArrays, FoldConstants, MentionArrays

SCORED = FoldConstants(8, ("tglu", "cmfu"))


def masked_fold(tiny, on_batch=lambda batch: None):
    """The tiny fold with token weights as a masked model has them: 1/n of the first n tokens, 0 behind."""

    class Masked(tiny.HashFold):
        def entities(self, batch):
            arrays = dict(super().entities(batch).items())
            real = np.array([[1 + len(e.description) % 5] for e in batch])  # (n, 1)
            arrays["tglu_token_weight"] = ((np.arange(5) < real) / real).astype(np.float32)
            return EntityArrays(**arrays)

    return Masked(on_batch)


def built(tiny, out, count, **options):
    fold = options.pop("fold", None) or masked_fold(tiny)
    options = {"centroids": 6, "threads": 1} | options
    build_index(fold, tiny.knowledge_base(count), out, progress=False, **options)
    return Index.open(out)


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
    index = built(tiny, tmp_path / "kb", count, segment_rows=segment_rows, centroids=wanted, dtype=dtype)
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
    index = built(tiny, tmp_path / "kb", 13, segment_rows=7)
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
    index = built(tiny, tmp_path / "kb", count, dtype=dtype, segment_rows=41, centroids=65_536)
    assert len(index.codes.centroids) == sum(int((s.tglu_token_weight > 0).sum()) for s in index.segments)
    assert index.codes.error == 0
    arrays, constants = random_mentions(mentions, 5), SCORED
    exact = [scores_ref(arrays, segment, constants).total for segment in index.segments]
    np.testing.assert_allclose(estimated(index, arrays), np.concatenate(exact, 1), rtol=2e-5, atol=2e-5)


def test_few_centroids_only_estimate(tiny, tmp_path):
    index = built(tiny, tmp_path / "kb", 37, segment_rows=20)
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
    assert built(tiny, tmp_path / "none", 3, centroids=0).codes is None
    assert not (tmp_path / "none" / "codes").exists()

    class Fused(tiny.HashFold):
        constants = FoldConstants(8, ("cmfu",))

        def entities(self, batch):
            return EntityArrays(cmfu=super().entities(batch).cmfu)

    assert built(tiny, tmp_path / "fused", 3, fold=Fused()).codes is None
    with pytest.raises(InvalidInputError, match="without the unit tglu"):
        recode_index(tmp_path / "fused", 3)


@pytest.mark.parametrize("centroids", [-1, 65_537])
def test_centroids_outside_their_limits(tiny, tmp_path, centroids):
    with pytest.raises(InvalidInputError, match=f"centroids: {centroids} is not between 0 and 65536"):
        built(tiny, tmp_path / "kb", 3, centroids=centroids)
    built(tiny, tmp_path / "kb", 3)
    for wrong in (centroids, 0):
        with pytest.raises(InvalidInputError, match=f"centroids: {wrong} is not between 1 and 65536"):
            recode_index(tmp_path / "kb", wrong)


def stored(rows: int, seed: int = 0, weight: bool = False) -> EntityArrays:
    rng = np.random.default_rng(seed)
    weights = rng.integers(0, 2, (rows, 5)).astype(np.float32) if weight else None
    return EntityArrays(
        tglu_query=rng.normal(size=(rows, 5, 8)).astype(np.float16), tglu_token_weight=weights
    )


def test_the_sample_is_bounded_and_spread_over_the_segments(monkeypatch):
    monkeypatch.setattr(cluster, "_SAMPLE_BYTES", 100 * 8 * 4)
    segments = [stored(40, 0), stored(1, 1), stored(79, 2)]
    sample = cluster._sample(segments, 10**6, seed=3)
    assert sample.shape == (100, 8) and sample.dtype == np.float32
    tokens = np.concatenate([s.tglu_query.reshape(-1, 8) for s in segments]).astype(np.float32)  # (600, 8)
    where = [int(np.flatnonzero((tokens == row).all(axis=1))[0]) for row in sample]
    assert [w // 6 for w in where] == list(range(100))  # one of each six tokens
    assert len({w % 6 for w in where}) == 6
    np.testing.assert_array_equal(cluster._sample(segments, 10**6, seed=3), sample)
    assert (cluster._sample(segments, 10**6, seed=4) != sample).any()
    assert cluster._sample(segments, 7, seed=0).shape == (7, 8)


def test_tokens_without_weight_are_not_clustered():
    segment = stored(50, weight=True)
    found = cluster_tokens([segment], 65_536, threads=1)
    kept = segment.tglu_query[segment.tglu_token_weight > 0]
    assert found.sample == len(kept) < 250 and found.error == 0
    assert {tuple(row) for row in found.centroids} == {tuple(row) for row in kept.astype(np.float32)}


def test_int8_queries_are_clustered_and_coded_as_their_values():
    rng = np.random.default_rng(0)
    whole = rng.integers(-127, 128, (90, 5, 8)).astype(np.int8)
    scale = (2.0 ** rng.integers(-6, -2, (90, 5))).astype(np.float32)
    wide = (whole * scale[..., None]).astype(np.float32)
    small, plain = EntityArrays(tglu_query=whole, tglu_query_scale=scale), EntityArrays(tglu_query=wide)
    np.testing.assert_array_equal(token_queries(small, slice(3, 80)), wide[3:80])
    np.testing.assert_array_equal(token_queries(small, np.array([7, 2, 7])), wide[[7, 2, 7]])
    found = [cluster_tokens([arrays], 9, threads=1) for arrays in (small, plain)]
    np.testing.assert_array_equal(found[0].centroids, found[1].centroids)


def test_clustering_is_the_same_each_time_and_leaves_the_threads_alone():
    segments = [stored(300, 0), stored(211, 1)]
    before = faiss.omp_get_max_threads()
    first, again = (cluster_tokens(segments, 31, seed=5, threads=1) for _ in range(2))
    np.testing.assert_array_equal(first.centroids, again.centroids)
    assert first.error == again.error
    assert faiss.omp_get_max_threads() == before
    assert (cluster_tokens(segments, 31, seed=6, threads=1).centroids != first.centroids).any()
    with pytest.raises(InvalidInputError, match="threads: must be at least 1, got 0"):
        cluster_tokens(segments, 31, threads=0)


def test_clusters_that_are_there_are_found():
    """Tokens around eleven points far apart: the centroids are those points."""
    rng = np.random.default_rng(1)
    points = 20 * rng.normal(size=(11, 8))
    queries = points[rng.integers(0, 11, (500, 5))] + 0.01 * rng.normal(size=(500, 5, 8))
    found = cluster_tokens([EntityArrays(tglu_query=queries.astype(np.float32))], 33, threads=1)
    assert found.error < 0.05
    assert mean_error(points.astype(np.float32), found.centroids) < 0.05


def test_more_centroids_lie_nearer():
    errors = [cluster_tokens([stored(400)], c, threads=1).error for c in (1, 4, 64, 1500, 2000)]
    assert errors == sorted(errors, reverse=True) and errors[-1] == 0 < errors[-2]


def test_drift(tiny, tmp_path):
    index = built(tiny, tmp_path / "kb", 300, centroids=20)
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
    index = built(tiny, tmp_path / "kb", 20)
    later = stored(9, 3)
    record = add_segment_codes(index.path, index.manifest.codes, index.codes.centroids, "00007", later)
    assert set(record.files) == {*index.manifest.codes.files, "00007.safetensors"}
    file = tmp_path / "kb" / "codes" / "00000" / "00007.safetensors"
    np.testing.assert_array_equal(load_file(file)["codes"], index.codes.assign(later.tglu_query))
    assert record.files["00007.safetensors"].bytes == file.stat().st_size


def test_opening_and_coding_need_no_faiss(tiny, tmp_path):
    built(tiny, tmp_path / "kb", 20)
    code = (
        "import sys; sys.modules['faiss'] = None\n"
        "from mimic_engine.index.store import Index\n"
        "index = Index.open(sys.argv[1])\n"
        "print(index.codes.drift(index.segments[0].tglu_query) > 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "kb")], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_recode_swaps_the_codes_under_readers(tiny, tmp_path):
    out = tmp_path / "kb"
    before = built(tiny, out, 60, segment_rows=25, agreement=lambda index: {"coded": {}, "storage": {"a": 1}})
    kept = [c.copy() for c in before.codes.segments]
    manifest = recode_index(out, 9, threads=1)
    after = Index.open(out)
    assert after.manifest == manifest and (manifest.codes.folder, manifest.codes.centroids) == ("00001", 9)
    assert manifest.generation == before.manifest.generation + 1
    assert manifest.agreement == {"storage": {"a": 1}}
    for own, arrays in zip(after.codes.segments, after.segments, strict=True):
        np.testing.assert_array_equal(own, after.codes.assign(arrays.tglu_query))
    late = open_codes(out, before.manifest, before.segments)  # a reader that is just opening the old ones
    for old, opened, expected in zip(before.codes.segments, late.segments, kept, strict=True):
        np.testing.assert_array_equal(old, expected)
        np.testing.assert_array_equal(opened, expected)
    recode_index(out, 3, threads=1)
    assert sorted(p.name for p in (out / "codes").iterdir()) == ["00001", "00002"]
    np.testing.assert_array_equal(before.codes.segments[2], kept[2])
    assert Index.open(out).manifest.codes.folder == "00002" and verify_index(out).ok


def test_recode_gives_codes_to_an_index_without(tiny, tmp_path):
    built(tiny, tmp_path / "kb", 8, centroids=0)
    measured = []
    manifest = recode_index(
        tmp_path / "kb",
        3,
        threads=1,
        agreement=lambda i: measured.append(len(i.codes.centroids)) or {"coded": {"x": 1}},
    )
    assert measured == [3] and manifest.agreement == {"coded": {"x": 1}}
    assert Index.open(tmp_path / "kb").manifest == manifest and manifest.codes.folder == "00000"


def test_recode_of_an_index_that_another_process_changes(tiny, tmp_path):
    built(tiny, tmp_path / "kb", 8)
    with build_lock(tmp_path / "kb"), pytest.raises(IndexFormatError, match="another process"):
        recode_index(tmp_path / "kb", 3)
    with pytest.raises(IndexFormatError, match="no such index folder"):
        recode_index(tmp_path / "nowhere", 3)


class Crash(BaseException):
    pass


class CrashPoint:
    """Stands in for fsync and rename in ``recode``: the k-th call (from 0) crashes instead."""

    def __init__(self, monkeypatch):
        self.left = 10**9
        real_write, real_rename, real_array = (
            recode.write_atomic,
            recode.Path.replace,
            recode.write_array_file,
        )
        real_manifest = recode.write_manifest
        monkeypatch.setattr(recode, "write_atomic", lambda *a: self.step() or real_write(*a))
        monkeypatch.setattr(recode, "write_array_file", lambda *a: self.step() or real_array(*a))
        monkeypatch.setattr(
            recode, "write_manifest", lambda *a: self.step() or real_manifest(*a) or self.step()
        )
        monkeypatch.setattr(recode.Path, "replace", lambda *a: self.step() or real_rename(*a))

    def step(self):
        self.left -= 1
        if self.left == -1:
            raise Crash

    def crashes(self, at, call):
        self.left = at
        try:
            call()
        except Crash:
            return True
        finally:
            self.left = 10**9
        return False


def test_recode_crashed_anywhere_keeps_the_index_and_goes_on(tiny, tmp_path, monkeypatch):
    point, at, seen = CrashPoint(monkeypatch), 0, set()
    built(tiny, tmp_path / "kb", 30, segment_rows=11)
    shutil.copytree(tmp_path / "kb", tmp_path / "whole")
    recode_index(tmp_path / "whole", 9, threads=1)
    while True:
        out = tmp_path / f"kb{at}"
        shutil.copytree(tmp_path / "kb", out)
        crashed = point.crashes(at, lambda out=out: recode_index(out, 9, threads=1))
        index = Index.open(out)
        seen.add((index.manifest.codes.folder, index.codes.centroids.shape[0]))
        if not crashed:
            break
        if index.manifest.codes.folder == "00000":
            recode_index(out, 9, threads=1)
            assert files_of(out) == files_of(tmp_path / "whole")
        at += 1
    assert seen == {("00000", 6), ("00001", 9)} and at > 10


def test_a_killed_run_clusters_and_codes_nothing_twice(tiny, tmp_path, monkeypatch):
    clustered, coded = [], []
    real_cluster, real_add = recode.cluster_tokens, recode.add_segment_codes

    def add(index, record, centroids, segment, arrays):
        if segment == "00002" and "00002" not in coded:
            coded.append(segment)
            raise Crash
        coded.append(segment)
        return real_add(index, record, centroids, segment, arrays)

    monkeypatch.setattr(
        recode, "cluster_tokens", lambda *a, **k: clustered.append(1) or real_cluster(*a, **k)
    )
    monkeypatch.setattr(recode, "add_segment_codes", add)
    with pytest.raises(Crash):
        built(tiny, tmp_path / "kb", 40, segment_rows=10)
    folded = []
    index = built(tiny, tmp_path / "kb", 40, segment_rows=10, fold=masked_fold(tiny, folded.append))
    assert not folded and len(clustered) == 1
    assert coded == ["00000", "00001", "00002", "00002", "00003"]
    assert len(index.codes.segments) == 4 and verify_index(tmp_path / "kb").ok


def test_a_build_killed_while_measuring_goes_on_there(tiny, tmp_path, monkeypatch):
    clustered, real = [], recode.cluster_tokens
    monkeypatch.setattr(recode, "cluster_tokens", lambda *a, **k: clustered.append(1) or real(*a, **k))

    def killed(index):
        raise Crash

    with pytest.raises(Crash):
        built(tiny, tmp_path / "kb", 20, agreement=killed)
    assert not (tmp_path / "kb").exists()
    index = built(tiny, tmp_path / "kb", 20, agreement=lambda index: {"coded": {"n": len(index)}})
    assert index.manifest.agreement == {"coded": {"n": 20}} and len(clustered) == 1
    assert [p.name for p in (tmp_path / "kb" / "codes" / "00000").glob("*.json")] == []


@pytest.mark.parametrize("damage", ["centroids", "request", "note", "codes"])
def test_an_unfinished_run_that_does_not_fit_is_started_anew(tiny, tmp_path, monkeypatch, damage):
    def killed(index):
        raise Crash

    with pytest.raises(Crash):
        built(tiny, tmp_path / "kb", 20, segment_rows=7, agreement=killed)
    folder = tmp_path / "kb.partial" / "codes" / "00000"
    if damage == "note":
        (folder / "progress.json").write_bytes(b"[]")
    elif damage != "request":
        file = folder / ("centroids.safetensors" if damage == "centroids" else "00001.safetensors")
        file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    wanted = 5 if damage == "request" else 6
    index = built(tiny, tmp_path / "kb", 20, segment_rows=7, centroids=wanted)
    assert len(index.codes.centroids) == wanted
    built(tiny, tmp_path / "whole", 20, segment_rows=7, centroids=wanted)
    assert files_of(tmp_path / "kb" / "codes") == files_of(tmp_path / "whole" / "codes")


def test_the_manifest_says_it_again(tiny, tmp_path):
    index = built(tiny, tmp_path / "kb", 9)
    assert read_manifest(tmp_path / "kb") == index.manifest
    assert index.manifest.codes.drift == 1.0
