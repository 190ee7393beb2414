"""Log of a run: ``log.csv`` (one line an epoch, flushed), TensorBoard events, and ``curve.png``."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mimic_engine.files import replace_file, write_atomic

Row = Mapping[str, float]


class RunLog:
    """Numbers of each epoch, written to all three; a resumed run keeps the lines of its past."""

    def __init__(self, folder: Path, past: Sequence[Row] = ()) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._csv = folder / "log.csv"
        self._curve = folder / "curve.png"
        self.rows: list[dict[str, float]] = [dict(r) for r in past]
        purge = int(past[-1]["step"]) + 1 if past else None
        self._board: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def step(self, step: int, values: Row) -> None:
        """Numbers of a single step, to TensorBoard alone."""
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def epoch(self, row: Row) -> None:
        """Numbers of an epoch; must hold ``step`` and ``epoch``."""
        self.rows.append(dict(row))
        for name, value in row.items():
            if name not in ("step", "epoch"):
                self._board.add_scalar(f"epoch/{name}", value, int(row["step"]))
        self._board.flush()
        self._write_csv()
        draw_curve(self.rows, self._curve)

    def close(self) -> None:
        """Close the TensorBoard file."""
        self._board.close()

    def _write_csv(self) -> None:
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        content = io.StringIO()
        writer = csv.DictWriter(content, names, restval="")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomic(self._csv, content.getvalue())


def draw_curve(rows: Sequence[Row], path: Path) -> None:
    """Plot losses (left axis) and dev MRR and Hits@1 (right axis) over epochs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    left = figure.add_subplot()
    right = left.twinx()
    for name in dict.fromkeys(n for row in rows for n in row if n.startswith("loss")):
        _line(left, rows, name, "-")
    for name in ("mrr", "hits@1"):
        if any(name in row for row in rows):
            _line(right, rows, name, "o--")
    left.set(xlabel="epoch", ylabel="training loss")
    right.set(ylabel="dev MRR, Hits@1")
    lines = [*left.get_lines(), *right.get_lines()]
    left.legend(lines, [str(line.get_label()) for line in lines], loc="center right", fontsize="small")
    with replace_file(path) as temporary:
        canvas.print_png(str(temporary))  # type: ignore[no-untyped-call]


def _line(axes: Any, rows: Sequence[Row], name: str, style: str) -> None:
    points = [(row["epoch"], row[name]) for row in rows if name in row]
    axes.plot(*zip(*points, strict=True), style, label=name, color=None if style == "-" else _RIGHT[name])


_RIGHT = {"mrr": "black", "hits@1": "grey"}
