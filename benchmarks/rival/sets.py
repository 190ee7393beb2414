"""Data sets as the rival is held against them: what is tested, and what weights may be tuned on.

Three sets in MIMIC's format, the demo, and any data set of own records. The descriptions of WikiDiverse
are blanked unless asked for: every entity there that is never an answer has one and few answers do, so that
a description says that its entity is not meant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mimic_engine.data.source import Dataset, open_dataset
from mimic_engine.demo import DemoData
from mimic_engine.errors import DataError
from mimic_engine.types import Entity, LabelledMention

BLANKED = ("WikiDiverse",)
TUNED = 1000  # mentions that weights are tuned on, at most


@dataclass(frozen=True, slots=True)
class RivalSet:
    """A knowledge base, the splits that are tested, and mentions to tune on.

    ``dev`` tunes for other sets, ``own`` for this one: they are the same where dev is not itself tested.
    ``own_split`` names where ``own`` is from; None where there is nothing but what is tested.
    """

    name: str
    entities: tuple[Entity, ...]
    tested: Mapping[str, tuple[LabelledMention, ...]]
    dev: tuple[LabelledMention, ...]
    own: tuple[LabelledMention, ...]
    own_split: str | None
    blanked: bool = False


def rival_set(data: Dataset, name: str, limit: int | None, *, blank: bool | None = None) -> RivalSet:
    """A data set that was read: its test split is tested, or else its dev split.

    Parameters
    ----------
    data : with all its splits.
    name : how rows call it.
    limit : mentions of a split; all by default, and never more than ``TUNED`` to tune on.
    blank : leave out every entity's description; by default of the sets in ``BLANKED``.

    Raises
    ------
    DataError
        If it has neither a test nor a dev split.
    """
    blanked = name in BLANKED if blank is None else blank
    splits = data.splits
    tested = next((s for s in ("test", "dev") if s in splits), None)
    if tested is None:
        raise DataError(f"data set {data.path}: a test or dev split is needed, found {sorted(splits)}")
    own = next((s for s in ("dev", "train") if s in splits and s != tested), None)
    return RivalSet(
        name,
        without_descriptions(data.entities) if blanked else data.entities,
        {tested: sample(splits[tested], limit)},
        _to_tune(splits.get("dev", ()), limit),
        _to_tune(splits[own], limit) if own else (),
        own,
        blanked,
    )


def open_set(folder: Path, name: str, limit: int | None, *, blank: bool | None = None) -> RivalSet:
    """The data set of a folder, of either format; parameters and errors as of both steps."""
    return rival_set(open_dataset(folder), name, limit, blank=blank)


def demo_set(demo: DemoData, limit: int | None) -> RivalSet:
    """The demo: styles of drawing that are in no other split, and the hand-checked challenge."""
    dev = _to_tune(demo.mentions["dev"], limit)
    tested = {"test": sample(demo.mentions["test"], limit), "challenge": sample(demo.challenge, limit)}
    return RivalSet("demo", demo.entities, tested, dev, dev, "dev")


def without_descriptions(entities: Sequence[Entity]) -> tuple[Entity, ...]:
    """The entities with empty descriptions."""
    return tuple(replace(entity, description="") for entity in entities)


def sample(mentions: Sequence[LabelledMention], limit: int | None) -> tuple[LabelledMention, ...]:
    """As many mentions, from all over the split; all of them by default."""
    if limit is None or limit >= len(mentions):
        return tuple(mentions)
    return tuple(mentions[i * len(mentions) // limit] for i in range(limit))


def _to_tune(mentions: Sequence[LabelledMention], limit: int | None) -> tuple[LabelledMention, ...]:
    return sample(mentions, min(limit or TUNED, TUNED))
