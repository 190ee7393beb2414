"""Reading result files: JSON into checked, frozen records; every error names the file and the key.

The files are ``wikimel.json``, ``demo.json`` and ``scan_cpu.json`` as
:func:`mimic_engine.provenance.write_result` writes them, and the output of
``pytest --benchmark-json``. Nothing is rendered here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimic_engine.errors import DataError

MODALITIES = ("text", "image", "both")


@dataclass(frozen=True, slots=True)
class Provenance:
    """Command, source, machine and date of a result."""

    command: str
    commit: str | None
    dirty: bool
    cpu: str
    cores: int
    date: str


@dataclass(frozen=True, slots=True)
class Ranking:
    """Ranks of a set of mentions, summed up: fractions in [0, 1], ``mr`` a mean rank from 1."""

    hits: Mapping[int, float]
    mrr: float
    mr: float | None
    mentions: int
    candidates: int | None


@dataclass(frozen=True, slots=True)
class WikimelResult:
    """``wikimel.json``: rankings by split, and the training time."""

    provenance: Provenance
    splits: Mapping[str, Ranking]
    train_seconds: float


@dataclass(frozen=True, slots=True)
class DemoResult:
    """``demo.json``: rankings by set (``test``, ``challenge``) and modality."""

    provenance: Provenance
    sets: Mapping[str, Mapping[str, Ranking]]


@dataclass(frozen=True, slots=True)
class ScanRow:
    """One timed scan; None where nothing was compared. Shares are fractions of mentions or entities."""

    mode: str
    backend: str
    dtype: str
    n: int
    b: int
    pairs_per_s: float
    ms: float
    features: str
    ratio_to_baseline: float | None
    identical_top10: float | None
    survivor_share: float
    agreement_top1: float | None
    top10_contained: float | None


@dataclass(frozen=True, slots=True)
class ScanResult:
    """``scan_cpu.json``: the machine's matrix-product speed and the timed scans."""

    provenance: Provenance
    sgemm_gflops: float
    rows: tuple[ScanRow, ...]


