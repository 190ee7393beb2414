"""Building: what is refused, what is published, and that a kill loses nothing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mimic_engine import files
from mimic_engine.errors import (
    DataError,
    IndexFormatError,
    IndexLockedError,
    InvalidInputError,
    ModelError,
)
from mimic_engine.index import build, manifest
from mimic_engine.index.build import build_index
from mimic_engine.index.manifest import read_manifest, write_manifest
from mimic_engine.index.progress import PROGRESS
from mimic_engine.index.store import Index
from mimic_engine.index.validate import Fingerprint
from mimic_engine.types import Entity, EntityArrays


def data_files(index: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(index)): p.read_bytes()
        for part in ("segments", "codes")
        for p in sorted((index / part).rglob("*"))
        if p.is_file() and p.name != PROGRESS
    }


def quiet(tiny, count, out, **options):
    fold = options.pop("fold", None) or tiny.HashFold()
    return build_index(fold, tiny.knowledge_base(count), out, progress=False, **options)


def test_leaves_only_the_index(tiny, tmp_path):
    manifest = quiet(tiny, 10, tmp_path / "deep" / "kb", extra_manifest={"images": {"missing": 4}})
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["kb"]
    assert sorted(p.name for p in (tmp_path / "deep" / "kb").iterdir()) == ["manifest.json", "segments"]
    assert Index.open(tmp_path / "deep" / "kb").manifest == manifest
    assert manifest.extra == {"images": {"missing": 4}}


def test_extra_manifest_is_read_at_the_end(tiny, tmp_path):
    extra = {"batches": 0}

    def count(batch):
        extra["batches"] += 1

    quiet(tiny, 10, tmp_path / "kb", fold=tiny.HashFold(count), batch_size=4, extra_manifest=extra)
    assert Index.open(tmp_path / "kb").manifest.extra == {"batches": 3}


def test_progress_bar_counts_entities(tiny, tmp_path, capsys):
    build_index(tiny.HashFold(), tiny.knowledge_base(7), tmp_path / "kb")
    assert "7/7" in capsys.readouterr().err


class Recorder:
    def __init__(self):
        self.batches = 0

    def __call__(self, batch):
        self.batches += 1


@pytest.mark.parametrize(
    ("entities", "message"),
    [
        ([], "no entities"),
        ([Entity("a", "x"), Entity("b", "y"), Entity("c", "z"), Entity("b", "w")], "'b'.*records 2 and 4"),
        ([Entity("a", "x"), Entity("", "y")], "record 2: id is empty"),
        ([Entity("a", "x"), Entity("b", None)], r"record 2 \(id 'b'\): name is NoneType"),
        ([Entity("a", "x", images=(None,))], "record 1.*image is NoneType"),
        ([Entity("a", "\ud800")], r"record 1 \(id 'a'\): name: is not valid Unicode"),
        ([Entity("a", "x", "\ud800")], "record 1.*not valid Unicode"),
        ([Entity("a", " ")], r"record 1 \(id 'a'\): name: is empty"),
        ([Entity("a", "x", aliases="bc")], r"record 1 \(id 'a'\): aliases is str"),
        ([Entity("a", "x", aliases=("b", 7))], r"record 1 \(id 'a'\): aliases\[1\]: expected text, got int"),
        ([Entity("a", "x", aliases=("b\0",))], r"aliases\[0\]: holds the control character U\+0000"),
        ([Entity("a", "x", aliases=("b",) * 1001)], "aliases: at most 1,000, got 1,001"),
        ([Entity("a", "x", popularity=-1)], r"record 1 \(id 'a'\): popularity: .*, got -1"),
    ],
)
def test_bad_knowledge_base_is_refused_before_encoding(tiny, tmp_path, entities, message):
    seen = Recorder()
    with pytest.raises(DataError, match=message):
        build_index(tiny.HashFold(seen), lambda: entities, tmp_path / "kb", progress=False)
    assert not seen.batches and not list(tmp_path.iterdir())


def test_names_and_popularity_are_part_of_the_fingerprint():
    entities = [
        Entity("a", "x"),
        Entity("a", "x", popularity=0),
        Entity("a", "x", popularity=1),
        Entity("a", "x", aliases=("y",)),
        Entity("a", "x", images=("y",)),
        Entity("a", "x", images=("y",), aliases=("z",)),
        Entity("a", "x", aliases=("y", "z")),
        Entity("a", "x", images=("y", "z")),
    ]
    assert len({fingerprint(e) for e in entities}) == len(entities)
    assert fingerprint(Entity("a", "x", popularity=3)) == fingerprint(Entity("a", "x", popularity=3.0))


def fingerprint(entity):
    taken = Fingerprint()
    taken.add(entity)
    return taken.hexdigest()


@pytest.mark.parametrize(
    "options", [{"dtype": "int4"}, {"batch_size": 0}, {"segment_rows": 0}, {"extra_manifest": {"x": {1}}}]
)
def test_options_outside_limits(tiny, tmp_path, options):
    with pytest.raises(InvalidInputError, match=next(iter(options))):
        quiet(tiny, 3, tmp_path / "kb", **options)


class Spoiled:
    """The tiny fold with one value of one entity replaced."""

    def __init__(self, tiny, entity_id, array, value):
        self._fold, self._id, self._array, self._value = tiny.HashFold(), entity_id, array, value
        self.constants, self.model_hash = self._fold.constants, self._fold.model_hash

    def entities(self, batch):
        arrays = dict(self._fold.entities(batch).items())
        for row, e in enumerate(batch):
            if e.id == self._id:
                arrays[self._array].reshape(len(batch), -1)[row, -1] = self._value
        return EntityArrays(**arrays)


@pytest.mark.parametrize(
    ("array", "value", "dtype"),
    [
        ("tglu_query", np.nan, "float16"),
        ("cmfu", -np.inf, "float32"),
        ("vdlu_key", 65505.0, "float16"),
        ("tglu_bias", np.nan, "float16"),
        ("tglu_query", np.inf, "int8"),
        ("cmfu", 65505.0, "int8"),
    ],
)
def test_value_that_cannot_be_stored_names_entity_and_array(tiny, tmp_path, array, value, dtype):
    with pytest.raises(DataError, match=f"'Q35'.*{array}"):
        quiet(tiny, 9, tmp_path / "kb", fold=Spoiled(tiny, "Q35", array, value), dtype=dtype, batch_size=4)
    assert not (tmp_path / "kb").exists()


def test_large_values_fit_where_float32_is_kept(tiny, tmp_path):
    quiet(tiny, 9, tmp_path / "kb", fold=Spoiled(tiny, "Q35", "vdlu_key_scalars", 1e9), dtype="float16")
    assert Index.open(tmp_path / "kb").segments[0].vdlu_key_scalars[5, -1] == 1e9


def test_int8_without_token_queries_is_refused(tiny, tmp_path):
    fold = tiny.HashFold()
    fold.constants = replace(fold.constants, units=("vdlu", "cmfu"))
    with pytest.raises(InvalidInputError, match=r"int8.*tglu"):
        quiet(tiny, 3, tmp_path / "kb", fold=fold, dtype="int8")


def test_fold_without_a_units_array_is_refused(tiny, tmp_path):
    class Lacking(tiny.HashFold):
        def entities(self, batch):
            kept = {n: a for n, a in super().entities(batch).items() if n != "cmfu"}
            return EntityArrays(**kept)

    with pytest.raises(ModelError, match="cmfu"):
        quiet(tiny, 3, tmp_path / "kb", fold=Lacking())


def test_knowledge_base_that_changes_between_passes(tiny, tmp_path):
    passes = iter([5, 6])
    with pytest.raises(DataError, match="changed"):
        build_index(
            tiny.HashFold(), lambda: tiny.knowledge_base(next(passes))(), tmp_path / "kb", progress=False
        )
    passes = iter([5, 4])
    with pytest.raises(DataError, match="shorter"):
        build_index(
            tiny.HashFold(), lambda: tiny.knowledge_base(next(passes))(), tmp_path / "kb2", progress=False
        )


def test_existing_target(tiny, tmp_path):
    out = tmp_path / "kb"
    quiet(tiny, 3, out)
    with pytest.raises(IndexFormatError, match="already exists"):
        quiet(tiny, 4, out)
    opened = Index.open(out)
    quiet(tiny, 4, out, overwrite=True)
    assert len(Index.open(out)) == 4 and [p.name for p in tmp_path.iterdir()] == ["kb"]
    assert opened.segments[0].cmfu.shape == (3, 8) and opened.names([2]) == [
        tiny.entity(2).name
    ]  # still mapped


def test_overwrite_where_names_cannot_be_exchanged(tiny, tmp_path, monkeypatch):
    quiet(tiny, 3, tmp_path / "kb")
    monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    quiet(tiny, 4, tmp_path / "kb", overwrite=True)
    assert len(Index.open(tmp_path / "kb")) == 4 and [p.name for p in tmp_path.iterdir()] == ["kb"]


@pytest.mark.skipif(sys.platform != "linux", reason="names are exchanged in one step on Linux only")
def test_overwrite_never_leaves_the_name_empty(tiny, tmp_path):
    out, stop, gaps = tmp_path / "kb", threading.Event(), []
    quiet(tiny, 1, out)

    def watch():
        while not stop.is_set():
            if not (out / "manifest.json").exists():
                gaps.append(1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for count in range(2, 12):
            quiet(tiny, count, out, overwrite=True)
    finally:
        stop.set()
        watcher.join()
    assert not gaps


def test_overwrite_takes_an_index_of_an_older_version(tiny, tmp_path, monkeypatch):
    quiet(tiny, 3, tmp_path / "kb")
    written = read_manifest(tmp_path / "kb")
    monkeypatch.setattr(manifest, "VERSION", 3)
    write_manifest(tmp_path / "kb", written)
    monkeypatch.undo()
    with pytest.raises(IndexFormatError, match=r"version 3; .* --overwrite"):
        Index.open(tmp_path / "kb")
    with pytest.raises(IndexFormatError, match="already exists"):
        quiet(tiny, 4, tmp_path / "kb")
    quiet(tiny, 4, tmp_path / "kb", overwrite=True)
    assert len(Index.open(tmp_path / "kb")) == 4


def test_overwrite_spares_a_folder_that_is_no_index(tiny, tmp_path):
    (tmp_path / "kb").mkdir()
    (tmp_path / "kb" / "thesis.txt").write_text("years of work")
    with pytest.raises(IndexFormatError, match="not a readable index"):
        quiet(tiny, 3, tmp_path / "kb", overwrite=True)
    assert (tmp_path / "kb" / "thesis.txt").exists()


class Crash(BaseException):
    pass


def interrupted(tiny, tmp_path, count=40, after=3, **options):
    """Leave an unfinished build of ``after`` batches of four."""
    seen = Recorder()

    def crash(batch):
        seen(batch)
        if seen.batches > after:
            raise Crash

    with pytest.raises(Crash):
        quiet(tiny, count, tmp_path / "kb", fold=tiny.HashFold(crash), batch_size=4, **options)


@pytest.mark.parametrize("change", ["model_hash", "dtype", "count", "segment_rows", "options"])
def test_unfinished_build_of_something_else(tiny, tmp_path, change):
    interrupted(tiny, tmp_path)
    fold, count, options = tiny.HashFold(), 40, {}
    if change == "model_hash":
        fold.model_hash = "cd" * 32
    elif change == "count":
        count = 41
    else:
        other = {"dtype": "float32", "segment_rows": 7, "options": {"precision": "int8"}}
        options = {change: other[change]}
    with pytest.raises(IndexFormatError, match=f"kb.partial.*{change}.*delete this folder"):
        quiet(tiny, count, tmp_path / "kb", fold=fold, **options)


def test_partial_folder_that_is_no_build(tiny, tmp_path):
    (tmp_path / "kb.partial").mkdir()
    (tmp_path / "kb.partial" / "thesis.txt").write_text("years of work")
    with pytest.raises(IndexFormatError, match=r"kb.partial.*delete this folder"):
        quiet(tiny, 3, tmp_path / "kb")


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b"\xff", b"[" * 100_000, b'{"format": "mimic-index-build"}']
)
def test_damaged_progress_is_refused(tiny, tmp_path, data):
    interrupted(tiny, tmp_path)
    (tmp_path / "kb.partial" / PROGRESS).write_bytes(data)
    with pytest.raises(IndexFormatError, match=r"kb.partial.*delete this folder"):
        quiet(tiny, 40, tmp_path / "kb")


@pytest.mark.parametrize("file", ["segments/00000/ids.safetensors", "segments/00001/arrays.safetensors"])
def test_damaged_unfinished_segments_are_refused(tiny, tmp_path, monkeypatch, file):
    monkeypatch.setattr(build, "_FLUSH_ROWS", 4)
    interrupted(tiny, tmp_path, after=7, segment_rows=20)
    path = tmp_path / "kb.partial" / file
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IndexFormatError, match=path.name):
        quiet(tiny, 40, tmp_path / "kb", segment_rows=20)


def test_two_builds_at_once(tiny, tmp_path):
    def second(batch):
        with pytest.raises(IndexLockedError, match="another process"):
            quiet(tiny, 3, tmp_path / "kb")

    quiet(tiny, 3, tmp_path / "kb", fold=tiny.HashFold(second))
    assert len(Index.open(tmp_path / "kb")) == 3


class CrashPoint:
    """Stands in for fsync and rename: the k-th call (from 0) crashes instead; nothing is really flushed."""

    def __init__(self, monkeypatch):
        self.left = 10**9
        real_replace, real_rename, real_exchange = Path.replace, Path.rename, files._exchange
        monkeypatch.setattr(build, "_FLUSH_ROWS", 4)
        monkeypatch.setattr(os, "fsync", lambda descriptor: self.step())
        monkeypatch.setattr(Path, "replace", lambda *a: self.step() or real_replace(*a))
        monkeypatch.setattr(Path, "rename", lambda *a: self.step() or real_rename(*a))
        monkeypatch.setattr(files, "_exchange", lambda *a: self.step() or real_exchange(*a))

    def step(self):
        self.left -= 1
        if self.left == -1:
            raise Crash

    def crashes(self, at, call):
        self.left = at
        try:
            call()
        except Crash:
            return True
        finally:
            self.left = 10**9
        return False


@pytest.mark.parametrize("centroids", [0, 5])
def test_crash_before_every_flush_and_rename_is_resumed(tiny, tmp_path, monkeypatch, centroids):
    """Stop before the k-th fsync or rename for every k; the next call completes the same index."""
    point = CrashPoint(monkeypatch)
    options = {"batch_size": 3, "segment_rows": 10, "dtype": "float32", "centroids": centroids, "threads": 1}
    quiet(tiny, 25, tmp_path / "whole", **options)
    expected = data_files(tmp_path / "whole")
    at, out = 0, tmp_path / "kb0"
    while point.crashes(at, lambda out=out: quiet(tiny, 25, out, **options)):
        if not out.exists():
            quiet(tiny, 25, out, **options)
        assert len(Index.open(out)) == 25
        assert data_files(out) == expected
        at, out = at + 1, tmp_path / f"kb{at + 1}"
    assert at > 60


def test_crash_while_overwriting_leaves_the_old_or_the_new(tiny, tmp_path, monkeypatch):
    point, at, seen = CrashPoint(monkeypatch), 0, set()
    while True:
        out = tmp_path / f"kb{at}"
        quiet(tiny, 3, out)
        crashed = point.crashes(at, lambda out=out: quiet(tiny, 5, out, overwrite=True))
        seen.add(len(Index.open(out)))
        if not crashed:
            break
        at += 1
    assert seen == {3, 5} and at > 10


def test_kill_9_at_random_moments(tiny, tmp_path):
    """Killed five times and called again, the build ends in the same bytes and folds few rows twice."""
    rng = random.Random(20230806)
    script, count = Path(tiny.__file__), 1201
    command = [sys.executable, str(script), str(tmp_path / "kb"), str(count), "500", "8", "2"]
    first_rows: list[int] = []
    for _ in range(5):
        batches = rng.randrange(12, 40)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            rows = [int(process.stdout.readline()) for _ in range(batches)]
            threading.Event().wait(rng.random() * 0.01)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        first_rows.append(rows[0])
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60)
    assert first_rows[0] == 0 and first_rows == sorted(first_rows) and first_rows[4] > 4 * 4 * 8
    quiet(tiny, count, tmp_path / "whole", dtype="float32", batch_size=8, segment_rows=500)
    assert data_files(tmp_path / "kb") == data_files(tmp_path / "whole")
    Index.open(tmp_path / "kb")


MEMORY_SCRIPT = """
import resource, sys
import numpy as np
from mimic_engine.index.build import build_index
from mimic_engine.types import Entity, EntityArrays, FoldConstants
class Fold:
    constants, model_hash = FoldConstants(2048, ("cmfu",)), "00"
    def entities(self, batch):
        return EntityArrays(cmfu=np.ones((len(batch), 2048), np.float32))
def entities(count):
    return lambda: (Entity(f"Q{i}", "n", "d" * 500) for i in range(count))
build_index(Fold(), entities(300), sys.argv[1] + "/small", dtype="float32", progress=False)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
build_index(Fold(), entities(20_000), sys.argv[1] + "/large", dtype="float32", progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_arrays(tmp_path):
    """164 MB of arrays and 10 MB of text in one segment; the peak grows by a few MB of buffers."""
    run = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT, str(tmp_path)], check=True, capture_output=True, text=True
    )
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    assert (tmp_path / "large/segments/00000/arrays.safetensors").stat().st_size > 160e6
    assert int(run.stdout) * unit_bytes < 24e6
