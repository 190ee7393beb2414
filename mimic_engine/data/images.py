"""The images that records name: missing ones are counted, broken ones stop the run or are counted.

Missing means that a record names a file that is not there; broken, that the
file is there and cannot be used. The first is seen when records are read, the
second only when the image is decoded. Nothing here opens an image itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mimic_engine.errors import DataError, ImageError, InvalidInputError, TooLargeError
from mimic_engine.images import ImagePreprocessor
from mimic_engine.types import Array, ImageSource

BrokenPolicy = Literal["error", "as-missing"]


@dataclass(slots=True)
class ReadCounts:
    """Counts of what a reader has passed so far; a reader adds to it as its records are drawn."""

    records: int = 0  # given out
    with_image: int = 0  # records with at least one image on disk
    missing_images: int = 0  # image files that are named and not there
    nil_skipped: int = 0  # mentions without an entity in the knowledge base

    def add(self, images: Iterable[Path]) -> tuple[Path, ...]:
        """Count one record that names these files; return those that are there, in order."""
        named = tuple(images)
        there = tuple(path for path in named if path.is_file())
        self.records += 1
        self.with_image += bool(there)
        self.missing_images += len(named) - len(there)
        return there


@dataclass(frozen=True, slots=True)
class BrokenImage:
    """An image that could not be used: whose it is, which file, and why."""

    owner: str
    source: str
    reason: str


class BrokenImages:
    """Loads images under one policy for broken ones; owned by whoever decodes images of a data set.

    Parameters
    ----------
    policy : ``"error"`` stops at the first broken image, ``"as-missing"`` takes it for a
        missing one and lists it in :attr:`found`.
    """

    def __init__(self, policy: BrokenPolicy = "error") -> None:
        if policy not in ("error", "as-missing"):
            raise InvalidInputError(
                f"broken images: {policy!r} is not one of 'error', 'as-missing'", field="broken_images"
            )
        self.policy = policy
        self.found: list[BrokenImage] = []

    def load(self, images: ImagePreprocessor, source: ImageSource | None, owner: str) -> Array | None:
        """Pixels (3, S, S) of an image, or None where there is none (or a broken one under ``as-missing``).

        Parameters
        ----------
        images : decodes and normalises.
        source : file or bytes; None for no image.
        owner : names the record in messages, as in ``"entity 'Q42'"``.

        Raises
        ------
        DataError
            If the image is broken and the policy is ``"error"``; names file and owner.
        """
        if source is None:
            return None
        try:
            return images(source, field=f"image of {owner}")
        except (ImageError, TooLargeError) as error:
            name = f"{len(source)} bytes" if isinstance(source, bytes) else str(source)
            if self.policy == "error":
                raise DataError(
                    f"broken image {name}: {error}; --broken-images=as-missing takes such images for missing"
                ) from error
            self.found.append(BrokenImage(owner, name, str(error)))
            return None
