"""The linker's warm-up: what it covers and records; and its recovery after a device error."""

import logging
from contextlib import closing

import numpy as np
import pytest

from mimic_engine import Linker, Mention
from mimic_engine.encoding.onnx import OnnxSession
from mimic_engine.engine.warmup import STEADY_RUNS, WarmUp, first_and_steady
from mimic_engine.errors import DeviceError
from tests.index.changes import delete

MENTION = Mention("a b", "c a b d")


@pytest.fixture
def linker(tiny_model, tiny_index):
    with closing(Linker.open(tiny_model, tiny_index, threads=1, cache_bytes=1 << 20)) as opened:
        yield opened


def test_the_first_request_is_held_against_the_steady_ones():
    times = iter([*range(0, 2), *range(10, 10 + 2 * STEADY_RUNS)])
    first, steady = first_and_steady(lambda: next(times))
    assert first > 0 and steady > 0
    assert WarmUp(1.0, 10, 2, 3.0, 2.0).ratio == 1.5
    assert WarmUp(1.0, 10, 2, 3.0, 2.0).to_json()["ratio"] == 1.5


def test_a_warm_up_is_recorded_and_says_how_warm_the_engine_is(linker, caplog):
    assert linker.info()["warm_up"] is None
    with caplog.at_level(logging.INFO, logger="mimic_engine.engine.linker"):
        linker.warm_up()
    found = linker.info()["warm_up"]
    assert found["encoder_runs"] == 5 * 3 and found["searches"] == len(linker.modes)
    assert found["first_ms"] > 0 and found["ratio"] == found["first_ms"] / found["steady_ms"]
    [line] = [r.getMessage() for r in caplog.records if "ratio" in r.getMessage()]
    assert f"ratio {found['ratio']:.2f}" in line
    assert not linker.cache.bytes  # nothing of it is remembered as if a user had asked


def test_a_newer_index_keeps_the_record(linker, tiny_model, tiny_index, tmp_path):
    import shutil

    from mimic_engine.index.store import Index

    shutil.copytree(tiny_index, tmp_path / "index")
    with closing(Linker.open(tiny_model, tmp_path / "index", threads=1)) as old:
        old.warm_up()
        delete(Index.open(tmp_path / "index"), ["E03"])
        with closing(old.reopened()) as new:
            assert new is not old and new.warmed is old.warmed


def test_a_session_that_failed_comes_back_with_the_same_answers(linker, tiny_picture, monkeypatch):
    mention = Mention("a b", "c a b d", tiny_picture)
    [before] = linker.link([mention], 5)
    session = linker.featurizer._session

    class Broken:
        def run(self, *_):
            raise RuntimeError("Failed to allocate memory for requested buffer of size 7")

    session._graphs["mention_fold"]._session = Broken()
    with pytest.raises(DeviceError, match="out of memory"):
        linker.link([MENTION], 5)
    linker.recover()
    assert linker.link([mention], 5) == [before]
    assert linker.warmed is not None


def test_a_recovery_that_fails_is_an_error_and_the_next_may_succeed(linker, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(OnnxSession, "rebuild", lambda self: (_ for _ in ()).throw(DeviceError("still gone")))
        with pytest.raises(DeviceError, match="still gone"):
            linker.recover()
    linker.recover()
    assert linker.link([MENTION], 1)[0].candidates


def test_every_mode_is_searched_in_the_warm_up(linker, monkeypatch):
    modes, real = [], type(linker._scan).search

    def spy(self, mentions, k, **options):
        modes.append(options["mode"])
        return real(self, mentions, k, **options)

    monkeypatch.setattr(type(linker._scan), "search", spy)
    linker.warm_up()
    assert set(linker.modes) <= set(modes)
    assert np.isfinite(linker.warmed.ratio)
