"""Turn a published MIMIC checkpoint (a PyTorch Lightning file) into a checkpoint folder of this project.

    python export/import_checkpoint.py FILE.ckpt OUT [--clip FOLDER_OR_HUB_ID]

Every weight comes from the file; of CLIP only the configuration and the
tokenizer are read. An import that lacks weights, or leaves some unused, is
refused and the keys are listed, unless ``--allow-incomplete`` is given.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mimic_engine.config import EncoderConfig, ImageConfig, MatcherConfig, ModelConfig, TextConfig
from mimic_engine.errors import MimicError, ModelError
from mimic_engine.model.checkpoint import save_checkpoint, tokenizer_json_text
from mimic_engine.model.lightning import PUBLISHED, ImportReport, import_lightning


def import_checkpoint(
    path: Path, out: Path, config: ModelConfig = PUBLISHED, *, allow_incomplete: bool = False
) -> ImportReport:
    """Read a published checkpoint and write it as a folder that ``load_checkpoint`` reads.

    Parameters
    ----------
    path : the Lightning file.
    out : folder to write; a checkpoint that is already there is replaced.
    config : its ``encoder.text_source`` names the CLIP whose configuration and tokenizer are used.
    allow_incomplete : write it although weights are missing or unused.

    Raises
    ------
    ModelError
        If the file cannot be read, does not fit, or is incomplete; if CLIP is not found; or
        if ``out`` is something else than a checkpoint.
    """
    tokenizer_json = tokenizer_json_text(config.encoder.text_source)
    model, report = import_lightning(path, config)
    if not report.complete and not allow_incomplete:
        raise ModelError(
            f"{path}: the import is incomplete: missing {list(report.missing)}, "
            f"unexpected {list(report.unexpected)}; --allow-incomplete takes it all the same"
        )
    extra = {"imported_from": path.name, "missing": report.missing, "unexpected": report.unexpected}
    save_checkpoint(model, out, tokenizer_json=tokenizer_json, extra=extra)
    return report


def _config(args: argparse.Namespace) -> ModelConfig:
    return ModelConfig(
        TextConfig(args.max_length, pairing="literal"),
        ImageConfig(args.image_size),
        EncoderConfig("clip", "clip", args.clip, args.clip),
        MatcherConfig(hidden=args.hidden),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="import_checkpoint.py", description="Import a published MIMIC checkpoint."
    )
    parser.add_argument("checkpoint", type=Path, help="PyTorch Lightning file (.ckpt)")
    parser.add_argument("out", type=Path, help="checkpoint folder to write")
    parser.add_argument(
        "--clip",
        default=PUBLISHED.encoder.text_source,
        help="local folder or hub id with CLIP's config and tokenizer.json (default: %(default)s)",
    )
    parser.add_argument("--max-length", type=int, default=40, help="text tokens a side (default: 40)")
    parser.add_argument("--image-size", type=int, default=224, help="pixels a side (default: 224)")
    parser.add_argument("--hidden", type=int, default=96, help="interaction width D (default: 96)")
    parser.add_argument(
        "--allow-incomplete", action="store_true", help="though weights are missing or unused"
    )
    args = parser.parse_args(argv)
    try:
        report = import_checkpoint(
            args.checkpoint, args.out, _config(args), allow_incomplete=args.allow_incomplete
        )
    except MimicError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{args.out}: imported from {args.checkpoint}")
    for name in ("missing", "unexpected", "ignored"):
        for key in getattr(report, name):
            print(f"  {name}: {key}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
