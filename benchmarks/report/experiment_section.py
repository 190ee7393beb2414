"""Section of one experiment on one data set, in Markdown: what came out, settings, metrics, costs, probes.

What probes found is shown as generic tables: records of the same keys stand in one table, a row each.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.experiments.declaration import OTHER_DEV
from benchmarks.report.experiment_results import (
    DIVERGED,
    Configuration,
    ExperimentResult,
    Spread,
    mean_of,
)
from benchmarks.report.markdown import source, table

METRICS = {"hits@1": "H@1", "hits@3": "H@3", "hits@5": "H@5", "mrr": "MRR"}
LONG_TABLE = 14  # rows from which a table is folded away
PathRecord = tuple[tuple[str, ...], Mapping[str, Any]]  # plain values, and where they lie


def section(result: ExperimentResult, finding: str | None, plots: Iterable[Path], beside: Path) -> list[str]:
    """Lines of the section.

    Parameters
    ----------
    finding : what somebody read in the result.
    plots : image files of the result.
    beside : folder of the page, from which links to the plots start.
    """
    lines = [f"## {result.title}", "", *said(result, finding), *source(result.provenance)]
    for plot in plots:
        link = Path(os.path.relpath(plot, beside)).as_posix()
        lines += [f"![{plot.stem}]({link})", ""]
    lines += _options(result)
    for split in ("test", "dev"):
        lines += [f"### {split.capitalize()}: {result.title}", "", *_metrics_table(result, split)]
        if split == "dev" and any(c.trained_on != "own" for c in result.configurations):
            lines += [OTHER_DEV, ""]
    lines += [*_two_by_two(result), *_costs(result), *_diverged(result), *_data(result)]
    return [*lines, *_probes(result)]


def said(result: ExperimentResult, finding: str | None) -> list[str]:
    """Outcome as a rule says it, and in the words of whoever read it."""
    lines = [f"**Came out:** {_came_out(result)}", ""]
    return lines if finding is None else [*lines, f"**In words:** {finding}", ""]


def best_on_dev(result: ExperimentResult) -> Configuration | None:
    """The configuration of the best Hits@1 on the data set's own dev mentions, the first of equals."""
    own = [c for c in result.configurations if c.trained_on == "own"]
    means = [(s.mean, -i) for i, c in enumerate(own) if (s := c.spread("dev", "hits@1"))]
    return own[-max(means)[1]] if means else None


def cell(spread: Spread | None, sign: str = "") -> str:
    """Mean and deviation, or a dash."""
    if spread is None:
        return "-"
    return f"{spread.mean:{sign}.4f}" + ("" if spread.std is None else f" ± {spread.std:.4f}")


def records(value: Any, path: tuple[str, ...] = ()) -> Iterator[PathRecord]:
    """Every object inside a JSON value that has plain values, with where it lies; plain values only."""
    if isinstance(value, Mapping):
        plain = {k: v for k, v in value.items() if not isinstance(v, Mapping | list)}
        if plain:
            yield path, plain
        for key, inner in value.items():
            if key not in plain:
                yield from records(inner, (*path, str(key)))
    elif isinstance(value, list):
        if value and not any(isinstance(v, Mapping | list) for v in value):
            yield path, {str(i): v for i, v in enumerate(value)}
        for i, inner in enumerate(value):
            if isinstance(inner, Mapping | list):
                yield from records(inner, (*path, str(i)))


def _came_out(result: ExperimentResult) -> str:
    best = best_on_dev(result)
    if best is None:
        return "no run was completed."
    said = f"best on dev by H@1 is `{best.name}` ({cell(best.spread('dev', 'hits@1'))})"
    if best.spread("test", "hits@1"):
        said += f", on test {cell(best.spread('test', 'hits@1'))}"
    if result.baseline is None:
        return f"{said}."
    base = result.named(result.baseline)
    split = "test" if base.spread("test", "hits@1") else "dev"
    others = [c for c in result.configurations if c is not base]
    differences = [(d.mean, c.name, d) for c in others if (d := c.difference(base, split, "hits@1"))]
    if not differences:
        return f"{said}."
    parts = [f"`{name}` {cell(d, '+')}" for _, name, d in (min(differences)[:3], max(differences)[:3])]
    between = f"from {parts[0]} to {parts[1]}" if len(differences) > 1 else parts[0]
    return f"{said}. H@1 on {split} against `{base.name}`: {between}."


