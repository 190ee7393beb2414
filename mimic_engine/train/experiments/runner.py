"""Runs an experiment: every configuration with every seed, then test, once; then writes what was found.

Whatever is finished lies in the output folder and is not repeated; killed at
any moment, the same command goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from mimic_engine.errors import InvalidInputError
from mimic_engine.train.config import TrainConfig, portable
from mimic_engine.train.experiments.data import ExperimentData
from mimic_engine.train.experiments.declaration import Configuration, Experiment
from mimic_engine.train.experiments.ledger import Ledger
from mimic_engine.train.experiments.materials import Materials
from mimic_engine.train.experiments.probes import Probe
from mimic_engine.train.experiments.report import Report
from mimic_engine.train.experiments.results import Outcome, read_outcome
from mimic_engine.train.experiments.runs import finish_run, read_test

log = logging.getLogger("mimic_engine.train")
# Options that change nothing in the result of a run.
_FREE = frozenset(("seed", "resume", "threads", "device", "encode_batch"))


@dataclass(frozen=True, slots=True)
class Setting:
    """What the command line says for all configurations alike."""

    out: Path
    cache: Path
    seeds: int
    encoder: Literal["clip", "minilm-efficientnet", "bert-vit"]
    text_source: str | None
    image_source: str | None
    limit_steps: int = 0
    epochs: int = 0  # instead of what is declared; 0 = as declared
    only: tuple[str, ...] = ()
    device: str = "auto"
    threads: int = 0
    broken_images: Literal["error", "as-missing"] = "error"


@dataclass(frozen=True, slots=True)
class _Run:
    configuration: Configuration
    config: TrainConfig

    def __str__(self) -> str:
        return f"{self.configuration.name}, seed {self.config.seed}"


class Runner:
    """One experiment on one data set.

    Parameters
    ----------
    experiment : what is declared.
    data : what it runs on.
    setting : where and how.
    probes : those that a declaration may name.
    """

    def __init__(
        self, experiment: Experiment, data: ExperimentData, setting: Setting, probes: Mapping[str, Probe]
    ) -> None:
        self._experiment = experiment
        self._data = data
        self._setting = setting
        self._probes = probes
        self._materials = Materials(data)
        self._wanted = self._chosen()
        for configuration in self._wanted:
            data.training(configuration.train_on)
        self._runs = [
            _Run(c, self._config(c, s)) for c in experiment.configurations for s in range(setting.seeds)
        ]

    def run(self) -> Path:
        """Do what is not done yet, and write the files; returns the JSON's path.

        Raises
        ------
        InvalidInputError
            If the output folder holds runs that were made with something else.
        MimicError
            If a run fails otherwise than by diverging; carries a note that names the run.
        """
        if self._data.name not in self._experiment.data:
            meant = ", ".join(self._experiment.data) or "none"
            log.warning("%s is declared for %s, not for %s", self._experiment.name, meant, self._data.name)
        self._ledger().enter(self._setting.out)
        self._train([run for run in self._runs if run.configuration in self._wanted])
        unfinished = [run for run in self._runs if self._outcome(run) is None]
        if unfinished:
            log.info("test is read when every run is finished; %d are not", len(unfinished))
        else:
            self._test()
        return self._report().write(self._setting.out)

    def _chosen(self) -> list[Configuration]:
        """The configurations to run now."""
        by_name = {c.name: c for c in self._experiment.configurations}
        for name in self._setting.only:
            if name not in by_name:
                raise InvalidInputError(f"--only: {name!r} is not one of {', '.join(by_name)}")
        return [by_name[name] for name in self._setting.only or by_name]

    def _train(self, runs: Sequence[_Run]) -> None:
        for number, run in enumerate(runs):
            if self._outcome(run) is not None:
                continue
            log.info("run %d of %d: %s%s", number + 1, len(runs), run, self._remaining(runs[number:]))
            with _named(run):
                result = finish_run(run.config, self._materials, run.configuration.train_on)
            found = f"dev MRR {result.dev['mrr']:.4f}" if result.dev else result.message
            log.info("%s %s: %s, %.0f s", run, result.status, found, result.train_seconds)

    def _test(self) -> None:
        for run in self._runs:
            outcome = self._outcome(run)
            if outcome is None or outcome.run.status != "done" or outcome.test is not None:
                continue
            with _named(run):
                reading = read_test(
                    run.config,
                    self._materials,
                    run.configuration.train_on,
                    self._experiment.probes,
                    self._probes,
                )
            log.info("%s: test Hits@1 %.4f, MRR %.4f", run, reading.test["hits@1"], reading.test["mrr"])

    def _remaining(self, runs: Sequence[_Run]) -> str:
        """How long the given runs will take, from those that are finished; nothing where none is."""
        past = [
            outcome.run.train_seconds for run in self._runs if (outcome := self._outcome(run)) is not None
        ]
        if not past:
            return ""
        left = sum(self._outcome(run) is None for run in runs)
        return f"; {left} left, about {left * sum(past) / len(past) / 60:.0f} min"

    def _outcome(self, run: _Run) -> Outcome | None:
        return read_outcome(run.config.out)

    def _config(self, configuration: Configuration, seed: int) -> TrainConfig:
        s, options = self._setting, {"cache_dtype": "float16", **configuration.options}
        if s.limit_steps:
            options["max_steps"] = s.limit_steps
        if s.epochs:
            options["epochs"] = s.epochs
        return TrainConfig(
            data=self._data.own.path,
            out=s.out / "runs" / configuration.name / str(seed),
            encoder=s.encoder,
            text_source=s.text_source,
            image_source=s.image_source,
            seed=seed,
            cache=s.cache,
            device=s.device,
            threads=s.threads,
            broken_images=s.broken_images,
            **options,
        )

    def _options(self) -> dict[str, dict[str, Any]]:
        """Options of each configuration, without places and what changes no result."""
        return {
            run.configuration.name: {
                k: v for k, v in portable(run.config.to_json()).items() if k not in _FREE
            }
            | {"train_on": run.configuration.train_on}
            for run in self._runs
        }

    def _ledger(self) -> Ledger:
        made_from = self._data.fingerprints() | self._materials.encoder_hashes(self._runs[0].config)
        return Ledger(self._experiment.name, made_from, self._options())

    def _report(self) -> Report:
        outcomes: dict[str, list[Outcome]] = {c.name: [] for c in self._experiment.configurations}
        for run in self._runs:
            if (outcome := self._outcome(run)) is not None:
                outcomes[run.configuration.name].append(outcome)
        chosen = {name: _chosen_ones(options) for name, options in self._options().items()}
        return Report(self._experiment, self._data.to_json(), chosen, outcomes)


def _chosen_ones(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that are not a training's defaults."""
    usual = {f.name: f.default for f in fields(TrainConfig)} | {"train_on": "own"}
    return {name: value for name, value in options.items() if usual[name] != value}


@contextmanager
def _named(run: _Run) -> Iterator[None]:
    """Add the run's name to an error that passes."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in run {run}")
        raise
