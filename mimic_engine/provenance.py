"""Where a result came from: command line, commit of the source, machine, versions. No host names."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parents[1]
PACKAGES = ("mimic-engine", "numpy", "onnxruntime", "torch", "transformers")


def provenance() -> dict[str, Any]:
    """``{"command", "commit", "machine", "versions"}`` of this process; JSON types only."""
    return {
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
    }


def commit() -> str | None:
    """Commit of the source tree, with ``-dirty`` where tracked files differ; None outside a checkout."""
    if not (SOURCE / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=SOURCE, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def machine() -> dict[str, Any]:
    """CPU model, cores that this process may use, system."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(errors="replace").splitlines()
        model = next(
            (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model
        )
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    return {"cpu": model, "cores": cores, "system": f"{platform.system()} {platform.machine()}"}


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that a result depends on; None where not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found
