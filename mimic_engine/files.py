"""Files that survive a crash: written whole or not at all, flushed, hashed, locked; JSON of a known format.

The only module that renames, flushes and locks. It knows no content: what a file
holds, and which error tells of a fault in it, is its caller's.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import logging
import math
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Annotated, Any, Self, TypeVar

import msgspec

from mimic_engine.errors import IndexLockedError, MimicError

T = TypeVar("T")
Natural = Annotated[int, msgspec.Meta(ge=0)]
NonNegative = Annotated[float, msgspec.Meta(ge=0, le=sys.float_info.max)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Text = Annotated[str, msgspec.Meta(min_length=1)]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]

OPTIONAL = {"optional": True}  # metadata of a dataclass field that is not written while it is None
TEMPORARY = ".tmp"  # how the name of a file ends that is being written
LOCK = "lock"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_JSON_LIMIT_BYTES = 64 << 20
_SHOWN = 80  # characters of a value that a message shows
_AT = re.compile(r"(.*?)(?: - at `\$(.*)`)?", re.DOTALL)  # how msgspec says what, and where
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]")

logger = logging.getLogger(__name__)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces (releases the interpreter lock)."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_path(path: Path) -> None:
    """Flush a file's data, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(file: IO[Any]) -> None:
    """Flush what was written to an open file to the disk."""
    file.flush()
    os.fsync(file.fileno())


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing; their names are on the disk afterwards."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        fsync_path(path.parent)


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Write a file whole or not at all: the temporary name to write to, in the folder of ``path``.

    What lies there at the end is flushed and gets the name ``path``; a reader sees
    the old or the new file. After an error the old one is there and the temporary
    one gone; after a kill it is left, see :func:`remove_leftovers`.

    >>> with replace_file(Path("curve.png")) as temporary:  # doctest: +SKIP
    ...     figure.savefig(temporary, format="png")
    """
    _make_folder(path.parent)
    temporary = _unique(path, TEMPORARY)
    try:
        yield temporary
        fsync_path(temporary)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file whole or not at all, see :func:`replace_file`; text as UTF-8."""
    data = content.encode() if isinstance(content, str) else content
    with replace_file(path) as temporary:
        temporary.write_bytes(data)