def _options(result: ExperimentResult) -> list[str]:
    """Options that the configurations share, and those that each has of its own."""
    every = [one.options for one in result.configurations]
    shared = {k: v for k, v in every[0].items() if all(k in o and o[k] == v for o in every)} if every else {}
    lines = [f"### Configurations: {result.title}", "", f"All: {_named(shared, 'the defaults')}", ""]
    for one in result.configurations:
        own = {key: value for key, value in one.options.items() if key not in shared}
        lines += [f"- `{one.name}`: {_named(own, 'nothing else')}"]
    return [*lines, ""]


def _named(options: Mapping[str, Any], none: str) -> str:
    return ", ".join(f"`{key} = {json.dumps(value)}`" for key, value in options.items()) or none


def _metrics_table(result: ExperimentResult, split: str) -> list[str]:
    base = None if result.baseline is None else result.named(result.baseline)
    head = ["configuration", *METRICS.values()]
    head += [f"{m} - {base.name}" for m in METRICS.values()] if base else []
    rows = []
    for one in result.configurations:
        cells = [cell(one.spread(split, m)) for m in METRICS]
        if base:
            cells += [cell(None if one is base else one.difference(base, split, m), "+") for m in METRICS]
        lost = len(one.runs) - len(one.done)
        spread = one.spread(split, "mrr")
        rows.append(
            [one.name, *cells, f"{spread.n if spread else 0}" + (f", {lost} diverged" if lost else "")]
        )
    return table([*head, "seeds"], rows)


def _two_by_two(result: ExperimentResult) -> list[str]:
    """Gains of two changes alone and together, where the experiment asked for them."""
    adds = result.two_by_two.get("adds")
    if not adds:
        return []
    said = (f"{key.replace('_', ' ')}: {value}" for key, value in result.two_by_two.items() if key != "adds")
    rows = []
    for label, splits in adds.items():
        spreads = [_spread(splits.get(split, {}).get(m)) for split in ("test", "dev") for m in METRICS]
        rows.append([label, *(cell(s, "+") for s in spreads)])
    head = ["adds", *(f"{split} {m}" for split in ("test", "dev") for m in METRICS.values())]
    return [f"### Two by two: {result.title}", "", "; ".join(said) + ".", "", *table(head, rows)]


def _spread(stored: Mapping[str, Any] | None) -> Spread | None:
    if not stored or stored.get("mean") is None:
        return None
    return Spread(stored["mean"], stored.get("std"), stored.get("n", 0))


def _costs(result: ExperimentResult) -> list[str]:
    costs = [
        ((one.name,), {**mean_of([r.cost for r in one.done]), **one.timing})
        for one in result.configurations
        if one.done
    ]
    return [f"### Cost: {result.title}", "", *_record_tables(costs, "configuration")] if costs else []


def _diverged(result: ExperimentResult) -> list[str]:
    lost = [
        f"- `{one.name}`, seed {run.seed}: {run.message}"
        for one in result.configurations
        for run in one.runs
        if run.status == DIVERGED
    ]
    return [f"### Diverged: {result.title}", "", *lost, ""] if lost else []


def _data(result: ExperimentResult) -> list[str]:
    return [f"### Data: {result.title}", "", *_record_tables(records(result.data), "part")]


def _probes(result: ExperimentResult) -> list[str]:
    """One block a probe: records of all configurations, means over seeds."""
    names = dict.fromkeys(p for c in result.configurations for run in c.done for p in run.probes)
    lines = []
    for probe in names:
        rows: list[PathRecord] = []
        for one in result.configurations:
            having = [run.probes[probe] for run in one.done if probe in run.probes]
            rows += records(mean_of(having), (one.name,))
        lines += [f"### Probe {probe}: {result.title}", "", *_record_tables(rows, "what")]
    return lines


def _record_tables(records: Iterable[PathRecord], first: str) -> list[str]:
    """Tables of records, those of the same keys together; long ones folded away."""
    groups: dict[tuple[str, ...], list[PathRecord]] = {}
    for path, record in records:
        groups.setdefault(tuple(record), []).append((path, record))
    lines = []
    for keys, rows in groups.items():
        cells = [[" / ".join(path) or "all", *(_plain(r[k]) for k in keys)] for path, r in rows]
        shown = table([first, *keys], cells)
        if len(rows) >= LONG_TABLE:
            shown = [
                "<details>",
                f"<summary>{len(rows)} rows: {', '.join(keys)}</summary>",
                "",
                *shown,
                "</details>",
                "",
            ]
        lines += shown
    return lines


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
