"""NIF documents: ``mimic-engine nif link | mentions``, to be scored by others and to read what they give."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimic_engine.cli.options import MODEL_HELP, add_backend, add_names, backend_options
from mimic_engine.errors import DataError, InvalidInputError
from mimic_engine.nif.mentions import WIKIDATA
from mimic_engine.nif.sentences import WORDS
from mimic_engine.types import MODES, SCORERS

if TYPE_CHECKING:
    from mimic_engine.engine.linker import Linker
    from mimic_engine.nif.mentions import NifMention

# What ``add_subparsers`` returns has no public name.
Actions = Any


def add_nif(actions: Actions) -> None:
    """Add the commands to those of ``mimic-engine nif``."""
    _add_link(actions.add_parser("link", help="link what a document marks; writes the document with answers"))
    mentions = actions.add_parser("mentions", help="write the mentions of documents as .jsonl")
    _add_input(mentions)
    mentions.add_argument("--output", type=Path, required=True, help="mentions.jsonl, with answers or nil")
    mentions.set_defaults(run=_mentions)


def _add_input(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--input", type=Path, required=True, help="NIF 2.0 in .ttl, .nt, .rdf or .xml")
    add("--prefix", default=WIKIDATA, help="of the entities' URIs, before their ids (%(default)s)")
    add("--words", type=int, default=WORDS, help="most words of a mention's sentence (%(default)s); 0 = all")


def _add_link(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, help=MODEL_HELP)
    add("--index", type=Path, required=True, help="index folder")
    _add_input(parser)
    add("--output", type=Path, required=True, help="NIF 2.0 to write, .ttl or .nt")
    add("--mode", choices=MODES, default="certified", help="how entities are found (%(default)s)")
    add("--scorer", choices=SCORERS, default="auto", help="what scores (%(default)s)")
    add("--nil", action="store_true", help="answer NIL below the model's own threshold")
    add("--nil-threshold", type=float, help="answer NIL below this score instead")
    add_names(parser)
    add_backend(parser)
    parser.set_defaults(run=_link)


def _link(args: argparse.Namespace) -> int:
    from mimic_engine.engine.linker import Linker
    from mimic_engine.nif.documents import check_output, read_documents
    from mimic_engine.nif.link import NOT_IN_WIKI, NifAnswers, link_documents
    from mimic_engine.nif.mentions import EntityUris
    from mimic_engine.nif.writer import write_documents

    _check(args)
    check_output(args.output)
    uris = EntityUris(args.prefix)
    documents = read_documents(args.input)
    linker = Linker.open(
        args.model, args.index, scorer=args.scorer, names=not args.no_names, **backend_options(args)
    )
    try:
        answers = NifAnswers(uris, args.words, args.mode, _threshold(args, linker))
        linked = link_documents(linker, documents, answers)
    finally:
        linker.close()
    write_documents(args.output, linked)
    answered = [a for d in linked for a in d.annotations]
    nil = sum(a.refs[0].startswith(NOT_IN_WIKI) for a in answered)
    _say(f"{args.output}: {len(linked)} documents, {len(answered)} mentions, {nil} of them nil")
    return 0


def _mentions(args: argparse.Namespace) -> int:
    from mimic_engine.files import write_atomic
    from mimic_engine.nif.documents import read_documents
    from mimic_engine.nif.mentions import EntityUris, read_mentions

    _check(args)
    if args.output.suffix != ".jsonl" or args.output.is_dir():
        raise DataError(f"{args.output}: must be a file whose name ends in .jsonl")
    uris = EntityUris(args.prefix)
    documents = read_documents(args.input)
    found = [one for d in documents for one in read_mentions(d, uris, words=args.words)]
    lines = "".join(json.dumps(_record(one), ensure_ascii=False) + "\n" for one in found)
    try:
        write_atomic(args.output, lines)
    except OSError as error:
        raise DataError(f"{args.output}: cannot be written ({error})") from error
    _say(f"{args.output}: {len(documents)} documents, {_counts(found, args.prefix)}")
    return 0


def _record(one: NifMention) -> dict[str, str]:
    labelled = one.labelled()
    mention = {"mention": labelled.mention.mention, "sentence": labelled.mention.sentence}
    return {"id": labelled.id, **mention, "answer": labelled.answer}


def _counts(found: Iterable[NifMention], prefix: str) -> str:
    """How many mentions there are, and what of them is lost or odd."""
    found = list(found)
    nil = sum(not one.answers for one in found)
    elsewhere = sum(one.elsewhere for one in found)
    several = sum(len(one.answers) > 1 for one in found)
    return (
        f"{len(found)} mentions, {nil} nil ({elsewhere} of them name something that is not under {prefix}), "
        f"{several} with several answers, of which the first by URI is kept"
    )


def _threshold(args: argparse.Namespace, linker: Linker) -> float | None:
    if args.nil_threshold is not None:
        return float(args.nil_threshold)
    if args.nil and linker.nil_threshold() is None:
        raise InvalidInputError(
            "--nil: this model has no threshold of its own (mimic-engine calibrate); give --nil-threshold"
        )
    return linker.nil_threshold() if args.nil else None


def _check(args: argparse.Namespace) -> None:
    if args.words < 0:
        raise InvalidInputError(f"--words: must be at least 0, got {args.words}")
    threshold = getattr(args, "nil_threshold", None)
    if threshold is not None and not math.isfinite(threshold):
        raise InvalidInputError(f"--nil-threshold: must be finite, got {threshold}")


def _say(line: str) -> None:
    print(line, file=sys.stderr)
