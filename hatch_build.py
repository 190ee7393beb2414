"""Build hook: compiles the CPU kernels (``kernels/cpu``) into one shared library beside the package.

``MIMIC_BUILD_KERNELS`` says what happens where they cannot be compiled:
``auto`` (default) builds without them and says so, ``require`` fails, ``off``
does not try. Without them the scan runs on ONNX Runtime or NumPy. A library
that is newer than its sources is used again.
``python hatch_build.py`` compiles in the source tree, for development.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

MODES = ("auto", "require", "off")
NANOBIND, CMAKE, NINJA = "nanobind>=3.1,<4", "cmake>=3.25,<5", "ninja>=1.11,<2"


class CannotCompile(RuntimeError):
    """Why there are no kernels in this build."""


class KernelsBuildHook(BuildHookInterface[Any]):
    """Compiles, and marks a wheel that holds the library as one of this platform."""

    def dependencies(self) -> list[str]:
        """What the build environment needs beyond hatchling: nothing where nothing can be compiled."""
        if _mode() == "off" or _compiler() is None:
            return []
        generator = [] if shutil.which("ninja") or shutil.which("make") else [NINJA]
        return [NANOBIND, *([] if shutil.which("cmake") else [CMAKE]), *generator]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Called by hatchling before it collects the files of a wheel or an editable install."""
        mode = _mode()
        if mode == "off":
            return
        try:
            library = compile_kernels(Path(self.root))
        except CannotCompile as error:
            if mode == "require":
                raise
            self.app.display_warning(f"building without compiled CPU kernels: {error}")
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        build_data["artifacts"].append(f"/{library.relative_to(self.root).as_posix()}")


def compile_kernels(root: Path) -> Path:
    """Compile ``root/kernels/cpu`` in a temporary folder and put the library in its place, which is returned.

    Raises
    ------
    CannotCompile
        If a tool is missing or fails; an older library is then removed.
    """
    source = root / "kernels" / "cpu"
    library = root / "mimic_engine" / "kernels" / f"_cpu{sysconfig.get_config_var('EXT_SUFFIX')}"
    if _is_fresh(library, [*source.iterdir(), Path(__file__)]):
        return library
    library.unlink(missing_ok=True)
    if _compiler() is None:
        raise CannotCompile("no C++ compiler on the path")
    cmake = shutil.which("cmake")
    if cmake is None:
        raise CannotCompile("no cmake on the path")
    if find_spec("nanobind") is None:
        raise CannotCompile("nanobind is not installed")
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    with tempfile.TemporaryDirectory(prefix="mimic-kernels-") as folder:
        options = [f"-DPython_EXECUTABLE={sys.executable}", "-DCMAKE_BUILD_TYPE=Release"]
        _run(cmake, "-S", str(source), "-B", folder, *generator, *options)
        _run(cmake, "--build", folder, "--parallel", str(os.cpu_count() or 1))
        unfinished = library.with_suffix(".new")
        shutil.copy(Path(folder, library.name), unfinished)
        unfinished.replace(library)
    return library


def _mode() -> str:
    mode = os.environ.get("MIMIC_BUILD_KERNELS", "auto")
    if mode not in MODES:
        raise ValueError(f"MIMIC_BUILD_KERNELS: {mode!r} is not one of {', '.join(MODES)}")
    return mode


def _compiler() -> str | None:
    names = (os.environ.get("CXX", "").partition(" ")[0], "c++", "g++", "clang++")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def _is_fresh(library: Path, sources: list[Path]) -> bool:
    return library.exists() and library.stat().st_mtime > max(s.stat().st_mtime for s in sources)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()]
        raise CannotCompile(f"{' '.join(command[:2])}: {(errors or lines or [str(done.returncode)])[0]}")


if __name__ == "__main__":
    compile_kernels(Path(__file__).parent)
