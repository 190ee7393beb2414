"""Result files into one Markdown page of tables and one PNG plot.

Reads what :mod:`benchmarks.report.result_files` checks; measures nothing itself.

    python -m benchmarks.report.report benchmarks/results --out report
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import RESULTS
from benchmarks.report.markdown import source, table
from benchmarks.report.result_files import (
    MODALITIES,
    DemoResult,
    Ranking,
    ScanResult,
    ScanRow,
    Timing,
    WikimelResult,
    is_timing_file,
    read_demo,
    read_scan,
    read_timings,
    read_wikimel,
)
from benchmarks.service.results import (
    SERVICE,
    LoadResult,
    ServiceResult,
    draw_load,
    read_service,
    service_lines,
)
from mimic_engine.errors import DataError, MimicError, MissingDependencyError
from mimic_engine.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KNOWN = ("wikimel", "demo", "scan_cpu")


@dataclass(frozen=True, slots=True)
class Results:
    """Content of a results folder; None for a file that was not asked for."""

    wikimel: WikimelResult | None
    demo: DemoResult | None
    scan: ScanResult | None
    service: tuple[ServiceResult, ...]
    timings: tuple[Timing, ...]
    unread: tuple[str, ...]  # names of JSON files of other kinds


def read_results(folder: Path, only: Sequence[str] = KNOWN) -> Results:
    """Read the result files named in ``only``, and those of the service and pytest-benchmark that are there.

    Raises
    ------
    DataError
        If the folder or a named file is missing, or a file is damaged or lacks a key.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of results")
    others = sorted(f for f in folder.glob("*.json") if f.stem not in (*KNOWN, *SERVICE))
    timing_files = [f for f in others if is_timing_file(f)]
    return Results(
        wikimel=read_wikimel(folder / "wikimel.json") if "wikimel" in only else None,
        demo=read_demo(folder / "demo.json") if "demo" in only else None,
        scan=read_scan(folder / "scan_cpu.json") if "scan_cpu" in only else None,
        service=read_service(folder),
        timings=tuple(timing for f in timing_files for timing in read_timings(f)),
        unread=tuple(f.name for f in others if f not in timing_files),
    )


def _wikimel_lines(result: WikimelResult) -> list[str]:
    cuts = tuple(next(iter(result.splits.values())).hits)
    rows = [
        [
            split,
            *(f"{r.hits[k]:.4f}" for k in cuts),
            f"{r.mrr:.4f}",
            f"{r.mr:.2f}",
            f"{r.mentions:,}",
            f"{r.candidates:,}",
        ]
        for split, r in result.splits.items()
    ]
    head = ["split", *(f"H@{k}" for k in cuts), "MRR", "MR", "mentions", "candidates"]
    training = [f"Training took {result.train_seconds:,.0f} s.", ""]
    return ["## WikiMEL", "", *table(head, rows), *training, *source(result.provenance)]


def _demo_lines(result: DemoResult) -> list[str]:
    def row(name: str, modality: str, r: Ranking) -> list[str]:
        return [
            f"{name}, {modality}",
            f"{r.hits[1]:.4f}",
            f"{r.hits[3]:.4f}",
            f"{r.mrr:.4f}",
            f"{r.mentions:,}",
        ]

    rows = [row(name, m, r) for name, rankings in result.sets.items() for m, r in rankings.items()]
    head = ["mentions seen by", "H@1", "H@3", "MRR", "mentions"]
    return ["## Demo, unseen drawing styles", "", *table(head, rows), *source(result.provenance)]


def _scan_lines(result: ScanResult) -> list[str]:
    rows = [
        [
            _scan_label(r),
            f"{r.n:,}",
            str(r.b),
            f"{r.pairs_per_s:,.0f}",
            f"{r.ms:,.2f}",
            "-" if r.ratio_to_baseline is None else f"{r.ratio_to_baseline:.1f}",
            f"{r.survivor_share:.2%}",
            _share(r.identical_top10),
            _share(r.agreement_top1),
            _share(r.top10_contained),
        ]
        for r in result.rows
    ]
    head = ["scan", "N", "B", "pairs/s", "ms", "times the baseline", "scored exactly", "same top 10"]
    head += ["coded: same best", "coded: top 10 found"]
    speed = [f"Single-precision matrix product on this machine: {result.sgemm_gflops:.0f} GFLOP/s.", ""]
    return ["## Scan on the CPU", "", *table(head, rows), *speed, *source(result.provenance)]


def _scan_label(row: ScanRow) -> str:
    return f"{row.mode} {row.backend} {row.dtype}, {row.features} features"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _timing_lines(timings: Sequence[Timing]) -> list[str]:
    def cell(value: object) -> str:
        return f"{value:,.4g}" if isinstance(value, float) else str(value)

    rows = [
        [
            t.name,
            f"{1e3 * t.median_s:,.3f}",
            f"{1e3 * t.min_s:,.3f}",
            str(t.rounds),
            ", ".join(f"{key} {cell(value)}" for key, value in t.extra.items()),
        ]
        for t in timings
    ]
    return ["## Timings", "", *table(["benchmark", "median ms", "best ms", "rounds", "notes"], rows)]


