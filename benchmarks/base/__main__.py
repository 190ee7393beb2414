r"""The base model's recipe on sets that it has not seen: ``base.json``.

    OMP_NUM_THREADS=1 python -m benchmarks.base --data MEL --runs RUNS --out benchmarks/results/base.json

For each of WikiMEL, RichpediaMEL and WikiDiverse a twin is trained on the others and the demo
(:mod:`benchmarks.base.recipe`), its weights of names fitted to the others' dev mentions, and tested on the
one left out, beside names alone and boosted trees. A twin that is trained already is not trained again.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.base.recipe import DEMO, joined, open_set, recipe
from benchmarks.base.rows import beside, left_out_row
from benchmarks.base.worlds import World, judged
from benchmarks.names.accuracy import SETS
from mimic_engine.base import fetch_encoders
from mimic_engine.demo import build_demo, default_cache, fetch_demo
from mimic_engine.errors import InvalidInputError, MimicError
from mimic_engine.model.checkpoint import load_checkpoint
from mimic_engine.provenance import write_result
from mimic_engine.train.config import TrainConfig, portable
from mimic_engine.train.run import build_trainer, configure_logging, denormals_as_zero

log = logging.getLogger("benchmarks.base")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The payload of the result file."""
    if args.limit < 0:
        raise InvalidInputError(f"--limit: {args.limit} is below 0")
    build_demo(fetch_demo(args.demo), args.demo)
    files = fetch_encoders(args.demo)
    worlds = {
        name: World.of(name, open_set(name, args.data, args.demo), args.limit) for name in (*SETS, DEMO)
    }
    plan = recipe(files, args.data, args.runs, args.runs / "features", args.seed)
    rows = {}
    for name in args.left_out:
        out = args.runs / f"left-out-{name}"
        seconds = train_twin(replace(plan, out=out), name, worlds)
        log.info("testing the twin that has not seen %s", name)
        rows[name] = test_twin(replace(plan, out=out), name, worlds) | {"train_seconds": seconds}
    options = {k: v for k, v in portable(plan.to_json()).items() if k != "resume"}
    return {"recipe": options, "left_out": rows}


def train_twin(config: TrainConfig, left_out: str, worlds: Mapping[str, World]) -> float:
    """Train on all worlds but one, unless that is done; seconds that it took."""
    data = joined([world.dataset for name, world in worlds.items() if name != left_out])
    config.out.mkdir(parents=True, exist_ok=True)
    again = replace(config, resume=(config.out / "last.pt").exists())
    with denormals_as_zero():
        return build_trainer(again, data, "cpu").fit().seconds


def test_twin(config: TrainConfig, left_out: str, worlds: Mapping[str, World]) -> dict[str, Any]:
    """The row of the world that a twin has not seen."""
    model = load_checkpoint(
        config.out / "best", text_source=config.text_source, image_source=config.image_source
    ).model
    others = [world for name, world in worlds.items() if name != left_out]
    ranked = []
    for world in others:
        with judged(world, model, config) as one:
            ranked.append(one.ranked())
    with judged(worlds[left_out], model, config) as one:
        row = left_out_row(one, ranked)
    return row | beside(worlds[left_out], others)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.base", description=str(__doc__).partition("\n")[0]
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help=f"folder that holds {', '.join(SETS)}")
    add("--demo", type=Path, default=default_cache(), help="the demo's folder (%(default)s)")
    add("--runs", type=Path, required=True, help="folder of the trainings and their features")
    add("--left-out", nargs="+", choices=SETS, default=list(SETS), help="sets to leave out, each in turn")
    add("--limit", type=int, default=0, help="mentions of a set that are tested; 0 = all")
    add("--seed", type=int, default=0)
    add("--out", type=Path, required=True, help="result file")
    args = parser.parse_args(argv)
    configure_logging()
    try:
        write_result(args.out, run(args))
    except MimicError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
