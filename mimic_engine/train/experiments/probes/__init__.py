"""Probes: what is asked of a trained model beyond its metrics, by the names that experiment files use."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from mimic_engine.train.experiments.probes.answers import answers
from mimic_engine.train.experiments.probes.base import Probe
from mimic_engine.train.experiments.probes.calibration import calibration
from mimic_engine.train.experiments.probes.seen import seen

PROBES: Mapping[str, Probe] = MappingProxyType({"answers": answers, "calibration": calibration, "seen": seen})

__all__ = ["PROBES", "Probe"]