def create_private(path: Path, content: str) -> None:
    """Write a file for its owner's eyes, whole, unless there is one: of several that try, one does."""
    _make_folder(path.parent)
    temporary = _unique(path, TEMPORARY)
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(content)
            fsync_file(file)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(path.parent)


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Remove what killed writes left in a folder, of files of one name or of all; for its only writer."""
    for path in folder.glob(f"{name}.*{TEMPORARY}"):
        path.unlink(missing_ok=True)


def publish_folder(partial: Path, final: Path) -> None:
    """Flush all that ``partial`` holds and rename it to ``final``, replacing a folder that is there.

    Where the platform can exchange two names (Linux), ``final`` is at every
    moment either the old or the new folder. Elsewhere the old folder is first
    renamed aside, and lies beside ``final`` as ``NAME.old-*`` should the
    process die before the second rename.
    """
    for path in [*partial.rglob("*"), partial]:
        fsync_path(path)
    _make_folder(final.parent)
    aside = _unique(final, ".old-", last=False)
    if not final.exists():
        partial.rename(final)
    elif _exchange(partial, final):
        partial.rename(aside)
    else:
        final.rename(aside)
        partial.rename(final)
    fsync_path(final.parent)
    try:
        if aside.exists():
            shutil.rmtree(aside)
    except OSError as error:
        logger.warning("%s: what %s replaced could not be removed: %s", aside, final.name, error)


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


@contextmanager
def wait_for_folder(folder: Path) -> Iterator[None]:
    """Hold a folder once nobody else does; the kernel lets go when the process dies.

    An empty file ``lock`` stays in it: network file systems lock no folders.
    """
    _make_folder(folder)
    with (folder / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def parse_json(data: bytes | bytearray | memoryview) -> Any:
    """Strict JSON: UTF-8, no duplicate keys, no NaN, infinity or number that becomes one.

    Raises
    ------
    ValueError
        If the bytes are anything else, nesting too deep to parse included.
    """
    try:
        return json.loads(
            bytes(data).decode("utf-8"),
            object_pairs_hook=_unique_keys,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
    except RecursionError:
        raise ValueError("nested too deep") from None


def read_object(path: Path, error: type[MimicError]) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    MimicError
        ``error``, naming the file, if it cannot be read or holds anything else.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_JSON_LIMIT_BYTES + 1)
        if len(raw) > _JSON_LIMIT_BYTES:
            raise ValueError(f"more than {_JSON_LIMIT_BYTES} bytes")
        data = parse_json(raw)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as fault:
        raise error(f"{path}: cannot be read as JSON: {fault}") from fault
    if not isinstance(data, dict):
        raise error(f"{path}: holds no JSON object")
    return data


def read_header(
    path: Path, *, format: str, version: int, error: type[MimicError], remedy: str = ""
) -> dict[str, Any]:
    """Read a JSON object that says which format it has, in which version; both are taken off.

    ``remedy`` says, in the error for another version, what is to be done about it.

    Raises
    ------
    FileNotFoundError, MimicError
        As in :func:`read_object`; ``error`` also for another format or version.
    """
    data = read_object(path, error)
    if (there := data.pop("format", None)) != format:
        raise error(f"{path}: format {there!r}, expected {format!r}")
    if (there := data.pop("version", None)) != version or type(there) is not int:
        remedy = f"; {remedy}" if remedy else ""
        raise error(f"{path}: {format} version {there!r}; this program reads version {version}{remedy}")
    return data


def read_versioned(path: Path, kind: type[T], *, format: str, version: int, error: type[MimicError]) -> T:
    """Read and check what :func:`write_versioned` wrote.

    Parameters
    ----------
    path : the file
    kind : dataclass of its fields, beside ``format`` and ``version``
    format, version : what the file must say of itself
    error : class of every error but a missing file

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    MimicError
        ``error``, naming file, field, limit and value, if it is damaged, of another
        format or version, or its fields are not those of ``kind``.
    """
    return decode(read_header(path, format=format, version=version, error=error), kind, path, error)


def write_versioned(path: Path, value: object, *, format: str, version: int, indent: int | None = 2) -> None:
    """Write a dataclass as JSON that says its format and version; whole or not at all."""
    content = {"format": format, "version": version, **_plain(value)}
    text = json.dumps(content, indent=indent, allow_nan=False, default=_plain)
    write_atomic(path, text + ("\n" if indent else ""))


def decode(data: Any, kind: type[T], where: object, error: type[MimicError]) -> T:
    """JSON values as a dataclass, every field checked; unknown ones are refused.

    Raises
    ------
    MimicError
        ``error``, naming ``where``, field, limit and value.
    """
    try:
        value = msgspec.convert(data, kind)
        _refuse_unknown(data, value, "")
    except msgspec.ValidationError as fault:
        raise error(f"{where}: {_described(str(fault), data)}") from fault
    except (ValueError, MimicError) as fault:
        raise error(f"{where}: {fault}") from fault
    return value


def _unique(path: Path, ending: str, *, last: bool = True) -> Path:
    """A name beside ``path`` that nobody else makes."""
    token = secrets.token_hex(4)
    return path.with_name(f"{path.name}.{token}{ending}" if last else f"{path.name}{ending}{token}")


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


def _finite(number: str) -> float:
    if not math.isfinite(value := float(number)):
        raise ValueError(f"{number} is out of range")
    return value


def _plain(value: object) -> dict[str, Any]:
    if is_dataclass(value):
        content = {f.name: getattr(value, f.name) for f in fields(value)}
        left_out = {f.name for f in fields(value) if OPTIONAL.items() <= f.metadata.items()}
        return {name: part for name, part in content.items() if part is not None or name not in left_out}
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is no JSON value")


def _refuse_unknown(data: Any, value: object, at: str) -> None:
    """Raise ``ValueError`` where an object has a key that is no field of what was read from it."""
    if isinstance(data, dict) and isinstance(value, Mapping):
        for name, part in value.items():
            _refuse_unknown(data[name], part, f"{at}.{name}")
    elif isinstance(data, dict):
        known = {f.name for f in fields(value)} if is_dataclass(value) else set()
        if unknown := sorted(set(data) - known):
            raise ValueError(f"{at.removeprefix('.') or 'object'}: unknown fields {unknown}")
        for name in data:
            _refuse_unknown(data[name], getattr(value, name), f"{at}.{name}")
    elif isinstance(data, list) and isinstance(value, list | tuple):
        for i, (item, part) in enumerate(zip(data, value, strict=True)):
            _refuse_unknown(item, part, f"{at}[{i}]")


def _described(fault: str, data: Any) -> str:
    """Msgspec's message with the field first, and its value where that is no container."""
    match = _AT.fullmatch(fault)
    assert match is not None
    what, at = match[1], (match[2] or "")
    value, known = data, True
    for key, number in _STEP.findall(at):
        try:
            value = value[key] if key else value[int(number)]
        except (KeyError, IndexError, TypeError):
            known = False
    known &= "..." not in at and not isinstance(value, dict | list)
    shown = f" {value!r:.{_SHOWN}}" if at and known else ""
    return f"{at.removeprefix('.')}{shown}: {what}" if at else what
