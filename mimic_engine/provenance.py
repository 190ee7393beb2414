"""Result files: a payload of measurements, with the command, commit, machine and versions that made it.

Knows nothing of what was measured, and imports neither torch nor the runtime:
versions are read from the installed packages' metadata.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from mimic_engine.errors import InvalidInputError
from mimic_engine.files import write_atomic

REPOSITORY = Path(__file__).resolve().parents[1]
HEADER = ("command", "commit", "dirty", "machine", "versions", "date")

# What decides which kernels can run; the other flags of a CPU say nothing about a timing.
_CPU_FLAGS = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl"),
    *("avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "sve", "sve2", "i8mm", "bf16"),
)
_PACKAGES = {
    "numpy": "numpy",
    "onnxruntime": "onnxruntime",
    "torch": "torch",
    "transformers": "transformers",
    "mimic_engine": "mimic-engine",
}


def _git(*arguments: str) -> str | None:
    """Output of a git command in the repository; None without git, repository or commit."""
    try:
        done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def commit() -> tuple[str | None, bool | None]:
    """Commit of the source tree, and whether tracked or new files differ from it.

    Result files do not count as a difference, so that the second of two runs
    is not called dirty for the first one's result. (None, None) outside a git
    checkout of this project, and no commit before the first one.
    """
    root = _git("rev-parse", "--show-toplevel")
    if (
        root is None or Path(root).resolve() != REPOSITORY
    ):  # the packages may lie inside someone else's checkout
        return None, None
    changes = _git("status", "--porcelain", "--", ".", ":(exclude)benchmarks/results")
    return _git("rev-parse", "--verify", "--quiet", "HEAD"), None if changes is None else bool(changes)


def _cpu_info(cpuinfo: Path) -> tuple[str, list[str]]:
    """CPU model and the flags worth recording, from Linux's cpuinfo where there is one."""
    model, flags = platform.processor() or platform.machine(), set[str]()
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return model, []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            model = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags = set(value.split())
    return model, [flag for flag in _CPU_FLAGS if flag in flags]


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes() -> int | None:
    """Physical memory; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """CPU model, cores open to this process, memory in bytes, instruction sets, system; no host name."""
    model, flags = _cpu_info(cpuinfo)
    return {
        "cpu": model,
        "cores": _cores(),
        "memory_bytes": _memory_bytes(),
        "flags": flags,
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that decide a result; None where one is not installed."""
    out: dict[str, str | None] = {"python": platform.python_version()}
    for name, distribution in _PACKAGES.items():
        try:
            out[name] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            out[name] = None
    return out


def command() -> str:
    """The command line of this process as one would type it; of absolute paths the last name alone.

    A result file is read elsewhere, where the places of this machine say nothing.
    """
    arguments = [Path(a).name if Path(a).is_absolute() else a for a in sys.orig_argv[1:]]
    return shlex.join(["python", *arguments])


def header(command_line: str | None = None) -> dict[str, Any]:
    """Header of every result file: how, from which source, where, with what, when (UTC)."""
    revision, dirty = commit()
    return {
        "command": command_line or command(),
        "commit": revision,
        "dirty": dirty,
        "machine": machine(),
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _plain(value: object) -> object:
    """NumPy and torch scalars as Python numbers; anything else is refused by name."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no JSON value")


def write_result(path: Path, payload: Mapping[str, Any], *, command_line: str | None = None) -> Path:
    """Write one result file, whole or not at all.

    Parameters
    ----------
    path
        File to write or replace; its folder is made.
    payload
        Measurements: JSON values and NumPy or torch scalars, all finite.
    command_line
        The command that made them, where that is not this process's own.

    Returns
    -------
    Path
        ``path``.

    Raises
    ------
    InvalidInputError
        If the payload uses a name of the header, holds NaN or infinity, or
        holds something that JSON does not have.
    """
    taken = sorted(set(payload) & set(HEADER))
    if taken:
        raise InvalidInputError(f"payload: the names {taken} belong to the header of a result file")
    try:
        text = json.dumps({**header(command_line), **payload}, indent=2, allow_nan=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"payload of {path.name}: {error}") from error
    write_atomic(path, f"{text}\n")
    return path
