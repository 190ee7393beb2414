"""Store of single runs: a folder for each identity and seed; experiments share the runs they have in common.

The identity of a run hashes everything that decides its result: the records of
the data, the encoders' weights, what it is trained on, and the options that
differ from the defaults. A change of any of these makes another run beside the
old one; nothing is ever mixed. ``run.json`` in the folder says what was hashed.
The code is not in it: ``result.json`` names the commit that made it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimic_engine.files import write_atomic

IDENTITY = "run.json"
NAME_DIGITS = 16


@dataclass(frozen=True, slots=True)
class RunStore:
    """Run folders of one data set and one pair of encoders.

    Parameters
    ----------
    root : the folder they lie in.
    made_from : SHA-256 of the encoders' weights, by side.
    data : SHA-256 of the records that a run reads, by what it is trained on.
    """

    root: Path
    made_from: Mapping[str, str]
    data: Mapping[str, Mapping[str, str]]

    def folder(self, options: Mapping[str, Any], train_on: str, seed: int) -> Path:
        """The folder of a run; ``options`` are those that are not the defaults and decide results."""
        return self.root / _digest(self._identity(options, train_on)) / str(seed)

    def describe(self, options: Mapping[str, Any], train_on: str) -> None:
        """Write what a run is beside its seeds, for people."""
        identity = self._identity(options, train_on)
        write_atomic(
            self.root / _digest(identity) / IDENTITY, json.dumps(identity, indent=1, sort_keys=True) + "\n"
        )

    def _identity(self, options: Mapping[str, Any], train_on: str) -> dict[str, Any]:
        return {
            "options": dict(options),
            "train_on": train_on,
            "data": dict(self.data[train_on]),
            **self.made_from,
        }


def _digest(identity: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:NAME_DIGITS]
