"""The command line: ``mimic-engine index ACTION``, ``model info``, ``link``, ``nif ACTION``
and ``calibrate``.

Here are the actions ``build``, ``info`` and ``verify``; those that change an index are in
:mod:`mimic_engine.cli.index`, what concerns codes in :mod:`mimic_engine.cli.codes`, and NIF
documents in :mod:`mimic_engine.cli.nif`.

Training, evaluation and the service have commands of their own
(``python -m mimic_engine.train``, ``.evaluate``, ``.serve``). A wrong input
prints one line on standard error and exits with status 2; a check that fails
(``index verify``) exits with status 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from mimic_engine._version import __version__
from mimic_engine.base.model import BASE, find_model
from mimic_engine.cli.codes import (
    DEFAULT_CENTROIDS,
    add_agreement,
    add_mentions,
    add_recode,
    check_agreement_options,
    codes_line,
    measures,
    verify_agreement,
)
from mimic_engine.cli.index import add_commands
from mimic_engine.cli.model import add_info, run_info
from mimic_engine.cli.nif import add_nif
from mimic_engine.cli.options import MODEL_HELP, add_backend, add_names, backend_options, open_model
from mimic_engine.data.images import ReadCounts
from mimic_engine.errors import InvalidInputError, MimicError
from mimic_engine.types import MODES, PLACEMENTS, SCORERS, LinkResult, Mention

LINK_BATCH = 32


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    args = _parser().parse_args(argv)
    try:
        return int(args.run(_with_model(args)))
    except MimicError as error:
        print(f"mimic-engine: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mimic-engine: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 141


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mimic-engine", description="Multimodal entity linking with MIMIC.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    index = commands.add_parser("index", help="build, describe, check or change an index")
    actions = index.add_subparsers(required=True, metavar="ACTION")
    _add_build(actions.add_parser("build", help="build an index from a knowledge base"))
    info = actions.add_parser("info", help="print what an index holds, as JSON")
    info.add_argument("index", type=Path)
    info.set_defaults(run=_index_info)
    verify = actions.add_parser("verify", help="check every file of an index against its checksum")
    verify.add_argument("index", type=Path)
    add_agreement(verify)
    verify.set_defaults(run=_index_verify)
    add_recode(actions.add_parser("recode", help="cluster the token queries of an index anew"))
    add_commands(actions)
    model = commands.add_parser("model", help="describe a model")
    add_info(
        model.add_subparsers(required=True, metavar="ACTION").add_parser(
            "info", help="print what a model is, as JSON"
        )
    )
    _add_link(commands.add_parser("link", help="link mentions; prints one JSON object a mention"))
    nif = commands.add_parser("nif", help="link NIF documents, or read their mentions")
    add_nif(nif.add_subparsers(required=True, metavar="ACTION"))
    _add_calibrate(
        commands.add_parser("calibrate", help="weigh names, and choose below which score a mention is nil")
    )
    return parser


def _with_model(args: argparse.Namespace) -> argparse.Namespace:
    """The arguments with the folder of the model that they name."""
    if getattr(args, "model", None) is not None and args.run is not run_info:
        if args.run is _calibrate and args.model == BASE:
            raise InvalidInputError(
                f"--model: {BASE!r} is shared by all that name it; copy {find_model(BASE)} to a folder of "
                "your own and calibrate that; the index stays as it is"
            )
        args.model = find_model(args.model, progress=not getattr(args, "quiet", False))
    return args


def _add_build(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, help=MODEL_HELP)
    add("--kb", type=Path, required=True, help=".jsonl, .parquet, kb_entity.json, or a data set's folder")
    add(
        "--out",
        type=Path,
        required=True,
        help="folder to create; a killed build resumes with the same command",
    )
    add(
        "--dtype",
        choices=("float16", "float32", "int8"),
        default="float16",
        help="of the stored vectors; int8: the token queries, all others float16",
    )
    add("--images", type=Path, help="folder that image paths are relative to")
    add("--broken-images", choices=("error", "as-missing"), default="error")
    add_backend(parser)
    add("--batch-size", type=int, default=32, help="entities encoded together")
    add("--overwrite", action="store_true", help="replace an index that is already there")
    add("--quiet", action="store_true", help="no progress bar")
    add("--centroids", type=int, default=DEFAULT_CENTROIDS, help="for the coded mode; 0 = none")
    add("--no-calibrate", action="store_true", help="do not measure what storage and codes change")
    add_mentions(parser)
    parser.set_defaults(run=_index_build)


def _add_link(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, help=MODEL_HELP)
    add("--index", type=Path, required=True, help="index folder")
    add("--input", type=Path, help=".jsonl or .parquet with mention, sentence and optional image")
    add("--mention", help="surface form, instead of --input")
    add("--sentence", help="sentence that holds the mention")
    add("--image", type=Path, help="image that belongs to the mention")
    add("--top-k", type=int, default=10)
    add("--candidates", help="comma-separated entity ids to choose among")
    add("--mode", choices=MODES, default="certified", help="how entities are found (%(default)s)")
    add("--rerank", type=int, metavar="R", help="entities that mode coded scores exactly")
    add("--scorer", choices=SCORERS, default="auto", help="what scores (%(default)s)")
    add("--placement", choices=PLACEMENTS, default="auto", help="of token queries on a GPU (%(default)s)")
    add_names(parser)
    add_backend(parser)
    add("--types", help="comma-separated entity types to choose among")
    add("--explain", action="store_true", help="add what each unit gave, and the tokens attended to")
    parser.set_defaults(run=_link)


def _add_calibrate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, help="exported model folder; what is fitted is stored in it")
    add("--index", type=Path, required=True, help="index folder")
    add(
        "--mentions", type=Path, required=True, help=".jsonl or .parquet of mentions with answers, some 'nil'"
    )
    add(
        "--wanted-precision",
        type=float,
        help="share of right answers, above 0, at most 1, to choose a nil threshold for; else there is none",
    )
    add_names(parser)
    add_backend(parser)
    parser.set_defaults(run=_calibrate)


def _index_build(args: argparse.Namespace) -> int:
    from mimic_engine.data.images import BrokenImages
    from mimic_engine.data.source import entity_stream
    from mimic_engine.encoding.knowledge_base import KnowledgeBaseFeaturizer
    from mimic_engine.index.build import build_index

    if args.no_calibrate and args.mentions is not None:
        raise InvalidInputError("--mentions: to measure with, which --no-calibrate leaves out")
    stream = entity_stream(args.kb, images=args.images)
    featurizer = open_model(args)
    source = KnowledgeBaseFeaturizer(featurizer, BrokenImages(args.broken_images))
    manifest = build_index(
        source,
        stream,
        args.out,
        dtype=args.dtype,
        batch_size=args.batch_size,
        progress=not args.quiet,
        overwrite=args.overwrite,
        options={"precision": args.precision},
        centroids=args.centroids,
        threads=args.threads,
        measure=None if args.no_calibrate else measures(args, featurizer, progress=not args.quiet),
    )
    counts = stream.counts
    print(
        f"{args.out}: {manifest.count} entities, {counts.with_image} with a picture, "
        f"{counts.missing_images} pictures named but not there, "
        f"{len(source.broken.found)} broken in this run",
        file=sys.stderr,
    )
    if args.centroids:
        print(codes_line(manifest), file=sys.stderr)
    for broken in source.broken.found:
        print(f"taken for missing: {broken.source} of {broken.owner}: {broken.reason}", file=sys.stderr)
    return 0


def _index_info(args: argparse.Namespace) -> int:
    from mimic_engine.index.store import Index

    index = Index.open(args.index, verify=False)
    _print_json({**index.manifest.to_json(), "names": asdict(index.count_names())}, indent=2)
    return 0


def _index_verify(args: argparse.Namespace) -> int:
    from mimic_engine.index.verify import verify_index

    check_agreement_options(args)
    report = verify_index(args.index)
    for file in report.files:
        print(
            f"{'ok ' if file.problem is None else 'BAD'} {file.bytes:>14,} {file.name} {file.problem or ''}"
        )
    if not report.ok:
        return 1
    return verify_agreement(args) if args.agreement else 0


def _link(args: argparse.Namespace) -> int:
    from mimic_engine.engine.linker import Linker

    if (args.input is None) == (args.mention is None):
        raise InvalidInputError("link: give either --input, or --mention with --sentence")
    alone = [name for name in ("sentence", "image") if getattr(args, name) is not None]
    if args.input is not None and alone:
        raise InvalidInputError(f"--{alone[0]}: goes with --mention, not with --input")
    if args.mention is not None and args.sentence is None:
        raise InvalidInputError("--sentence: missing; it is the text around the mention")
    linker = Linker.open(
        args.model,
        args.index,
        scorer=args.scorer,
        placement=args.placement,
        names=not args.no_names,
        **backend_options(args),
    )
    candidates, types = (
        None if given is None else [part for part in given.split(",") if part]
        for given in (args.candidates, args.types)
    )
    options = {"types": types, "mode": args.mode, "rerank": args.rerank, "explain": args.explain}
    counts = ReadCounts()
    mentions = _mentions(args, counts)
    while batch := list(islice(mentions, LINK_BATCH)):
        results = linker.link(batch, args.top_k, candidates=candidates, **options)
        for mention, result in zip(batch, results, strict=True):
            _print_json(_as_json(mention, result))
    linker.close()
    if counts.missing_images:
        print(f"{counts.missing_images} pictures are named but not there", file=sys.stderr)
    return 0


def _calibrate(args: argparse.Namespace) -> int:
    from mimic_engine.cli.calibrate import calibrate
    from mimic_engine.engine.linker import Linker

    linker = Linker.open(args.model, args.index, **backend_options(args))
    try:
        found = calibrate(
            linker, args.model, args.mentions, names=not args.no_names, precision=args.wanted_precision
        )
        _print_json(asdict(found), indent=2)
    finally:
        linker.close()
    return 0


def _mentions(args: argparse.Namespace, counts: ReadCounts) -> Iterator[Mention]:
    if args.input is None:
        yield Mention(args.mention, args.sentence, args.image)
        return
    from mimic_engine.data.records import read_mentions

    for labelled in read_mentions(args.input, counts=counts):
        yield labelled.mention


def _as_json(mention: Mention, result: LinkResult) -> dict[str, Any]:
    fields = asdict(result)
    for optional in (fields, *fields["candidates"]):
        for name in ("tokens", "explanation", "probability", "nil_probability"):
            if optional.get(name, ...) is None:
                del optional[name]
    return {"mention": mention.mention, "sentence": mention.sentence, **fields}


def _print_json(data: Any, indent: int | None = None) -> None:
    print(json.dumps(data, ensure_ascii=False, indent=indent))


if __name__ == "__main__":
    raise SystemExit(main())
