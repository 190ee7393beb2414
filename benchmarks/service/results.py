"""Result files of the service (load, overload, soak, overhead): read, as tables, and plotted.

Each is shown where it is there. What they hold is made by the modules of the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.report.markdown import source, table
from benchmarks.report.result_files import Provenance, Reader, open_result, read_provenance

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True)
class LoadRow:
    """An open loop at one rate; a percentile is None where no answer came."""

    rate_per_s: float
    throughput_per_s: float
    accepted: int
    rejected: int
    expired: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    queue_share: float | None
    generator_late_p99_ms: float


@dataclass(frozen=True, slots=True)
class LoadResult:
    """``load.json``: rows by rate, up to saturation."""

    provenance: Provenance
    input: str
    peak_per_s: float
    rows: tuple[LoadRow, ...]


@dataclass(frozen=True, slots=True)
class OverloadResult:
    """``overload.json``: what a multiple of the peak does."""

    provenance: Provenance
    times: float
    peak_per_s: float
    throughput_share: float
    accepted_p99_ms: float
    rejected_p99_ms: float
    memory_growth_bytes: float


@dataclass(frozen=True, slots=True)
class SoakResult:
    """``soak.json``: a steady load for long."""

    provenance: Provenance
    seconds: float
    rate_per_s: float
    requests: int
    errors: int
    changes: Mapping[str, int]
    memory_first_bytes: float
    memory_growth_share: float


@dataclass(frozen=True, slots=True)
class Overhead:
    """Milliseconds of ``Linker.link`` and of ``/v1/link`` for one kind of input."""

    rounds: int
    link_ms: float
    http_ms: float
    decode_ms: float
    difference_ms: float
    ratio: float


@dataclass(frozen=True, slots=True)
class OverheadResult:
    """``overhead.json``: for text, and for a JPEG of some 80 KB."""

    provenance: Provenance
    inputs: Mapping[str, Overhead]


ServiceResult = LoadResult | OverloadResult | SoakResult | OverheadResult


def _load_row(reader: Reader) -> LoadRow:
    return LoadRow(
        rate_per_s=reader.number("rate_per_s"),
        throughput_per_s=reader.number("throughput_per_s"),
        accepted=reader.integer("accepted"),
        rejected=reader.integer("rejected"),
        expired=reader.integer("expired"),
        p50_ms=reader.number_or_none("p50_ms"),
        p95_ms=reader.number_or_none("p95_ms"),
        p99_ms=reader.number_or_none("p99_ms"),
        queue_share=reader.number_or_none("queue_share"),
        generator_late_p99_ms=reader.number("generator_late_p99_ms"),
    )


def _load(reader: Reader) -> LoadResult:
    rows = tuple(_load_row(row) for row in reader.children("rows"))
    if not rows:
        raise reader.fail("rows", "must hold at least 1 row, got 0")
    return LoadResult(read_provenance(reader), reader.string("input"), reader.number("peak_per_s"), rows)


def _overload(reader: Reader) -> OverloadResult:
    return OverloadResult(
        read_provenance(reader),
        times=reader.number("times"),
        peak_per_s=reader.number("peak_per_s"),
        throughput_share=reader.number("throughput_share"),
        accepted_p99_ms=reader.number("accepted_p99_ms"),
        rejected_p99_ms=reader.number("rejected_p99_ms"),
        memory_growth_bytes=reader.number("memory_after_bytes") - reader.number("memory_before_bytes"),
    )


def _soak(reader: Reader) -> SoakResult:
    changes = reader.child("changes")
    return SoakResult(
        read_provenance(reader),
        seconds=reader.number("seconds"),
        rate_per_s=reader.number("rate_per_s"),
        requests=reader.integer("requests", 1),
        errors=reader.integer("errors"),
        changes={name: changes.integer(name) for name in ("upserts", "deletes", "reloads")},
        memory_first_bytes=reader.number("memory_first_bytes"),
        memory_growth_share=reader.number("memory_growth_share", low=-1.0),
    )


def _overhead_input(reader: Reader) -> Overhead:
    return Overhead(
        rounds=reader.integer("rounds", 1),
        link_ms=reader.number("link_ms"),
        http_ms=reader.number("http_ms"),
        decode_ms=reader.number("decode_ms"),
        difference_ms=reader.number("difference_ms", low=float("-inf")),
        ratio=reader.number("ratio"),
    )


def _overhead(reader: Reader) -> OverheadResult:
    inputs = {name: _overhead_input(reader.child(name)) for name in ("text", "jpeg")}
    return OverheadResult(read_provenance(reader), inputs)


_READERS: Mapping[str, Callable[[Reader], ServiceResult]] = {
    "load": _load,
    "overload": _overload,
    "soak": _soak,
    "overhead": _overhead,
}
SERVICE = tuple(_READERS)


def read_service(folder: Path) -> tuple[ServiceResult, ...]:
    """Read the files of the service that a folder holds; DataError if one is damaged or lacks a key."""
    files = {name: folder / f"{name}.json" for name in SERVICE}
    return tuple(_READERS[name](open_result(file)) for name, file in files.items() if file.exists())


def service_lines(result: ServiceResult) -> list[str]:
    """The section of one result, in Markdown."""
    match result:
        case LoadResult():
            title, lines = f"Service under load, {result.input}", _load_table(result)
        case OverloadResult():
            title, lines = f"Service at {result.times:g} times its capacity", _overload_table(result)
        case SoakResult():
            title, lines = "Service for long", _soak_table(result)
        case OverheadResult():
            title, lines = "What HTTP adds", _overhead_table(result)
    return [f"## {title}", "", *lines, *source(result.provenance)]


def _load_table(result: LoadResult) -> list[str]:
    rows = [
        [
            f"{r.rate_per_s:,.1f}",
            f"{r.throughput_per_s:,.1f}",
            *(f"{n:,}" for n in (r.accepted, r.rejected, r.expired)),
            *("-" if p is None else f"{p:,.1f}" for p in (r.p50_ms, r.p95_ms, r.p99_ms)),
            "-" if r.queue_share is None else f"{r.queue_share:.0%}",
            f"{r.generator_late_p99_ms:,.1f}",
        ]
        for r in result.rows
    ]
    head = ["requests/s", "answers/s", "accepted", "rejected", "expired"]
    head += ["p50 ms", "p95 ms", "p99 ms", "time in queue", "generator late, p99 ms"]
    return [*table(head, rows), f"Best throughput: {result.peak_per_s:,.1f} answers a second.", ""]


def _overload_table(result: OverloadResult) -> list[str]:
    head = [
        "peak, answers/s",
        "throughput of the peak",
        "accepted p99 ms",
        "rejected p99 ms",
        "memory grown, MB",
    ]
    row = [
        f"{result.peak_per_s:,.1f}",
        f"{result.throughput_share:.1%}",
        f"{result.accepted_p99_ms:,.1f}",
        f"{result.rejected_p99_ms:,.1f}",
        f"{result.memory_growth_bytes / 1e6:,.1f}",
    ]
    return table(head, [row])


def _soak_table(result: SoakResult) -> list[str]:
    head = [
        "minutes",
        "requests/s",
        "requests",
        "errors",
        "upserts",
        "deletes",
        "reloads",
        "memory MB",
        "grown",
    ]
    row = [
        f"{result.seconds / 60:,.1f}",
        f"{result.rate_per_s:,.1f}",
        f"{result.requests:,}",
        f"{result.errors:,}",
        *(f"{n:,}" for n in result.changes.values()),
        f"{result.memory_first_bytes / 1e6:,.0f}",
        f"{result.memory_growth_share:.1%}",
    ]
    return table(head, [row])


def _overhead_table(result: OverheadResult) -> list[str]:
    head = [
        "input",
        "Linker.link ms",
        "/v1/link ms",
        "of it decoding",
        "difference ms",
        "ratio without decoding",
        "rounds",
    ]
    rows = [
        [
            name,
            *(f"{ms:,.2f}" for ms in (o.link_ms, o.http_ms, o.decode_ms, o.difference_ms)),
            f"{o.ratio:.3f}",
            f"{o.rounds:,}",
        ]
        for name, o in result.inputs.items()
    ]
    return table(head, rows)


def draw_load(axes: Axes, result: LoadResult) -> None:
    """Latency against rate."""
    for name in ("p50", "p95", "p99"):
        points = [(r.rate_per_s, getattr(r, f"{name}_ms")) for r in result.rows]
        points = [(rate, ms) for rate, ms in points if ms is not None]
        axes.plot(*zip(*points, strict=True), "o-", label=name)
    axes.axvline(result.peak_per_s, color="grey", linestyle=":", label="best throughput")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small")
    axes.set(
        title=f"Service under load, {result.input}", xlabel="requests a second", ylabel="ms", yscale="log"
    )
