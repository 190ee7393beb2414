"""The linker with names: the total is the model's score, the name score of the pair and the prior."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from mimic_engine import Entity, Linker, Mention
from mimic_engine.backends.encoders import open_featurizer
from mimic_engine.calibration.nil import NilThreshold
from mimic_engine.calibration.stored import Calibration
from mimic_engine.calibration.weights import Probability, ScoreWeights
from mimic_engine.cli.main import main
from mimic_engine.data.images import BrokenImages
from mimic_engine.encoding.knowledge_base import KnowledgeBaseFeaturizer
from mimic_engine.index.build import build_index
from mimic_engine.index.store import Index
from mimic_engine.names.features import name_features
from mimic_engine.types import LinkOptions
from tests.index.changes import compact, delete, upsert

WEIGHTS = ScoreWeights(exact=40.0, words=10.0, chars=5.0, context=3.0, prior=0.5)
LETTERS = "a b c d e f g h i j "
ENTITIES = [
    Entity("K1", "Alec Baldwin", "a b c", aliases=("A. Baldwin",), popularity=900.0),
    Entity("K2", "Adam Baldwin", "c d e", popularity=90.0),
    Entity("K3", "John F. Kennedy", "a f", aliases=("JFK", "Jack Kennedy"), popularity=5000.0),
    Entity("K4", "JFK", "airport", popularity=10.0),
    Entity("K5", "Stuart Pearce", "g h"),
    *(
        Entity(f"F{i}", f"word{i} other{i}", LETTERS[i % 10 :] + LETTERS[i::7], (), "", (), i)
        for i in range(20)
    ),
]


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory) -> Path:
    """The tiny model in a folder of the test's own, calibrated."""
    folder = tmp_path_factory.mktemp("named") / "model"
    folder.mkdir()
    for path in tiny_model.iterdir():
        (folder / path.name).symlink_to(path)
    found = open_featurizer(tiny_model, threads=1).model_hash
    nil = NilThreshold(15.0, 0.9, 0.95, 40, 20)
    Calibration(found, WEIGHTS, Probability(2.0, 1.0), nil).write(folder)
    return folder


