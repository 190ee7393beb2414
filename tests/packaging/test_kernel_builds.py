"""The compiled CPU kernels in wheels and editable installs, and their absence where nothing can be compiled."""

import shutil
import sys
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.packaging.building import attempt, build_wheel, copy_tree, install_editable, install_wheel, run

TOOLS = shutil.which("cmake") and shutil.which("c++") and find_spec("nanobind")
needs_tools = pytest.mark.skipif(not TOOLS, reason="needs a C++ compiler, cmake and nanobind")

SCORES = """
import numpy as np
from mimic_engine.kernels import _cpu
from mimic_engine.scan.cpu import CpuKernels
from mimic_engine.types import EntityArrays, FoldConstants, MentionArrays
kernels = CpuKernels(FoldConstants(3, ("cmfu",)))
prepared = kernels.prepare(MentionArrays(cmfu=np.array([[1, 2, 3]], np.float32)))
out = np.empty((1, 2), np.float32)
kernels.totals(prepared, EntityArrays(cmfu=np.array([[1, 1, 1], [0, 2, 0]], np.float16)), slice(None), out)
assert out.tolist() == [[6, 4]]
print(_cpu.__file__)
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_tree(tmp_path_factory.mktemp("tree") / "repository")


@pytest.fixture(scope="module")
def compiled(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel with kernels; the tree then holds the library too."""
    return build_wheel(tree, tmp_path_factory.mktemp("compiled"), MIMIC_BUILD_KERNELS="require")


@pytest.fixture
def no_tools(tmp_path: Path) -> str:
    """A PATH on which nothing lies."""
    (tmp_path / "empty").mkdir()
    return str(tmp_path / "empty")


def test_without_a_compiler_the_wheel_is_pure_and_says_so(no_tools, tmp_path):
    tree = copy_tree(tmp_path / "repository")
    command = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, tree)
    done = attempt(*command, cwd=tmp_path, PATH=no_tools, MIMIC_BUILD_KERNELS="auto")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "building without compiled CPU kernels: no C++ compiler" in done.stdout + done.stderr
    [wheel] = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [n for n in zipfile.ZipFile(wheel).namelist() if n.endswith(".so")]
    site = install_wheel(wheel, tmp_path / "site")
    code = "from mimic_engine.scan.cpu import CpuKernels; print(CpuKernels.available())"
    assert run(sys.executable, "-c", code, cwd=tmp_path, path=site) == "False\n"


def test_kernels_that_are_required_and_cannot_be_compiled_fail_the_build(no_tools, tmp_path):
    tree = copy_tree(tmp_path / "repository")
    command = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, tree)
    done = attempt(*command, cwd=tmp_path, PATH=no_tools, MIMIC_BUILD_KERNELS="require")
    assert done.returncode != 0
    assert "no C++ compiler on the path" in done.stdout + done.stderr
    done = attempt(*command, cwd=tmp_path, MIMIC_BUILD_KERNELS="perhaps")
    assert "MIMIC_BUILD_KERNELS: 'perhaps' is not one of auto, require, off" in done.stdout + done.stderr


@needs_tools
def test_a_compiler_that_fails_is_named_and_leaves_a_pure_wheel(tmp_path):
    tree = copy_tree(tmp_path / "repository")
    with (tree / "kernels" / "cpu" / "cone.cpp").open("a", encoding="utf-8") as source:
        source.write('static_assert(false, "broken on purpose");')
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    (stubs / "c++").write_text("#!/bin/sh\necho error: no such machine >&2\nexit 1\n", "utf-8")
    (stubs / "c++").chmod(0o755)
    command = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, tree)
    done = attempt(*command, cwd=tmp_path, CXX=str(stubs / "c++"), MIMIC_BUILD_KERNELS="auto")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "building without compiled CPU kernels: " in done.stdout + done.stderr
    assert [w.name.endswith("-py3-none-any.whl") for w in tmp_path.glob("*.whl")] == [True]


@needs_tools
@pytest.mark.slow
def test_the_wheel_with_kernels_is_of_this_platform_and_scores(compiled, tmp_path):
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert f"-{tag}-{tag}-" in compiled.name
    with zipfile.ZipFile(compiled) as archive:
        libraries = [n for n in archive.namelist() if n.endswith(".so")]
        metadata = next(n for n in archive.namelist() if n.endswith(".dist-info/WHEEL"))
        assert b"Root-Is-Purelib: false" in archive.read(metadata)
    assert len(libraries) == 1
    assert libraries[0].startswith("mimic_engine/kernels/_cpu.")
    site = install_wheel(compiled, tmp_path / "site")
    said = run(sys.executable, "-c", SCORES, cwd=tmp_path, path=site)
    assert Path(said.strip()) == site / libraries[0]


@needs_tools
@pytest.mark.slow
def test_the_editable_install_uses_the_library_in_the_tree_again(compiled, tree, tmp_path):
    [library] = (tree / "mimic_engine" / "kernels").glob("_cpu.*.so")
    made = library.stat().st_mtime_ns
    python = install_editable(tree, tmp_path, MIMIC_BUILD_KERNELS="require")
    assert library.stat().st_mtime_ns == made
    assert Path(run(python, "-c", SCORES, cwd=tmp_path).strip()) == library


def test_the_source_distribution_holds_sources_and_pages_and_no_library(tmp_path):
    tree = copy_tree(tmp_path / "repository")
    (tree / "mimic_engine" / "kernels" / "_cpu.so").write_bytes(b"somebody's own")
    command = ("-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path, tree)
    run(sys.executable, *command, cwd=tmp_path)
    [archive] = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {n.partition("/")[2] for n in opened.getnames()}
    sources = {f"kernels/cpu/{p.name}" for p in (tree / "kernels" / "cpu").iterdir()}
    assert len(sources) > 10
    assert sources | {"hatch_build.py", "pyproject.toml"} <= names
    assert not [n for n in names if n.endswith(".so")]
    pages = {p.relative_to(tree).as_posix() for p in (tree / "docs").rglob("*") if p.is_file()}
    assert "docs/page.png" in pages
    assert pages | {"README.md", "NOTICE.md", "LICENSE"} <= names
