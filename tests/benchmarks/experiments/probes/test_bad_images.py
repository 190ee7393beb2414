"""Metrics and gates under treated images, against the unfolded matcher on images treated by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from benchmarks.experiments.probes import PROBES
from benchmarks.experiments.probes.bad_images import NONE, OTHER, bad_images, mixed
from benchmarks.experiments.probes.treatments import TREATMENTS, apply
from benchmarks.experiments.probes.views import others_images
from mimic_engine.errors import ImageError, InvalidInputError
from mimic_engine.images import decode_image
from mimic_engine.metrics import ranking_metrics
from mimic_engine.model.encoders import Vectors
from tests.ranking import exact_scores

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
TEXT_ONLY = {"vision": "off", "cmfu": False}


@torch.no_grad()
def _brute(run, split, pixels, entity_pixels=None):
    """Scores (M, N) with these mention pixels (M, 3, S, S); entities with theirs, or with given ones."""
    encode, model = run.encode, run.encode.model
    length = encode.corpus.tokens.input_ids.shape[1]

    def features(rows, shown):
        raw = model.encoder.image_backbone(torch.from_numpy(np.stack(shown)))
        image = model.encoder.project_image(Vectors(raw.cls, raw.tokens))
        return encode(rows, length)._replace(image_cls=image.cls, image_tokens=image.tokens)

    entities = encode.corpus.entities
    whole = encode(entities, length) if entity_pixels is None else features(entities, entity_pixels)
    return exact_scores(model.matcher, features(split.records, pixels), whole, split.gold)


def _ranks(scores, gold):
    return (scores >= scores[np.arange(len(gold)), gold][:, None]).sum(1)


def _pixels(run, records, name):
    """Pixels of each mention's image under a treatment."""
    images, corpus = run.encode._images, run.encode.corpus
    found = [corpus.images[p - 1] for p in corpus.image[records]]
    if name in TREATMENTS:
        return [images(apply(TREATMENTS[name], decode_image(f), 32, 0)) for f in found]
    return [images.missing() if name == NONE else images(f) for f in found]


def _metrics(point):
    return {k: v for k, v in point.items() if k not in ("share", "treated")}


@pytest.fixture
def result(illustrated, make_run):
    run = make_run(illustrated)
    return run, bad_images(run, "dev", least=5)


def test_counts_and_plain_json(result):
    _, found = result
    counts = {k: found[k] for k in ("mentions", "pictures", "broken", "used", "conclusive")}
    assert counts == {"mentions": 18, "pictures": 18, "broken": 0, "used": 18, "conclusive": True}
    assert list(found["treatments"]) == [*TREATMENTS, OTHER, NONE]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_share_zero_is_the_model_as_it_is(result):
    run, found = result
    split = run.encode.corpus.splits["dev"]
    plain = ranking_metrics(_ranks(_brute(run, split, _pixels(run, split.records, "")), split.gold), 18)
    assert found["untreated"] == plain.to_json()
    for treatment in found["treatments"].values():
        assert _metrics(treatment["curve"][0]) == found["untreated"]
        assert [p["share"] for p in treatment["curve"]] == list(SHARES)
        assert [p["treated"] for p in treatment["curve"]] == [0, 4, 9, 14, 18]


@pytest.mark.parametrize("name", [*TREATMENTS, NONE])
def test_share_one_is_the_model_on_treated_images(result, name):
    run, found = result
    split = run.encode.corpus.splits["dev"]
    scores = _brute(run, split, _pixels(run, split.records, name))
    expected = ranking_metrics(_ranks(scores, split.gold), 18).to_json()
    assert _metrics(found["treatments"][name]["curve"][-1]) == expected


def test_the_treatments_make_a_difference(result):
    _, found = result
    last = {name: t["curve"][-1]["mr"] for name, t in found["treatments"].items()}
    assert len(set(last.values())) > 3
    assert sum(mr != found["untreated"]["mr"] for mr in last.values()) >= 5


