"""Kill a writer at random moments, many times, while a reader queries: nothing acknowledged is lost.

After each kill -9 the index must open, hold every change that was acknowledged,
and of the one under way all or nothing. Between kills the reader checks that
every snapshot it sees is whole and every answer of live entities, each once.

    python -m benchmarks.durability.kill --kills 200 --out benchmarks/results/kill.json

A killed process leaves what it wrote in the system's cache, so this says
nothing of a power cut; that all is flushed in order is tested in
``tests/index/test_durability.py``.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.durability.kill_parties import Change, Versions, build, versions_of
from mimic_engine.errors import InvalidInputError, MimicError
from mimic_engine.index.store import Index
from mimic_engine.provenance import REPOSITORY, write_result

HANG_S = 120.0  # a party that says nothing for so long has failed


@dataclass(frozen=True, slots=True)
class KillOptions:
    """How often to kill, when, and from which seed."""

    kills: int = 200
    most_changes: int = 4  # acknowledged before the wait for the kill begins
    longest_ms: int = 300  # of that wait
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("kills", "most_changes", "longest_ms"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"{name}: must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class _Moment:
    """When a writer is killed: so long after so many changes were acknowledged."""

    changes: int
    delay_s: float


@dataclass(frozen=True, slots=True)
class _Life:
    """What one writer said before it was killed."""

    done: tuple[Change, ...]
    under_way: Change | None
    generation: int  # of the snapshot that the last acknowledged change made; 0 without one


@dataclass(slots=True)
class _Counts:
    kills: int = 0
    changes_acknowledged: int = 0
    changes_found: int = 0
    under_way: int = 0  # changes that were begun and not acknowledged when the kill came
    under_way_found: int = 0  # of these, whole in the index


def run(options: KillOptions, folder: Path) -> dict[str, Any]:
    """Kill as often as asked; returns the counts.

    Raises
    ------
    AssertionError
        If a change is lost or half visible, or a reader sees something wrong.
    MimicError
        If the index does not open.
    """
    path, rng, counts = folder / "index", random.Random(options.seed), _Counts()
    build(path)
    versions: Versions = versions_of(Index.open(path))
    with _reading(path) as seen:
        for number in range(options.kills):
            moment = _Moment(rng.randint(0, options.most_changes), rng.random() * options.longest_ms / 1000)
            life = _live(path, rng.randrange(2**32), 1 + number * 1_000_000, moment)
            versions = _check(path, versions, life, counts)
    assert counts.changes_found == counts.changes_acknowledged
    return {
        "kills": counts.kills,
        "changes_acknowledged": counts.changes_acknowledged,
        "changes_found": counts.changes_found,
        "changes_under_way": counts.under_way,
        "changes_under_way_found_whole": counts.under_way_found,
        "changes_found_in_part": 0,  # or an assertion would have stopped the run
        "generation": Index.open(path).manifest.generation,
        "reader": seen,
        "most_changes": options.most_changes,
        "longest_ms": options.longest_ms,
        "seed": options.seed,
    }


def _check(path: Path, before: Versions, life: _Life, counts: _Counts) -> Versions:
    """Open the index that a killed writer left, and hold it against what the writer said."""
    index = Index.open(path)
    found = versions_of(index)
    assert index.manifest.generation >= life.generation, f"generation {life.generation} is lost"
    expected = before
    for change in life.done:
        expected = change.apply(expected)
    also = expected if life.under_way is None else life.under_way.apply(expected)
    assert found in (expected, also), f"found {found}, expected {expected} or {also}"
    pending = [] if life.under_way is None or found != also else [life.under_way]
    later = [*life.done, *pending]
    counts.kills += 1
    counts.changes_acknowledged += len(life.done)
    counts.changes_found += sum(c.is_in(found, later[i + 1 :]) for i, c in enumerate(life.done))
    counts.under_way += life.under_way is not None
    counts.under_way_found += life.under_way is not None and found == also != expected
    return found


def _live(path: Path, seed: int, version: int, moment: _Moment) -> _Life:
    """Start a writer, let it make changes for a while, and kill it."""
    with _party("writer", path, seed, version) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(1 + 2 * moment.changes)]  # each is begun, then done
        threading.Event().wait(moment.delay_s)
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.read().splitlines(keepends=True)
    if process.returncode != -signal.SIGKILL or "" in lines:  # its output ended before the kill
        raise AssertionError(f"the writer ended by itself, or hung: status {process.returncode}")
    said = [json.loads(line) for line in lines if line.endswith("\n")]
    done = [Change(**words["done"]) for words in said if "done" in words]
    begun = [Change(**words["begin"]) for words in said if "begin" in words]
    assert begun[: len(done)] == done and len(begun) - len(done) in (0, 1)
    generation = max((words.get("generation", 0) for words in said), default=0)
    return _Life(tuple(done), begun[-1] if len(begun) > len(done) else None, generation)


@contextmanager
def _reading(path: Path) -> Iterator[dict[str, int]]:
    """A reader at work; what it saw is in the dictionary afterwards."""
    seen: dict[str, int] = {}
    process = _start("reader", path)
    try:
        yield seen
        out, _ = process.communicate("\n", timeout=HANG_S)
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        raise AssertionError("the reader saw something wrong: see its message above")
    seen |= json.loads(out)


@contextmanager
def _party(*words: object) -> Iterator[subprocess.Popen[str]]:
    """A process that is killed should it hang."""
    process = _start(*words)
    watchdog = threading.Timer(HANG_S, process.kill)
    watchdog.start()
    try:
        yield process
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate()


def _start(*words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.durability.kill_parties", *map(str, words)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)


def main(argv: Sequence[str] | None = None) -> int:
    """Run and write the result; 1 with a message if something was lost."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.durability.kill", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--most-changes", type=int, default=4, help="acknowledged before the wait begins")
    parser.add_argument("--longest-ms", type=int, default=300, help="of the wait for the kill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="result file")
    args = parser.parse_args(argv)
    try:
        options = KillOptions(args.kills, args.most_changes, args.longest_ms, args.seed)
        with tempfile.TemporaryDirectory() as folder:
            result = run(options, Path(folder))
        write_result(args.out, result)
    except (AssertionError, MimicError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
