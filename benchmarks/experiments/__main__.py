"""Command line: ``python -m benchmarks.experiments NAME --data FOLDER --out DIR``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mimic_engine.errors import InvalidInputError, MimicError

DEMO = "demo"


def main(argv: Sequence[str] | None = None) -> int:
    """Run; 0 on success, 1 with a message on an error that has one, 130 on Ctrl-C."""
    args = _parser().parse_args(argv)
    from mimic_engine.train.run import configure_logging

    configure_logging()
    try:
        sys.stdout.write(f"{_run(args)}\n")
    except MimicError as error:
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        sys.stderr.write(f"error: {error}{notes}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on\n")
        return 130
    return 0


def _run(args: argparse.Namespace) -> Path:
    import torch

    from benchmarks.experiments.data import open_data
    from benchmarks.experiments.declaration import find_experiment, read_experiment
    from benchmarks.experiments.probes import PROBES
    from benchmarks.experiments.runner import Runner, Setting
    from mimic_engine.base import fetch_encoders
    from mimic_engine.demo import build_demo, default_cache, fetch_demo

    for flag, least in (("seeds", 1), ("limit_steps", 0), ("epochs", 0), ("threads", 0)):
        if getattr(args, flag) < least:
            name = flag.replace("_", "-")
            raise InvalidInputError(f"--{name}: {getattr(args, flag)} is less than {least}")
    for flag in ("out", "runs", "cache"):
        folder = getattr(args, flag)
        if folder is not None and folder.exists() and not folder.is_dir():
            raise InvalidInputError(f"--{flag}: {folder} is not a folder")
    experiment = read_experiment(find_experiment(args.name), PROBES)
    folder = Path(args.data)
    if args.data == DEMO:
        folder = default_cache()
        build_demo(fetch_demo(folder), folder)
    text, image = args.text_source, args.image_source
    if args.encoder == "minilm-efficientnet" and not (text and image):
        files = fetch_encoders(default_cache())
        text, image = text or str(files.minilm), image or str(files.efficientnet)
    if args.threads:
        torch.set_num_threads(args.threads)
    name = DEMO if args.data == DEMO else folder.resolve().name
    data = open_data(folder, name, args.others)
    setting = Setting(
        out=args.out,
        cache=args.cache or args.out / "cache",
        seeds=args.seeds,
        encoder=args.encoder,
        text_source=text,
        image_source=image,
        limit_steps=args.limit_steps,
        epochs=args.epochs,
        only=tuple(args.only),
        device=args.device,
        threads=args.threads,
        broken_images=args.broken_images,
        runs=args.runs,
    )
    return Runner(experiment, data, setting, PROBES).run()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experiments",
        description="Run a declared experiment: train, choose on dev, read test once, summarise over seeds.",
    )
    add = parser.add_argument
    add("name", metavar="NAME", help="a file of benchmarks/experiments/ without .toml, or a path")
    add("--data", required=True, help="data set folder, or 'demo', which is fetched and built")
    add(
        "--others", nargs="+", type=Path, default=[], help="data sets for configurations that train on others"
    )
    add("--out", type=Path, required=True, help="output folder: the files that say what was found")
    add("--runs", type=Path, help="folder of single runs, which experiments may share; OUT/runs if not given")
    add("--seeds", type=int, default=3, help="runs of each configuration (default: 3)")
    add("--cache", type=Path, help="folder of cached features; OUT/cache if not given")
    add("--only", nargs="+", default=[], metavar="CONFIG", help="run only these configurations now")
    add("--limit-steps", type=int, default=0, help="stop each run after this many steps; 0 = as declared")
    add("--epochs", type=int, default=0, help="passes over the training mentions; 0 = as declared")
    add("--encoder", choices=("clip", "minilm-efficientnet", "bert-vit"), default="minilm-efficientnet")
    add("--text-source", help="text encoder: folder or hub id (the demo's MiniLM, fetched, by default)")
    add("--image-source", help="image encoder (the demo's EfficientNet-Lite0, fetched, by default)")
    add("--device", default="auto", help="torch device; auto: a GPU if there is one")
    add("--threads", type=int, default=0, help="CPU threads; 0 = as torch chooses")
    add("--broken-images", choices=("error", "as-missing"), default="error")
    return parser


if __name__ == "__main__":
    sys.exit(main())
