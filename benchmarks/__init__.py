"""Benchmarks of mimic_engine; every one checks the answer that it times."""

from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
