r"""The rival that anyone builds in an afternoon, tuned with care: ``rival.json``.

    OMP_NUM_THREADS=1 python -m benchmarks.rival --data MEL --cache FOLDER --out benchmarks/results/rival.json

Sentence vectors and image vectors in one flat index and a bonus for an equal name, on three sets that no
weight has seen, the demo and any data set of own records: how well it links (:mod:`benchmarks.rival.measure`)
and how long that takes (:mod:`benchmarks.rival.latency`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.names.accuracy import SETS
from benchmarks.rival import measure
from benchmarks.rival.encoders import ENTITY_TEXT, LENGTH, MENTION_TEXT, Encoders
from benchmarks.rival.sets import RivalSet, demo_set, open_set
from mimic_engine.base import fetch_encoders
from mimic_engine.demo import default_cache, read_demo
from mimic_engine.errors import DataError, MimicError
from mimic_engine.provenance import write_result

THREADS = 1


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The payload of the result file; errors as of the parts."""
    if missing := [name for name in SETS if not (args.data / name).is_dir()]:
        raise DataError(f"--data: {args.data} lacks {', '.join(missing)}")
    encoders = Encoders(fetch_encoders(args.demo), args.cache, THREADS)
    rows = []
    for row in measure.measure(_sets(args), encoders):
        print(row, file=sys.stderr, flush=True)
        rows.append(row)
    return {
        "expected": measure.EXPECTED,
        "outcome": measure.outcome(rows),
        "encoders": {
            "model_hash": encoders.model_hash,
            "text_tokens": LENGTH,
            "mention": MENTION_TEXT,
            "entity": ENTITY_TEXT,
        },
        "threads": THREADS,
        "rows": rows,
    }


def _sets(args: argparse.Namespace) -> list[RivalSet]:
    blank = False if args.descriptions else None
    sets = [open_set(args.data / name, name, args.limit, blank=blank) for name in SETS]
    sets.append(demo_set(read_demo(args.demo), args.limit))
    return sets + [open_set(folder, folder.absolute().name, args.limit) for folder in args.catalogue]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rival", description=str(__doc__).partition("\n")[0]
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help=f"folder that holds {', '.join(SETS)}")
    add("--cache", type=Path, required=True, help="folder for graphs and vectors")
    add("--demo", type=Path, default=default_cache(), help="the demo's folder (%(default)s)")
    add("--catalogue", type=Path, nargs="+", default=[], metavar="FOLDER", help="data sets of own records")
    add("--descriptions", action="store_true", help="keep the descriptions of WikiDiverse")
    add("--limit", type=int, help="mentions of a split; all by default")
    add("--out", type=Path, required=True, help="result file")
    args = parser.parse_args(argv)
    try:
        write_result(args.out, run(args))
    except MimicError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
