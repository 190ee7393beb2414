"""Everything fitted to a model's scores, kept beside it as ``calibration.json``; ``Linker.open`` reads it.

It belongs to a model and to a kind of knowledge base: ``mimic-engine calibrate`` fits it to labelled
mentions. A model without the file is the model and nothing else: names and prior weigh 0, no candidate has a
probability, and no answer is "none of these".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from mimic_engine.calibration.nil import NilThreshold
from mimic_engine.calibration.weights import Probability, ScoreWeights
from mimic_engine.errors import ModelError
from mimic_engine.files import Natural, Share, read_versioned, write_versioned

FILE = "calibration.json"
FORMAT = "mimic-calibration"
VERSION = 1
_BEFORE = "nil.json"  # what held the nil threshold alone


@dataclass(frozen=True, slots=True)
class Fit:
    """How well a calibration does on mentions that it was not fitted to, by cross-validation.

    ``hits_at_1`` is the share of mentions whose answer is ranked first, ``hits_at_1_without_names`` the same
    by the model alone, ``calibration_error`` the expected calibration error of the first one's probability;
    all over ``mentions``, of which ``nil`` have no right entity.
    """

    mentions: Natural
    nil: Natural
    entities: Natural
    hits_at_1: Share
    hits_at_1_without_names: Share
    calibration_error: Share


@dataclass(frozen=True, slots=True)
class Calibration:
    """Weights of names and prior, the scale of probabilities, and a nil threshold; the last two may lack.

    All are in units of the model's score; ``probability`` and ``nil`` are for totals with these weights.
    """

    model_hash: str
    weights: ScoreWeights = field(default_factory=ScoreWeights)
    probability: Probability | None = None
    nil: NilThreshold | None = None
    fit: Fit | None = None

    def write(self, model: Path) -> None:
        """Store with the model, whole or not at all."""
        write_versioned(model / FILE, self, format=FORMAT, version=VERSION)

    @classmethod
    def read(cls, model: Path, model_hash: str) -> Self:
        """Read what was stored with the model; one that weighs nothing where nothing was.

        Raises
        ------
        ModelError
            If the file is damaged, of another version, or belongs to another model.
        """
        path = model / FILE
        try:
            stored = read_versioned(path, cls, format=FORMAT, version=VERSION, error=ModelError)
        except FileNotFoundError:
            if (model / _BEFORE).exists():
                raise ModelError(
                    f"{model / _BEFORE}: of an earlier version; delete it and run mimic-engine calibrate"
                ) from None
            return cls(model_hash)
        except ModelError as error:
            raise ModelError(f"{error}; run mimic-engine calibrate") from error
        if stored.model_hash != model_hash:
            raise ModelError(f"{path}: belongs to model {stored.model_hash}, not to {model_hash}")
        return stored
