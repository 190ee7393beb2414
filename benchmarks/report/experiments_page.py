"""``docs/experiments.md`` and a page for every data set, written from the result files of the experiments.

    python -m benchmarks.report.experiments_page

The first page has what was asked, expected and found; ``docs/experiments/DATASET.md`` has the tables. A test
keeps all of them current.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import RESULTS
from benchmarks.report.experiment_results import ExperimentResult, read_experiment
from benchmarks.report.experiment_section import best_on_dev, cell, said, section
from benchmarks.report.markdown import anchor, table
from mimic_engine.errors import MimicError
from mimic_engine.files import write_atomic

FOLDER = RESULTS / "experiments"
DECLARED = RESULTS.parent / "experiments"
PAGE = RESULTS.parents[1] / "docs" / "experiments.md"

_HEAD = """# Experiments

What each unit of the model earns, what the model does with bad images and unseen entities, what it costs,
and what the training options gain. An experiment is a file under `benchmarks/experiments/`, run by
`python -m benchmarks.experiments`. Settings are chosen on dev; test is read once. Figures are means over
seeds ± the sample standard deviation, and differences are between runs of the same seed. Points are
hundredths of H@1. The tables, with the command that made each, are on a page for every data set:
{pages}.

This page and those are written by `python -m benchmarks.report.experiments_page` from
`benchmarks/results/experiments/`; a test keeps them current.
"""

_LIMITS = """## What cannot be compared with published figures, and why

Compare rows of one table with each other, and nothing here with a figure of a paper:

- **The candidates are fewer** than in published evaluations, which rank the gold entity among more than a
  hundred thousand. The table below counts those at hand, every gold entity among them. Fewer candidates
  make every metric better.
- **Hardly any image is there**, but for the demo. What the vision and cross-modal units can earn does not
  show on the other data sets: these are figures of text. The demo has an image for nearly every mention and
  entity, but its sentences and images were paired by us, and its entities are shared between train and test.
- **The encoders are others, and frozen.** The paper trains CLIP (ViT-B/32) together with the matcher.
  Here all-MiniLM-L6-v2 and EfficientNet-Lite0 give cached features to trained heads: cheap enough to
  repeat over seeds on a CPU, but other models with other strengths.
- **Two test splits are held out.** RichpediaMEL and WikiDiverse come without theirs; half of dev stands for
  test.
- **The official splits share entities.** The last column counts the test mentions whose answer is that of
  a training mention too. Where a table splits seen from unseen entities, the second is the honest figure.
- **Candidate sets are another task.** `python -m mimic_engine.evaluate --candidates` ranks among the ten or
  hundred entities that a published file gives a mention. Who drew them decides how hard that is, and an
  answer that was not drawn is missed by every model; the result says for how many mentions that is so.
