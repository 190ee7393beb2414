"""``docs/experiments.md``, written from the result files of the experiments; measures nothing itself.

    python -m benchmarks.report.experiments_page

A test keeps the page current. What probes found is shown as generic tables: records of the same keys stand in
one table, a row each.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import RESULTS
from benchmarks.experiments.declaration import OTHER_DEV
from benchmarks.report.experiment_results import (
    DIVERGED,
    Configuration,
    ExperimentResult,
    Spread,
    mean_of,
    read_experiment,
)
from benchmarks.report.markdown import source, table
from mimic_engine.errors import MimicError
from mimic_engine.files import write_atomic

FOLDER = RESULTS / "experiments"
DECLARED = RESULTS.parent / "experiments"
PAGE = RESULTS.parents[1] / "docs" / "experiments.md"
METRICS = {"hits@1": "H@1", "hits@3": "H@3", "hits@5": "H@5", "mrr": "MRR"}
LONG_TABLE = 14  # rows from which a table is folded away

_HEAD = """# Experiments

What each unit of the model earns, what the model does with bad pictures and unseen entities, what it
costs, and what the training options gain. An experiment is a file under `benchmarks/experiments/`, run by
`python -m benchmarks.experiments`; every section names the command that made it, what was
expected and what came out. Settings are chosen on dev, test is read once. Figures are means over seeds ±
the sample standard deviation; differences are between runs of the same seed. Runs that diverged are named
and in no mean.

This page is written by `python -m benchmarks.report.experiments_page` from
`benchmarks/results/experiments/`; a test keeps it current.
"""

_LIMITS = """## What cannot be compared with published figures, and why

Compare rows of one table with each other, and nothing here with a figure of a paper:

- **The candidates are fewer.** Published figures on WikiMEL, RichpediaMEL and WikiDiverse rank the gold
  entity among 109,976, 160,935 and 132,460 entities. The data at hand has 20,818, 20,483 and 10,644 of
  them, every gold entity among them. Fewer rivals make every metric better.
- **Hardly any picture is there.** Of all mentions of the three data sets 69 have a photo, all in WikiMEL;
  of the entities 1,596, 229 and 161 have one. What the vision and cross-modal units can earn does not
  show on them: these are figures of text. The demo has a picture for every mention and entity, but its
  sentences and pictures were paired by us, and its entities are shared between train and test.
- **The encoders are others, and frozen.** The paper trains CLIP (ViT-B/32) together with the matcher.
  Here all-MiniLM-L6-v2 and EfficientNet-Lite0 give cached features to trained heads: cheap enough to
  repeat over seeds on a CPU, but other models with other strengths.
- **Two test splits are held out.** RichpediaMEL and WikiDiverse come without theirs; the tables say what
  stands for test.
- **The official splits leak.** 1,035 of WikiMEL's 5,169 test sentences stand in its train split too, and
  the gold entity of 2,199 test mentions is the answer of a training mention. Of RichpediaMEL's dev
  mentions none is, of WikiDiverse's 891 of 1,664. Where a table splits seen from unseen entities, the
  second is the honest figure.
- **Given candidates are another task.** `python -m mimic_engine.evaluate --candidates` ranks among the
  ten or hundred entities that a published file gives a mention. Who drew them decides how hard that is,
  and an answer that was not drawn is missed by every model; the result says for how many mentions that is
  so.
