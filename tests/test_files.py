"""Files are written whole or not at all, flushed in order, locked, checked when read, and by one module alone."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest

from mimic_engine import files
from mimic_engine.errors import DataError, EngineError, IndexLockedError, ModelError
from mimic_engine.files import (
    OPTIONAL,
    FolderLock,
    create_private,
    decode,
    publish_folder,
    read_object,
    read_versioned,
    remove_leftovers,
    replace_file,
    sha256_of,
    wait_for_folder,
    write_atomic,
    write_versioned,
)

ROOT = Path(__file__).parents[1]
SOURCES = [
    p for n in ("mimic_engine", "export", "benchmarks", "kernels") for p in sorted((ROOT / n).rglob("*.py"))
]
ALLOWED = {"mimic_engine/files.py"}
MODULES = {"fcntl", "shelve", "filelock"}
CALLS = {
    *("os.replace", "os.rename", "os.renames", "os.link", "os.fsync", "os.fdatasync", "os.sync"),
    *("shutil.move", "tempfile.mkstemp", "tempfile.mktemp", "hashlib.file_digest"),
}
METHODS = {"rename", "hardlink_to", "link_to"}


def offences(tree: ast.AST) -> Iterator[str]:
    """Renames, flushes, locks and hashes of files; imports of what does them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            names = {f"{module}.{a.name}" if module else a.name for a in node.names}
            if found := ({module} & MODULES) | (names & (MODULES | CALLS)):
                yield f"line {node.lineno}: imports {found}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name, positional = ast.unparse(node.func), len(node.args)
            renames = (
                node.func.attr == "replace" and positional == 1 and not node.keywords
            )  # a Path's, not a text's
            of_a_file = name.startswith("hashlib.") and ".read_bytes(" in ast.unparse(node)
            if name in CALLS or node.func.attr in METHODS or renames or of_a_file:
                yield f"line {node.lineno}: {ast.unparse(node)}"


def test_one_module_alone_renames_flushes_hashes_and_locks():
    found = {path: list(offences(ast.parse(path.read_text("utf-8")))) for path in SOURCES}
    assert {str(path.relative_to(ROOT)): lines for path, lines in found.items() if lines}.keys() == ALLOWED


@pytest.mark.parametrize(
    "code",
    [
        "import fcntl",
        "from os import fsync",
        "os.replace(a, b)",
        "path.rename(other)",
        "partial.replace(path)",
        "os.fsync(file.fileno())",
        "shutil.move(a, b)",
        "hashlib.sha256(path.read_bytes())",
    ],
)
def test_the_search_finds(code):
    assert list(offences(ast.parse(code)))


@pytest.mark.parametrize(
    "code", ["text.replace('a', 'b')", "replace(record, rows=3)", "hashlib.sha256(data)"]
)
def test_the_search_lets_pass(code):
    assert not list(offences(ast.parse(code)))


class Steps:
    """Flushes and renames in order, and which of them fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken: list[str] = []
        self.fails = ""
        real_replace, real_rename = Path.replace, Path.rename
        monkeypatch.setattr(os, "fsync", self._fsync)
        monkeypatch.setattr(Path, "replace", lambda a, b: self._rename(real_replace, a, b))
        monkeypatch.setattr(Path, "rename", lambda a, b: self._rename(real_rename, a, b))

    def _fsync(self, descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").resolve().name
        self._take("flush " + ("temporary" if name.endswith(".tmp") else name))

    def _rename(self, real, source: Path, target: Path) -> None:
        self._take(f"rename to {target.name}")
        real(source, target)

    def _take(self, step: str) -> None:
        self.taken.append(step)
        if step == self.fails:
            raise OSError("the disk is full")


@pytest.fixture
def steps(monkeypatch):
    return Steps(monkeypatch)


@pytest.mark.parametrize("content", [b"new", "néw"])
def test_a_write_is_flushed_then_named_then_its_folder_flushed(steps, tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text("old")
    write_atomic(path, content)
    assert steps.taken == ["flush temporary", "rename to a.json", f"flush {tmp_path.name}"]
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_made_for_a_file_is_flushed_into_those_above_it(steps, tmp_path):
    write_atomic(tmp_path / "b" / "c" / "a", b"")
    assert sorted(steps.taken[:2]) == sorted(["flush b", f"flush {tmp_path.name}"])


@pytest.mark.parametrize("step", ["flush temporary", "rename to a"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(steps, tmp_path, step):
    path = tmp_path / "a"
    path.write_text("old")
    steps.fails = step
    with pytest.raises(OSError, match="the disk is full"):
        write_atomic(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(error), replace_file(path) as temporary:
        temporary.write_text("ne")
        raise error
    with pytest.raises(FileNotFoundError), replace_file(path):
        pass  # nothing was written
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "\ud800")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


KILLED = """
import os, signal, sys
from pathlib import Path
from mimic_engine.files import replace_file
with replace_file(Path(sys.argv[1])) as temporary:
    temporary.write_text("ne")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_in_the_middle_leaves_the_old_file(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    assert subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=ROOT).returncode == -9
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 2
    remove_leftovers(tmp_path, "b")
    assert len(list(tmp_path.iterdir())) == 2
    remove_leftovers(tmp_path, "a")
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_at_once_do_not_mix(tmp_path):
    path = tmp_path / "a"
    with replace_file(path) as first:
        first.write_text("first, ")
        write_atomic(path, "second")
        with first.open("a") as file:
            file.write("to its end")
    assert path.read_text() == "first, to its end" and list(tmp_path.iterdir()) == [path]


