"""The linker end to end: ranking and scores of the unfolded PyTorch model, and every limit it names."""

import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from mimic_engine import Entity, Linker, Mention
from mimic_engine.backends.encoders import open_featurizer
from mimic_engine.data.images import BrokenImages
from mimic_engine.data.records import read_entities
from mimic_engine.encoding.knowledge_base import KnowledgeBaseFeaturizer
from mimic_engine.errors import (
    ImageError,
    IndexFormatError,
    IndexMismatchError,
    InvalidInputError,
    ModelError,
    UnknownEntityError,
)
from mimic_engine.images import ImagePreprocessor
from mimic_engine.index.build import build_index
from mimic_engine.index.manifest import read_manifest, write_manifest
from mimic_engine.index.store import Index
from mimic_engine.model.checkpoint import load_checkpoint
from mimic_engine.model.units import Mimic
from mimic_engine.text import TextPreprocessor, entity_pair, mention_pair
from mimic_engine.types import LinkOptions
from tests.index.changes import compact, delete, upsert
from tests.rounding import model_bound, moved_weights

UNITS = ("tglu", "vdlu", "cmfu")


@pytest.fixture(scope="module")
def linker(tiny_model: Path, tiny_index: Path) -> Iterator[Linker]:
    opened = Linker.open(tiny_model, tiny_index, threads=2)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def mentions(tiny_picture: Path) -> list[Mention]:
    """Short, long, unknown and empty texts; pictures as path and as bytes."""
    return [
        Mention("a b", "c a b d", tiny_picture),
        Mention("j", "j e f g h i j a b c d e", tiny_picture.read_bytes()),
        Mention("c", "c c c"),
        Mention("Jordan", "", tiny_picture),
        Mention("", ""),
    ]


