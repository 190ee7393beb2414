"""The GPU scan's logic, on the CPU: the same answers as the scan over NumPy kernels."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from mimic_engine.config import MatcherConfig
from mimic_engine.errors import EngineError, InvalidInputError, MissingDependencyError
from mimic_engine.gpu import index as gpu_index
from mimic_engine.gpu import passes as gpu_passes
from mimic_engine.gpu import scan as gpu_scan
from mimic_engine.gpu.index import DeviceIndex
from mimic_engine.gpu.scan import CudaScan
from mimic_engine.kernels.reference import NumpyScorer
from mimic_engine.scan.blocks import BlockKernels
from mimic_engine.scan.scan import Scan
from mimic_engine.scan.terms import NameScores, ScoreTerms
from mimic_engine.types import EntityArrays, MentionArrays
from tests.gpu.test_terms import names_of

MASKED = MatcherConfig(text_width=11, text_token_width=13, hidden=8, mask_padding=True)
pytestmark = pytest.mark.usefixtures("sorted_topk", "little_room")


@pytest.fixture
def little_room(monkeypatch):
    """Fewer idle programs for the interpreter to walk through."""
    monkeypatch.setattr(gpu_passes, "LEAST_SURVIVORS", 32)
    monkeypatch.setattr(gpu_passes, "FIRST", 16)


@dataclass(frozen=True)
class Book:
    centroids: np.ndarray
    segments: tuple


def names(rows):
    return [f"entity-{(7 * r) % 101:03d}-{r}" for r in rows.tolist()]


def cut(entities, *sizes):
    edges = np.cumsum([0, *sizes])
    return tuple(entities.block(a, b) for a, b in itertools.pairwise(edges))


def book(segments, count=6):
    generator = np.random.default_rng(0)
    query = segments[0].tglu_query
    centroids = generator.normal(size=(count, query.shape[2])).astype(np.float32) / 2
    codes = tuple(generator.integers(0, count, s.tglu_query.shape[:2]).astype(np.uint8) for s in segments)
    return Book(centroids, codes)


def terms_of(entities, size=3.0, prior=True):
    """Terms of some entities: priors, and room for name scores."""
    priors = np.random.default_rng(5).normal(0, 0.5, entities).astype(np.float32)
    return ScoreTerms(priors if prior else None, size)


def both(folded, sizes, dtype="float32", terms=None, **options):
    """The scan under test and the one over NumPy, on the same segments."""
    segments = cut(folded.stored(dtype), *sizes)
    codes = book(segments)
    chunk = options.pop("chunk_rows", 40)
    ours = CudaScan(
        segments,
        folded.constants,
        device="cpu",
        tie_key=names,
        codes=codes,
        chunk_rows=chunk,
        terms=terms,
        **options,
    )
    kernels = BlockKernels(NumpyScorer(folded.constants), folded.constants)
    return ours, Scan(segments, kernels, threads=1, tie_key=names, codes=codes, terms=terms)


def all_rows(scan, mentions, mode):
    """Bounds or estimates (B, N), as a search in the mode makes them chunk by chunk."""
    passes, prepared = scan.passes, scan.prepare(mentions, mode)
    run = {"certified": passes.bounds, "coded": passes.estimates}[mode]
    chunks = scan.index.chunks(passes.chunk_rows, queries=False)
    return np.concatenate([run(prepared, chunk).numpy().copy() for chunk in chunks], axis=1)


def same(found, expected, tolerance=1e-4):
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=tolerance)
    assert list(found.units) == list(expected.units)
    for name, score in expected.units.items():
        np.testing.assert_allclose(found.units[name], score, rtol=0, atol=tolerance)


@pytest.mark.parametrize("mode", ["exact", "certified", "coded"])
@pytest.mark.parametrize("config", [None, MASKED])
def test_answers_as_the_numpy_scan(make_folded, mode, config):
    folded = make_folded(2, 61, **({} if config is None else {"config": config}))
    ours, theirs = both(folded, (40, 1, 20))
    found = ours.search(folded.mentions, 5, mode=mode, rerank=16)
    same(found, theirs.search(folded.mentions, 5, mode=mode, rerank=16))
    if mode != "certified":
        assert found.modes == (mode,) * 2
    assert ((found.scored >= 5) & (found.scored <= 61)).all()
    assert ours.modes == theirs.modes


@pytest.mark.parametrize("mode", ["exact", "certified", "coded"])
@pytest.mark.parametrize(("size", "prior"), [(0.3, True), (30.0, False)])
@pytest.mark.parametrize("masked", [False, True])
def test_names_and_priors_are_added_in_every_mode(make_folded, mode, size, prior, masked):
    folded = make_folded(3, 61)
    ours, theirs = both(folded, (40, 1, 20), terms=terms_of(61, size, prior), chunk_rows=25)
    options = {"names": names_of(20, 0, 61, entities=61, size=size)}
    if masked:
        options["allowed"] = np.arange(61) % 3 > 0
    found = ours.search(folded.mentions, 5, mode=mode, rerank=16, **options)
    same(found, theirs.search(folded.mentions, 5, mode=mode, rerank=16, **options))
    assert list(found.units)[-2:] == (["name", "prior"] if prior else ["cmfu", "name"])
    if mode == "exact":
        gold = found.rows[:, -1]
        np.testing.assert_array_equal(ours.ranks(folded.mentions, gold, **options), [5, 5, 5])


@pytest.mark.parametrize("mode", ["exact", "certified", "coded"])
def test_a_name_lifts_the_entity_with_the_worst_bound(make_folded, mode):
    folded = make_folded(2, 150)
    ours, _ = both(folded, (100, 50), terms=terms_of(150, 100.0, False), chunk_rows=60)
    run = "certified" if mode == "exact" else mode
    worst = all_rows(ours, folded.mentions, run).argmin(1)
    lifts = [NameScores(row[None], np.array([100.0], np.float32)) for row in worst]
    found = ours.search(folded.mentions, 3, mode=mode, names=lifts)
    np.testing.assert_array_equal(found.rows[:, 0], worst)
    np.testing.assert_array_equal(found.units["name"], [[100, 0, 0]] * 2)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_certified_allows_for_the_rounding_of_large_terms(make_folded, dtype):
    folded = make_folded(2, 60)
    ours, _ = both(folded, (60,), dtype, terms=terms_of(60, 300.0))
    called = [NameScores(np.arange(60), np.full(60, b, np.float32)) for b in (300, -300)]
    exact, certified = (ours.search(folded.mentions, 4, mode=m, names=called) for m in ("exact", "certified"))
    np.testing.assert_array_equal(certified.rows, exact.rows)
    np.testing.assert_array_equal(certified.scores, exact.scores)


def test_without_names_the_score_is_the_models_alone(make_folded):
    folded = make_folded(2, 50)
    ours, _ = both(folded, (50,), terms=terms_of(50))
    plain, _ = both(folded, (50,))
    for options in ({}, {"mode": "exact"}, {"rows": np.arange(3, 40)}):
        found, expected = (scan.search(folded.mentions, 3, **options) for scan in (ours, plain))
        same(found, expected, 0)
    gold = np.array([3, 49])
    np.testing.assert_array_equal(ours.ranks(folded.mentions, gold), plain.ranks(folded.mentions, gold))


def test_terms_go_with_the_entities_and_come_back_with_the_index(make_folded):
    folded = make_folded(2, 50)
    ours, theirs = both(folded, (50,), terms=terms_of(50))
    called = names_of(9, 3, entities=50)
    ours.rebuild()
    same(ours.search(folded.mentions, 3, names=called), theirs.search(folded.mentions, 3, names=called))
    other = ours.over(cut(folded.entities, 50), names)
    bare = other.search(folded.mentions, 3, names=called)
    assert list(bare.units)[-1] == "name"
    other = other.over(cut(folded.entities, 50), names, terms=terms_of(50))
    same(other.search(folded.mentions, 3, names=called), theirs.search(folded.mentions, 3, names=called))


@pytest.mark.parametrize(("terms", "added"), [(terms_of(40), [1, 2]), (ScoreTerms(), [None, None])])
def test_the_warm_up_adds_terms_where_they_weigh(make_folded, monkeypatch, terms, added):
    monkeypatch.setattr(gpu_scan, "WARM_MENTIONS", (1, 2))
    monkeypatch.setattr(gpu_scan, "WARM_TOP_K", (1,))
    folded, seen = make_folded(1, 40), []
    ours, _ = both(folded, (40,), terms=terms)
    search = ours.search

    def spy(mentions, k, **options):
        seen.append(None if options["names"] is None else len(options["names"]))
        return search(mentions, k, **options)

    monkeypatch.setattr(ours, "search", spy)
    assert ours.warm_up(folded.mentions, None) == len(seen) == 2 * (len(ours.modes) + 1)
    assert seen == [count for count in added for _ in range(len(ours.modes) + 1)]


def test_names_of_other_mentions_are_refused(make_folded):
    folded = make_folded(2, 40)
    ours, _ = both(folded, (40,))
    three = names_of(1, 1, 1, entities=40)
    with pytest.raises(InvalidInputError, match="names: 3 for 2 mentions"):
        ours.search(folded.mentions, 3, names=three)
    with pytest.raises(InvalidInputError, match="names: 3 for 2 mentions"):
        ours.ranks(folded.mentions, np.zeros(2, np.int64), names=three)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_every_storage_type_answers(make_folded, dtype):
    folded = make_folded(2, 40)
    ours, theirs = both(folded, (40,), dtype)
    np.testing.assert_allclose(
        ours.totals(folded.mentions), theirs.totals(folded.mentions), rtol=0, atol=2e-2
    )
    exact, certified = (ours.search(folded.mentions, 4, mode=m) for m in ("exact", "certified"))
    same(certified, exact, 1e-6)


def test_token_queries_may_lie_on_the_host(make_folded, monkeypatch):
    monkeypatch.setattr(gpu_index, "STREAM_BYTES", 20 * 7 * 8 * 4)
    folded = make_folded(2, 50)
    there, theirs = both(folded, (50,), placement="host")
    assert there.index.placement == "host"
    for mode in ("exact", "certified"):
        same(there.search(folded.mentions, 3, mode=mode), theirs.search(folded.mentions, 3, mode=mode))


def test_bounds_are_above_totals_and_estimates_are_the_twins(make_folded):
    folded = make_folded(3, 50)
    ours, theirs = both(folded, (30, 20))
    totals = ours.totals(folded.mentions)
    np.testing.assert_allclose(totals, theirs.totals(folded.mentions), rtol=0, atol=1e-4)
    assert (all_rows(ours, folded.mentions, "certified") >= totals).all()
    estimates = all_rows(ours, folded.mentions, "coded")
    np.testing.assert_allclose(estimates, theirs.estimates(folded.mentions), rtol=0, atol=5e-3)
    gold = np.array([3, 49, 0])
    np.testing.assert_array_equal(ours.ranks(folded.mentions, gold), theirs.ranks(folded.mentions, gold))


@pytest.mark.parametrize("mode", ["exact", "certified", "coded"])
def test_only_allowed_rows_are_answered(make_folded, mode):
    folded = make_folded(2, 50)
    ours, theirs = both(folded, (50,))
    allowed = np.random.default_rng(0).random(50) < 0.4
    same(
        ours.search(folded.mentions, 4, mode=mode, allowed=allowed),
        theirs.search(folded.mentions, 4, mode=mode, allowed=allowed),
    )
    few = np.zeros(50, bool)
    few[[2, 47]] = True
    assert set(ours.search(folded.mentions, 2, mode=mode, allowed=few).rows.ravel()) == {2, 47}


@pytest.mark.parametrize("called", [None, names_of(30, 2, entities=50)], ids=["alone", "names"])
def test_given_rows_are_all_scored(make_folded, called):
    folded = make_folded(2, 50)
    ours, theirs = both(folded, (50,), terms=terms_of(50), chunk_rows=16)
    rows = np.random.default_rng(0).permutation(50)[:37]
    found = ours.search(folded.mentions, 6, rows=rows, names=called)
    same(found, theirs.search(folded.mentions, 6, rows=rows, names=called))
    assert found.modes == ("exact", "exact")
    assert (found.scored == 37).all()


@pytest.mark.parametrize("mode", ["exact", "certified", "coded"])
@pytest.mark.parametrize("given", [(), ("allowed",), ("rows",), ("names",), ("rows", "names")])
def test_more_than_the_kernels_keep_is_answered_by_scoring_all(make_folded, monkeypatch, mode, given):
    monkeypatch.setattr(gpu_scan, "MAX_K", 16)  # eight, and as many to spare
    folded = make_folded(2, 40)
    ours, theirs = both(folded, (30, 10), terms=terms_of(40))
    some = np.arange(40) % 3 > 0
    every = {"allowed": some, "rows": np.flatnonzero(some), "names": names_of(30, 2, entities=40)}
    chosen = {name: every[name] for name in given}
    k = 40 if given in ((), ("names",)) else 26
    found = ours.search(folded.mentions, k, mode=mode, **chosen)
    same(found, theirs.search(folded.mentions, k, mode="exact", **chosen))
    assert found.modes == ("exact",) * 2 and found.scored.tolist() == [k, k]
    if mode == "coded":
        reranked = ours.search(folded.mentions, 3, mode=mode, rerank=17, **chosen)
        same(reranked, theirs.search(folded.mentions, 3, mode="exact", **chosen))


def test_all_of_a_large_index_may_be_asked_for(make_folded):
    folded = make_folded(1, 1030)
    ours, theirs = both(folded, (1030,), chunk_rows=2048)
    same(ours.search(folded.mentions, 1030), theirs.search(folded.mentions, 1030, mode="exact"))


def test_a_mention_has_the_same_answer_in_any_batch(make_folded):
    folded = make_folded(3, 50)
    ours, _ = both(folded, (50,))
    together = ours.search(folded.mentions, 3)
    for b in (0, 2):
        alone = ours.search(MentionArrays(**{n: a[b : b + 1] for n, a in folded.mentions.items()}), 3)
        np.testing.assert_array_equal(alone.rows[0], together.rows[b])
        np.testing.assert_allclose(alone.scores[0], together.scores[b], rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["exact", "certified"])
def test_ties_are_broken_by_id_however_many(make_folded, mode):
    folded = make_folded(2, 1)
    everywhere = EntityArrays(**{n: np.repeat(a, 40, axis=0) for n, a in folded.entities.items()})
    ours = CudaScan((everywhere,), folded.constants, device="cpu", tie_key=names, chunk_rows=25)
    found = ours.search(folded.mentions, 4, mode=mode)
    expected = sorted(range(40), key=lambda r: names(np.array([r]))[0])[:4]
    np.testing.assert_array_equal(found.rows, [expected, expected])
    two = [NameScores(np.array([5, 31]), np.ones(2, np.float32))] * 2
    found = ours.search(folded.mentions, 4, mode=mode, names=two)  # the rest tie, more than the list holds
    expected = sorted((5, 31), key=lambda r: names(np.array([r]))[0]) + [
        r for r in expected if r not in (5, 31)
    ]
    np.testing.assert_array_equal(found.rows, [expected[:4]] * 2)


@pytest.mark.parametrize(
    "called", [None, names_of(40, 0, 150, entities=150, size=0.05)], ids=["alone", "names"]
)
def test_too_many_survivors_are_answered_by_scoring_all(make_folded, monkeypatch, called):
    monkeypatch.setattr(gpu_passes, "LEAST_SURVIVORS", 1)
    folded = make_folded(3, 150)
    ours, theirs = both(folded, (150,), terms=terms_of(150, 0.05, False), chunk_rows=150)
    found = ours.search(folded.mentions, 3, names=called)
    same(found, theirs.search(folded.mentions, 3, mode="exact", names=called))
    assert "exact" in found.modes
    assert all(s == 150 for s, m in zip(found.scored, found.modes, strict=True) if m == "exact")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("mode", ["exact", "certified", "coded"])
def test_scores_that_are_not_finite_are_refused(make_folded, mode):
    folded = make_folded(2, 40)
    folded.entities.tglu_cls[11] = np.nan
    ours, _ = both(folded, (40,))
    with pytest.raises(EngineError, match="not all of them are finite"):
        ours.search(folded.mentions, 3, mode=mode)


def test_units_that_are_off_are_left_out(make_folded):
    config = MatcherConfig(text_width=11, text_token_width=13, hidden=8, tglu=False)
    folded = make_folded(2, 50, config)
    ours = CudaScan((folded.entities,), folded.constants, device="cpu")
    kernels = BlockKernels(NumpyScorer(folded.constants), folded.constants)
    theirs = Scan((folded.entities,), kernels, threads=1)
    for mode in ("exact", "certified"):
        same(ours.search(folded.mentions, 3, mode=mode), theirs.search(folded.mentions, 3, mode=mode))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"k": 0}, "top_k: 0"), ({"k": 41}, "top_k: 41"), ({"k": 1, "mode": "fast"}, "mode: 'fast'")],
)
def test_wrong_options_are_named(make_folded, options, message):
    folded = make_folded(1, 40)
    ours, _ = both(folded, (40,))
    with pytest.raises(InvalidInputError, match=message):
        ours.search(folded.mentions, **options)


def test_coded_needs_codes_and_a_device_must_be_there(make_folded):
    folded = make_folded(1, 40)
    bare = CudaScan((folded.entities,), folded.constants, device="cpu")
    with pytest.raises(InvalidInputError, match="codes"):
        bare.search(folded.mentions, 1, mode="coded")
    if not torch.cuda.is_available():
        with pytest.raises(MissingDependencyError, match="CUDA"):
            CudaScan((folded.entities,), folded.constants)


def test_what_does_not_fit_says_what_would(make_folded, monkeypatch):
    entities = make_folded(1, 40).entities
    query = entities.tglu_query.nbytes
    rest = sum(a.nbytes for _, a in entities.items()) - query

    def placed(room, **options):
        monkeypatch.setattr(gpu_index, "_free", lambda device: room + gpu_index.RESERVE_BYTES)
        return DeviceIndex((entities,), torch.device("cpu"), **options).placement

    assert placed(query + rest) == "device"
    assert placed(rest) == "host"
    with pytest.raises(EngineError, match="placement 'host'"):
        placed(rest, placement="device")
    with pytest.raises(EngineError, match="20 entities would fit"):
        placed(rest // 2)
    with pytest.raises(InvalidInputError, match="no entity"):
        DeviceIndex((), torch.device("cpu"))
