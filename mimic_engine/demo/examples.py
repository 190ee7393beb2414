"""Examples for the page of the demo's service: sentences of our own, with drawings that training never saw.

``examples.json`` holds mention, sentence, drawing and the entity that is meant;
the drawings themselves stay in the demo's cache.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

from mimic_engine.demo.build import IMAGES
from mimic_engine.demo.render import image_path
from mimic_engine.types import LabelledMention, Mention


def load_examples(cache: Path) -> tuple[LabelledMention, ...]:
    """Read the examples; their images lie in the demo's folder ``cache``."""
    text = resources.files(__package__).joinpath("examples.json").read_text(encoding="utf-8")
    return tuple(
        LabelledMention(
            Mention(record["mention"], record["sentence"], _image(cache, record["drawing"])),
            record["answer"],
            id=f"example/{number}",
        )
        for number, record in enumerate(json.loads(text))
    )


def _image(cache: Path, drawing: str | None) -> Path | None:
    return None if drawing is None else image_path(cache / IMAGES, drawing)
