"""Codes and what shortcuts cost: ``mimic-engine index recode`` and ``index verify --agreement``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mimic_engine.cli.options import add_backend, open_model
from mimic_engine.errors import InvalidInputError

if TYPE_CHECKING:
    from mimic_engine.calibration.coded import CodedCalibration
    from mimic_engine.calibration.storage import StorageCalibration
    from mimic_engine.encoding.featurizer import Featurizer
    from mimic_engine.index.codes.write import Measure
    from mimic_engine.index.manifest import IndexManifest
    from mimic_engine.index.store import Index

DEFAULT_CENTROIDS = 1024


def add_mentions(parser: argparse.ArgumentParser) -> None:
    """The option that says with which mentions the coded mode is measured."""
    parser.add_argument(
        "--mentions",
        type=Path,
        help=".jsonl or .parquet to measure with; by default entities of the index itself",
    )


def add_recode(parser: argparse.ArgumentParser) -> None:
    """``mimic-engine index recode``."""
    add = parser.add_argument
    add("index", type=Path)
    add("--centroids", type=int, default=DEFAULT_CENTROIDS, help="clusters of the token queries")
    add("--model", help="exported model folder, or 'base': measures what the new codes promise")
    add_backend(parser)
    add("--quiet", action="store_true", help="no progress bar")
    add_mentions(parser)
    parser.set_defaults(run=_index_recode)


def add_agreement(parser: argparse.ArgumentParser) -> None:
    """The options of ``mimic-engine index verify`` that measure the storage and the coded mode again."""
    add = parser.add_argument
    add(
        "--agreement",
        action="store_true",
        help="measure the storage and the coded mode and compare with the manifest",
    )
    add("--model", help="exported model folder, or 'base', for --agreement")
    add_backend(parser, precision=None)
    add_mentions(parser)


def calibration(args: argparse.Namespace, featurizer: Featurizer, *, progress: bool) -> CodedCalibration:
    """The measurement that ``--mentions`` describes, with the model of the other options."""
    from mimic_engine.calibration.coded import ENTITIES, CodedCalibration
    from mimic_engine.data.records import read_mentions

    mentions = None if args.mentions is None else [m.mention for m in read_mentions(args.mentions)]
    source = ENTITIES if args.mentions is None else args.mentions.name
    return CodedCalibration(
        featurizer, args.model, mentions, source=source, threads=args.threads, progress=progress
    )


def measures(args: argparse.Namespace, featurizer: Featurizer, *, progress: bool) -> Measure:
    """Measurements of a finished index: its storage, and its coded mode where it has codes."""
    coded, stored = calibration(args, featurizer, progress=progress), storage(args, featurizer, progress)
    return lambda index: {**stored(index), **coded(index)}


def storage(args: argparse.Namespace, featurizer: Featurizer, progress: bool) -> StorageCalibration:
    """The measurement of the storage, with the mentions and the model of the options."""
    from mimic_engine.calibration.coded import ENTITIES
    from mimic_engine.calibration.storage import StorageCalibration
    from mimic_engine.data.records import read_mentions

    mentions = None if args.mentions is None else [m.mention for m in read_mentions(args.mentions)]
    source = ENTITIES if args.mentions is None else args.mentions.name
    return StorageCalibration(
        featurizer, args.model, mentions, source=source, threads=args.threads, progress=progress
    )


def check_agreement_options(args: argparse.Namespace) -> None:
    """Raise ``InvalidInputError`` where the options of ``index verify`` do not fit together."""
    if args.agreement and args.model is None:
        raise InvalidInputError("--model: missing; --agreement needs the model of the index")
    alone = [name for name in ("model", "mentions", "threads") if getattr(args, name) is not None]
    if alone and not args.agreement:
        raise InvalidInputError(f"--{alone[0]}: goes with --agreement")


def verify_agreement(args: argparse.Namespace) -> int:
    """Measure storage and coded mode of an index, print promise and finding; 1 if a promise is broken."""
    from mimic_engine.index.store import Index

    index = Index.open(args.index, verify=False)  # the caller has just checked its files
    if args.precision is None:
        args.precision = index.manifest.extra.get("precision", "fp32")
    featurizer = open_model(args)
    broken = _verify_storage(args, index, featurizer)
    if index.codes is None:
        print("coded: no codes; write them with: mimic-engine index recode")
    else:
        broken += _verify_coded(args, index, featurizer)
    for line in broken:
        print(f"BAD {line}")
    return 1 if broken else 0


def _verify_storage(args: argparse.Namespace, index: Index, featurizer: Featurizer) -> list[str]:
    from mimic_engine.calibration.storage import recorded, regressions

    then = recorded(index.manifest)
    now = storage(args, featurizer, sys.stderr.isatty()).measure(index)
    print(f"storage, recorded: {then or 'nothing, the index was not calibrated'}")
    print(f"storage, measured: {now}")
    return [] if then is None else regressions(then, now)


def _verify_coded(args: argparse.Namespace, index: Index, featurizer: Featurizer) -> list[str]:
    from mimic_engine.calibration.coded import DEFAULT_K
    from mimic_engine.calibration.recall import promised, regressions

    promise = promised(index.manifest)
    measured = calibration(args, featurizer, progress=sys.stderr.isatty())
    places = measured.places(index, DEFAULT_K if promise is None else promise.k)
    if promise is None:
        print("promised: nothing, the index was not calibrated")
    else:
        print(f"promised: {promise}")
    print(f"measured: {measured.recall(index, places)}")
    return [] if promise is None else regressions(promise, places)


def _index_recode(args: argparse.Namespace) -> int:
    from mimic_engine.index.codes.write import recode_index

    if args.mentions is not None and args.model is None:
        raise InvalidInputError("--mentions: goes with --model")
    measure = None if args.model is None else calibration(args, open_model(args), progress=not args.quiet)
    manifest = recode_index(
        args.index, args.centroids, threads=args.threads, progress=not args.quiet, measure=measure
    )
    assert manifest.codes is not None
    print(codes_line(manifest), file=sys.stderr)
    if measure is None:
        print("the new codes promise nothing yet: give --model to measure them", file=sys.stderr)
    return 0


def codes_line(manifest: IndexManifest) -> str:
    """Facts and promise of an index's codes, in a line."""
    from mimic_engine.calibration.recall import promised

    codes, recall = manifest.codes, promised(manifest)
    if codes is None:
        return "no codes: the coded mode is not available"
    line = (
        f"{codes.centroids} centroids, mean distance {codes.error:.3g} of a mean length of {codes.norm:.3g}"
    )
    if recall is None:
        return line
    return (
        f"{line}; the exact top {recall.k} is in the coded top {recall.r_999} "
        f"for 99.9 % of {recall.mentions} mentions ({recall.source})"
    )
