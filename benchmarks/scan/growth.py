"""Time and memory of the scan as the knowledge base grows, features read from disk by memory map.

    python -m benchmarks.scan.growth --model MODEL --index INDEX --data WikiMEL \
        --folder SCRATCH --out benchmarks/results/scan_growth.json

Rows are those of a real index, repeated with noise (:mod:`benchmarks.scan.tiled`) and
written to files, so that every pass reads N distinct rows. The token queries
and codes of a repetition are those of the index itself: the coded mode reads
queries of the entities that it re-scores and of no others. Each answer is
checked: the scores are those of the NumPy reference, in descending order, and
where the certified mode runs beside the coded one, the best entity is compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.scan.tiled import TiledCodes, gathered, noisy_rows
from benchmarks.service.engine_side import TOLERANCES
from benchmarks.timing import repeat
from mimic_engine.backends.encoders import open_featurizer
from mimic_engine.backends.scan import open_kernels
from mimic_engine.data.source import open_dataset
from mimic_engine.encoding.onnx import available_threads
from mimic_engine.errors import EngineError, InvalidInputError, MimicError
from mimic_engine.index.store import Index
from mimic_engine.kernels.reference import scores_ref
from mimic_engine.provenance import write_result
from mimic_engine.scan.scan import Scan, TopK
from mimic_engine.types import KERNELS, MODES, EntityArrays, FoldConstants, MentionArrays, Mode

TOP_K = 10
_SHARED = ("tglu_query", "tglu_query_scale", "tglu_token_weight")


@dataclass(frozen=True, slots=True)
class GrowthRow:
    """One mode at one size; bytes are of the features that its passes read and of the whole process."""

    mode: str
    n: int
    b: int
    ms: float
    median_ms: float
    runs: int
    pass_bytes: int
    resident_bytes: int
    survivor_share: float
    same_best: float | None


class GrownIndex:
    """Repetitions of a real index on disk, each one segment."""

    def __init__(self, index: Index, folder: Path) -> None:
        if index.codes is None:
            raise InvalidInputError(f"{index.path}: has no codes; the growth of the coded mode is measured")
        self._base = gathered(index.segments)
        self._base_codes = np.concatenate([np.asarray(c) for c in index.codes.segments])  # (N0, L)
        self._centroids = index.codes.centroids
        self._folder = folder
        self._segments: list[EntityArrays] = []
        self._codes: list[np.ndarray] = []

    def grow(self, rows: int) -> tuple[list[EntityArrays], TiledCodes]:
        """Segments and codes of the first ``rows`` rows; writes what is not on disk yet."""
        size = self._base.rows
        while len(self._segments) * size < rows:
            self._add(len(self._segments))
        count = -(-rows // size)
        last = rows - (count - 1) * size
        segments = [*self._segments[: count - 1], self._segments[count - 1].block(0, last)]
        codes = [*self._codes[: count - 1], self._codes[count - 1][:last]]
        return segments, TiledCodes(self._centroids, codes)

    def pass_bytes(self, mode: Mode) -> int:
        """Bytes an entity that the pass of a mode over all entities reads."""
        own = sum(a[0].nbytes for n, a in self._base.items() if n not in _SHARED)
        if mode != "coded":
            return own
        weight = self._base.tglu_token_weight
        return own + self._base_codes[0].nbytes + (0 if weight is None else weight[0].nbytes)

    def _add(self, turn: int) -> None:
        size = self._base.rows
        shared = {n: a for n, a in self._base.items() if n in _SHARED}
        rest = EntityArrays(**{n: a for n, a in self._base.items() if n not in _SHARED})
        rows = noisy_rows(rest, turn * size, (turn + 1) * size)
        mapped = {n: self._mapped(f"{turn:05d}-{n}", a) for n, a in rows.items()}
        self._segments.append(EntityArrays(**mapped, **shared))
        self._codes.append(self._mapped(f"{turn:05d}-codes", self._base_codes))

    def _mapped(self, name: str, array: np.ndarray) -> np.ndarray:
        path = self._folder / f"{name}.npy"
        np.save(path, array)
        return np.load(path, mmap_mode="r")


def measure(args: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Grow the index step by step and time the modes at each; the payload of the result file.

    Raises
    ------
    EngineError
        If an answer's scores are not those of the reference.
    """
    index = Index.open(args.index)
    featurizer = open_featurizer(args.model, threads=args.threads)
    index.check_model(featurizer.model_hash)
    mentions = _mentions(args, featurizer)
    grown = GrownIndex(index, args.folder)
    rows: list[GrowthRow] = []
    for n in sorted(args.sizes):
        segments, codes = grown.grow(n)
        kernels = open_kernels(args.scorer, args.model, featurizer.constants)
        scan = Scan(segments, kernels, threads=args.threads, codes=codes)
        certified: TopK | None = None
        for mode in MODES[1:]:
            if mode == "certified" and n > args.certified_to:
                continue
            row, found = _time(args, scan, mentions, mode, certified, grown)
            _check(found, segments, mentions, featurizer.constants)
            certified = found if mode == "certified" else certified
            rows.append(row)
            say(
                f"{mode} n={n:,}: {row.ms:.1f} ms, {row.survivor_share:.3%} scored, best kept {row.same_best}"
            )
        scan.close()
    return {
        "threads": args.threads,
        "scorer": scan.scorer_name,
        "bytes_per_entity": {mode: grown.pass_bytes(mode) for mode in ("certified", "coded")}
        | {"tokens": _token_bytes(index)},
        "rows": [asdict(row) for row in rows],
    }


