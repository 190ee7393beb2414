"""Small file operations that survive a crash: checksums, fsync, atomic write and publish, a folder's lock.

Nothing here knows what an index is.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mimic_engine.errors import IndexLockedError

_CHUNK_BYTES = 4 << 20
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file, read in chunks (releases the interpreter lock)."""
    digest = hashlib.sha256()
    buffer = bytearray(_CHUNK_BYTES)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while read := file.readinto(buffer):
            digest.update(view[:read])
    return digest.hexdigest()


def fsync_path(path: Path) -> None:
    """Flush a file's data, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes) -> None:
    """Write through a temporary name, fsync, rename: a reader sees the old or the new file, whole."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    fsync_path(path.parent)


class FolderLock:
    """Holds a folder for one owner, in this process or another; the kernel lets go when the process dies.

    Parameters
    ----------
    folder : must exist; nothing is written into it
    busy : message for whoever comes second

    Raises
    ------
    IndexLockedError
        If the folder is held already, or its file system has no locks.
    """

    def __init__(self, folder: Path, busy: str) -> None:
        while True:
            self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(self._descriptor), folder.stat()):
                    return  # and not a folder that was replaced in the meantime
            except BlockingIOError:
                self.release()
                raise IndexLockedError(f"{folder}: {busy}") from None
            except OSError as error:
                self.release()
                raise IndexLockedError(f"{folder}: cannot be locked: {error}") from error
            self.release()

    @property
    def held(self) -> bool:
        """Whether the folder is still held."""
        return self._descriptor >= 0

    def release(self) -> None:
        """Let go; a second time does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def parse_json(data: bytes | bytearray | memoryview) -> Any:
    """Strict JSON: UTF-8, no duplicate keys, no NaN or infinity.

    Raises
    ------
    ValueError
        If the bytes are anything else, nesting too deep to parse included.
    """
    try:
        return json.loads(
            bytes(data).decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant
        )
    except RecursionError:
        raise ValueError("nested too deep") from None


def publish(folder: Path, target: Path) -> None:
    """Rename a finished ``folder`` to ``target``, atomically, replacing a folder that is there.

    Where the platform can exchange two names (Linux), ``target`` is at every
    moment either the old or the new folder. Elsewhere the old folder is first
    renamed aside, and lies beside ``target`` as ``NAME.old-*`` should the
    process die before the second rename.
    """
    if not target.exists():
        folder.rename(target)
        fsync_path(target.parent)
        return
    aside = Path(tempfile.mkdtemp(prefix=f"{target.name}.old-", dir=target.parent))
    if _exchange(folder, target):
        folder.rename(aside)
    else:
        target.rename(aside)
        folder.rename(target)
    fsync_path(target.parent)
    shutil.rmtree(aside)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step; False where the platform or file system cannot."""
    if sys.platform != "linux":
        return False
    rename: Callable[..., int] | None = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    return (
        rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), ctypes.c_uint(_RENAME_EXCHANGE))
        == 0
    )


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return result


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not allowed")