def test_a_private_file_is_written_once_and_whole(tmp_path):
    path = tmp_path / "new" / "key"
    create_private(path, "first")
    create_private(path, "second")
    assert path.read_text() == "first" and path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_hash(tmp_path):
    data = os.urandom(3_000_001)
    (tmp_path / "a").write_bytes(data)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(data).hexdigest()


def folder(path: Path, content: str) -> Path:
    (path / "deep").mkdir(parents=True)
    (path / "deep" / "a").write_text(content)
    return path


def test_a_folder_is_flushed_whole_then_named_then_its_name_flushed(steps, tmp_path):
    publish_folder(folder(tmp_path / "x.partial", "new"), tmp_path / "x")
    assert sorted(steps.taken[:3]) == ["flush a", "flush deep", "flush x.partial"]
    assert steps.taken[3:] == ["rename to x", f"flush {tmp_path.name}"]
    assert (tmp_path / "x" / "deep" / "a").read_text() == "new"


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_replaces_another(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    final = folder(tmp_path / "x", "old")
    publish_folder(folder(tmp_path / "x.partial", "new"), final)
    assert (final / "deep" / "a").read_text() == "new" and list(tmp_path.iterdir()) == [final]


def test_what_a_folder_replaced_may_be_left(tmp_path, monkeypatch, caplog):
    def refuse(path):
        raise OSError("busy")

    monkeypatch.setattr(files.shutil, "rmtree", refuse)
    final = folder(tmp_path / "x", "old")
    publish_folder(folder(tmp_path / "x.partial", "new"), final)
    assert (final / "deep" / "a").read_text() == "new" and "busy" in caplog.text
    [left] = [p for p in tmp_path.iterdir() if p != final]
    assert left.name.startswith("x.old-") and (left / "deep" / "a").read_text() == "old"


def test_a_folder_is_held_by_one(tmp_path):
    with FolderLock(tmp_path, "busy here") as lock:
        assert lock.held
        with pytest.raises(IndexLockedError, match="busy here"):
            FolderLock(tmp_path, "busy here")
    assert not lock.held and not list(tmp_path.iterdir())
    FolderLock(tmp_path, "").release()


WAITS = """
import sys
from pathlib import Path
from mimic_engine.files import wait_for_folder
print("waits", flush=True)
with wait_for_folder(Path(sys.argv[1])):
    print(Path(sys.argv[1], "done").exists())
"""


def test_others_wait_for_a_folder(tmp_path):
    command = [sys.executable, "-c", WAITS, str(tmp_path / "store")]
    with wait_for_folder(tmp_path / "store"):
        other = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert other.stdout is not None and other.stdout.readline() == "waits\n"
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(0.3)
        (tmp_path / "store" / "done").touch()
    assert other.communicate(timeout=60)[0] == "True\n" and other.returncode == 0


@dataclass(frozen=True, slots=True)
class Part:
    name: Literal["a", "b"]
    rows: Annotated[int, msgspec.Meta(ge=0)]

    def __post_init__(self):
        if self.rows == 13:
            raise ValueError(f"rows {self.rows} is no number of rows")
        if self.rows == 14:
            raise EngineError("a fault of another class")


@dataclass(frozen=True, slots=True)
class Packed:
    part: Part
    note: str | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, slots=True)
class Whole:
    parts: tuple[Part, ...]
    by_name: Mapping[str, Part] = field(default_factory=dict)
    pair: tuple[float, float] | None = None
    packed: Packed | None = None


WHOLE = Whole((Part("a", 1), Part("b", 0)), {"x": Part("a", 2)}, (1.0, 1e-17), Packed(Part("b", 3), "x"))


