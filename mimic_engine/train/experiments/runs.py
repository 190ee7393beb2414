"""One run of an experiment: trained to its end and left as a result; later its best model is tested."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from mimic_engine.errors import EngineError
from mimic_engine.model.checkpoint import load_checkpoint
from mimic_engine.train.config import TrainConfig
from mimic_engine.train.encode import fold_mentions
from mimic_engine.train.experiments.cost import measure_cost
from mimic_engine.train.experiments.materials import Materials
from mimic_engine.train.experiments.probes import Probe
from mimic_engine.train.experiments.results import RESULT, TEST, Reading, RunResult
from mimic_engine.train.experiments.trained import TrainedRun
from mimic_engine.train.metrics import ranking_metrics
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
        cost = measure_cost(encode, trainer.progress.rows, config.encode_batch).to_json()
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
    )
    result.write(config.out / RESULT)
    state.unlink(missing_ok=True)
    return result


def read_test(
    config: TrainConfig,
    materials: Materials,
    train_on: str,
    probes: Sequence[str],
    known: Mapping[str, Probe],
) -> Reading:
    """Evaluate a run's best model on test and ask the probes about it; write the result."""
    checkpoint = load_checkpoint(
        config.out / "best", text_source=config.text_source, image_source=config.image_source
    )
    encode = materials.tested(config, checkpoint.model.to(chosen_device(config)), train_on)
    test = encode.corpus.splits["test"]
    mentions = fold_mentions(encode, test.records, config.encode_batch)
    with entity_scan(encode, config.encode_batch) as scan:
        metrics = ranking_metrics(scan.ranks(mentions, test.gold), len(scan))
    run = TrainedRun(config, encode, materials.data.tested(train_on))
    result = Reading(metrics.to_json(), {name: known[name](run, "test") for name in probes})
    result.write(config.out / TEST)
    return result
