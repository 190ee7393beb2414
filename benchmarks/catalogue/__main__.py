"""``python -m benchmarks.catalogue --out FOLDER``: fetch the drawings, write the data set, count it."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.catalogue.catalogue import Catalogue, read_catalogue, write_catalogue
from mimic_engine.demo.fetch import default_cache, fetch_icons
from mimic_engine.demo.render import IconSet
from mimic_engine.errors import MimicError


def describe(catalogue: Catalogue) -> str:
    """The catalogue in numbers, one line a part."""
    kinds = Counter(mention.id.rpartition("/")[0] for mention in catalogue.mentions)
    drawn = sum(mention.image is not None for mention in catalogue.mentions)
    return (
        f"entities: {len(catalogue.entities)}\n"
        f"mentions: {len(catalogue.mentions)}, {drawn} with an image {dict(kinds)}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.catalogue", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for kb.jsonl, test.jsonl and the images")
    add("--cache", type=Path, default=default_cache(), help="the demo's folder (%(default)s)")
    add("--quiet", action="store_true", help="show no progress")
    args = parser.parse_args(argv)
    try:
        catalogue = read_catalogue()
        icons = fetch_icons(catalogue.styles(), args.cache, not args.quiet)
        sets = {style: IconSet.open(style, path) for style, path in icons.items()}
        write_catalogue(catalogue, sets, args.out, not args.quiet)
    except MimicError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(describe(catalogue))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
