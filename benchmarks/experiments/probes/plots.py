"""Plots of what the probes answer: PNG files from their JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimic_engine.errors import InvalidInputError
from mimic_engine.files import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 110
SIDES = {"gold": "gold entity", "wrong": "best wrong entity"}


def draw_bad_images(result: Mapping[str, Any], path: Path, *, metric: str = "hits@1") -> None:
    """Draw a metric against the share of mentions treated, a line a treatment, from a "pictures" result.

    Raises
    ------
    InvalidInputError
        If the result is not conclusive.
    """
    _check_conclusive(result)
    figure = _figure(7, 4.2)
    axes = figure.add_subplot()
    for name, treatment in result["treatments"].items():
        if treatment is not None:
            points = treatment["curve"]
            axes.plot([p["share"] for p in points], [p[metric] for p in points], "o-", label=name)
    axes.axhline(result["text_only"][metric], color="black", linestyle="--", label="text only")
    axes.set(xlabel="share of mentions treated", ylabel=metric, title=f"{result['used']:,} mentions")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize="small")
    _write(figure, path)


def draw_gates(result: Mapping[str, Any], path: Path) -> None:
    """Draw VDLU's gate by treatment from a "pictures" result: median and middle 90 %, a panel a direction.

    Raises
    ------
    InvalidInputError
        If the result is not conclusive, or the model has no VDLU.
    """
    _check_conclusive(result)
    if result["gate"] is None:
        raise InvalidInputError("gate: the model has no VDLU, so there is no gate to draw")
    gates = {"untreated": result["gate"]} | {n: t["gate"] for n, t in result["treatments"].items() if t}
    figure = _figure(9, 4.2)
    directions = list(result["gate"]["gold"])
    panels = figure.subplots(1, len(directions), sharey=True)
    for axes, direction in zip(panels, directions, strict=True):
        for offset, side in zip((-0.15, 0.15), SIDES, strict=True):
            _spans(axes, [gate[side][direction]["quantiles"] for gate in gates.values()], offset, SIDES[side])
        axes.axvline(0, color="grey", linewidth=0.8)
        axes.set(title=direction, xlabel="gate", xlim=(-1.05, 1.05))
        axes.set_yticks(range(len(gates)), list(gates))
    panels[0].invert_yaxis()
    panels[-1].legend(fontsize="small")
    _write(figure, path)


def draw_reliability(result: Mapping[str, Any], path: Path) -> None:
    """Draw accuracy against confidence, and against the share answered, from a "calibration" result."""
    figure = _figure(9, 4.2)
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    for name in ("before", "after"):
        part = result[name]
        if part is None:
            continue
        label = f"{name}: error {part['ece']:.3f}"
        left.plot(*_columns(part["bins"], "confidence", "accuracy"), "o-", label=label)
        right.plot(*_columns(part["risk_coverage"], "share", "accuracy"), "o-", label=name)
    temperature = result["temperature"]
    title = "no temperature" if temperature is None else f"temperature {temperature:.3g}"
    left.set(xlabel="confidence", ylabel="accuracy", title=title, xlim=(0, 1), ylim=(0, 1))
    right.set(xlabel="most confident share", ylabel="accuracy", title="What is answered")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    _write(figure, path)


def _check_conclusive(result: Mapping[str, Any]) -> None:
    if not result["conclusive"]:
        raise InvalidInputError(f"pictures: nothing to draw: {result['reason']}")


def _spans(axes: Axes, quantiles: list[dict[str, float]], offset: float, label: str) -> None:
    middle = [q["50"] for q in quantiles]
    sides = [[q["50"] - q["5"] for q in quantiles], [q["95"] - q["50"] for q in quantiles]]
    heights = [i + offset for i in range(len(quantiles))]
    axes.errorbar(middle, heights, xerr=sides, fmt="o", capsize=2, label=label)


def _columns(points: list[dict[str, float]], *names: str) -> list[list[float]]:
    return [[point[name] for point in points] for name in names]


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _write(figure: Figure, path: Path) -> None:
    """Write the plot whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    with replace_file(path) as temporary:
        figure.savefig(temporary, dpi=DPI, format="png")