def to_markdown(results: Results, plot: str) -> str:
    """The page: one section a result, and the plot by its relative name."""
    lines = ["# Measured results", "", f"![Plot of the results]({plot})", ""]
    if results.wikimel:
        lines += _wikimel_lines(results.wikimel)
    if results.demo:
        lines += _demo_lines(results.demo)
    if results.scan:
        lines += _scan_lines(results.scan)
    for result in results.service:
        lines += service_lines(result)
    if results.timings:
        lines += _timing_lines(results.timings)
    if results.unread:
        lines += ["Result files not shown here: " + ", ".join(f"`{name}`" for name in results.unread) + "."]
    return "\n".join(lines).rstrip() + "\n"


def _bars(axes: Axes, groups: Sequence[str], series: dict[str, list[float]]) -> None:
    """Grouped bars: one cluster a group, one colour a series."""
    width = 0.8 / len(series)
    for i, (label, values) in enumerate(series.items()):
        places = [x + (i - (len(series) - 1) / 2) * width for x in range(len(groups))]
        axes.bar(places, values, width, label=label)
    axes.set_xticks(range(len(groups)), groups)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(fontsize="small")


def _draw_wikimel(axes: Axes, result: WikimelResult) -> None:
    cuts = tuple(next(iter(result.splits.values())).hits)
    series = {split: [*r.hits.values(), r.mrr] for split, r in result.splits.items()}
    _bars(axes, [*(f"H@{k}" for k in cuts), "MRR"], series)
    axes.set(title="WikiMEL", ylabel="fraction of mentions", ylim=(0, 1.05))


def _draw_demo(axes: Axes, result: DemoResult) -> None:
    series = {m: [rankings[m].hits[1] for rankings in result.sets.values()] for m in MODALITIES}
    _bars(axes, list(result.sets), series)
    axes.set(title="Demo, H@1 on unseen drawing styles", ylabel="fraction of mentions", ylim=(0, 1.05))


def _draw_scan(axes: Axes, result: ScanResult) -> None:
    groups = list(dict.fromkeys((r.n, r.b) for r in result.rows))
    speeds = {(_scan_label(r), r.n, r.b): r.pairs_per_s for r in result.rows}
    series = {
        label: [speeds.get((label, n, b), float("nan")) for n, b in groups]
        for label in dict.fromkeys(_scan_label(r) for r in result.rows)
    }
    for label, values in series.items():
        axes.plot(range(len(groups)), values, "o--", label=label)
    axes.set_xticks(range(len(groups)), [f"N = {n:,}\nB = {b}" for n, b in groups])
    axes.grid(axis="y", alpha=0.3, which="both")
    axes.legend(fontsize="small")
    axes.set(title="Scan on the CPU", ylabel="pairs a second", yscale="log")


def _draw_timings(axes: Axes, timings: Sequence[Timing]) -> None:
    places = range(len(timings))  # not the names: two files may share some
    axes.plot([1e3 * t.median_s for t in timings], places, "o")
    axes.set_yticks(places, [t.name for t in timings])
    axes.invert_yaxis()
    axes.grid(alpha=0.3, which="both")
    axes.set(title="Timings", xlabel="median ms", xscale="log")


Panel = WikimelResult | DemoResult | ScanResult | LoadResult | tuple[Timing, ...]


def _panels(results: Results) -> list[Panel]:
    """Results that have a plot."""
    loads = [result for result in results.service if isinstance(result, LoadResult)]
    return [p for p in (results.wikimel, results.demo, results.scan, *loads, results.timings) if p]


def to_png(results: Results) -> bytes:
    """The plot, one panel a result.

    Raises
    ------
    MissingDependencyError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "the plot needs matplotlib: pip install 'mimic-engine[train]'"
        ) from error
    present = _panels(results)
    figure = Figure(figsize=(9, 4.2 * len(present)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(len(present), squeeze=False)[:, 0], present, strict=True):
        match panel:
            case WikimelResult():
                _draw_wikimel(axes, panel)
            case DemoResult():
                _draw_demo(axes, panel)
            case ScanResult():
                _draw_scan(axes, panel)
            case LoadResult():
                draw_load(axes, panel)
            case _:
                _draw_timings(axes, panel)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def write_report(results: Results, out: Path) -> tuple[Path, Path]:
    """Write ``report.md`` and ``report.png`` into the folder ``out``; returns both paths.

    Raises
    ------
    DataError
        If there is nothing to plot.
    """
    if not _panels(results):
        raise DataError("results: none was asked for and there is no pytest-benchmark file")
    page, plot = out / "report.md", out / "report.png"
    write_atomic(plot, to_png(results))
    write_atomic(page, to_markdown(results, plot.name))
    return page, plot


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("results", type=Path, nargs="?", default=RESULTS, help="folder of result files")
    parser.add_argument("--out", type=Path, required=True, help="folder for report.md and report.png")
    parser.add_argument(
        "--only",
        nargs="*",
        choices=KNOWN,
        default=KNOWN,
        help="result files to show, each must be there (default: all); pytest-benchmark files always are",
    )
    args = parser.parse_args(argv)
    try:
        for path in write_report(read_results(args.results, args.only), args.out):
            print(path)
    except MimicError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
