"""Plots of what the probes answered: files for each configuration, of its first tested run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.experiments.probes.plots import draw_bad_images, draw_gates, draw_reliability
from benchmarks.experiments.results import Outcome


def draw_probes(outcomes: Mapping[str, Sequence[Outcome]], out: Path, stem: str) -> None:
    """Write ``STEM-CONFIGURATION-KIND.png`` for every configuration that a drawn probe was asked about."""
    for name, runs in outcomes.items():
        asked = [run.probes for run in runs if run.probes]
        for kind, draw, result in _drawings(asked[0] if asked else {}):
            draw(result, out / f"{stem}-{name}-{kind}.png")


def _drawings(probes: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Kind, drawing function and result of each plot that the answers make."""
    if "calibration" in probes:
        yield "reliability", draw_reliability, probes["calibration"]
    bad = probes.get("pictures")
    if bad is not None and bad["conclusive"]:
        yield "pictures", draw_bad_images, bad
        if bad["gate"] is not None:
            yield "gates", draw_gates, bad
