"""A change is on the disk when it is acknowledged, and there whole or not at all when it is cut off anywhere."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mimic_engine.errors import IndexWriteError
from mimic_engine.index.manifest import read_manifest_file
from mimic_engine.index.store import Index
from mimic_engine.index.writer import IndexWriter
from mimic_engine.types import Entity


class Crash(BaseException):
    """Stands in for the end of the process: nothing of ours handles it but to clean up."""


def content(index: Index) -> dict[str, str]:
    rows = [r for r in range(index.row_count) if index.alive is None or index.alive[r]]
    assert index.rows(index.ids(rows)).tolist() == rows
    return dict(zip(index.ids(rows), index.names(rows), strict=True))


def upsert(writer):
    writer.upsert([Entity("Q7", "second"), Entity("new", "second"), Entity("Q35", "second")])


def delete(writer):
    writer.delete(["Q0", "Q7"])


def compact(writer):
    writer.compact()


CHANGES = [upsert, delete, compact]


@pytest.fixture(scope="module")
def pristine(tiny, tmp_path_factory) -> Path:
    """An index with dead rows, small segments and an old snapshot."""
    path = tmp_path_factory.mktemp("pristine") / "kb"
    tiny.coded_index(path, 9, tiny.HashFold(), segment_rows=4)
    with IndexWriter(Index.open(path), tiny.HashFold(), keep_snapshots=2) as writer:
        writer.upsert([Entity("Q14", "first"), Entity("first", "first")])
        writer.delete(["Q21", "Q28"])
    return path


@pytest.fixture
def changed_once(pristine, tmp_path):
    """Copies of that index."""
    return lambda name="kb": Path(shutil.copytree(pristine, tmp_path / name))


class Faults:
    """Every write, flush, rename, removal and folder of a change; the k-th of them (from 0) goes wrong."""

    def __init__(self, monkeypatch) -> None:
        self.left, self.raises = 10**9, Crash
        for owner, name in (
            (os, "fsync"),
            (Path, "replace"),
            (Path, "unlink"),
            (Path, "mkdir"),
            (Path, "rmdir"),
        ):
            real = getattr(os if owner is os else Path, name)
            monkeypatch.setattr(owner, name, self._wrap(real, call=name != "fsync"))
        real_open = Path.open
        monkeypatch.setattr(Path, "open", lambda path, *a, **k: self._opened(real_open(path, *a, **k)))

    def _wrap(self, real, *, call):
        def wrapped(*args, **kwargs):
            self.step()
            return real(*args, **kwargs) if call else None

        return wrapped

    def _opened(self, file):
        if isinstance(file, io.BufferedWriter | io.BufferedRandom):
            return Failing(file, self)
        return file

    def step(self) -> None:
        self.left -= 1
        if self.left == -1 or (self.left < -1 and self.raises is Crash):  # nothing is done after a crash
            raise self.raises

    @contextlib.contextmanager
    def at(self, k, raises):
        """Let the k-th step go wrong; a crash is the last step that is taken."""
        self.left, self.raises = k, raises
        try:
            yield
        finally:
            self.left = 10**9


class Failing:
    """A file whose writes are steps that may go wrong."""

    def __init__(self, file, faults) -> None:
        self._file, self._faults = file, faults

    def write(self, data):
        self._faults.step()
        return self._file.write(data)

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()


@pytest.mark.parametrize("change", CHANGES)
def test_a_crash_before_any_step_leaves_the_old_or_the_new(tiny, changed_once, monkeypatch, change):
    """The process ends before step k, for every k: nothing is cleaned up, and the next writer goes on."""
    whole = changed_once("whole")
    old = content(Index.open(whole))
    with IndexWriter(Index.open(whole), tiny.HashFold(), keep_snapshots=2) as writer:
        change(writer)
        new = content(writer.index)
    monkeypatch.setattr(IndexWriter, "_tidy", unless_crashed(IndexWriter._tidy))
    faults, k, seen = Faults(monkeypatch), 0, []
    crashed = True
    while crashed:
        path = changed_once(f"kb{k}")
        index, crashed = Index.open(path), False
        with IndexWriter(index, tiny.HashFold(), keep_snapshots=2) as writer:
            try:
                with faults.at(k, Crash):
                    change(writer)
            except Crash:
                crashed = True
        found = content(Index.open(path))
        assert found in (old, new)
        if not crashed:
            assert found == new
        seen.append(found == new)
        with IndexWriter(Index.open(path), tiny.HashFold()) as after:
            assert content(after.index) == found
            after.upsert([Entity("after", "x")])
            assert content(Index.open(path)) == found | {"after": "x"}
        k += 1
    assert k > 15 and seen[-1] and seen == sorted(seen)


def unless_crashed(real):
    """Cleaning up does not happen after a crash."""

    def tidy(self, keep):
        if not isinstance(sys.exception(), Crash):
            real(self, keep)

    return tidy


@pytest.mark.parametrize("change", CHANGES)
def test_a_disk_that_is_full_at_any_step_is_an_error_and_nothing_is_lost(
    tiny, changed_once, monkeypatch, change, caplog
):
    path = changed_once()
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    old, faults = content(Index.open(path)), Faults(monkeypatch)
    generation = Index.open(path).manifest.generation
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for k in range(200):
        with IndexWriter(Index.open(path), tiny.HashFold(), keep_snapshots=2) as writer:
            try:
                with faults.at(k, full):
                    change(writer)
            except IndexWriteError as error:
                assert "No space left on device" in str(error)
                visible = Index.open(path).manifest.generation != generation
                assert ("may not survive a power cut" if visible else "the index is as it was") in str(error)
                if visible:
                    break
                assert content(Index.open(path)) == old == content(writer.index)
                assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} == before
                writer.delete(["first"])  # the same writer goes on
                assert content(writer.index) == {i: n for i, n in old.items() if i != "first"}
                path = changed_once(f"kb{k}")
                before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
            else:
                break
    assert 10 < k < 199


class Flushed:
    """What the disk would hold after a power cut now: every file and folder as it was at its last flush."""

    def __init__(self, monkeypatch) -> None:
        self._content: dict[int, bytes | set[str]] = {}
        monkeypatch.setattr(os, "fsync", self._fsync)

    def _fsync(self, descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").resolve()
        self._content[path.stat().st_ino] = now(path)

    def check(self, path: Path, there: set[Path]) -> None:
        """The file is on the disk, and so is its name, and that of every folder that was not ``there``."""
        assert self._content.get(path.stat().st_ino) == now(path), path
        for part in [path, *path.parents]:
            if part in there:
                return
            assert part.name in self._content.get(part.parent.stat().st_ino, set()), part


def now(path: Path) -> bytes | set[str]:
    return {p.name for p in path.iterdir()} if path.is_dir() else path.read_bytes()


@pytest.mark.parametrize("change", CHANGES)
def test_all_that_a_manifest_names_is_flushed_before_it_is_published(tiny, changed_once, monkeypatch, change):
    path = changed_once()
    with IndexWriter(Index.open(path), tiny.HashFold()) as writer:
        there, published = {path, *path.rglob("*")}, []
        flushed, real_replace = Flushed(monkeypatch), Path.replace

        def renamed(source, target):
            if target == path / "manifest.json":
                manifest = read_manifest_file(source)
                names = [path / name for name, _ in manifest.files()]
                new = [file for file in names if file not in there]
                for file in [*new, path / "snapshots" / f"{manifest.generation - 1:08d}.json"]:
                    flushed.check(file, there)
                assert now(source) in flushed._content.values()
                published.append(new)
            return real_replace(source, target)

        monkeypatch.setattr(Path, "replace", renamed)
        monkeypatch.setattr(writer, "_tidy", lambda keep: None)  # what it removes may come back
        change(writer)
        flushed.check(path / "manifest.json", {path})
        assert len(published) == 1 and published[0]


LIMITED = """
import resource, sys
sys.path.insert(0, sys.argv[2])
import tiny
from mimic_engine.errors import IndexWriteError
from mimic_engine.index.store import Index
from mimic_engine.index.writer import IndexWriter
from mimic_engine.types import Entity
with IndexWriter(Index.open(sys.argv[1]), tiny.HashFold()) as writer:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, limit[1]))
    try:
        writer.upsert([Entity(f"n{i}", "text " * 50) for i in range(30)])
    except IndexWriteError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    writer.delete(["first"])
