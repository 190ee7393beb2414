"""Results of single runs, as they lie in the run folders: written whole or not at all, and read back.

``result.json`` is there when a run is finished, ``test.json`` when its best
model has been evaluated on test, ``probe-NAME.json`` when a probe was asked
about it. None is ever made twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mimic_engine.errors import DataError
from mimic_engine.files import decode, read_object, write_atomic

RESULT, TEST = "result.json", "test.json"
Status = Literal["done", "diverged"]


def probe_file(name: str) -> str:
    """Name of the file with a probe's answer."""
    return f"probe-{name}.json"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object to ``path``, atomically."""
    text = json.dumps(content, indent=1, allow_nan=False)
    write_atomic(path, f"{text}\n")


@dataclass(frozen=True, slots=True)
class RunResult:
    """A finished run. ``dev``, ``cost``: of runs that are done; ``message``: of those that diverged."""

    seed: int
    status: Status
    message: str | None
    dev: Mapping[str, float] | None  # metrics of the best model
    train_seconds: float
    steps: int
    epochs: int
    curve: list[dict[str, float]]  # the log, one row an epoch
    cost: Mapping[str, Any] | None
    commit: str | None  # of the code that made it


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished run; its metrics on test, where test has been read, and what probes say of it."""

    run: RunResult
    test: Mapping[str, float] | None
    probes: Mapping[str, Mapping[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """As in the result file of the experiment."""
        out = asdict(self.run)
        if self.run.message is None:
            del out["message"]
        return out | {"test": self.test, "probes": dict(self.probes)}


def read_outcome(folder: Path, probes: Sequence[str]) -> Outcome | None:
    """The outcome in a run folder, with the answers of the named probes; None where the run is not finished.

    Raises
    ------
    DataError
        If a file is not such a result.
    """
    content = _read(folder / RESULT)
    if content is None:
        return None
    run = decode(content, RunResult, folder / RESULT, DataError)
    answers = {name: _read(folder / probe_file(name)) for name in probes}
    return Outcome(run, _read(folder / TEST), {n: a for n, a in answers.items() if a is not None})


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return read_object(path, DataError)
    except FileNotFoundError:
        return None
