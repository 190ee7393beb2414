"""An experiment as a picture: validation curves, and accuracy against cost. One colour a configuration."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mimic_engine.record import replace_file
from mimic_engine.train.experiments.results import Outcome
from mimic_engine.train.experiments.summary import summarise
from mimic_engine.train.experiments.timing import Timing

_STYLES = ("-", "--", "-.", ":")
_MARKERS = "osD^vP*X<>"
Outcomes = Mapping[str, Sequence[Outcome]]


def draw(outcomes: Outcomes, timings: Mapping[str, Timing], title: str, path: Path) -> None:
    """Write the picture (PNG); runs that diverged have their curve up to there and no point of cost.

    Cost is the time of a scan where the configurations were timed, else the multiply-adds of a pair.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    curves, cost = figure.subplots(1, 2)
    for number, (name, runs) in enumerate(outcomes.items()):
        look = _look(number, len(outcomes))
        _curve(curves, name, runs, look)
        timing = timings.get(name)
        _cost(cost, runs, None if timing is None else timing.scan_ms, look)
    curves.set(xlabel="epoch", ylabel="dev MRR, mean of seeds (band: least to most)", title="Validation")
    split = "test" if _has_test(outcomes) else "dev"
    across = "ms a mention, exact scan" if timings else "multiply-adds a pair"
    cost.set(xlabel=across, ylabel=f"{split} Hits@1, mean ± std", xscale="log")
    cost.set(title="Accuracy against cost (area: index bytes an entity)")
    curves.xaxis.set_major_locator(MaxNLocator(integer=True))
    cost.margins(x=0.15)
    for axes in (curves, cost):
        axes.grid(alpha=0.3, which="both")
    figure.suptitle(title)
    figure.legend(*curves.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    content = io.BytesIO()
    canvas.print_figure(content, dpi=130, format="png")
    replace_file(path, content.getvalue())


def mean_curve(runs: Sequence[Outcome], metric: str = "mrr") -> list[tuple[int, float, float, float]]:
    """Epoch, mean, least and most of a dev metric over the runs that were validated there."""
    by_epoch: dict[int, list[float]] = {}
    for run in runs:
        for row in run.run.curve:
            if metric in row:
                by_epoch.setdefault(int(row["epoch"]), []).append(row[metric])
    return [(e, float(np.mean(v)), min(v), max(v)) for e, v in sorted(by_epoch.items())]


def _curve(axes: Any, name: str, runs: Sequence[Outcome], look: dict[str, Any]) -> None:
    lost = sum(run.run.status == "diverged" for run in runs)
    label = f"{name} ({lost} of {len(runs)} diverged)" if lost else name
    points = mean_curve(runs)
    epochs, mean, least, most = zip(*points, strict=True) if points else ((), (), (), ())
    axes.plot(epochs, mean, label=label, markersize=4, **look)
    axes.fill_between(epochs, least, most, color=look["color"], alpha=0.12, linewidth=0)


def _cost(axes: Any, runs: Sequence[Outcome], scan_ms: float | None, look: dict[str, Any]) -> None:
    costs = [run.run.cost for run in runs if run.run.cost is not None]
    summary = summarise(runs)
    hits = summary["test"]["hits@1"] if summary["test"]["hits@1"].n else summary["dev"]["hits@1"]
    if not costs or hits.mean is None:
        return
    across = costs[0]["pair_multiply_adds"] if scan_ms is None else scan_ms
    area = 30 + costs[0]["index_bytes_per_entity"] / 60
    axes.errorbar([across], [hits.mean], yerr=[hits.std or 0.0], color=look["color"], capsize=3)
    axes.scatter([across], [hits.mean], s=area, color=look["color"], marker=look["marker"], alpha=0.75)


def _look(number: int, total: int) -> dict[str, Any]:
    from matplotlib import colormaps

    colours = colormaps["tab10" if total <= 10 else "tab20"]
    marker, style = _MARKERS[number % len(_MARKERS)], _STYLES[number % len(_STYLES)]
    return {"color": colours(number % colours.N), "marker": marker, "linestyle": style}


def _has_test(outcomes: Outcomes) -> bool:
    return any(outcome.test is not None for runs in outcomes.values() for outcome in runs)