def test_more_treated_mentions_are_those_of_before_and_others():
    turn = np.random.default_rng(0).permutation(20)
    plain, seen = np.arange(20), np.arange(20) + 100
    sets = [set(np.flatnonzero(mixed(plain, seen, turn, n) >= 100)) for n in (0, 5, 10, 15, 20)]
    assert [len(s) for s in sets] == [0, 5, 10, 15, 20]
    assert all(a < b for a, b in pairwise(sets))
    assert set(mixed(plain, seen, turn, 5)) == {m + 100 if m in sets[1] else m for m in range(20)}


def test_a_curve_goes_from_untreated_to_treated(result):
    """Each mention that is treated changes the mean rank by what the treatment does to it."""
    run, found = result
    split = run.encode.corpus.splits["dev"]
    plain = _ranks(_brute(run, split, _pixels(run, split.records, "")), split.gold)
    noisy = _ranks(_brute(run, split, _pixels(run, split.records, "noise")), split.gold)
    for point in found["treatments"]["noise"]["curve"]:
        total = round(point["mr"] * 18) - plain.sum()
        order = np.argsort(np.random.default_rng(0).permutation(18))[: point["treated"]]
        assert total == (noisy - plain)[order].sum()


def test_text_only_has_no_image_on_either_side(result):
    run, found = result
    split = run.encode.corpus.splits["dev"]
    missing = run.encode._images.missing()
    scores = _brute(run, split, [missing] * 18, [missing] * 18)
    assert found["text_only"] == ranking_metrics(_ranks(scores, split.gold), 18).to_json()
    assert found["text_only"] != _metrics(found["treatments"][NONE]["curve"][-1])


def test_a_model_of_text_alone_sees_no_difference(illustrated, make_run):
    found = bad_images(make_run(illustrated, **TEXT_ONLY), "dev", least=5)
    assert found["text_only"] == found["untreated"]
    assert found["gate"] is None
    for treatment in found["treatments"].values():
        assert all(_metrics(p) == found["untreated"] for p in treatment["curve"])
        assert treatment["gate"] is None


@torch.no_grad()
@pytest.mark.parametrize("name", ["", "noise", NONE])
def test_gates_are_those_of_gold_and_best_wrong_pairs(result, name):
    run, found = result
    split, model = run.encode.corpus.splits["dev"], run.encode.model
    pixels = _pixels(run, split.records, name)
    caught = []
    vdlu = model.matcher.vdlu
    for dual in (vdlu.dual_ent2men, vdlu.dual_men2ent):
        dual.gate_fc.register_forward_hook(lambda _m, _i, out: caught.append(torch.tanh(out)[..., 0].numpy()))
    scores = _brute(run, split, pixels)
    gates = {"entity to mention": caught[0].T, "mention to entity": caught[1]}
    rows = np.arange(18)
    scores[rows, split.gold] = -np.inf
    pairs = {"gold": split.gold, "wrong": scores.argmax(1)}
    told = found["treatments"][name]["gate"] if name else found["gate"]
    for kind, columns in pairs.items():
        for direction, all_pairs in gates.items():
            weights = all_pairs[rows, columns]
            assert told[kind][direction]["mean"] == pytest.approx(weights.mean(), abs=1e-4)
            assert told[kind][direction]["mean_absolute"] == pytest.approx(np.abs(weights).mean(), abs=1e-4)
            assert told[kind][direction]["quantiles"]["50"] == pytest.approx(np.median(weights), abs=1e-4)


def test_the_other_image_is_a_wrong_entitys(result):
    run, found = result
    split, corpus = run.encode.corpus.splits["dev"], run.encode.corpus
    drawn = others_images(corpus, split.records, split.gold, 0)
    of_entity = {p: i for i, p in enumerate(corpus.image[corpus.entities])}
    wrong = np.array([of_entity[p] for p in drawn])
    assert (wrong != split.gold).all()
    assert len(set(wrong)) > 5
    np.testing.assert_array_equal(drawn, others_images(corpus, split.records, split.gold, 0))
    assert (drawn != others_images(corpus, split.records, split.gold, 1)).any()
    images = run.encode._images
    scores = _brute(run, split, [images(corpus.images[p - 1]) for p in drawn])
    expected = ranking_metrics(_ranks(scores, split.gold), 18).to_json()
    assert _metrics(found["treatments"][OTHER]["curve"][-1]) == expected