"""


def render(folder: Path = FOLDER, beside: Path = PAGE.parent, declared: Path = DECLARED) -> str:
    """Give the page in Markdown.

    Parameters
    ----------
    folder : of the result files and their pictures.
    beside : folder that the page is for, which links to pictures start from.
    declared : folder of the declarations, which may hold what somebody read in the results.

    Raises
    ------
    DataError
        If a result file is damaged, or a key is missing or wrong; names file and key.
    """
    results = [read_experiment(file) for file in sorted(folder.glob("*.json"), key=lambda f: f.stem)]
    found = read_found(declared)
    lines = [_HEAD, *_contents(results)]
    for result in results:
        lines += _section(result, found, folder, beside)
    return "\n".join([*lines, _LIMITS.rstrip()]) + "\n"


def read_found(declared: Path) -> dict[str, str]:
    """What the declarations say was found, by the stem of the result: experiment and data set."""
    files = sorted(declared.glob("*.toml"))
    tables = {file.stem: tomllib.loads(file.read_text("utf-8")).get("found", {}) for file in files}
    return {f"{name}-{data}": words for name, table in tables.items() for data, words in table.items()}


def records(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
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


def _contents(results: Sequence[ExperimentResult]) -> list[str]:
    if not results:
        return ["There is no result file yet.", ""]
    rows = []
    for result in results:
        test = [_cell(best.spread("test", m)) for m in METRICS] if (best := _best(result)) else ["-"] * 4
        rows.append([f"[{_title(result)}](#{_anchor(_title(result))})", best.name if best else "-", *test])
    return table(["experiment", "best on dev", *(f"test {m}" for m in METRICS.values())], rows)


def _section(result: ExperimentResult, found: Mapping[str, str], folder: Path, beside: Path) -> list[str]:
    lines = [f"## {_title(result)}", "", f"**Asked:** {result.question}", ""]
    lines += [f"**Expected:** {result.expected}", "", f"**Came out:** {_came_out(result)}", ""]
    if (words := found.get(result.stem)) is not None:
        lines += [f"**In words:** {words}", ""]
    lines += source(result.provenance)
    for picture in sorted(folder.glob(f"{result.stem}*.png"), key=lambda f: f.stem):
        if _belongs(picture, result, folder):
            link = Path(os.path.relpath(picture, beside)).as_posix()
            lines += [f"![{picture.stem}]({link})", ""]
    lines += _options(result)
    for split in ("test", "dev"):
        lines += [f"### {split.capitalize()}: {_title(result)}", "", *_metrics_table(result, split)]
        if split == "dev" and any(c.trained_on != "own" for c in result.configurations):
            lines += [OTHER_DEV, ""]
    lines += [*_two_by_two(result), *_costs(result), *_diverged(result), *_data(result)]
    return [*lines, *_probes(result)]


def _title(result: ExperimentResult) -> str:
    return f"{result.title}, {result.data.get('name', result.stem)}"


def _anchor(heading: str) -> str:
    """What GitHub makes of a heading."""
    kept = "".join(c for c in heading.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


def _belongs(picture: Path, result: ExperimentResult, folder: Path) -> bool:
    """Whether a picture whose name begins with the result's belongs to it, not to one of a longer name."""
    longer = (f.stem for f in folder.glob(f"{result.stem}?*.json"))
    return picture.stem == result.stem or not any(picture.stem.startswith(stem) for stem in longer)


def _best(result: ExperimentResult) -> Configuration | None:
    """The configuration of the best Hits@1 on the data set's own dev mentions, the first of equals."""
    own = [c for c in result.configurations if c.trained_on == "own"]
    means = [(s.mean, -i) for i, c in enumerate(own) if (s := c.spread("dev", "hits@1"))]
    return own[-max(means)[1]] if means else None


def _came_out(result: ExperimentResult) -> str:
    best = _best(result)
    if best is None:
        return "no run was completed."
    said = f"best on dev by H@1 is `{best.name}` ({_cell(best.spread('dev', 'hits@1'))})"
    if best.spread("test", "hits@1"):
        said += f", on test {_cell(best.spread('test', 'hits@1'))}"
    if result.baseline is None:
        return f"{said}."
    base = result.named(result.baseline)
    split = "test" if base.spread("test", "hits@1") else "dev"
    others = [c for c in result.configurations if c is not base]
    found = [(d.mean, c.name, d) for c in others if (d := c.difference(base, split, "hits@1"))]
    if not found:
        return f"{said}."
    parts = [f"`{name}` {_cell(d, '+')}" for _, name, d in (min(found)[:3], max(found)[:3])]
    between = f"from {parts[0]} to {parts[1]}" if len(found) > 1 else parts[0]
    return f"{said}. H@1 on {split} against `{base.name}`: {between}."


