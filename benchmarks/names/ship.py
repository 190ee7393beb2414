r"""The calibration that the base model is shipped with.

    python -m benchmarks.names.ship --data MEL --cache FOLDER

Fitted to the demo's dev mentions and to as many of WikiMEL, RichpediaMEL and WikiDiverse each, so that the
weights are those of no single kind of name. Writes ``calibration.json`` beside the base model's weights.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.names.accuracy import SETS, open_world, ranked_of
from mimic_engine.base.model import WEIGHTS
from mimic_engine.calibration.fit import fit_calibration
from mimic_engine.demo import default_cache, read_demo
from mimic_engine.demo.prepare import prepare_demo
from mimic_engine.engine.linker import Linker
from mimic_engine.errors import MimicError

FOLDER = Path(__file__).parents[2] / "mimic_engine" / "base" / WEIGHTS


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.names.ship", description=str(__doc__).partition("\n")[0]
    )
    parser.add_argument("--data", type=Path, required=True, help=f"folder that holds {', '.join(SETS)}")
    parser.add_argument("--cache", type=Path, required=True, help="folder for the indices")
    parser.add_argument("--demo", type=Path, default=default_cache(), help="the demo's folder (%(default)s)")
    args = parser.parse_args(argv)
    try:
        _ship(args)
    except MimicError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _ship(args: argparse.Namespace) -> None:
    paths = prepare_demo(args.demo)
    linker = Linker.open(paths.model, paths.index, names=False)
    own = read_demo(args.demo).mentions["dev"]
    gold = linker.index.rows([m.answer for m in own]).tolist()
    ranked = linker.ranked_mentions([m.mention for m in own], gold)
    entities = len(linker.index)
    for name in SETS:
        world = open_world(name, linker.featurizer, paths.model, args.data, args.cache, len(own), None)
        ranked += ranked_of(world)
        entities += len(world.index)
        world.scan.close()
    linker.close()
    found = fit_calibration(ranked, linker.model_hash, entities)
    found.write(FOLDER)
    print(json.dumps(asdict(found), indent=2))


if __name__ == "__main__":
    raise SystemExit(main())
