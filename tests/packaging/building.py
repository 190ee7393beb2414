"""What the packaging tests share: a copy of the source tree, and commands in a clean environment."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ("mimic_engine", "kernels", "export", "benchmarks", "docs", "tests")
FILES = ("pyproject.toml", "hatch_build.py", "README.md", "NOTICE.md", "LICENSE", ".gitignore")


def copy_tree(copy: Path) -> Path:
    """A copy of the source tree, so that building touches nobody's own; returns it."""
    copy.mkdir()
    for name in SOURCES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in FILES:
        shutil.copy2(ROOT / name, copy / name)
    return copy


def attempt(*command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, without PYTHONPATH and without compiling kernels unless told otherwise."""
    defaults = {"PYTHONDONTWRITEBYTECODE": "1", "MIMIC_BUILD_KERNELS": "off"}
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CXX")}
    env = inherited | defaults | environment
    return subprocess.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True)


def run(*command: object, cwd: Path, path: Path | None = None, **environment: str) -> str:
    """The same with nothing but ``path`` on PYTHONPATH; what the command printed, once it has succeeded."""
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = attempt(*command, cwd=cwd, **environment)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def build_wheel(tree: Path, out: Path, **environment: str) -> Path:
    """The wheel of a tree, with the build tools of this environment."""
    run(
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        out,
        tree,
        cwd=out,
        **environment,
    )
    [found] = out.glob("*.whl")
    return found


def install_wheel(wheel: Path, target: Path) -> Path:
    """Install a wheel alone into a folder; returns it."""
    options = ("--no-deps", "--no-index", "--quiet", "--target", target)
    run(sys.executable, "-m", "pip", "install", *options, wheel, cwd=wheel.parent)
    return target


def install_editable(tree: Path, folder: Path, **environment: str) -> Path:
    """Python of a new environment with the tree installed as editable; it borrows all else from ours."""
    run(sys.executable, "-m", "venv", "--without-pip", "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    borrowed = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (site_packages(python) / "zz_borrowed.pth").write_text("\n".join(borrowed) + "\n", "utf-8")
    options = ("--no-deps", "--no-index", "--no-build-isolation", "--quiet", "-e", tree)
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, cwd=folder, **environment)
    return python


def site_packages(python: Path) -> Path:
    """Where an environment's packages lie."""
    [folder] = python.parents[1].glob("lib/python*/site-packages")
    return folder
