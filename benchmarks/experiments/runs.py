"""One run: trained to its end and left as a result; later its best model is tested, and probes are asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace

from benchmarks.experiments.cost import count_cost
from benchmarks.experiments.materials import Materials
from benchmarks.experiments.probes import Probe
from benchmarks.experiments.results import RESULT, TEST, RunResult, probe_file, write_json
from benchmarks.experiments.trained import TrainedRun
from mimic_engine.errors import EngineError
from mimic_engine.metrics import ranking_metrics
from mimic_engine.model.checkpoint import load_checkpoint
from mimic_engine.provenance import commit
from mimic_engine.train.config import TrainConfig
from mimic_engine.train.encode import fold_mentions
from mimic_engine.train.ranking import entity_scan
from mimic_engine.train.run import chosen_device


def finish_run(config: TrainConfig, materials: Materials, train_on: str) -> RunResult:
    """Train in ``config.out``, from where an earlier attempt stopped; write the result.

    A loss or score that is not finite makes the run a diverged one. The training
    state, which only a resume needs, goes when the result is there.
    """
    state = config.out / "last.pt"
    config.out.mkdir(parents=True, exist_ok=True)
    trainer, encode = materials.trainer(replace(config, resume=state.exists()), train_on)
    dev, cost, message = None, None, None
    try:
        trainer.fit()
    except EngineError as error:
        message = str(error)
    else:
        dev = json.loads((config.out / "best" / "config.json").read_text("utf-8"))["extra"]["dev"]
        cost = count_cost(encode).to_json()
    progress = trainer.progress
    result = RunResult(
        seed=config.seed,
        status="done" if message is None else "diverged",
        message=message,
        dev=dev,
        train_seconds=progress.seconds,
        steps=progress.step,
        epochs=progress.epoch,
        curve=progress.rows,
        cost=cost,
        commit=commit()[0],
    )
    write_json(config.out / RESULT, asdict(result))
    state.unlink(missing_ok=True)
    return result


def open_trained(config: TrainConfig, materials: Materials, train_on: str) -> TrainedRun:
    """A finished run with its best model, its data opened for reading test."""
    checkpoint = load_checkpoint(
        config.out / "best", text_source=config.text_source, image_source=config.image_source
    )
    encode = materials.tested(config, checkpoint.model.to(chosen_device(config)), train_on)
    return TrainedRun(config, encode, materials.data.tested(train_on))


def read_test(run: TrainedRun) -> Mapping[str, float]:
    """Evaluate a run's best model on test; write the result."""
    config, encode = run.config, run.encode
    test = encode.corpus.splits["test"]
    mentions = fold_mentions(encode, test.records, config.encode_batch)
    with entity_scan(encode, config.encode_batch) as scan:
        metrics = ranking_metrics(scan.ranks(mentions, test.gold), len(scan)).to_json()
    write_json(config.out / TEST, metrics)
    return metrics


def answer_probes(run: TrainedRun, probes: Mapping[str, Probe]) -> None:
    """Ask probes about a run's best model on test; write each answer."""
    for name, probe in probes.items():
        write_json(run.config.out / probe_file(name), probe(run, "test"))
