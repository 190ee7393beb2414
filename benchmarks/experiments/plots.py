"""Plot of an experiment: validation curves, and accuracy, against cost where it was timed."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.experiments.results import Outcome
from benchmarks.experiments.summary import summarise
from benchmarks.experiments.timing import Timing
from mimic_engine.files import write_atomic

_STYLES = ("-", "--", "-.", ":")
_MARKERS = "osD^vP*X<>"
Outcomes = Mapping[str, Sequence[Outcome]]


def draw(outcomes: Outcomes, timings: Mapping[str, Timing], title: str, path: Path) -> None:
    """Write the plot (PNG), one colour a configuration; a run that diverged has its curve up to there."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    curves, accuracy = figure.subplots(1, 2)
    for number, (name, runs) in enumerate(outcomes.items()):
        _curve(curves, name, runs, _look(number, len(outcomes)))
    curves.set(xlabel="epoch", ylabel="dev MRR, mean of seeds (band: least to most)", title="Validation")
    curves.xaxis.set_major_locator(MaxNLocator(integer=True))
    if timings:
        _against_cost(accuracy, outcomes, timings)
    else:
        _by_configuration(accuracy, outcomes)
    for axes in (curves, accuracy):
        axes.grid(alpha=0.3, which="both")
    figure.suptitle(title)
    figure.legend(*curves.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    content = io.BytesIO()
    canvas.print_figure(content, dpi=130, format="png")
    write_atomic(path, content.getvalue())


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


def _against_cost(axes: Any, outcomes: Outcomes, timings: Mapping[str, Timing]) -> None:
    """Hits@1 of every configuration that has both over the time of a scan; area by bytes of the index."""
    split = _split(outcomes)
    axes.set(xlabel="ms a mention, exact scan", ylabel=f"{split} Hits@1, mean ± std", xscale="log")
    axes.set(title="Accuracy against cost (area: index bytes an entity)")
    axes.margins(x=0.15)
    for number, (name, runs) in enumerate(outcomes.items()):
        costs = [run.run.cost for run in runs if run.run.cost is not None]
        hits = summarise(runs)[split]["hits@1"]
        if not costs or hits.mean is None or name not in timings:
            continue
        look, across = _look(number, len(outcomes)), [timings[name].scan_ms]
        area = 30 + costs[0]["index_bytes_per_entity"] / 60
        axes.errorbar(across, [hits.mean], yerr=[hits.std or 0.0], color=look["color"], capsize=3)
        axes.scatter(across, [hits.mean], s=area, color=look["color"], marker=look["marker"], alpha=0.75)


def _by_configuration(axes: Any, outcomes: Outcomes) -> None:
    """Hits@1 on dev (hollow) and test (filled), a line a configuration, the first one on top."""
    for number, runs in enumerate(outcomes.values()):
        look, summary = _look(number, len(outcomes)), summarise(runs)
        for split, filled, above in (("dev", False, 0.15), ("test", True, -0.15)):
            hits = summary[split]["hits@1"]
            if hits.mean is None:
                continue
            face = {} if filled else {"markerfacecolor": "white"}
            axes.errorbar(
                [hits.mean],
                [number - above],
                xerr=[hits.std or 0.0],
                color=look["color"],
                marker=look["marker"],
                capsize=3,
                **face,
            )
    axes.set_yticks(range(len(outcomes)), list(outcomes))
    axes.set(
        ylim=(len(outcomes) - 0.5, -0.5), xlabel="Hits@1, mean ± std", title="Test (filled), dev (hollow)"
    )


def _look(number: int, total: int) -> dict[str, Any]:
    from matplotlib import colormaps

    colours = colormaps["tab10" if total <= 10 else "tab20"]
    marker, style = _MARKERS[number % len(_MARKERS)], _STYLES[number % len(_STYLES)]
    return {"color": colours(number % colours.N), "marker": marker, "linestyle": style}


def _split(outcomes: Outcomes) -> str:
    """Test where it has been read, else dev."""
    read = any(outcome.test is not None for runs in outcomes.values() for outcome in runs)
    return "test" if read else "dev"
