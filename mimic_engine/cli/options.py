"""The options of every command that runs encoders: which backend, which precision, from where."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimic_engine.types import DEVICE_LAYERS

if TYPE_CHECKING:
    from mimic_engine.encoding.featurizer import Featurizer


MODEL_HELP = "exported model folder, or 'base': the model that is shipped"


def add_backend(parser: argparse.ArgumentParser, precision: str | None = "fp32") -> None:
    """Add the options; ``--model`` is the command's own. A ``precision`` of None stands for the index's."""
    add = parser.add_argument
    add("--backend", default="auto", help="of the encoders: onnx, cuda, tensorrt, torch, or auto (default)")
    default = "that of the index" if precision is None else precision
    add(
        "--precision",
        default=precision,
        help=f"of the encoder graphs: fp32, fp16, int8, fp8, or bf16 on a GPU (default: {default})",
    )
    add("--engines", type=Path, help="folder of TensorRT engines; MODEL/engines by default")
    add("--checkpoint", type=Path, help="folder that the model was exported from, for --backend torch")
    add(
        "--device-layer",
        choices=DEVICE_LAYERS,
        default="auto",
        help="what encoders on a GPU have memory from; auto: PyCUDA where it is installed (%(default)s)",
    )
    add("--threads", type=int, help="CPU cores to use; all by default")


def add_names(parser: argparse.ArgumentParser) -> None:
    """Add the option that leaves names out of the scores."""
    parser.add_argument(
        "--no-names", action="store_true", help="the model's score alone: neither names nor popularity count"
    )


def backend_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options as ``Linker.open`` and ``open_featurizer`` take them."""
    names = ("backend", "precision", "engines", "checkpoint", "device_layer", "threads")
    return {name: getattr(args, name) for name in names}


def open_model(args: argparse.Namespace) -> Featurizer:
    """The model that ``--model`` and the options describe."""
    from mimic_engine.backends.encoders import open_featurizer

    return open_featurizer(args.model, **backend_options(args))
