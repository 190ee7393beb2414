"""Report of an experiment: one JSON with every run, a Markdown table, a plot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.experiments.declaration import OTHER_DEV, Experiment
from benchmarks.experiments.plots import draw
from benchmarks.experiments.probe_plots import draw_probes
from benchmarks.experiments.results import Outcome
from benchmarks.experiments.summary import (
    SPLITS,
    Spread,
    Summary,
    differences,
    summarise,
    summary_json,
    two_by_two,
)
from benchmarks.experiments.timing import Timing
from mimic_engine.files import write_atomic
from mimic_engine.provenance import write_result

TABLE = {"hits@1": "H@1", "hits@3": "H@3", "hits@5": "H@5", "mrr": "MRR"}


@dataclass(frozen=True, slots=True)
class Report:
    """An experiment on a data set with the outcomes so far, by configuration."""

    experiment: Experiment
    data: Mapping[str, Any]  # as ExperimentData.to_json gives it
    options: Mapping[str, Mapping[str, Any]]  # of each configuration, those that are not the defaults
    outcomes: Mapping[str, Sequence[Outcome]]
    timings: Mapping[str, Timing]  # of the configurations, where they were timed

    @property
    def stem(self) -> str:
        """What the files are named by: experiment and data set."""
        return f"{self.experiment.name}-{self.data['name']}"

    def write(self, out: Path) -> Path:
        """Write the three files, and a plot for each probe that has one, to ``out``; the JSON's path."""
        write_atomic(out / f"{self.stem}.md", self.markdown())
        title = f"{self.experiment.title}: {self.data['name']}"
        draw(self.outcomes, self.timings, title, out / f"{self.stem}.png")
        draw_probes(self.outcomes, out, self.stem)
        return write_result(out / f"{self.stem}.json", self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Every run and the summaries."""
        e = self.experiment
        out: dict[str, Any] = {
            "experiment": {k: getattr(e, k) for k in ("name", "title", "question", "expected")},
            "data": dict(self.data),
            "baseline": e.baseline,
            "configurations": [self._configuration(name) for name in self.options],
        }
        if e.two_by_two is not None:
            parts = two_by_two(e.two_by_two, self.outcomes)
            names = {k: getattr(e.two_by_two, k) for k in e.two_by_two.__slots__}
            out["two_by_two"] = names | {"adds": {k: summary_json(v) for k, v in parts.items()}}
        return out

    def markdown(self) -> str:
        """Tables of dev and test, of the cost, of the two-by-two where there is one, and of what diverged."""
        lines = [f"# {self.experiment.title}: {self.data['name']}", ""]
        lines += [f"Asked: {self.experiment.question}", "", f"Expected: {self.experiment.expected}", ""]
        for split in ("test", "dev"):
            lines += [f"## {split}" + (f" ({self.data['test_is']})" if split == "test" else ""), ""]
            lines += self._table(split)
            if split == "dev" and any("train_on" in options for options in self.options.values()):
                lines += [OTHER_DEV, ""]
        lines += ["## Cost", "", *self._costs(), *self._two_by_two(), *self._diverged()]
        return "\n".join(lines).rstrip() + "\n"

    def _configuration(self, name: str) -> dict[str, Any]:
        runs = self._runs(name)
        out = {
            "name": name,
            "options": dict(self.options[name]),
            "runs": [run.to_json() for run in runs],
            "summary": summary_json(summarise(runs)),
        }
        if name in self.timings:
            out["timing"] = self.timings[name].to_json()
        if self.experiment.baseline is not None:
            base = self._runs(self.experiment.baseline)
            out["difference"] = summary_json(differences(runs, base, self._compared(name)))
        return out

    def _compared(self, name: str) -> Sequence[str]:
        """Splits that a configuration and the baseline share: dev belongs to the data that is trained on."""
        base = self.options.get(self.experiment.baseline or "", {})
        same = self.options[name].get("train_on") == base.get("train_on")
        return SPLITS if same else ("test",)

    def _runs(self, name: str) -> Sequence[Outcome]:
        return self.outcomes.get(name, ())

    def _table(self, split: str) -> list[str]:
        base = self.experiment.baseline
        head = ["configuration", *TABLE.values()]
        head += [f"{metric} - {base}" for metric in TABLE.values()] if base is not None else []
        rows = []
        for name in self.options:
            runs = self._runs(name)
            row = [name, *_cells(summarise(runs), split)]
            if base is not None and (name == base or split not in self._compared(name)):
                row += [""] * len(TABLE)
            elif base is not None:
                row += _cells(differences(runs, self._runs(base)), split, sign="+")
            rows.append([*row, _counted(summarise(runs)[split]["mrr"], runs)])
        return _lines([*head, "n"], rows)

    def _costs(self) -> list[str]:
        rows = []
        for name in self.options:
            costs = [run.run.cost for run in self._runs(name) if run.run.cost is not None]
            if costs:
                counted = [f"{Spread.of([cost[k] for cost in costs]).mean or 0.0:,.0f}" for k in _COSTS]
                rows.append([name, *counted, *self._times(name)])
        return _lines(["configuration", *_COSTS.values(), *(_TIMES if self.timings else ())], rows)

    def _times(self, name: str) -> list[str]:
        """Cells of :data:`_TIMES`; none where nothing was timed."""
        if name not in self.timings:
            return []
        timing, runs = self.timings[name], self._runs(name)
        steps = Spread.of([run.run.steps for run in runs]).mean or 0.0
        seconds = timing.step_seconds
        return [f"{timing.scan_ms:.2f}", f"{seconds:.3f}", f"{seconds * steps:.0f}"]

    def _two_by_two(self) -> list[str]:
        table = self.experiment.two_by_two
        if table is None:
            return []
        lines = ["## Two by two", "", f"First: {table.first}. Second: {table.second}.", ""]
        for split in ("test", "dev"):
            parts = two_by_two(table, self.outcomes).items()
            rows = [
                [label, *_cells(part, split, sign="+"), str(part[split]["mrr"].n)] for label, part in parts
            ]
            lines += _lines([f"adds, on {split}", *TABLE.values(), "n"], rows)
        return lines

    def _diverged(self) -> list[str]:
        lines = [
            f"- {name}, seed {run.run.seed}: {run.run.message}"
            for name in self.options
            for run in self._runs(name)
            if run.run.status == "diverged"
        ]
        return ["## Diverged", "", *lines] if lines else []


_COSTS = {
    "parameters": "parameters",
    "pair_multiply_adds": "multiply-adds a pair",
    "fold_multiply_adds": "multiply-adds an entity's fold",
    "index_bytes_per_entity": "index bytes an entity",
}
_TIMES = ("ms a mention, exact", "s a training step", "s for the steps of a run")


def _cells(summary: Summary, split: str, sign: str = "") -> list[str]:
    return [_cell(summary[split][metric], sign) for metric in TABLE]


def _cell(spread: Spread, sign: str) -> str:
    if spread.mean is None:
        return "-"
    mean = f"{spread.mean:{sign}.4f}"
    return mean if spread.std is None else f"{mean} ± {spread.std:.4f}"


def _counted(spread: Spread, runs: Sequence[Outcome]) -> str:
    lost = sum(run.run.status == "diverged" for run in runs)
    return f"{spread.n}, {lost} diverged" if lost else str(spread.n)


def _lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return [*lines, ""]
