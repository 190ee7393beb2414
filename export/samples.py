"""Real inputs to judge exported graphs by: mentions and entities with images, preprocessed.

Either read from files (see :mod:`mimic_engine.data.records`) or our own: a
few sentences about everyday things, and a drawing of each thing's colours.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mimic_engine.data.records import read_entities, read_mentions
from mimic_engine.encoding.graph_names import PIXELS, TEXT_INPUTS
from mimic_engine.encoding.manifest import ModelManifest
from mimic_engine.errors import InvalidInputError
from mimic_engine.images import ImagePreprocessor
from mimic_engine.text import TextPreprocessor
from mimic_engine.types import Entity, ImageSource, Mention, TokenBatch

Arrays = dict[str, NDArray[np.generic]]

# Name, what it is, a sentence about it, and the two colours of its drawing.
_THINGS = (
    ("Lighthouse", "tower whose lamp guides ships", "At dusk the lighthouse began to turn.", "white red"),
    ("Harbour", "sheltered water where boats lie", "Fishing boats came back to the harbour.", "navy gray"),
    ("Violin", "small string instrument", "She tuned her violin before the concert.", "brown black"),
    ("Cello", "large string instrument", "A cello answered from the stage.", "maroon tan"),
    ("Bee", "insect that makes honey", "A bee went from flower to flower.", "gold black"),
    ("Wasp", "insect with a sting and a narrow waist", "The wasp circled our lemonade.", "yellow black"),
    ("Glacier", "slow river of ice", "We crossed the glacier on ropes.", "lightblue white"),
    ("Desert", "dry land with little rain", "The caravan entered the desert at night.", "khaki orange"),
    ("Bicycle", "vehicle with two wheels and pedals", "His bicycle had a flat tyre.", "green silver"),
    ("Tram", "rail vehicle in city streets", "The last tram leaves at midnight.", "red silver"),
    ("Teapot", "vessel in which tea is brewed", "Steam rose from the teapot.", "teal white"),
    ("Kettle", "vessel in which water is boiled", "The kettle whistled on the stove.", "silver black"),
    ("Oak", "tree that bears acorns", "Children climbed the old oak.", "darkgreen brown"),
    ("Birch", "tree with white bark", "Snow bent the birch to the ground.", "white darkgreen"),
    ("Telescope", "shows distant things", "Through the telescope we saw rings.", "black navy"),
    ("Microscope", "shows tiny things", "Under the microscope the drop was alive.", "gray black"),
    ("Baker", "person who bakes bread", "The baker opens before dawn.", "wheat white"),
    ("Smith", "person who forges iron", "Sparks flew around the smith.", "black orange"),
    ("Chess", "board game of kings and queens", "They played chess by post for years.", "black white"),
    ("Go (game)", "board game of stones", "A game of Go can last for days.", "burlywood black"),
    ("Comet", "icy body with a tail", "The comet was brightest in March.", "black lightblue"),
    ("Moon", "the satellite of the Earth", "The moon rose behind the hills.", "navy ivory"),
    ("Salmon", "fish that swims upstream", "The salmon leapt over the weir.", "salmon silver"),
    ("Heron", "wading bird with long legs", "A heron stood still in the reeds.", "gray white"),
)  # fmt: skip


@dataclass(frozen=True)
class Side:
    """Preprocessed mentions or entities: inputs of the two encoders, one row each."""

    text: Arrays  # input_ids, attention_mask, token_type_ids (R, L) int64
    image: Arrays  # pixels (R, 3, S, S) float32


@dataclass(frozen=True)
class Sample:
    """Mentions to link against entities."""

    mentions: Side
    entities: Side


def own_records() -> tuple[list[Mention], list[Entity]]:
    """Our own mentions and entities; every fourth mention and every fifth entity is without an image."""
    mentions, entities = [], []
    for i, (name, description, sentence, colours) in enumerate(_THINGS):
        mention = name.removesuffix(" (game)")
        drawing = None if i % 4 == 3 else _drawing(colours, seed=i)
        mentions.append(Mention(mention, sentence, drawing))
        entities.append(
            Entity(name, name, description, () if i % 5 == 4 else (_drawing(colours, seed=1000 + i),))
        )
    return mentions, entities


def read_records(mentions: Path, entities: Path, limit: int) -> tuple[list[Mention], list[Entity]]:
    """The first ``limit`` records of each file; errors as in :mod:`mimic_engine.data.records`."""
    found = [m.mention for m in itertools.islice(read_mentions(mentions), limit)]
    return found, list(itertools.islice(read_entities(entities), limit))


def prepare(
    folder: Path, manifest: ModelManifest, mentions: Sequence[Mention], entities: Sequence[Entity]
) -> Sample:
    """Preprocess with the exported model's own tokenizer and image settings.

    Raises
    ------
    InvalidInputError
        If there are no mentions or no entities, or an image is unusable.
    """
    if not mentions or not entities:
        raise InvalidInputError(
            f"sample: {len(mentions)} mentions and {len(entities)} entities; need one of each"
        )
    text = TextPreprocessor.open(folder / manifest.tokenizer.file, manifest.text)
    images = ImagePreprocessor(manifest.image)
    return Sample(
        _side(text.mentions(mentions), images, [m.image for m in mentions]),
        _side(text.entities(entities), images, [next(iter(e.images), None) for e in entities]),
    )


def _side(tokens: TokenBatch, images: ImagePreprocessor, sources: Sequence[ImageSource | None]) -> Side:
    pixels = [images.missing() if source is None else images(source) for source in sources]
    return Side({name: getattr(tokens, name) for name in TEXT_INPUTS}, {PIXELS: np.stack(pixels)})


def _drawing(colours: str, seed: int) -> bytes:
    """An image of overlapping shapes in two colours, as PNG bytes."""
    ground, ink = colours.split()
    image = Image.new("RGB", (160, 120), ground)
    draw = ImageDraw.Draw(image)
    rng = np.random.default_rng(seed)
    for _ in range(6):
        x, y, width, height = (int(n) for n in rng.integers(5, 80, 4))
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((x, y, x + width, y + height), fill=ink, outline=ground, width=3)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