"""


def test_a_real_file_limit(tiny, changed_once):
    """The system refuses to write past 6,000 bytes: as on a full disk, in the middle of a file."""
    path = changed_once()
    folder = str(Path(tiny.__file__).parent)
    done = subprocess.run([sys.executable, "-c", LIMITED, str(path), folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "the change was not made, the index is as it was: [Errno 27] File too large" in done.stdout
    found = content(Index.open(path))
    assert "first" not in found and "n0" not in found and len(found) == 7


def test_a_disk_that_is_really_full(tiny, changed_once, tmp_path):
    """On a file system of 256 KiB, where this process may mount one."""
    source, small = changed_once(), tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(small)]
    script = f"""
{" ".join(mount)} && cp -r {source} {small}/kb && exec {sys.executable} - <<'END'
import sys
sys.path.insert(0, {str(Path(tiny.__file__).parent)!r})
import tiny
from mimic_engine.errors import IndexWriteError
from mimic_engine.index.store import Index
from mimic_engine.index.writer import IndexWriter
from mimic_engine.types import Entity
path, made = {str(small / "kb")!r}, 0
def names():
    index = Index.open(path)
    return set(index.ids(index.rows([f"n{{i}}" for i in range(made)] + ["first"])))
with IndexWriter(Index.open(path), tiny.HashFold()) as writer:
    try:
        while made < 1000:
            writer.upsert([Entity(f"n{{made}}", "text " * 200)])
            made += 1
    except IndexWriteError as error:
        print(error)
    assert 0 < made < 1000 and len(names()) == made + 1
    writer.forget(1)
    writer.compact()
    assert len(names()) == made + 1
    writer.upsert([Entity(f"n{{made}}", "y")])  # there is room again
    made += 1
    assert len(names()) == made + 1
print("done")
END
"""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this process may not mount a file system of its own")
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True)
    assert "No space left on device" in done.stdout and "done" in done.stdout, done.stdout + done.stderr
