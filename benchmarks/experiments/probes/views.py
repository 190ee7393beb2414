"""Views of a run: its mentions with other images than their own: treated, another entity's, or none.

Each view is an encoder of the run's model over a changed corpus. Treated images go through the same
preprocessing and feature cache as any other, so that frozen encoders see each of them once, however many
runs and mentions share it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from PIL import Image

from benchmarks.experiments.probes.base import Rows
from benchmarks.experiments.probes.treatments import Treatment, apply
from benchmarks.experiments.trained import TrainedRun
from mimic_engine.errors import ImageError, TooLargeError
from mimic_engine.images import decode_image
from mimic_engine.train.corpus import Corpus, image_sources
from mimic_engine.train.encode import RecordEncoder


def decode_images(run: TrainedRun, records: Rows) -> dict[int, Image.Image]:
    """Each distinct image of some records by its number, S x S RGB; broken ones as the run's options say.

    Raises
    ------
    ImageError, TooLargeError
        If an image is broken and the run does not take such images for missing.
    """
    corpus, side = run.encode.corpus, run.encode.model.config.image.size
    decoded = {}
    for number in np.unique(corpus.image[records]).tolist():
        try:
            source = image_sources(corpus.images[number - 1])[0]  # a mention's image is no album
            image = decode_image(source, field=f"image of {corpus.owners[number - 1]}")
        except (ImageError, TooLargeError):
            if run.config.broken_images == "error":
                raise
            continue
        decoded[number] = image.resize((side, side), Image.Resampling.LANCZOS)
    return decoded


def treated(
    run: TrainedRun,
    records: Rows,
    decoded: Mapping[int, Image.Image],
    name: str,
    treatment: Treatment,
    seed: int,
) -> RecordEncoder:
    """Show ``records`` with their images treated, and every other record without one.

    Parameters
    ----------
    records : mentions that have an image in ``decoded``.
    decoded : images by number.
    name : of the treatment, for messages.
    treatment, seed : what is done to each image.
    """
    corpus, side = run.encode.corpus, run.encode.model.config.image.size
    numbers, where = np.unique(corpus.image[records], return_inverse=True)
    image = np.zeros_like(corpus.image)
    image[records] = where + 1
    changed = replace(
        corpus,
        images=tuple(apply(treatment, decoded[n], side, seed) for n in numbers.tolist()),
        owners=tuple(f"{corpus.owners[n - 1]}, {name}" for n in numbers.tolist()),
        image=image,
    )
    view, config = run.encode.over(changed), run.config
    folder = config.cache or config.out / "cache"
    view.fill_caches(folder, dtype=config.cache_dtype, batch_size=config.encode_batch, progress=False)
    return view


def with_numbers(run: TrainedRun, records: Rows, numbers: Rows | int) -> RecordEncoder:
    """Show ``records`` with the corpus's images of these numbers, (R,) or one for all; 0 is none."""
    corpus = run.encode.corpus
    image = corpus.image.copy()
    image[records] = numbers
    return run.encode.over(replace(corpus, image=image))


def without_images(run: TrainedRun) -> RecordEncoder:
    """Show every record, entities too, without an image."""
    return with_numbers(run, np.arange(len(run.encode.corpus.image)), 0)


def others_images(corpus: Corpus, records: Rows, gold: Rows, seed: int) -> Rows | None:
    """Draw for each of M mentions the image of a wrong entity.

    Returns
    -------
    (M,) image numbers, none of them the mention's own or the gold entity's; None where the entities have
    too few images for that.
    """
    draw = np.random.default_rng(seed)
    entities = corpus.image[corpus.entities]  # (N,)
    there = np.unique(entities[entities > 0])
    drawn = []
    for own, right in zip(corpus.image[records], entities[gold], strict=True):
        options = there[(there != own) & (there != right)]
        if not len(options):
            return None
        drawn.append(draw.choice(options))
    return np.array(drawn, np.int64)