"""


def render(folder: Path = FOLDER, page: Path = PAGE, declared: Path = DECLARED) -> dict[Path, str]:
    """Give the text of every page, by its file.

    Parameters
    ----------
    folder : of the result files and their plots.
    page : file of the first page; the others lie in a folder of the same name beside it.
    declared : folder of the declarations, which may hold what somebody read in the results.

    Raises
    ------
    DataError
        If a result file is damaged, or a key is missing or wrong; names file and key.
    """
    results = [read_experiment(file) for file in sorted(folder.glob("*.json"), key=lambda f: f.stem)]
    findings = read_findings(declared)
    data_sets = list(dict.fromkeys(data_set(result) for result in results))
    details = page.with_suffix("")
    pages = {page: _overview(results, data_sets, findings, details.name)}
    for name in data_sets:
        lines = [f"# Experiments on {name}", "", f"Part of the [experiments](../{page.name}).", ""]
        for result in results:
            if data_set(result) == name:
                lines += section(result, findings.get(result.stem), _plots(result, folder), details)
        pages[details / f"{name}.md"] = "\n".join(lines).rstrip() + "\n"
    return pages


def read_findings(declared: Path) -> dict[str, str]:
    """Findings of the declarations, by the stem of the result: experiment and data set."""
    files = sorted(declared.glob("*.toml"))
    tables = {file.stem: tomllib.loads(file.read_text("utf-8")).get("found", {}) for file in files}
    return {f"{name}-{data}": words for name, table in tables.items() for data, words in table.items()}


def data_set(result: ExperimentResult) -> str:
    """Name of the data set."""
    return str(result.data.get("name", result.stem))


def _overview(
    results: Sequence[ExperimentResult], data_sets: Sequence[str], findings: Mapping[str, str], details: str
) -> str:
    pages = ", ".join(f"[{name}]({details}/{name}.md)" for name in data_sets)
    lines = [_HEAD.format(pages=pages or "none yet")]
    if not results:
        lines += ["There is no result file yet.", ""]
    by_title: dict[str, list[ExperimentResult]] = {}
    for result in results:
        by_title.setdefault(result.title, []).append(result)
    lines += _contents(by_title, data_sets)
    for title, group in by_title.items():
        lines += [f"## {title}", "", f"**Asked:** {group[0].question}", ""]
        lines += [f"**Expected:** {group[0].expected}", ""]
        for result in group:
            lines += [f"- {_link(result, details)}: {findings.get(result.stem) or said(result, None)[0]}"]
        lines += [""]
    return "\n".join([*lines, _LIMITS, *_data(results)]).rstrip() + "\n"


def _contents(by_title: Mapping[str, Sequence[ExperimentResult]], data_sets: Sequence[str]) -> list[str]:
    """The configuration that is best on dev, and its H@1 on test, by experiment and data set."""
    if not by_title:
        return []
    rows = []
    for title, group in by_title.items():
        cells = {data_set(result): _best(result) for result in group}
        rows.append([f"[{title}](#{anchor(title)})", *(cells.get(name, "-") for name in data_sets)])
    said = "Best configuration on dev, and its H@1 on test:"
    return [said, "", *table(["experiment", *data_sets], rows)]


def _best(result: ExperimentResult) -> str:
    best = best_on_dev(result)
    return "-" if best is None else f"{best.name} {cell(best.spread('test', 'hits@1'))}"


def _link(result: ExperimentResult, details: str) -> str:
    return f"[{data_set(result)}]({details}/{data_set(result)}.md#{anchor(result.title)})"


def _data(results: Iterable[ExperimentResult]) -> list[str]:
    """Sizes of the data sets, and the share of them that training has seen."""
    counts: dict[str, list[str]] = {}
    for result in results:
        name, splits = data_set(result), result.data.get("splits", {})
        mentions, entities = result.data.get("mentions", {}), result.data.get("entities", {})
        row = [_count(entities.get("records")), _count(entities.get("with_image"))]
        row += [" / ".join(_count(mentions.get(split)) for split in ("train", "dev", "test"))]
        row += [_count(sum(split["with_image"] for split in splits.values())), _count(_seen(result))]
        if name not in counts or counts[name][-1] == "-":
            counts[name] = row
    if not counts:
        return []
    head = ["data set", "entities", "with an image", "mentions: train / dev / test", "with an image"]
    return table([*head, "of test: answers seen in training"], [[name, *row] for name, row in counts.items()])


def _seen(result: ExperimentResult) -> int | None:
    """Test mentions whose answer is that of a training mention, where a run on the own data was asked."""
    for one in result.configurations:
        for run in one.done if one.trained_on == "own" else ():
            if "unseen" in (probe := run.probes.get("seen") or {}):
                return int((probe.get("seen") or {"mentions": 0})["mentions"])
    return None


def _count(value: Any) -> str:
    return "-" if value is None else f"{value:,}"


def _plots(result: ExperimentResult, folder: Path) -> list[Path]:
    """Images whose names begin with the result's, but for those of a result of a longer name."""
    longer = tuple(f.stem for f in folder.glob(f"{result.stem}?*.json"))
    plots = sorted(folder.glob(f"{result.stem}*.png"), key=lambda f: f.stem)
    return [p for p in plots if p.stem == result.stem or not p.stem.startswith(longer)]


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pages; 0, or 2 with a message on an error that has one."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report.experiments_page", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("results", type=Path, nargs="?", default=FOLDER, help="folder of result files")
    parser.add_argument("--out", type=Path, default=PAGE, help="first page (default: docs/experiments.md)")
    args = parser.parse_args(argv)
    try:
        pages = render(args.results, args.out)
    except MimicError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path, text in pages.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text.encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
