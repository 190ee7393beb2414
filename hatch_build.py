"""Build hook: compiles the CPU kernels (``kernels/cpu``) into one shared library beside the package.

``MIMIC_BUILD_KERNELS`` says what happens where they cannot be compiled:
``auto`` (default) builds without them and says so, ``require`` fails, ``off``
does not try. Without them the scan runs on ONNX Runtime or NumPy.
``python hatch_build.py`` compiles them in the source tree.
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
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")


class CannotCompile(RuntimeError):
    """Why there are no kernels in this build."""


class KernelsBuildHook(BuildHookInterface[Any]):
    """Compiles, and marks a wheel that holds the library as one of this platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Called by hatchling before it collects the files of a wheel or an editable install."""
        mode = os.environ.get("MIMIC_BUILD_KERNELS", "auto")
        if mode not in MODES:
            raise ValueError(f"MIMIC_BUILD_KERNELS: {mode!r} is not one of {', '.join(MODES)}")
        library = Path(self.root, "mimic_engine", "kernels", f"_cpu{SUFFIX}")
        if mode == "off":
            library.unlink(missing_ok=True)
            return
        try:
            compile_kernels(Path(self.root, "kernels", "cpu"), library)
        except CannotCompile as error:
            if mode == "require":
                raise
            self.app.display_warning(f"building without compiled CPU kernels: {error}")
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        build_data["artifacts"].append(f"/mimic_engine/kernels/{library.name}")


def compile_kernels(source: Path, library: Path) -> None:
    """Compile ``source`` with CMake in a temporary folder and put the library in its place.

    Raises
    ------
    CannotCompile
        If CMake, a generator, nanobind or a working compiler is missing; ``library`` is then removed.
    """
    library.unlink(missing_ok=True)
    cmake = shutil.which("cmake")
    if cmake is None:
        raise CannotCompile("cmake is not on the path")
    if find_spec("nanobind") is None:
        raise CannotCompile("nanobind is not installed")
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    with tempfile.TemporaryDirectory(prefix="mimic-kernels-") as folder:
        options = [f"-DPython_EXECUTABLE={sys.executable}", "-DCMAKE_BUILD_TYPE=Release"]
        _run(cmake, "-S", str(source), "-B", folder, *generator, *options)
        _run(cmake, "--build", folder, "--parallel")
        shutil.copy(Path(folder, library.name), library.with_suffix(".new"))
        library.with_suffix(".new").replace(library)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if "rror" in line]
        raise CannotCompile(f"{' '.join(command[:2])}: {said[0].strip() if said else done.returncode}")


if __name__ == "__main__":  # in the source tree, for development
    compile_kernels(
        Path(__file__).with_name("kernels") / "cpu",
        Path(__file__).with_name("mimic_engine") / "kernels" / f"_cpu{SUFFIX}",
    )
