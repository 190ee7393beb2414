"""Runner of an experiment: every configuration with every seed, then test, once; then the report.

Whatever is finished lies in the folder of runs and is not repeated, by this
experiment or another; killed at any moment, the same command goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.experiments.data import ExperimentData
from benchmarks.experiments.declaration import Configuration, Experiment
from benchmarks.experiments.materials import Materials
from benchmarks.experiments.probes import Probe
from benchmarks.experiments.report import Report
from benchmarks.experiments.results import Outcome, read_outcome
from benchmarks.experiments.runs import answer_probes, finish_run, open_trained, read_test
from benchmarks.experiments.store import RunStore
from benchmarks.experiments.timing import Timing, time_beside_each_other
from mimic_engine.errors import InvalidInputError
from mimic_engine.files import wait_for_folder
from mimic_engine.train.config import TrainConfig, portable
from mimic_engine.train.run import denormals_as_zero

logger = logging.getLogger(__name__)
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
    runs: Path | None = None  # the folder of single runs; OUT/runs if None


@dataclass(frozen=True, slots=True)
class _Run:
    configuration: Configuration
    config: TrainConfig

    @property
    def options(self) -> dict[str, Any]:
        """What decides its result."""
        return deciding(self.config)

    @property
    def declared(self) -> dict[str, Any]:
        """The same, with what it is trained on where that is not its own data."""
        train_on = self.configuration.train_on
        return self.options if train_on == "own" else self.options | {"train_on": train_on}

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
        configurations, seeds = experiment.configurations, range(setting.seeds)
        self._store = self._open_store()
        self._runs = [self._run(c, seed) for c in configurations for seed in seeds]

    def run(self) -> Path:
        """Do what is not done yet, and write the files; returns the JSON's path.

        Raises
        ------
        MimicError
            If a run fails otherwise than by diverging; carries a note that names the run.
        """
        if self._data.name not in self._experiment.data:
            meant = ", ".join(self._experiment.data) or "none"
            logger.warning("%s is declared for %s, not for %s", self._experiment.name, meant, self._data.name)
        with denormals_as_zero():
            timings = self._work()
        return self._report(timings).write(self._setting.out)

    def _work(self) -> Mapping[str, Timing]:
        """Train, read test, take times where all is ready for it."""
        self._train([run for run in self._runs if run.configuration in self._wanted])
        unfinished = [run for run in self._runs if self._outcome(run) is None]
        if unfinished:
            logger.info("test is read when every run is finished; %d are not", len(unfinished))
            return {}
        self._test()
        return self._timings()

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
            logger.info("run %d of %d: %s%s", number + 1, len(runs), run, self._remaining(runs[number:]))
            self._store.describe(run.options, run.configuration.train_on)
            with _named(run), wait_for_folder(run.config.out):
                if self._outcome(run) is None:  # another process may have been at it
                    finish_run(run.config, self._materials, run.configuration.train_on)
            if (outcome := self._outcome(run)) is not None:
                result = outcome.run
                what = f"dev MRR {result.dev['mrr']:.4f}" if result.dev else result.message
                logger.info("%s %s: %s, %.0f s", run, result.status, what, result.train_seconds)

    def _test(self) -> None:
        for run in self._runs:
            if self._complete(run):
                continue
            with _named(run), wait_for_folder(run.config.out):
                if not self._complete(run):
                    self._read(run)

    def _complete(self, run: _Run) -> bool:
        """Whether there is nothing left to read of a finished run."""
        outcome = self._outcome(run)
        if outcome is None or outcome.run.status != "done":
            return True
        return outcome.test is not None and set(outcome.probes) == set(self._experiment.probes)

    def _read(self, run: _Run) -> None:
        tested = open_trained(run.config, self._materials, run.configuration.train_on)
        there = self._outcome(run)
        assert there is not None  # it is finished
        if there.test is None:
            test = read_test(tested)
            logger.info("%s: test Hits@1 %.4f, MRR %.4f", run, test["hits@1"], test["mrr"])
        names = [name for name in self._experiment.probes if name not in there.probes]
        answer_probes(tested, {name: self._probes[name] for name in names})

    def _timings(self) -> dict[str, Timing]:
        """Of every configuration, where that is declared; on models of the first seed, drawn anew."""
        first = [run for run in self._runs if run.config.seed == 0] if self._experiment.timed else []
        if not first:
            return {}
        logger.info("timing %d configurations beside each other", len(first))
        return time_beside_each_other(
            {
                run.configuration.name: self._materials.trainer(run.config, run.configuration.train_on)
                for run in first
            }
        )

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
        return read_outcome(run.config.out, self._experiment.probes)

    def _config(self, configuration: Configuration, seed: int) -> TrainConfig:
        s, options = self._setting, {"cache_dtype": "float16", **configuration.options}
        if s.limit_steps:
            options["max_steps"] = s.limit_steps
        if s.epochs:
            options["epochs"] = s.epochs
        return TrainConfig(
            data=self._data.own.path,
            out=s.out,
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

    def _run(self, configuration: Configuration, seed: int) -> _Run:
        config = self._config(configuration, seed)
        folder = self._store.folder(deciding(config), configuration.train_on, seed)
        return _Run(configuration, replace(config, out=folder))

    def _open_store(self) -> RunStore:
        configurations = self._experiment.configurations
        used = {c.train_on for c in configurations}
        return RunStore(
            self._setting.runs or self._setting.out / "runs",
            self._materials.encoder_hashes(self._config(configurations[0], 0)),
            {train_on: self._data.fingerprints(train_on) for train_on in used},
        )

    def _report(self, timings: Mapping[str, Timing]) -> Report:
        outcomes: dict[str, list[Outcome]] = {c.name: [] for c in self._experiment.configurations}
        for run in self._runs:
            if (outcome := self._outcome(run)) is not None:
                outcomes[run.configuration.name].append(outcome)
        options = {run.configuration.name: run.declared for run in self._runs}
        return Report(self._experiment, self._data.to_json(), options, outcomes, timings)


def deciding(config: TrainConfig) -> dict[str, Any]:
    """The options that decide a run's result and are not a training's defaults; no paths."""
    usual = {f.name: f.default for f in fields(TrainConfig)}
    options = portable(config.to_json())
    return {k: v for k, v in options.items() if k not in _FREE and usual[k] != v}


@contextmanager
def _named(run: _Run) -> Iterator[None]:
    """Add the run's name to an error that passes."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in run {run}")
        raise