@pytest.fixture(scope="module")
def index(model: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("named_index") / "index"
    source = KnowledgeBaseFeaturizer(open_featurizer(model, threads=1), BrokenImages("error"))
    build_index(source, lambda: iter(ENTITIES), out, segment_rows=7, dtype="float32", progress=False)
    return out


@pytest.fixture(scope="module")
def linker(model: Path, index: Path):
    opened = Linker.open(model, index, threads=1)
    yield opened
    opened.close()


def priors(popularity):
    known = [p for p in popularity if p is not None]
    logs = np.log1p(known)
    return [0.0 if p is None else (np.log1p(p) - logs.mean()) / logs.std() for p in popularity]


@pytest.mark.parametrize("mode", ["exact", "certified"])
@pytest.mark.parametrize(
    ("surface", "sentence"),
    [("Baldwin", "Alec and the Baldwin boys"), ("JFK", "a b"), ("Kenedy", "Jack Kenedy"), ("q", "z")],
)
def test_a_total_is_the_sum_of_what_its_units_say(linker, mode, surface, sentence):
    mention = Mention(surface, sentence)
    [alone] = linker.link([mention], len(ENTITIES), mode=mode, names=False)
    [named] = linker.link([mention], len(ENTITIES), mode=mode)
    by_model = {c.id: c.score for c in alone.candidates}
    prior = dict(zip((e.id for e in ENTITIES), priors([e.popularity for e in ENTITIES]), strict=True))
    for candidate in named.candidates:
        entity = next(e for e in ENTITIES if e.id == candidate.id)
        features = name_features(
            surface, sentence, (entity.name, *entity.aliases), linker.index.name_lookup.idf
        )
        name = sum(w * x for w, x in zip(WEIGHTS.names, features, strict=True))
        assert candidate.units["name"] == pytest.approx(name, rel=1e-5)
        assert candidate.units["prior"] == pytest.approx(WEIGHTS.prior * prior[entity.id], abs=1e-5)
        total = by_model[entity.id] + candidate.units["name"] + candidate.units["prior"]
        assert candidate.score == pytest.approx(total, abs=1e-5)
        assert set(alone.candidates[0].units) == {"tglu", "vdlu", "cmfu"}
    totals = [c.score for c in named.candidates]
    assert totals == sorted(totals, reverse=True)


def test_an_alias_finds_its_entity_and_popularity_tells_two_apart(linker):
    [jfk, baldwin] = linker.link([Mention("JFK", "x y"), Mention("A. Baldwin", "x y")], 3)
    assert {c.id for c in jfk.candidates[:2]} == {"K3", "K4"}
    assert baldwin.candidates[0].id == "K1"
    [near] = linker.link([Mention("Stuart Pearse", "x y")], 1)
    assert near.candidates[0].id == "K5"


def test_certified_has_the_bits_of_exact_and_a_name_score_those_of_any_batch(linker):
    mentions = [Mention(s, f"{s} a b") for s in ("Baldwin", "JFK", "Kennedy", "word3", "nothing", "Pearce")]
    exact = linker.link(mentions, 5, mode="exact")
    for one, other in zip(exact, linker.link(mentions, 5), strict=True):
        assert one.candidates == other.candidates
    for mention, together in zip(mentions, exact, strict=True):
        [alone] = linker.link([mention], 5)
        name = {c.id: (c.units["name"], c.units["prior"]) for c in alone.candidates}
        assert all(name[c.id] == (c.units["name"], c.units["prior"]) for c in together.candidates)


def test_options_of_names_travel_apart(linker):
    prepared = [
        linker.prepare(Mention("JFK", "x"), LinkOptions(2, names=names)) for names in (True, False, True)
    ]
    found = linker.link_prepared(prepared)
    assert [set(r.candidates[0].units) - {"tglu", "vdlu", "cmfu"} for r in found] == [
        {"name", "prior"},
        set(),
        {"name", "prior"},
    ]
    assert found[0] == found[2]
    assert found[1].candidates[0].probability is None  # it was calibrated for totals with names
    assert linker.nil_threshold() == 15.0
    assert linker.nil_threshold(names=False) is None


def test_probabilities_are_of_the_ranked_ones_and_none_of_them(linker):
    [ten] = linker.link([Mention("JFK", "x y")], 10)
    assert sum(c.probability for c in ten.candidates) + ten.nil_probability == pytest.approx(1)
    [one] = linker.link([Mention("JFK", "x y")], 1)
    assert one.candidates[0].probability == ten.candidates[0].probability
    assert one.nil_probability == ten.nil_probability
    totals = np.append([c.score for c in ten.candidates], 1.0) / 2.0
    expected = np.exp(totals - totals.max()) / np.exp(totals - totals.max()).sum()
    assert [c.probability for c in ten.candidates] == pytest.approx(expected[:-1].tolist())
    [two] = linker.link([Mention("JFK", "x y")], 2, candidates=["K1", "K4"])
    assert two.candidates[0].probability + two.candidates[1].probability < 1


def test_an_explanation_says_which_name_matched(linker):
    [found] = linker.link([Mention("JFK", "x y")], len(ENTITIES), explain=True)
    matched = {c.id: c.explanation.matched_name for c in found.candidates}
    assert (matched["K3"], matched["K4"], matched["F1"]) == ("JFK", "JFK", None)
    for candidate in found.candidates:
        assert sum(candidate.explanation.contributions.values()) == pytest.approx(candidate.score, abs=1e-4)
    [alone] = linker.link([Mention("JFK", "x y")], 1, explain=True, names=False)
    assert alone.candidates[0].explanation.matched_name is None


def test_a_linker_opened_without_names_is_the_model_alone(model, index, linker):
    alone = Linker.open(model, index, threads=1, names=False)
    assert not alone.counts_names
    assert alone.nil_threshold() is None
    asked = [Mention("Baldwin", "Alec Baldwin")]
    assert alone.link(asked, 4) == linker.link(asked, 4, names=False)
    assert alone.info()["names"] == {"counted": False, "weights": asdict(ScoreWeights())}
    assert linker.info()["names"] == {"counted": True, "weights": asdict(WEIGHTS)}
    alone.close()


def test_changes_of_the_index_change_names_and_priors(model, index, tmp_path):
    import shutil

    own = tmp_path / "index"
    shutil.copytree(index, own)
    source = KnowledgeBaseFeaturizer(open_featurizer(model, threads=1), BrokenImages("error"))
    linker = Linker.open(model, own, threads=1)
    upsert(
        Index.open(own), [replace(ENTITIES[4], aliases=("Psycho",)), Entity("K9", "Psycho", "film")], source
    )
    delete(Index.open(own), ["K4"])
    changed = linker.reopened()
    [found] = changed.link([Mention("Psycho", "x y")], 2)
    assert {c.id for c in found.candidates} == {"K5", "K9"}
    [jfk] = changed.link([Mention("JFK", "x y")], 24)
    assert jfk.candidates[0].id == "K3"
    assert "K4" not in {c.id for c in jfk.candidates}
    compact(Index.open(own))
    again = changed.reopened()
    asked = [Mention(s, "x y") for s in ("JFK", "Baldwin", "Psycho")]
    assert again.link(asked, 10) == changed.link(asked, 10)  # to the bit
    for one in (linker, changed, again):
        one.close()


def test_calibrate_fits_weights_that_the_linker_then_counts(model, index, tmp_path, capsys):
    own = tmp_path / "model"
    own.mkdir()
    for path in model.iterdir():
        if path.name != "calibration.json":
            (own / path.name).symlink_to(path.resolve())
    rng = np.random.default_rng(0)
    alone = Linker.open(own, index, threads=1)
    lines = []
    for i in range(60):
        # The answer bears the name, or, of a few, is what the model itself puts first.
        entity = ENTITIES[rng.integers(len(ENTITIES))]
        record = {"mention": entity.name, "sentence": f"{entity.name} a b"}
        if i % 3 == 0:
            [found] = alone.link([Mention(**record)], 1)
            record["answer"] = found.candidates[0].id
        else:
            record["answer"] = "nil" if i % 20 == 10 else entity.id
        lines.append(json.dumps(record))
    alone.close()
    labelled = tmp_path / "labelled.jsonl"
    labelled.write_text("\n".join(lines))
    command = ["calibrate", "--model", str(own), "--index", str(index), "--mentions", str(labelled)]
    assert main([*command, "--wanted-precision", "0.5", "--threads", "1"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["weights"]["exact"] + printed["weights"]["words"] > 0
    assert printed["fit"]["hits_at_1"] > printed["fit"]["hits_at_1_without_names"]
    assert printed["fit"]["nil"] == 2
    linker = Linker.open(own, index, threads=1)
    assert linker.counts_names
    assert linker.nil_threshold() == printed["nil"]["threshold"]
    before = (own / "calibration.json").read_bytes()
    assert main([*command, "--wanted-precision", "1.5"]) == 2
    assert "precision" in capsys.readouterr().err
    assert (own / "calibration.json").read_bytes() == before  # a refusal changes nothing
    assert main([*command, "--no-names", "--threads", "1"]) == 0
    assert not any(json.loads(capsys.readouterr().out)["weights"].values())
    linker.close()
    labelled.write_text('{"mention": "a", "sentence": "a b"}\n')
    assert main([*command]) == 2
    assert "mention 1 has no answer; write 'nil'" in capsys.readouterr().err
