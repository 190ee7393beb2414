r"""What names cost and what they add: ``names.json``.

    python -m benchmarks.names --models demo=MODEL wikimel=MODEL --data MEL --cache FOLDER \
        --out benchmarks/results/names.json

Lookups beside kept libraries (:mod:`benchmarks.names.lookup`), certified searches with and without names on
the WikiMEL index of the first model (:mod:`benchmarks.names.scan`), and accuracy on sets that no weight has
seen (:mod:`benchmarks.names.accuracy`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.names import accuracy, lookup, scan
from mimic_engine.backends.encoders import open_featurizer
from mimic_engine.errors import DataError, MimicError
from mimic_engine.provenance import write_result


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The payload of the result file; errors as of the parts."""
    if missing := [name for name in accuracy.SETS if not (args.data / name).is_dir()]:
        raise DataError(f"--data: {args.data} lacks {', '.join(missing)}")
    args.cache.mkdir(parents=True, exist_ok=True)
    models = dict(args.models)
    first = next(iter(models.values()))
    lookups = _said(lookup.measure(args.forms, list(lookup.MACHINERY)))
    index = accuracy.open_index(
        "WikiMEL", open_featurizer(first, threads=args.threads), args.data, args.cache
    )
    scans = _said(scan.measure(first, index, args.data / "WikiMEL", args.threads))
    found = _said(accuracy.measure(models, args.data, args.cache, args.limit, args.threads))
    return {
        "expected": {"lookup": lookup.EXPECTED, "scan": scan.EXPECTED, "accuracy": accuracy.EXPECTED},
        "outcome": {"scan": scan.outcome(scans), "accuracy": accuracy.outcome(found)},
        "lookup": lookups,
        "scan": scans,
        "accuracy": found,
    }


def _said(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for row in rows:
        print(row, file=sys.stderr, flush=True)
        found.append(row)
    return found


def _named(text: str) -> tuple[str, Path]:
    label, found, path = text.partition("=")
    if not (label and found and path):
        raise argparse.ArgumentTypeError(f"needs LABEL=FOLDER, got {text!r}")
    return label, Path(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.names", description=str(__doc__).partition("\n")[0]
    )
    add = parser.add_argument
    add("--models", type=_named, nargs="+", required=True, metavar="LABEL=FOLDER", help="exported models")
    add("--data", type=Path, required=True, help=f"folder that holds {', '.join(accuracy.SETS)}")
    add("--cache", type=Path, required=True, help="folder for the indices")
    add("--limit", type=int, default=1000, help="dev mentions of a set that weights are fitted to")
    add("--forms", type=int, nargs="+", default=[10_000, 1_000_000], help="numbers of forms to look up in")
    add("--threads", type=int, help="cores; all by default")
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
