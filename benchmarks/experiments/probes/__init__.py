"""Probes: what is asked of a trained model beyond its metrics, by the names that experiment files use."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from benchmarks.experiments.probes import answers, bad_images, calibration, seen
from benchmarks.experiments.probes.base import Probe

PROBES: Mapping[str, Probe] = MappingProxyType(
    {
        "answers": answers.answers,
        "calibration": calibration.calibration,
        "pictures": bad_images.bad_images,
        "seen": seen.seen,
    }
)

__all__ = ["PROBES", "Probe"]
