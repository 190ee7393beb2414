"""``mimic_engine.kernels`` and ``.export`` are found in a wheel, in an editable install and by scripts.

Their files lie in top-level folders without an ``__init__.py``, so that no
package called ``kernels`` appears beside somebody else's.
"""

import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from tests.packaging.building import (
    ROOT,
    build_wheel,
    copy_tree,
    install_editable,
    install_wheel,
    run,
    site_packages,
)

IMPORTS = """
import mimic_engine.kernels.reference, mimic_engine.export.profiles
from importlib.util import find_spec
print(mimic_engine.__file__)
print(mimic_engine.kernels.reference.__file__)
print(mimic_engine.export.profiles.__file__)
print(find_spec("mimic_engine.export.to_onnx").origin)
"""

# Somebody else's packages of these names are still what the names mean, and none of ours is found in them.
NEIGHBOURS = """
import kernels, export
assert kernels.MARKER == export.MARKER == "somebody else's", "shadowed"
import mimic_engine.kernels.reference, mimic_engine.export.profiles
from importlib.util import find_spec
for name in ("kernels", "export"):
    assert not hasattr(getattr(mimic_engine, name), "MARKER"), "picked up"
    assert find_spec(f"mimic_engine.{name}.theirs") is None, "picked up"
    assert find_spec(f"{name}.theirs") is not None
assert find_spec("kernels.reference") is None and find_spec("export.profiles") is None
"""


def add_neighbours(folder: Path) -> None:
    """Put unrelated packages ``kernels`` and ``export`` into a folder of the path."""
    for name in ("kernels", "export"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text('MARKER = "somebody else\'s"\n', "utf-8")
        (folder / name / "theirs.py").write_text("", "utf-8")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source tree, with what a developer's tree has too."""
    copy = copy_tree(tmp_path_factory.mktemp("tree") / "repository")
    (copy / "kernels" / "__pycache__").mkdir()
    (copy / "kernels" / "__pycache__" / "reference.cpython-311.pyc").write_bytes(b"stale")
    return copy


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of that tree."""
    return build_wheel(tree, tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def installed(wheel: Path, tmp_path: Path) -> Path:
    """A folder into which that wheel is installed."""
    return install_wheel(wheel, tmp_path / "site")


@pytest.fixture(scope="module")
def editable(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment with the tree installed as editable; it borrows all else from ours."""
    return install_editable(tree, tmp_path_factory.mktemp("editable"))


def test_the_wheel_holds_every_module_once_and_nothing_else(wheel, tree):
    with zipfile.ZipFile(wheel) as archive:
        names = Counter(archive.namelist())
    assert max(names.values()) == 1
    folders = {name.partition("/")[0] for name in names}
    assert folders == {"mimic_engine", wheel.name.rpartition("-py3")[0] + ".dist-info"}
    assert "mimic_engine/py.typed" in names
    assert not [name for name in names if name.endswith(".pyc")]
    for folder, prefix in (("kernels", "mimic_engine/"), ("export", "mimic_engine/"), ("mimic_engine", "")):
        modules = {prefix + str(p.relative_to(tree)) for p in (tree / folder).rglob("*.py")}
        assert modules and modules <= set(names)
    assert {"mimic_engine/kernels/reference.py", "mimic_engine/export/to_onnx.py"} <= set(names)


def test_the_wheel_carries_the_page(wheel, tree):
    static = tree / "mimic_engine" / "server" / "static"
    with zipfile.ZipFile(wheel) as archive:
        for file in static.iterdir():
            assert archive.read(f"mimic_engine/server/static/{file.name}") == file.read_bytes()
        assert "mimic_engine/demo/examples.json" in archive.namelist()


def test_the_wheel_carries_licence_and_notices(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = [n.rpartition("/")[2] for n in archive.namelist() if "/licenses/" in n]
        metadata = archive.read(wheel.name.rpartition("-py3")[0] + ".dist-info/METADATA").decode()
    assert sorted(names) == ["LICENSE", "NOTICE.md"]
    assert "License-Expression: Apache-2.0" in metadata


def test_the_installed_wheel_finds_its_modules(installed, tmp_path):
    origins = run(sys.executable, "-c", IMPORTS, cwd=tmp_path, path=installed).splitlines()
    assert [Path(o).is_relative_to(installed / "mimic_engine") for o in origins] == [True] * 4


def test_the_installed_wheel_lives_beside_packages_of_the_same_names(installed, tmp_path):
    add_neighbours(installed)
    run(sys.executable, "-c", NEIGHBOURS, cwd=tmp_path, path=installed)


def test_the_editable_install_finds_its_modules(editable, tree, tmp_path):
    origins = run(editable, "-c", IMPORTS, cwd=tmp_path).splitlines()
    folders = [str(Path(o).relative_to(tree).parent) for o in origins]
    assert folders == ["mimic_engine", "kernels", "export", "export"]


def test_the_editable_install_lives_beside_packages_of_the_same_names(editable, tmp_path):
    add_neighbours(site_packages(editable))
    run(editable, "-c", NEIGHBOURS, cwd=tmp_path)


@pytest.mark.parametrize("script", ["to_onnx", "verify", "import_checkpoint"])
def test_scripts_run_from_the_repository(script):
    said = run(sys.executable, f"export/{script}.py", "--help", cwd=ROOT)
    assert f"usage: {script}.py" in said or f"usage: python export/{script}.py" in said
