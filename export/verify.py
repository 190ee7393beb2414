"""Compare an exported model with its checkpoint on real inputs, graph by graph.

    python export/verify.py OUT --model CHECKPOINT [--mentions FILE --entities FILE] [--json FILE]
    python export/verify.py OUT --model CHECKPOINT --engines OUT/engines   (needs the device)

Prints a table and exits with 1 if a graph is beyond its tolerance (see
:mod:`mimic_engine.export.comparison`), with 2 if nothing could be compared.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import onnxruntime
import torch

from mimic_engine.encoding.graph_names import TEXT_ENCODER
from mimic_engine.encoding.manifest import PRECISIONS, ModelManifest
from mimic_engine.errors import InvalidInputError, MimicError, ModelError
from mimic_engine.export.comparison import AGREEMENT, ATOL, Comparison, Row
from mimic_engine.export.engine_check import engines_of, verify_engines
from mimic_engine.export.samples import own_records, prepare, read_records
from mimic_engine.files import write_atomic
from mimic_engine.gpu.device import open_device
from mimic_engine.model.checkpoint import Checkpoint, load_checkpoint

HEADER = ("graph", "precision", "max abs", "relative", "allowed", "top-k", "MB", "ms", "")


def verify(out: Path, checkpoint: Checkpoint, comparison: Comparison, precisions: Sequence[str]) -> list[Row]:
    """All rows of the table.

    Raises
    ------
    ModelError
        If the folder was exported from another model, or lacks a precision.
    """
    check_model(out, ModelManifest.read(out), checkpoint)
    return [row for precision in precisions for row in comparison.rows(precision)]


def check_model(out: Path, manifest: ModelManifest, checkpoint: Checkpoint) -> None:
    """Raise ModelError if the folder was exported from another model than the checkpoint's."""
    if manifest.model_hash != checkpoint.model_hash:
        exported, given = manifest.model_hash[:12], checkpoint.model_hash[:12]
        raise ModelError(f"{out}: exported from model {exported}, the checkpoint is model {given}")


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text."""
    cells = [HEADER, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(HEADER))]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def report(rows: Sequence[Row], manifest: ModelManifest, k: int) -> dict[str, object]:
    """The rows with the tolerances, model and versions that they belong to, as JSON types."""
    return {
        "model_hash": manifest.model_hash,
        "top_k": k,
        "tolerance": {"fp32_atol_of_largest": ATOL, "top_k_agreement": AGREEMENT},
        "versions": {"onnxruntime": onnxruntime.__version__, "torch": torch.__version__},
        "ok": all(row.ok for row in rows),
        "rows": [asdict(row) | {"ok": row.ok} for row in rows],
    }


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.graph,
        row.precision,
        f"{row.max_abs:.1e}",
        f"{row.relative:.1e}",
        "" if row.allowed is None else f"{row.allowed:.1e}",
        f"{row.agreement:.3f}",
        f"{row.size_bytes / 1e6:.2f}",
        "" if row.ms is None else f"{row.ms:.2f}",
        "ok" if row.ok else "BEYOND TOLERANCE",
    )


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="verify.py", description="Compare exported graphs with PyTorch.")
    parser.add_argument("out", type=Path, help="exported folder")
    parser.add_argument("--model", type=Path, required=True, help="checkpoint folder it was exported from")
    parser.add_argument("--text-source", help="text encoder of a checkpoint that holds none")
    parser.add_argument("--image-source", help="image encoder of a checkpoint that holds none")
    parser.add_argument("--mentions", type=Path, help=".jsonl or .parquet; our own 24 by default")
    parser.add_argument("--entities", type=Path, help=".jsonl or .parquet; our own 24 by default")
    parser.add_argument("--limit", type=int, default=100, help="records read of each file (default: 100)")
    parser.add_argument("--precisions", help="comma-separated; all that were exported by default")
    parser.add_argument("--top-k", type=int, default=10, help="default: 10")
    parser.add_argument("--threads", type=int, default=1, help="cores of one run (default: 1)")
    parser.add_argument("--engines", type=Path, help="check these TensorRT engines instead; marks each")
    parser.add_argument("--json", type=Path, help="write the table here, too")
    return parser.parse_args(argv)


def _run(args: argparse.Namespace) -> int:
    if (args.mentions is None) != (args.entities is None):
        raise InvalidInputError("--mentions and --entities: give both or neither")
    for name in ("limit", "top_k"):
        if getattr(args, name) < 1:
            raise InvalidInputError(f"--{name.replace('_', '-')}: {getattr(args, name)} is below 1")
    torch.set_num_threads(args.threads)
    manifest = ModelManifest.read(args.out)
    there = [p for p in PRECISIONS if p in manifest.graphs[TEXT_ENCODER]]
    precisions = args.precisions.split(",") if args.precisions else there
    for precision in precisions:
        manifest.entry(TEXT_ENCODER, precision)
    checkpoint = load_checkpoint(args.model, text_source=args.text_source, image_source=args.image_source)
    records = read_records(args.mentions, args.entities, args.limit) if args.mentions else own_records()
    sample = prepare(args.out, manifest, *records)
    comparison = Comparison(checkpoint.model, args.out, manifest, sample, k=args.top_k, threads=args.threads)
    if args.engines is None:
        rows = verify(args.out, checkpoint, comparison, precisions)
    else:
        check_model(args.out, manifest, checkpoint)
        device = open_device()
        found = [p for p in precisions if engines_of(args.engines, p, device.architecture)]
        if not found:
            raise ModelError(
                f"{args.engines}: no engine for {device.architecture} in {', '.join(precisions)}"
            )
        rows = [
            row
            for p in found
            for row in verify_engines(comparison, args.out, args.engines, manifest, p, device)
        ]
    print(table(rows))
    if args.json:
        write_atomic(args.json, json.dumps(report(rows, manifest, args.top_k), indent=2) + "\n")
    beyond = [f"{row.graph} {row.precision}" for row in rows if not row.ok]
    if beyond:
        print(f"beyond tolerance: {', '.join(beyond)}", file=sys.stderr)
    return 1 if beyond else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = _arguments(argv)
    try:
        return _run(args)
    except MimicError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
