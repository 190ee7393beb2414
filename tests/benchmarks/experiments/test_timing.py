"""Configurations timed beside each other: everyone gets every turn, and a wrong answer is found."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.experiments.timing import time_beside_each_other
from mimic_engine.errors import EngineError
from mimic_engine.scan.scan import Scan
from mimic_engine.train.run import _read, build_trainer
from mimic_engine.train.trainer import Trainer


@pytest.fixture
def trainers(options, tmp_path):
    """Two trainers over the tiny data, one without the text unit."""
    found = {}
    for name, changes in (("full", {}), ("no-text", {"tglu": False})):
        config = options(out=tmp_path / name, **changes)
        trainer = build_trainer(config, _read(config), "cpu")
        found[name] = (trainer, trainer._encode)
    return found


def test_turns_are_taken_round_by_round(trainers, monkeypatch):
    turns = []
    step, search = Trainer.step, Scan.search

    def stepping(self, batches):
        turns.append(("step", self.config.tglu))
        return step(self, batches)

    def searching(self, mentions, k, **options):
        assert mentions.rows == 1 and options == {"mode": "exact"}
        turns.append(("scan", id(self)))
        return search(self, mentions, k, **options)

    monkeypatch.setattr(Trainer, "step", stepping)
    monkeypatch.setattr(Scan, "search", searching)
    threads = torch.get_num_threads()
    found = time_beside_each_other(trainers, rounds=2)
    assert turns[:6] == [("step", True), ("step", False)] * 3
    assert turns[6:] == turns[6:8] * 3 and len(set(turns[6:8])) == 2 and turns[6][0] == "scan"
    assert list(found) == ["full", "no-text"] and torch.get_num_threads() == threads
    for timing in found.values():
        assert timing.step_seconds > 0 and timing.scan_ms > 0
        assert (timing.scan_entities, timing.scan_threads, timing.rounds) == (18, threads, 2)


def test_a_wrong_answer_is_found(trainers, monkeypatch):
    totals = Scan.totals
    monkeypatch.setattr(Scan, "totals", lambda self, mentions: np.flip(totals(self, mentions)) + 1)
    with pytest.raises(EngineError, match="the timed scan gave"):
        time_beside_each_other(trainers, rounds=1)