def _token_bytes(index: Index) -> int:
    return sum(a[0].nbytes for n, a in index.segments[0].items() if n in _SHARED)


def _mentions(args: argparse.Namespace, featurizer: Any) -> MentionArrays:
    labelled = open_dataset(args.data, splits=(args.split,)).splits[args.split][: args.mentions]
    arrays: MentionArrays = featurizer.mentions([m.mention for m in labelled])
    return arrays


def _time(
    args: argparse.Namespace,
    scan: Scan,
    mentions: MentionArrays,
    mode: Mode,
    certified: TopK | None,
    grown: GrownIndex,
) -> tuple[GrowthRow, TopK]:
    """Time single mentions one after another, as many as there are; the row is an average mention's."""

    def search() -> list[TopK]:
        one = (mentions.block(b, b + 1) for b in range(mentions.rows))
        return [scan.search(m, min(TOP_K, len(scan)), mode=mode) for m in one]

    search()
    timed, parts = repeat(search, args.seconds)
    found = TopK(
        np.concatenate([p.rows for p in parts]),
        np.concatenate([p.scores for p in parts]),
        {},
        tuple(m for p in parts for m in p.modes),
        np.concatenate([p.scored for p in parts]),
    )
    same = None if certified is None else float((found.rows[:, 0] == certified.rows[:, 0]).mean())
    row = GrowthRow(
        mode,
        len(scan),
        1,
        timed.least_ms / mentions.rows,
        timed.median_ms / mentions.rows,
        len(timed.seconds),
        grown.pass_bytes(mode) * len(scan),
        _resident_bytes(),
        float(found.scored.mean() / len(scan)),
        same,
    )
    return row, found


def _check(
    found: TopK, segments: Sequence[EntityArrays], mentions: MentionArrays, constants: FoldConstants
) -> None:
    """Hold the answered scores against the NumPy reference."""
    starts = np.cumsum([0, *(s.rows for s in segments)])
    for b, rows in enumerate(found.rows):
        number = np.searchsorted(starts, rows, side="right") - 1
        blocks = [segments[s].take(np.array([r - starts[s]])) for s, r in zip(number, rows, strict=True)]
        one = mentions.block(b, b + 1)
        expected = np.array([scores_ref(one, block, constants).total[0, 0] for block in blocks])
        gap = float(np.abs(expected - found.scores[b]).max())
        if not gap <= TOLERANCES["float32"] or (np.diff(found.scores[b]) > 0).any():
            raise EngineError(f"mention {b}: scores {gap:.2e} from the reference, or not in descending order")


def _resident_bytes() -> int:
    status = Path("/proc/self/status").read_text("utf-8")
    [line] = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1024


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(float(part)) for part in text.split(","))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scan.growth", description=__doc__.partition("\n")[0]
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="result file to write")
    add("--model", type=Path, required=True, help="exported model folder")
    add("--index", type=Path, required=True, help="its index, with codes")
    add("--data", type=Path, required=True, help="data set with mentions of that index")
    add("--folder", type=Path, required=True, help="for the files of the larger indexes")
    add("--split", default="test")
    add("--mentions", type=int, default=20, help="asked one by one (%(default)s)")
    add("--sizes", type=_sizes, default=(10**4, 10**5, 10**6, 10**7), metavar="N,...", help="%(default)s")
    add("--certified-to", type=int, default=10**6, help="largest size of the certified mode (%(default)s)")
    add("--scorer", choices=KERNELS, default="auto")
    add("--threads", type=int, default=available_threads(), help="%(default)s")
    add("--seconds", type=float, default=3.0, help="spent on each row (%(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = _parser().parse_args(argv)
    try:
        if min(args.sizes) < 1 or args.mentions < 1:
            raise InvalidInputError(f"sizes and mentions: at least 1, got {args.sizes} and {args.mentions}")
        if not args.folder.is_dir():
            raise InvalidInputError(f"--folder: {args.folder} is not a folder")
        print(write_result(args.out, measure(args, lambda line: print(line, flush=True))))
    except MimicError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
