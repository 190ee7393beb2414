"""Results of single runs, as they lie in the run folders: written whole or not at all, and read back.

``result.json`` is there when a run is finished, ``test.json`` when its best
model has been evaluated on test. Neither is ever made twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from mimic_engine.errors import DataError
from mimic_engine.record import replace_file

RESULT, TEST = "result.json", "test.json"
Status = Literal["done", "diverged"]


@dataclass(frozen=True, slots=True)
class _Stored:
    def write(self, path: Path) -> None:
        """Write to ``path``, atomically."""
        text = json.dumps(asdict(self), indent=1, allow_nan=False)
        replace_file(path, f"{text}\n".encode())

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Read what :meth:`write` wrote; None where there is no file.

        Raises
        ------
        DataError
            If the file is not such a result.
        """
        try:
            return cls(**json.loads(path.read_text("utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{path}: not the result of a run: {error}") from error


@dataclass(frozen=True, slots=True)
class RunResult(_Stored):
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


@dataclass(frozen=True, slots=True)
class Reading(_Stored):
    """What a run's best model does on test, and what the probes say of it."""

    test: Mapping[str, float]
    probes: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished run of a configuration, and its test result where test has been read."""

    run: RunResult
    test: Reading | None

    def to_json(self) -> dict[str, Any]:
        """As in the result file of the experiment."""
        out = asdict(self.run)
        if self.run.message is None:
            del out["message"]
        out["test"] = None if self.test is None else dict(self.test.test)
        out["probes"] = {} if self.test is None else dict(self.test.probes)
        return out


def read_outcome(folder: Path) -> Outcome | None:
    """The outcome in a run folder; None where the run is not finished."""
    run = RunResult.read(folder / RESULT)
    return None if run is None else Outcome(run, Reading.read(folder / TEST))
