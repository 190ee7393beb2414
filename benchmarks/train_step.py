"""Training steps with denormal numbers and with zeros in their place, in turns, in one process.

``python -m benchmarks.train_step`` trains two equal models on the demo, one
each way, and writes ``benchmarks/results/train_step.json``: seconds a step,
the ratio, and how far the losses are apart. It fails where they differ by more
than rounding.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks import RESULTS
from benchmarks.base.recipe import recipe
from mimic_engine.base import fetch_encoders
from mimic_engine.data.source import open_dataset
from mimic_engine.demo import build_demo, default_cache, fetch_demo
from mimic_engine.provenance import write_result
from mimic_engine.train.run import build_trainer, denormals_as_zero
from mimic_engine.train.trainer import Trainer

TOLERANCE = 1e-3  # relative, of a loss: the weights are the same but for rounding that steps add up
MODELS = ("text-only", "full")


def measure(trainers: tuple[Trainer, Trainer], steps: int) -> dict[str, float]:
    """Median seconds of a step with denormals and with zeros, their ratio, the losses' largest distance.

    Parameters
    ----------
    trainers : two that are equal; the first keeps denormals, the second takes them for zero.
    steps : of each, at most those of an epoch; both take the same batches.

    Raises
    ------
    SystemExit
        If the losses of a step differ by more than TOLERANCE.
    """
    seconds: tuple[list[float], list[float]] = ([], [])
    apart = 0.0
    for batch in trainers[0].sampler.batches(0, None)[:steps]:
        losses = []
        modes: tuple[AbstractContextManager[None], ...] = (nullcontext(), denormals_as_zero())
        for trainer, taken, mode in zip(trainers, seconds, modes, strict=True):
            with mode:
                start = time.perf_counter()
                losses.append(trainer.step([batch])["loss"])
                taken.append(time.perf_counter() - start)
        apart = max(apart, abs(losses[0] - losses[1]) / abs(losses[0]))
    if apart > TOLERANCE:
        raise SystemExit(f"the losses are {apart:.2g} apart, more than {TOLERANCE:g}")
    kept, zero = (statistics.median(taken) for taken in seconds)
    return {
        "steps": len(seconds[0]),
        "denormals_s": kept,
        "zeros_s": zero,
        "ratio": kept / zero,
        "loss_distance": apart,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step", description=__doc__)
    parser.add_argument("--cache", type=Path, default=default_cache(), help="the demo's folder (%(default)s)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULTS / "train_step.json")
    args = parser.parse_args(argv)
    if args.steps < 1:
        parser.error(f"--steps: {args.steps} is less than 1")
    # One thread: those of a pool would keep the mode in which they were started.
    torch.set_num_threads(1)
    build_demo(fetch_demo(args.cache), args.cache)
    files = fetch_encoders(args.cache)
    dataset = open_dataset(args.cache, splits=("train", "dev"))
    rows = []
    with TemporaryDirectory() as folder:
        own = recipe(files, args.cache, Path(folder), args.cache / "features")
        full = replace(own, drop_images=0.0, drop_texts=0.0, names_in_loss=False)
        configs = {"full": full, "text-only": replace(full, vision="off", cmfu=False)}
        for name in args.models:
            first, second = (build_trainer(configs[name], dataset, "cpu") for _ in range(2))
            row = {"model": name, "batch": full.batch_size}
            rows.append(row | measure((first, second), args.steps))
            sys.stdout.write(f"{rows[-1]}\n")
    write_result(args.out, {"rows": rows, "threads": 1})
    return 0


if __name__ == "__main__":
    sys.exit(main())
