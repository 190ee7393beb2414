"""What the base model is trained on, and how.

Frozen MiniLM and EfficientNet-Lite0, one matcher over all sets together. Published sets are read as they
are, but for WikiDiverse's descriptions, which are left out: every entity that is never an answer has one
there and hardly any answer does, so that a model would learn which entities have one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.rival.sets import BLANKED, without_descriptions
from mimic_engine.base.model import EncoderFiles
from mimic_engine.data.source import Dataset, open_dataset
from mimic_engine.train.config import TrainConfig
from mimic_engine.types import Entity

DEMO = "demo"  # beside the published sets


def recipe(files: EncoderFiles, data: Path, out: Path, cache: Path, seed: int = 0) -> TrainConfig:
    """Options of the training of base model and twins."""
    return TrainConfig(
        data=data,
        out=out,
        encoder="minilm-efficientnet",
        text_source=str(files.minilm),
        image_source=str(files.efficientnet),
        window="mention",
        mask_padding=True,
        names_in_loss=True,
        lr=1e-3,
        eps=1e-6,
        schedule="linear",
        warmup=0.05,
        grad_clip=1.0,
        drop_images=0.1,
        drop_texts=0.1,
        mined_negatives=64,
        epochs=4,
        validate_every=4,
        dev_limit=1000,
        seed=seed,
        cache=cache,
        cache_dtype="float16",
    )


def open_set(name: str, data: Path, demo: Path) -> Dataset:
    """One of the published sets below ``data``, or the demo that was built in ``demo``.

    Errors as of :func:`mimic_engine.data.source.open_dataset`.
    """
    found = open_dataset(demo if name == DEMO else data / name)
    return replace(found, entities=without_descriptions(found.entities)) if name in BLANKED else found


def joined(sets: Sequence[Dataset]) -> Dataset:
    """One data set of several, with splits train and dev.

    Of entities with the same id the first one stays, with the first description that is not empty.
    """
    entities: dict[str, Entity] = {}
    for entity in (e for one in sets for e in one.entities):
        known = entities.setdefault(entity.id, entity)
        if entity.description and not known.description:
            entities[entity.id] = replace(known, description=entity.description)
    splits = {name: tuple(m for one in sets for m in one.splits[name]) for name in ("train", "dev")}
    return replace(sets[0], entities=tuple(entities.values()), splits=splits)
