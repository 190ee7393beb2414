"""Pictures that came as bytes, kept beside an index so that people can look at them; the model reads none.

``INDEX/pictures/HEX`` holds the bytes whose sha256 is HEX, the hash by which an entity names a picture
without a file of its own. A build keeps none; whoever changes an index may. Not part of a snapshot: a
picture that is not here is one that cannot be shown, nothing more.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from mimic_engine.index.files import write_atomic

PICTURES = "pictures"
_PREFIX = "sha256:"
_NAME = re.compile(_PREFIX + "([0-9a-f]{64})")


def picture_name(data: bytes) -> str:
    """What an entity calls a picture that was given as bytes."""
    return _PREFIX + hashlib.sha256(data).hexdigest()


def keep_picture(folder: Path, data: bytes) -> None:
    """Keep the bytes; when this returns they are on the disk. Raises ``OSError``."""
    path = folder / PICTURES / picture_name(data).removeprefix(_PREFIX)
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, data)


def picture_path(folder: Path, name: str) -> Path | None:
    """The file of the picture that an entity calls ``name``; None where this machine cannot have one."""
    if not name.startswith(_PREFIX):
        return None if "://" in name else Path(name)
    kept = _NAME.fullmatch(name)
    path = None if kept is None else folder / PICTURES / kept[1]
    return path if path is not None and path.is_file() else None


def drop_pictures(folder: Path, wanted: Iterable[str]) -> None:
    """Remove the kept pictures that nobody calls by one of these names. Raises ``OSError``."""
    kept = {name.removeprefix(_PREFIX) for name in wanted}
    for path in (folder / PICTURES).glob("*"):
        if path.name not in kept:
            path.unlink()