@pytest.fixture(scope="module")
def unfolded(
    tiny_checkpoint: Path, tiny_kb: Path, mentions: list[Mention]
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Scores of every mention against every entity by the PyTorch model as it was trained, in float64.

    The total and each unit, and how far float32 may be from them.
    """
    checkpoint = load_checkpoint(tiny_checkpoint)
    config = checkpoint.model.config
    text = TextPreprocessor.open(checkpoint.tokenizer_json, config.text)
    images = ImagePreprocessor(config.image)

    def inputs(pairs, sources) -> list[torch.Tensor]:
        tokens = text(pairs)
        pixels = np.stack([images.missing() if s is None else images(s) for s in sources])
        arrays = (tokens.input_ids, tokens.attention_mask, tokens.token_type_ids, pixels.astype(np.float64))
        return [torch.from_numpy(a) for a in arrays]

    entities = list(read_entities(tiny_kb))
    sides = [
        inputs([mention_pair(m) for m in mentions], [m.image for m in mentions]),
        inputs([entity_pair(e) for e in entities], [e.images[0] if e.images else None for e in entities]),
    ]

    def scores(model: Mimic) -> dict[str, torch.Tensor]:
        found = model(*(model.encode(*side) for side in sides))
        return {"total": found.total, **found.units}

    with torch.no_grad():
        exact = {name: s.numpy() for name, s in scores(moved_weights(checkpoint.model, 0, None)).items()}
    return exact, model_bound(checkpoint.model, 3 * 16 * 16, scores)  # the longest sum is over a patch


def test_ranking_and_scores_are_the_unfolded_models(linker, unfolded, mentions):
    exact, allowed = unfolded
    ids = linker.index.ids(range(len(linker.index)))
    for b, result in enumerate(linker.link(mentions, len(ids))):
        found = {c.id: c for c in result.candidates}
        assert sorted(found) == sorted(ids)
        assert_allclose([found[i].score for i in ids], exact["total"][b], rtol=0, atol=allowed["total"])
        for unit in UNITS:
            scores = [found[i].units[unit] for i in ids]
            assert_allclose(scores, exact[unit][b], rtol=0, atol=allowed[unit])
        # Positions may differ only where rounding decides.
        ranked = np.array([exact["total"][b][ids.index(c.id)] for c in result.candidates])
        assert (np.diff(ranked) <= 2 * allowed["total"]).all()
    assert (exact["total"].std(1) > 100 * allowed["total"]).all()  # or the comparison would mean little


def test_a_result_says_what_it_rests_on(linker, mentions):
    results = linker.link(mentions, 1)
    assert [r.has_image for r in results] == [True, True, False, True, False]
    assert [r.text_truncated for r in results] == [False, True, False, False, False]
    assert {(r.mode, r.entities_scored) for r in results} == {("certified", len(linker.index))}
    assert set(results[0].candidates[0].units) == set(UNITS)


def test_total_is_the_mean_of_the_units(linker, mentions):
    for result in linker.link(mentions, 3):
        for c in result.candidates:
            assert_allclose(c.score, np.mean([c.units[u] for u in UNITS]), atol=1e-5)


@pytest.mark.parametrize("top_k", [1, 2, 7])
def test_fewer_results_are_the_head_of_more(linker, mentions, top_k):
    for few, all_ in zip(linker.link(mentions, top_k), linker.link(mentions, 13), strict=True):
        assert ids_of(few) == ids_of(all_)[:top_k]


def test_a_mention_alone_gets_the_answer_it_gets_in_a_batch(linker, mentions):
    for mention, inside in zip(mentions, linker.link(mentions, 13), strict=True):
        [alone] = linker.link([mention], 13)
        assert ids_of(alone) == ids_of(inside)
        scores = [[c.score for c in r.candidates] for r in (alone, inside)]
        assert_allclose(*scores, atol=1e-5)


def test_certified_and_exact_give_the_same_answer(linker, mentions):
    for certified, exact in zip(
        linker.link(mentions, 3), linker.link(mentions, 3, mode="exact"), strict=True
    ):
        assert certified.candidates == exact.candidates
        assert (certified.mode, exact.mode, exact.entities_scored) == (
            "certified",
            "exact",
            len(linker.index),
        )


def test_a_mode_that_the_index_has_no_codes_for_is_an_error(linker, mentions):
    with pytest.raises(InvalidInputError, match="mode: 'coded' is not one of exact, certified"):
        linker.link(mentions, 1, mode="coded")


def test_no_mentions_no_results(linker):
    assert linker.link([]) == []


def test_candidates_restrict_the_answer(linker, mentions):
    wanted = ["E07", "E01", "E99", "E10"]
    for free, bound in zip(
        linker.link(mentions, 13), linker.link(mentions, 3, candidates=wanted), strict=True
    ):
        assert ids_of(bound) == [i for i in ids_of(free) if i in wanted][:3]
        assert bound.entities_scored == 4


def test_each_mention_may_have_its_own_options(linker, mentions):
    options = [LinkOptions(2), LinkOptions(5, candidates=("E03",)), LinkOptions(99, mode="exact")]
    requests = [linker.prepare(m, o) for m, o in zip(mentions[:3], options, strict=True)]
    first, second, third = linker.link_prepared(requests)
    assert [len(r.candidates) for r in (first, second, third)] == [2, 1, 13]  # no more than there are
    assert ids_of(second) == ["E03"]
    assert ids_of(first) == ids_of(linker.link(mentions[:1], 2)[0])


def test_candidates_are_resolved_when_a_mention_is_prepared_and_never_again(linker, mentions, monkeypatch):
    options = LinkOptions(2, candidates=("E03", "E01", "E07"))
    requests = [linker.prepare(m, options) for m in mentions]
    expected = linker.link(mentions, 2, candidates=options.candidates)
    monkeypatch.setattr(Index, "select", lambda *_: pytest.fail("resolved on the device thread"))
    searches, real = [], type(linker._scan).search

    def spy(self, mentions, k, **options):
        searches.append((mentions.rows, options["rows"].tolist()))
        return real(self, mentions, k, **options)

    monkeypatch.setattr(type(linker._scan), "search", spy)
    assert linker.link_prepared(requests) == expected
    assert searches == [(len(mentions), requests[0].search.rows.tolist())]  # equal searches are one


def test_wrong_options_fail_before_anything_is_decoded(linker, monkeypatch):
    monkeypatch.setattr(type(linker.featurizer), "prepare", lambda *_, **__: pytest.fail("decoded"))
    for wrong in (
        LinkOptions(0),
        LinkOptions(mode="coded"),
        LinkOptions(rerank=0),
        LinkOptions(candidates=()),
    ):
        with pytest.raises(InvalidInputError):
            linker.prepare(Mention("a", "a b"), wrong)
    with pytest.raises(UnknownEntityError) as unknown:
        linker.prepare(Mention("a", "a b"), LinkOptions(candidates=("E77",)))
    assert unknown.value.field == "candidates"


def test_ties_are_broken_by_id(linker, mentions):
    assert linker.index.rows(["E99"]) < linker.index.rows(["E05"])
    for result in linker.link(mentions, 13):
        ids, scores = ids_of(result), {c.id: c.score for c in result.candidates}
        assert scores["E05"] == scores["E99"]
        assert ids.index("E99") == ids.index("E05") + 1
    for mention in mentions:
        [alone] = linker.link([mention], 1, candidates=["E99", "E05"])
        assert ids_of(alone) == ["E05"]


@pytest.mark.parametrize("top_k", [0, -1, 14])
def test_top_k_outside_its_limits_is_refused(linker, mentions, top_k):
    with pytest.raises(InvalidInputError, match=rf"top_k: {top_k} is not between 1 and the 13 candidates"):
        linker.link(mentions, top_k)


def test_top_k_is_limited_by_the_candidates(linker, mentions):
    with pytest.raises(InvalidInputError, match="top_k: 3 is not between 1 and the 2 candidates"):
        linker.link(mentions, 3, candidates=["E01", "E02"])
    with pytest.raises(InvalidInputError, match="the 0 candidates"):
        linker.link(mentions, 1, candidates=[])


def test_an_unknown_candidate_is_named(linker, mentions):
    with pytest.raises(UnknownEntityError, match="'E77'"):
        linker.link(mentions, 1, candidates=["E01", "E77"])


def test_a_candidate_given_twice_is_named(linker, mentions):
    with pytest.raises(InvalidInputError, match="'E01' is given twice"):
        linker.link(mentions, 1, candidates=["E01", "E02", "E01"])


def test_a_broken_picture_is_an_error(linker, tiny_picture):
    with pytest.raises(ImageError, match="image"):
        linker.link([Mention("a", "a b", tiny_picture.read_bytes()[:60])])


def test_info_says_what_is_loaded(linker):
    info = linker.info()
    assert (info["entities"], info["index_dtype"], info["max_text_tokens"]) == (13, "float32", 9)
    assert info["units"] == list(UNITS)
    assert info["model_hash"] == linker.model_hash == linker.index.manifest.model_hash


def test_warm_up_runs(linker):
    linker.warm_up()


def test_changes_are_linked_in_the_next_snapshot(tiny_model, tiny_index, linker, mentions, tmp_path):
    """Replaced and deleted entities are never answered, new ones are, and compaction changes nothing."""
    index = Index.open(shutil.copytree(tiny_index, tmp_path / "index"))
    twin = Entity("twin", "a b", "c d e f")
    index = upsert(delete(index, ["E00", "E07"]), [twin, Entity("E03", "j i", "h g")], linker.featurizer)
    wanted = sorted({*linker.index.ids(range(13)), "twin"} - {"E00", "E07"})
    with closing(Linker.open(tiny_model, index.path, threads=1)) as changed:
        assert changed.info()["entities"] == 12
        before = changed.link(mentions, 12)
        for mode in ("exact", "certified"):
            assert changed.link(mentions, 12, mode=mode)[0].candidates == before[0].candidates
        ranks = changed.ranks(mentions[:3], changed.index.rows(["twin"] * 3))
    for result in before:
        assert sorted(ids_of(result)) == wanted and result.entities_scored <= 12
    old = {c.id: c for c in linker.link(mentions, 13)[0].candidates}
    new = {c.id: c for c in before[0].candidates}
    assert all(new[i] == old[i] for i in wanted if i not in ("E03", "twin"))
    assert new["E03"].name == "j i" and new["E03"].score != old["E03"].score
    assert ranks.tolist() == [ids_of(result).index("twin") + 1 for result in before[:3]]
    compact(index)
    with closing(Linker.open(tiny_model, index.path, threads=1)) as compacted:
        assert compacted.index.alive is None
        assert compacted.link(mentions, 12) == before
        with pytest.raises(InvalidInputError, match="the 12 candidates"):
            compacted.link(mentions, 13)


def test_an_index_of_another_model_is_refused(tiny_model, tiny_index, tmp_path):
    other = tmp_path / "index"
    shutil.copytree(tiny_index, other)
    write_manifest(other, replace(read_manifest(other), model_hash="0" * 64))
    with pytest.raises(IndexMismatchError, match="0000"):
        Linker.open(tiny_model, other)


@pytest.mark.parametrize("verify", [True, False])
def test_a_truncated_index_is_refused(tiny_model, tiny_index, tmp_path, verify):
    cut = tmp_path / "index"
    shutil.copytree(tiny_index, cut)
    largest = max((p for p in cut.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-7])
    with pytest.raises(IndexFormatError, match=largest.name):
        Linker.open(tiny_model, cut, verify=verify)


def test_a_flipped_model_file_is_refused(tiny_model, tiny_index, tmp_path):
    flipped = tmp_path / "model"
    shutil.copytree(tiny_model, flipped)
    graph = flipped / "graphs" / "scorer.fp32.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    with pytest.raises(ModelError, match=graph.name):
        Linker.open(flipped, tiny_index, scorer="onnx")


def test_reopening_finds_what_was_rebuilt_and_leaves_the_old_one_alone(
    tiny_model, tiny_index, tiny_kb, tmp_path, mentions
):
    folder = tmp_path / "index"
    shutil.copytree(tiny_index, folder)
    old = Linker.open(tiny_model, folder, threads=1)
    assert old.reopened() is old
    before = [ids_of(r) for r in old.link(mentions, 13)]
    source = KnowledgeBaseFeaturizer(old.featurizer, BrokenImages("error"))
    fewer = list(read_entities(tiny_kb))[:4]
    build_index(source, lambda: fewer, folder, progress=False, overwrite=True)
    new = old.reopened()
    assert len(new.index) == 4
    assert {i for r in new.link(mentions, 4) for i in ids_of(r)} == {e.id for e in fewer}
    assert [ids_of(r) for r in old.link(mentions, 13)] == before
    write_manifest(folder, replace(read_manifest(folder), model_hash="0" * 64))
    with pytest.raises(IndexMismatchError):
        new.reopened()
    old.close()
    new.close()


def test_types_restrict_the_answer(tiny_model, tiny_kb, tmp_path, mentions):
    entities = [
        replace(e, type="even" if n % 2 == 0 else "odd") for n, e in enumerate(read_entities(tiny_kb))
    ]
    featurizer = open_featurizer(tiny_model, threads=1)
    source = KnowledgeBaseFeaturizer(featurizer, BrokenImages("error"))
    build_index(source, lambda: entities, tmp_path / "typed", dtype="float32", progress=False)
    linker = Linker.open(tiny_model, tmp_path / "typed", threads=1)
    odd = {e.id for e in entities if e.type == "odd"}
    for free, typed in zip(linker.link(mentions, 13), linker.link(mentions, 6, types=["odd"]), strict=True):
        assert ids_of(typed) == [i for i in ids_of(free) if i in odd]
        assert typed.entities_scored == 6
    first, second = (linker.prepare(m, LinkOptions(types=("odd",))) for m in mentions[:2])
    assert first.search.allowed is second.search.allowed  # one mask, however many wait
    assert (first.options.top_k, first.search.count) == (6, 6)
    with pytest.raises(InvalidInputError, match="no entity of the index has type 'planet'"):
        linker.link(mentions, types=["planet"])
    linker.close()


def test_missing_folders_are_named(tiny_model, tiny_index, tmp_path):
    with pytest.raises(IndexFormatError, match="nowhere"):
        Linker.open(tiny_model, tmp_path / "nowhere")
    with pytest.raises(ModelError, match="nowhere"):
        Linker.open(tmp_path / "nowhere", tiny_index)


def ids_of(result) -> list[str]:
    return [c.id for c in result.candidates]