def read(path: Path) -> Whole:
    return read_versioned(path, Whole, format="test-whole", version=3, error=ModelError)


def test_what_was_written_is_read(tmp_path):
    path = tmp_path / "a.json"
    write_versioned(path, WHOLE, format="test-whole", version=3)
    assert read(path) == WHOLE
    text = path.read_text()
    assert text == json.dumps(json.loads(text), indent=2) + "\n"
    assert list(json.loads(text)) == ["format", "version", "parts", "by_name", "pair", "packed"]
    write_versioned(path, WHOLE, format="test-whole", version=3, indent=None)
    assert "\n" not in path.read_text() and read(path) == WHOLE
    with pytest.raises(ValueError, match="JSON"):
        write_versioned(path, Whole((), pair=(0.0, float("nan"))), format="test-whole", version=3)
    assert read(path) == WHOLE
    write_versioned(path, Whole((), packed=Packed(Part("a", 0))), format="test-whole", version=3)
    assert list(json.loads(path.read_text())["packed"]) == ["part"]
    path.write_text('{"format": "test-whole", "version": 3, "parts": []}')
    assert read(path) == Whole(())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as JSON"),
        ("[]", "holds no JSON object"),
        ("[" * 100_000, "nested too deep"),
        ("\xff", "cannot be read as JSON: .*utf-8"),
        ('{"format": "test-whole", "version": NaN}', "NaN is not allowed"),
        ('{"format": "test-whole", "format": "test-whole"}', "a key occurs twice"),
        ('{"version": 3, "parts": []}', "format None, expected 'test-whole'"),
        ('{"format": "other", "version": 3}', "format 'other', expected 'test-whole'"),
        ('{"format": "test-whole"}', "test-whole version None; this program reads version 3"),
        ('{"format": "test-whole", "version": "3"}', "version '3'; this program reads version 3"),
        ('{"format": "test-whole", "version": 3.0}', r"version 3\.0; this program reads version 3"),
        ('{"format": "test-whole", "version": 3}', "missing required field `parts`"),
        ('{"format": "test-whole", "version": 3, "parts": [], "more": 1}', r"unknown fields \['more'\]"),
    ],
)
def test_another_file_is_refused(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelError, match=rf"a\.json: {message}|a\.json: .*{message}"):
        read(path)


def test_a_missing_file_is_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError):
        read_object(tmp_path / "a.json", ModelError)
    with pytest.raises(ModelError, match="directory"):
        read(tmp_path)


def test_a_file_without_end_is_not_read_to_it():
    with pytest.raises(DataError, match=r"/dev/zero: .*more than \d+ bytes"):
        read_object(Path("/dev/zero"), DataError)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parts": {}}, "here: parts: Expected `array`, got `object`"),
        ({"parts": [7]}, r"here: parts\[0\] 7: Expected `object`, got `int`"),
        ({"parts": [{"name": "a", "rows": -1}]}, r"here: parts\[0\].rows -1: Expected `int` >= 0"),
        ({"parts": [{"name": "a", "rows": True}]}, r"here: parts\[0\].rows True: Expected `int`"),
        ({"parts": [{"name": "c" * 999, "rows": 1}]}, r"here: parts\[0\].name 'c{79}: Invalid enum value"),
        ({"parts": [{"name": "a"}]}, r"here: parts\[0\]: .*missing required field `rows`"),
        ({"parts": [{"name": "a", "rows": 13}]}, r"here: parts\[0\]: rows 13 is no number of rows"),
        ({"parts": [{"name": "a", "rows": 14}]}, "here: a fault of another class"),
        ({"parts": [{"name": "a", "rows": 1, "x": 2}]}, r"here: parts\[0\]: unknown fields \['x'\]"),
        ({"by_name": {"z": {"name": "a", "rows": -1}}}, r"here: by_name\[...\].rows: Expected `int` >= 0"),
        ({"by_name": {"z": {"name": "a", "rows": 1, "x": 2}}}, r"here: by_name.z: unknown fields \['x'\]"),
        ({"pair": [1.0]}, "here: pair: Expected `array` of length 2, got 1"),
        ({"packed": {"part": {"name": "a", "rows": 1, "x": 2}}}, r"packed.part: unknown fields \['x'\]"),
        ({"packed": {"part": {"name": "a", "rows": 1}, "x": 2}}, r"packed: unknown fields \['x'\]"),
    ],
)
def test_a_wrong_field_is_named_with_limit_and_value(change, message):
    with pytest.raises(ModelError, match=message):
        decode(json.loads(json.dumps({"parts": [], **change})), Whole, "here", ModelError)
