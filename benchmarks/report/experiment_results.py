"""Reading results of experiments: ``benchmarks/results/experiments/NAME-DATASET.json``, checked.

The files are those of ``python -m benchmarks.experiments``. Nothing is rendered here; what a probe
found is handed on as it is, and averaged over seeds leaf by leaf.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report.result_files import Provenance, Reader, open_result, read_provenance
from mimic_engine.errors import DataError

SPLITS = ("dev", "test")
DONE, DIVERGED = "done", "diverged"
Metrics = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and sample standard deviation of ``n`` seeds; no deviation of a single one."""

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """The spread of some values, None of none."""
        if not values:
            return None
        return cls(
            statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values)
        )


@dataclass(frozen=True, slots=True)
class Run:
    """One training run; ``metrics`` by split, those of splits that were read."""

    seed: int
    status: str
    message: str
    metrics: Mapping[str, Metrics]
    cost: Mapping[str, Any]
    probes: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Configuration:
    """A configuration and its runs."""

    name: str
    options: Mapping[str, Any]
    runs: tuple[Run, ...]
    timing: Mapping[str, Any]  # beside the other configurations; empty where it was not timed

    @property
    def done(self) -> tuple[Run, ...]:
        """Runs that did not diverge."""
        return tuple(run for run in self.runs if run.status == DONE)

    @property
    def trained_on(self) -> str:
        """Origin of the runs' training and dev mentions: the data set's "own", or "others"."""
        return str(self.options.get("train_on", "own"))

    def spread(self, split: str, metric: str) -> Spread | None:
        """Of a metric over the runs that have it."""
        return Spread.of(list(self._values(split, metric).values()))

    def difference(self, other: Configuration, split: str, metric: str) -> Spread | None:
        """Spread of the differences to the other's runs of the same seeds; none where dev is not the same."""
        if split == "dev" and self.trained_on != other.trained_on:
            return None
        own, others = self._values(split, metric), other._values(split, metric)
        return Spread.of([own[seed] - others[seed] for seed in own if seed in others])

    def _values(self, split: str, metric: str) -> dict[int, float]:
        having = (run for run in self.done if metric in run.metrics.get(split, {}))
        return {run.seed: run.metrics[split][metric] for run in having}


@dataclass(frozen=True, slots=True)
class ExperimentResult:
    """One experiment on one data set."""

    stem: str
    provenance: Provenance
    title: str
    question: str
    expected: str
    data: Mapping[str, Any]
    baseline: str | None
    configurations: tuple[Configuration, ...]
    two_by_two: Mapping[str, Any]

    def named(self, name: str) -> Configuration:
        """The configuration of this name."""
        return next(c for c in self.configurations if c.name == name)


def read_experiment(file: Path) -> ExperimentResult:
    """Read one file.

    Raises
    ------
    DataError
        If it is missing or damaged, or a key is missing or wrong; names file and key.
    """
    reader = open_result(file)
    experiment = reader.child("experiment")
    configurations = tuple(_configuration(c) for c in reader.children("configurations"))
    baseline = None if reader.value("baseline") is None else reader.string("baseline")
    names = [c.name for c in configurations]
    if len(set(names)) != len(names) or (baseline is not None and baseline not in names):
        raise DataError(
            f"{file.name}: configurations {names}: twice the same, or without baseline {baseline!r}"
        )
    return ExperimentResult(
        stem=file.stem,
        provenance=read_provenance(reader),
        title=experiment.string("title"),
        question=experiment.string("question"),
        expected=experiment.string("expected"),
        data=reader.child("data").data,
        baseline=baseline,
        configurations=configurations,
        two_by_two=reader.child("two_by_two").data if "two_by_two" in reader.data else {},
    )


def mean_of(values: Sequence[Any]) -> Any:
    """The mean of JSON values of one shape, leaf by leaf; a leaf that is not always a number is the first's.

    Objects are averaged over the keys of any of them, each over those that have it; lists of different
    lengths cannot be, and give the first.
    """
    present = [v for v in values if v is not None]
    if not present:
        return None
    first = present[0]
    if all(isinstance(v, dict) for v in present):
        keys = dict.fromkeys(key for v in present for key in v)
        return {key: mean_of([v[key] for v in present if key in v]) for key in keys}
    if all(isinstance(v, list) and len(v) == len(first) for v in present):
        return [mean_of(column) for column in zip(*present, strict=True)]
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in present):
        return first if all(v == first for v in present) else statistics.fmean(present)
    return first


def _configuration(reader: Reader) -> Configuration:
    runs = tuple(_run(run) for run in reader.children("runs"))
    timing = reader.child("timing").data if "timing" in reader.data else {}
    return Configuration(reader.string("name"), reader.child("options").data, runs, timing)


def _run(reader: Reader) -> Run:
    status = reader.string("status")
    if status not in (DONE, DIVERGED):
        raise reader.fail("status", f"must be {DONE!r} or {DIVERGED!r}, got {status!r}")
    splits = [split for split in SPLITS if reader.value(split) is not None]
    return Run(
        seed=reader.integer("seed"),
        status=status,
        message=reader.string("message") if status == DIVERGED else "",
        metrics={split: _metrics(reader.child(split)) for split in splits},
        cost=_object(reader, "cost"),
        probes=_object(reader, "probes"),
    )


def _metrics(reader: Reader) -> Metrics:
    return {key: reader.number(key) for key in reader.data}


def _object(reader: Reader, key: str) -> Mapping[str, Any]:
    """An object; none where it is null."""
    return {} if reader.value(key) is None else reader.child(key).data