def _options(result: ExperimentResult) -> list[str]:
    """What configurations share, and what each has of its own."""
    every = [one.options for one in result.configurations]
    shared = {k: v for k, v in every[0].items() if all(k in o and o[k] == v for o in every)} if every else {}
    lines = [f"### Configurations: {_title(result)}", "", f"All: {_named(shared, 'the defaults')}", ""]
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
        cells = [_cell(one.spread(split, m)) for m in METRICS]
        if base:
            cells += [_cell(None if one is base else one.difference(base, split, m), "+") for m in METRICS]
        lost = len(one.runs) - len(one.done)
        spread = one.spread(split, "mrr")
        rows.append(
            [one.name, *cells, f"{spread.n if spread else 0}" + (f", {lost} diverged" if lost else "")]
        )
    return table([*head, "seeds"], rows)


def _two_by_two(result: ExperimentResult) -> list[str]:
    """What two changes add alone and together, where the experiment asked for it."""
    adds = result.two_by_two.get("adds")
    if not adds:
        return []
    said = (f"{key.replace('_', ' ')}: {value}" for key, value in result.two_by_two.items() if key != "adds")
    rows = []
    for label, splits in adds.items():
        spreads = [_spread(splits.get(split, {}).get(m)) for split in ("test", "dev") for m in METRICS]
        rows.append([label, *(_cell(s, "+") for s in spreads)])
    head = ["adds", *(f"{split} {m}" for split in ("test", "dev") for m in METRICS.values())]
    return [f"### Two by two: {_title(result)}", "", "; ".join(said) + ".", "", *table(head, rows)]


def _spread(stored: Mapping[str, Any] | None) -> Spread | None:
    if not stored or stored.get("mean") is None:
        return None
    return Spread(stored["mean"], stored.get("std"), stored.get("n", 0))


def _costs(result: ExperimentResult) -> list[str]:
    found = [
        ((one.name,), {**mean_of([r.cost for r in one.done]), **one.timing})
        for one in result.configurations
        if one.done
    ]
    return [f"### Cost: {_title(result)}", "", *_record_tables(found, "configuration")] if found else []


def _diverged(result: ExperimentResult) -> list[str]:
    lost = [
        f"- `{one.name}`, seed {run.seed}: {run.message}"
        for one in result.configurations
        for run in one.runs
        if run.status == DIVERGED
    ]
    return [f"### Diverged: {_title(result)}", "", *lost, ""] if lost else []


def _data(result: ExperimentResult) -> list[str]:
    return [f"### Data: {_title(result)}", "", *_record_tables(records(result.data), "part")]


def _probes(result: ExperimentResult) -> list[str]:
    """One block a probe: records of all configurations, means over seeds."""
    names = dict.fromkeys(p for c in result.configurations for run in c.done for p in run.probes)
    lines = []
    for probe in names:
        found: list[tuple[tuple[str, ...], Mapping[str, Any]]] = []
        for one in result.configurations:
            having = [run.probes[probe] for run in one.done if probe in run.probes]
            found += records(mean_of(having), (one.name,))
        lines += [f"### Probe {probe}: {_title(result)}", "", *_record_tables(found, "what")]
    return lines


def _record_tables(found: Iterable[tuple[tuple[str, ...], Mapping[str, Any]]], first: str) -> list[str]:
    """Tables of records, those of the same keys together; long ones folded away."""
    groups: dict[tuple[str, ...], list[tuple[tuple[str, ...], Mapping[str, Any]]]] = {}
    for path, record in found:
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


def _cell(spread: Spread | None, sign: str = "") -> str:
    if spread is None:
        return "-"
    return f"{spread.mean:{sign}.4f}" + ("" if spread.std is None else f" ± {spread.std:.4f}")


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page; 0, or 2 with a message on an error that has one."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report.experiments_page", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("results", type=Path, nargs="?", default=FOLDER, help="folder of result files")
    parser.add_argument("--out", type=Path, default=PAGE, help="page to write (default: docs/experiments.md)")
    args = parser.parse_args(argv)
    try:
        page = render(args.results, args.out.parent)
    except MimicError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_atomic(args.out, page)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