def test_no_other_image_where_entities_have_none(illustrated, make_run):
    bare = replace(illustrated, entities=tuple(replace(e, images=()) for e in illustrated.entities))
    found = bad_images(make_run(bare), "dev", least=5)
    assert found["treatments"][OTHER] is None
    assert found["treatments"][NONE] is not None


def test_the_same_run_twice_gives_the_same_and_another_seed_another(illustrated, make_run):
    run = make_run(illustrated)
    first = bad_images(run, "test", least=5)
    assert bad_images(run, "test", least=5) == first
    assert bad_images(run, "test", least=5, seed=1)["treatments"] != first["treatments"]


def test_the_run_is_as_it_was_afterwards(illustrated, make_run):
    run = make_run(illustrated)
    records = run.encode.corpus.splits["dev"].records
    before, image = run.encode(records), run.encode.corpus.image.copy()
    bad_images(run, "dev", least=5)
    np.testing.assert_array_equal(run.encode.corpus.image, image)
    for a, b in zip(before, run.encode(records), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_each_treated_image_is_encoded_once_over_runs(illustrated, make_run, monkeypatch):
    run = make_run(illustrated)
    rows = []
    vit = type(run.encode.model.encoder.image)
    forward = vit.forward
    monkeypatch.setattr(
        vit, "forward", lambda self, pixels: (rows.append(len(pixels)), forward(self, pixels))[1]
    )
    bad_images(run, "dev", least=5)
    assert sum(rows) == len(TREATMENTS) * 18  # the missing image is in the run's cache
    rows.clear()
    bad_images(run, "dev", least=5)
    assert not rows


def test_a_limit_is_kept_and_stated(illustrated, make_run):
    found = bad_images(make_run(illustrated), "dev", least=5, limit=7)
    assert (found["pictures"], found["used"]) == (18, 7)
    assert found["untreated"]["mentions"] == 7


def test_mentions_without_an_image_take_no_part(tiny, make_run):
    """Twelve of 36 training mentions of the tiny data have one: too few by default."""
    run = make_run(tiny)
    found = PROBES["pictures"](run, "train")
    having = sum(m.mention.image is not None for m in tiny.splits["train"])
    assert found["pictures"] == found["used"] == having == 12
    assert found["conclusive"] is False
    assert "12 mentions with a picture are too few: at least 100" in found["reason"]
    assert "treatments" not in found
    assert bad_images(run, "train", least=12)["untreated"]["mentions"] == 12


def test_a_split_without_images_is_no_error(tiny, make_run):
    found = bad_images(make_run(tiny), "test")
    assert (found["mentions"], found["pictures"], found["conclusive"]) == (12, 0, False)


def test_broken_images_are_left_out_or_an_error(illustrated, make_run, tmp_path):
    run = make_run(illustrated, broken_images="as-missing")
    broken = illustrated.splits["dev"][4].mention.image
    broken.write_bytes(b"\xff\xd8\xff no picture")
    found = bad_images(run, "dev", least=5)
    assert (found["broken"], found["used"]) == (1, 17)
    with pytest.raises(ImageError, match="mention 4 of dev"):
        bad_images(_strict(run), "dev", least=5)


def _strict(run):
    return replace(run, config=replace(run.config, broken_images="error"))


def test_a_share_outside_its_limits_is_named(illustrated, make_run):
    with pytest.raises(InvalidInputError, match=r"shares: 1\.5 is not between 0 and 1"):
        bad_images(make_run(illustrated), "dev", shares=(0, 1.5))


def test_trained_image_encoders_are_read_without_a_cache(illustrated, make_run):
    frozen = bad_images(make_run(illustrated), "dev", least=5)
    trained = bad_images(make_run(illustrated, train_image_encoder=True), "dev", least=5)
    assert trained["treatments"].keys() == frozen["treatments"].keys()
    for name, treatment in trained["treatments"].items():
        assert [_metrics(p) for p in treatment["curve"]] == [
            _metrics(p) for p in frozen["treatments"][name]["curve"]
        ]
