"""Times of an experiment's configurations beside each other: a training step, and an exact scan.

Every round gives each configuration one turn, in one process, so that what
else the machine does falls on all of them alike; the medians can be compared
with each other, and with nothing that was timed elsewhere.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from mimic_engine.errors import EngineError
from mimic_engine.scan.scan import Scan
from mimic_engine.train.encode import RecordEncoder, fold_mentions
from mimic_engine.train.ranking import entity_scan
from mimic_engine.train.trainer import Trainer
from mimic_engine.types import MentionArrays

TOP_K = 10
ROUNDS = 9


@dataclass(frozen=True, slots=True)
class Timing:
    """Medians over the rounds of one configuration; the scan is the exact one of a single mention."""

    step_seconds: float
    scan_ms: float
    scan_entities: int
    scan_threads: int
    scorer: str
    rounds: int

    def to_json(self) -> dict[str, Any]:
        """Every field by its name."""
        return asdict(self)


def time_beside_each_other(
    trainers: Mapping[str, tuple[Trainer, RecordEncoder]], rounds: int = ROUNDS
) -> dict[str, Timing]:
    """Time a step of each trainer and a scan under its model, in turns.

    Parameters
    ----------
    trainers : by configuration, with the encoder that each trains; all over the same corpus. Their models
        are trained on.
    rounds : turns that count; one more comes before them.

    Raises
    ------
    EngineError
        If a loss or score is not finite, or a timed scan does not give the best scores.
    """
    steps = _time_steps({name: trainer for name, (trainer, _) in trainers.items()}, rounds)
    return _time_scans(trainers, steps, rounds)


def _time_steps(trainers: Mapping[str, Trainer], rounds: int) -> dict[str, float]:
    """Median seconds of a step on each trainer's first batches."""
    batches = {n: t.sampler.batches(0, None)[: t.config.accumulate] for n, t in trainers.items()}
    taken: dict[str, list[float]] = {name: [] for name in trainers}
    for _ in range(rounds + 1):
        for name, trainer in trainers.items():
            start = time.perf_counter()
            trainer.step(batches[name])
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds[1:]) for name, seconds in taken.items()}


def _time_scans(
    trainers: Mapping[str, tuple[Trainer, RecordEncoder]], steps: Mapping[str, float], rounds: int
) -> dict[str, Timing]:
    threads = torch.get_num_threads()
    mentions = {name: _mentions(encode, rounds + 1) for name, (_, encode) in trainers.items()}
    taken: dict[str, list[float]] = {name: [] for name in trainers}
    with ExitStack() as stack:
        scans = {
            name: stack.enter_context(entity_scan(encode, trainer.config.encode_batch, threads))
            for name, (trainer, encode) in trainers.items()
        }
        for turn in range(rounds + 1):
            for name, scan in scans.items():
                row = turn % mentions[name].rows
                taken[name].append(_time_search(scan, mentions[name].block(row, row + 1)))
        return {
            name: Timing(
                step_seconds=steps[name],
                scan_ms=statistics.median(taken[name][1:]) * 1e3,
                scan_entities=len(scan),
                scan_threads=scan.threads,
                scorer=scan.scorer_name,
                rounds=rounds,
            )
            for name, scan in scans.items()
        }


def _mentions(encode: RecordEncoder, count: int) -> MentionArrays:
    """Some of the dev mentions, folded."""
    encode.model.eval()
    dev = encode.corpus.splits["dev"].records
    chosen = np.unique(np.linspace(0, len(dev) - 1, count).astype(np.int64))
    return fold_mentions(encode, dev[chosen], len(chosen))


def _time_search(scan: Scan, mention: MentionArrays) -> float:
    """Seconds of one exact search, its answer checked."""
    k = min(TOP_K, len(scan))
    start = time.perf_counter()
    found = scan.search(mention, k, mode="exact")
    took = time.perf_counter() - start
    best = np.sort(scan.totals(mention)[0])[::-1][:k]
    if not np.allclose(found.scores[0], best, rtol=1e-4, atol=1e-4):
        raise EngineError(f"the timed scan gave {found.scores[0]}, the best scores are {best}")
    return took