@dataclass(frozen=True, slots=True)
class Timing:
    """One pytest-benchmark entry; seconds a round."""

    name: str
    median_s: float
    min_s: float
    rounds: int
    extra: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Reader:
    """A JSON object inside a file, which knows where it lies; DataError for what is missing or wrong."""

    file: Path
    data: Mapping[str, Any]
    where: str = ""

    def fail(self, key: str, problem: str) -> DataError:
        """The error that names file, key and problem."""
        return DataError(f"{self.file.name}: {self.where}{key}: {problem}")

    def value(self, key: str) -> Any:
        """The value, of any type."""
        if key not in self.data:
            raise self.fail(key, "missing")
        return self.data[key]

    def number(self, key: str, low: float = 0.0, high: float = math.inf) -> float:
        """A finite number in [low, high]."""
        value = self.value(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.fail(key, f"must be a number, got {value!r}")
        if not (math.isfinite(value) and low <= value <= high):
            raise self.fail(key, f"must be a finite number in [{low:g}, {high:g}], got {value!r}")
        return value

    def number_or_none(self, key: str, low: float = 0.0, high: float = math.inf) -> float | None:
        """A number as above, or null."""
        return None if self.value(key) is None else self.number(key, low, high)

    def integer(self, key: str, low: int = 0) -> int:
        """A whole number from ``low`` on."""
        value = self.number(key, low)
        if not isinstance(value, int):
            raise self.fail(key, f"must be a whole number, got {value!r}")
        return value

    def string(self, key: str) -> str:
        """A text."""
        value = self.value(key)
        if not isinstance(value, str):
            raise self.fail(key, f"must be a string, got {value!r}")
        return value

    def child(self, key: str) -> Reader:
        """An object."""
        return self._object(key, self.value(key))

    def children(self, key: str) -> list[Reader]:
        """The objects of a list."""
        value = self.value(key)
        if not isinstance(value, list):
            raise self.fail(key, f"must be a list, got {type(value).__name__}")
        return [self._object(f"{key}[{i}]", item) for i, item in enumerate(value)]

    def _object(self, key: str, value: object) -> Reader:
        if not isinstance(value, dict):
            raise self.fail(key, f"must be an object, got {type(value).__name__}")
        return Reader(self.file, value, f"{self.where}{key}.")


def open_result(file: Path) -> Reader:
    """Open a result file; DataError if it is missing or no JSON object."""
    try:
        data = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{file}: missing; run what makes it, or name the others with --only") from None
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{file}: not JSON: {error}") from error
    if not isinstance(data, dict):
        raise DataError(f"{file}: must hold a JSON object, got {type(data).__name__}")
    return Reader(file, data)


def read_provenance(reader: Reader) -> Provenance:
    """Read the header that every result file starts with."""
    machine = reader.child("machine")
    commit, dirty = reader.value("commit"), reader.value("dirty")
    if commit is not None and not isinstance(commit, str):
        raise reader.fail("commit", f"must be a string or null, got {commit!r}")
    if dirty is not None and not isinstance(dirty, bool):
        raise reader.fail("dirty", f"must be a boolean or null, got {dirty!r}")
    return Provenance(
        command=reader.string("command"),
        commit=commit,
        dirty=bool(dirty),
        cpu=machine.string("cpu"),
        cores=machine.integer("cores", 1),
        date=reader.string("date"),
    )


def _ranking(reader: Reader, hits: tuple[int, ...], *, full: bool) -> Ranking:
    return Ranking(
        hits={k: reader.number(f"hits@{k}", high=1) for k in hits},
        mrr=reader.number("mrr", high=1),
        mr=reader.number("mr", low=1) if full else None,
        mentions=reader.integer("mentions", 1),
        candidates=reader.integer("candidates", 1) if full else None,
    )


def read_wikimel(file: Path) -> WikimelResult:
    """Read ``wikimel.json``; DataError if the file or a key is missing or wrong."""
    reader = open_result(file)
    return WikimelResult(
        provenance=read_provenance(reader),
        splits={s: _ranking(reader.child(s), (1, 3, 5, 10, 20), full=True) for s in ("test", "dev")},
        train_seconds=reader.number("train_seconds"),
    )


def read_demo(file: Path) -> DemoResult:
    """Read ``demo.json``; DataError if the file or a key is missing or wrong."""
    reader = open_result(file)
    return DemoResult(
        provenance=read_provenance(reader),
        sets={
            name: {m: _ranking(reader.child(name).child(m), (1, 3), full=False) for m in MODALITIES}
            for name in ("test", "challenge")
        },
    )


def _scan_row(reader: Reader) -> ScanRow:
    return ScanRow(
        mode=reader.string("mode"),
        backend=reader.string("backend"),
        dtype=reader.string("dtype"),
        n=reader.integer("n", 1),
        b=reader.integer("b", 1),
        pairs_per_s=reader.number("pairs_per_s"),
        ms=reader.number("ms"),
        features=reader.string("features"),
        ratio_to_baseline=reader.number_or_none("ratio_to_baseline"),
        identical_top10=reader.number_or_none("identical_top10", high=1),
        survivor_share=reader.number("survivor_share", high=1),
        agreement_top1=reader.number_or_none("agreement_top1", high=1),
        top10_contained=reader.number_or_none("top10_contained", high=1),
    )


def read_scan(file: Path) -> ScanResult:
    """Read ``scan_cpu.json``; DataError if the file or a key is missing or wrong, or it has no row."""
    reader = open_result(file)
    rows = tuple(_scan_row(row) for row in reader.children("rows"))
    if not rows:
        raise reader.fail("rows", "must hold at least 1 row, got 0")
    return ScanResult(read_provenance(reader), reader.number("sgemm_gflops"), rows)


def read_timings(file: Path) -> tuple[Timing, ...]:
    """Read a pytest-benchmark file; DataError if an entry has no name or statistics."""
    timings = []
    for entry in open_result(file).children("benchmarks"):
        stats = entry.child("stats")
        timings.append(
            Timing(
                name=entry.string("name"),
                median_s=stats.number("median"),
                min_s=stats.number("min"),
                rounds=stats.integer("rounds", 1),
                extra=entry.child("extra_info").data if "extra_info" in entry.data else {},
            )
        )
    return tuple(timings)


def is_timing_file(file: Path) -> bool:
    """Whether a JSON file is pytest-benchmark's output; DataError if it is no JSON object at all."""
    return {"benchmarks", "machine_info"} <= set(open_result(file).data)
