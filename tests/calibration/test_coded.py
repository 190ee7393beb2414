"""CodedCalibration: the places it finds are those of brute force, on a real (tiny) model and index."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from mimic_engine import Linker, Mention
from mimic_engine.backends.encoders import open_featurizer
from mimic_engine.backends.scan import open_kernels
from mimic_engine.calibration.coded import CodedCalibration, entity_mentions
from mimic_engine.calibration.recall import CODED, promised
from mimic_engine.errors import ImageError, IndexMismatchError, InvalidInputError
from mimic_engine.index.codes.write import recode_index
from mimic_engine.index.manifest import write_manifest
from mimic_engine.index.store import Index
from mimic_engine.kernels.reference import scores_ref
from mimic_engine.scan.scan import Scan
from tests.index.changes import compact, delete

MENTIONS = [Mention(a, f"{a} {b} {c}") for a, b, c in ("abc", "bcd", "gha", "jji", "cab", "fed", "aaa")]


@pytest.fixture(scope="module")
def featurizer(tiny_model):
    return open_featurizer(tiny_model, threads=1)


@pytest.fixture
def coded_index(tiny_index, tmp_path):
    shutil.copytree(tiny_index, tmp_path / "index")
    recode_index(tmp_path / "index", 3, threads=1)
    return Index.open(tmp_path / "index")


def calibration(featurizer, model, mentions=MENTIONS, **options):
    return CodedCalibration(featurizer, model, mentions, threads=1, **options)


def places_by_hand(featurizer, model, index, mentions, k):
    """The estimates of every mention and entity, counted; the exact best by the reference, ties by id."""
    arrays, constants = featurizer.mentions(mentions), index.manifest.constants
    exact = np.concatenate([scores_ref(wide(arrays), wide(s), constants).total for s in index.segments], 1)
    scan = Scan(index.segments, open_kernels("auto", model, constants), threads=1, codes=index.codes)
    estimates = scan.estimates(arrays)  # in tables of 8 bits, which the reference has not
    scan.close()
    ids = np.array(index.ids(range(len(index))))
    # The rounding of float64 is far below the ninth decimal, the other scores are far above.
    best = np.stack([np.lexsort((ids, -np.round(row, 9)))[:k] for row in exact])
    own = np.take_along_axis(estimates, best, 1)
    return (estimates[:, None, :] >= own[:, :, None]).sum(2)


def wide(arrays):
    """The same in float64."""
    return type(arrays)(**{name: array.astype(np.float64) for name, array in arrays.items()})


@pytest.mark.parametrize("k", [1, 4, 13, 20])
def test_places_are_those_of_brute_force(featurizer, tiny_model, coded_index, k, monkeypatch):
    monkeypatch.setattr("mimic_engine.calibration.coded._MENTIONS_AT_ONCE", 3)
    found = calibration(featurizer, tiny_model).places(coded_index, k)
    expected = places_by_hand(featurizer, tiny_model, coded_index, MENTIONS, min(k, 13))
    assert found.shape == (7, min(k, 13))
    np.testing.assert_array_equal(found, expected)
    assert (found.max(axis=1) > min(k, 13)).any() or k >= 13  # three centroids do not find all at once


def test_the_coded_search_finds_what_the_places_say(featurizer, tiny_model, coded_index):
    measured = calibration(featurizer, tiny_model)
    places = measured.places(coded_index, 3)
    r = int(places.max())
    linker = Linker.open(tiny_model, coded_index.path, threads=1)
    exact = linker.link(MENTIONS, 3, mode="exact")
    coded = linker.link(MENTIONS, 3, mode="coded", rerank=r)
    linker.close()
    assert [[c.id for c in m.candidates] for m in coded] == [[c.id for c in m.candidates] for m in exact]
    assert ({m.mode for m in coded} == {"coded"} and coded[0].entities_scored < 13) or r >= 12


def test_what_goes_into_the_manifest(featurizer, tiny_model, coded_index):
    written = calibration(featurizer, tiny_model, source="some.jsonl")(coded_index)
    promise = promised(replace(coded_index.manifest, agreement=written))
    assert list(written) == [CODED]
    assert (promise.centroids, promise.entities, promise.mentions, promise.source, promise.k) == (
        3, 13, 7, "some.jsonl", 10,
    )  # fmt: skip
    assert promise.rows[-1].r == 13 and promise.rows[-1].mentions_contained == 1.0


def test_an_index_without_codes_promises_nothing(featurizer, tiny_model, tiny_index):
    index = Index.open(tiny_index)
    measured = calibration(featurizer, tiny_model)
    assert measured(index) == {}
    assert promised(index.manifest) is None
    with pytest.raises(InvalidInputError, match="no codes; write them with: mimic-engine index recode"):
        measured.places(index)


def test_entities_as_mentions(featurizer, tiny_model, coded_index):
    everything = entity_mentions(coded_index)
    assert len(everything) == 13
    entity = coded_index.entity(4)
    assert everything[4] == Mention(entity.name, entity.description)
    assert entity_mentions(coded_index, 4) == [everything[i] for i in (0, 3, 6, 9)]
    assert [m.image for m in everything] == [None] * 13
    places = calibration(featurizer, tiny_model, None, limit=5).places(coded_index)
    np.testing.assert_array_equal(
        places, places_by_hand(featurizer, tiny_model, coded_index, entity_mentions(coded_index, 5), 10)
    )


def test_dead_rows_are_neither_mentions_nor_counted(featurizer, tiny_model, coded_index):
    changed = delete(coded_index, ["E00", "E05", "E10"])
    compacted = compact(changed)
    assert changed.alive is not None and compacted.alive is None
    assert entity_mentions(changed) == entity_mentions(compacted)
    for k in (1, 4, 13):
        places = [calibration(featurizer, tiny_model).places(index, k) for index in (changed, compacted)]
        np.testing.assert_array_equal(*places)
        assert places[0].shape == (len(MENTIONS), min(k, 10)) and places[0].max() <= 10


def test_wrong_mentions_and_models(featurizer, tiny_model, coded_index, tmp_path):
    with pytest.raises(InvalidInputError, match="mentions: none"):
        calibration(featurizer, tiny_model, []).places(coded_index)
    with pytest.raises(ImageError):
        (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        calibration(featurizer, tiny_model, [Mention("a", "a b", tmp_path / "broken.png")]).places(
            coded_index
        )
    write_manifest(coded_index.path, replace(coded_index.manifest, model_hash="cd" * 32))
    with pytest.raises(IndexMismatchError):
        calibration(featurizer, tiny_model).places(Index.open(coded_index.path))


def test_progress_counts_mentions(featurizer, tiny_model, coded_index, capsys):
    calibration(featurizer, tiny_model, progress=True).places(coded_index)
    assert "7/7" in capsys.readouterr().err


def test_the_linker_rescores_what_the_promise_needs(featurizer, tiny_model, coded_index, monkeypatch):
    """The default R is no less than the promised one."""
    written = calibration(featurizer, tiny_model)(coded_index)
    write_manifest(coded_index.path, replace(coded_index.manifest, agreement=written))
    monkeypatch.setattr("mimic_engine.engine.linker.DEFAULT_RERANK", 1)
    linker = Linker.open(tiny_model, coded_index.path, threads=1)
    r_999 = promised(linker.index.manifest).r_999
    assert r_999 > 1
    coded = linker.link(MENTIONS, 1, mode="coded")
    assert all(r_999 <= m.entities_scored for m in coded)
    assert linker.info()["agreement"] == written and linker.info()["modes"][-1] == "coded"
    linker.close()
