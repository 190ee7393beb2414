"""``mimic-engine model info MODEL``: what a model is, what it was trained on, and how good it was."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mimic_engine.base.model import BASE, base_card, find_model
from mimic_engine.calibration.stored import FILE as CALIBRATION
from mimic_engine.calibration.stored import Calibration
from mimic_engine.encoding.manifest import ModelManifest


def add_info(parser: argparse.ArgumentParser) -> None:
    """Add what ``mimic-engine model info`` takes."""
    parser.add_argument("model", help=f"exported model folder, or {BASE!r}")
    parser.set_defaults(run=run_info)


def run_info(args: argparse.Namespace) -> int:
    """Print it."""
    folder = find_model(args.model)
    manifest = ModelManifest.read(folder)
    said: dict[str, Any] = {
        "folder": str(folder),
        "model_hash": manifest.model_hash,
        "text": asdict(manifest.text),
        "image": asdict(manifest.image),
        "graphs": {graph: sorted(entries) for graph, entries in manifest.graphs.items()},
    }
    if (Path(folder) / CALIBRATION).is_file():
        said["calibration"] = asdict(Calibration.read(folder, manifest.model_hash))
    if args.model == BASE:
        said |= base_card()
    print(json.dumps(said, indent=2, ensure_ascii=False))
    return 0
