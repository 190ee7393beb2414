"""What the runs of an output folder were made from: a later start with anything else is refused.

``experiment.json`` in the folder holds hashes of the data and of the encoders,
and the options of every configuration. More seeds or more configurations may be
added; what was run may not change. Titles, probes and the baseline are free.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mimic_engine.errors import DataError, InvalidInputError
from mimic_engine.record import replace_file
from mimic_engine.train.config import TrainConfig

FILE = "experiment.json"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Ledger:
    """Hashes and options that decide the results of an output folder."""

    experiment: str
    data: Mapping[str, str]  # what -> SHA-256
    configurations: Mapping[str, Mapping[str, Any]]  # name -> options, and what it is trained on

    def enter(self, out: Path) -> None:
        """Write to the folder, after checking it against what is there.

        Raises
        ------
        InvalidInputError
            If the folder holds runs of another experiment, of other data, or of configurations that
            have changed or are no longer declared; says what changed.
        DataError
            If what is there cannot be read.
        """
        path = out / FILE
        try:
            content = json.loads(path.read_text("utf-8"))
            before = Ledger(content["experiment"], content["data"], content["configurations"])
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: cannot be read ({error!r})") from error
        else:
            if changes := list(self._changes(before)):
                raise InvalidInputError(
                    f"--out: {out} holds runs made with something else: {'; '.join(changes)}. "
                    "Give another folder, or undo the change"
                )
        replace_file(path, (json.dumps({"version": VERSION, **asdict(self)}, indent=1) + "\n").encode())

    def _changes(self, before: Ledger) -> list[str]:
        if before.experiment != self.experiment:
            return [f"experiment {before.experiment!r}, not {self.experiment!r}"]
        found = []
        for what in {**before.data, **self.data}:
            old, new = before.data.get(what, "none")[:12], self.data.get(what, "none")[:12]
            if before.data.get(what) != self.data.get(what):
                found.append(f"{what} (hash {old} before, {new} now)")
        for name, options in before.configurations.items():
            if name not in self.configurations:
                found.append(f"configuration {name!r} is no longer declared")
            else:
                found += _changed_options(name, options, self.configurations[name])
        return found


def _changed_options(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Options that differ; one that came later had its default before."""
    before = {f.name: f.default for f in fields(TrainConfig) if f.name in now} | dict(before)
    return [
        f"configuration {name!r}: {option} was {before.get(option)!r}, is {now.get(option)!r}"
        for option in {**before, **now}
        if before.get(option) != now.get(option)
    ]
