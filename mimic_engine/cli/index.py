"""Commands that change an index: ``mimic-engine index upsert | delete | compact | snapshots``.

Each change is one new snapshot, on the disk when the command ends with status 0;
a service that has the index open goes on with the one it has until it is told to reload.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimic_engine.errors import DataError

if TYPE_CHECKING:
    from mimic_engine.index.writer import Change

# What ``add_subparsers`` returns has no public name.
Actions = Any


def add_commands(actions: Actions) -> None:
    """Add the commands to those of ``mimic-engine index``."""
    _add_upsert(actions.add_parser("upsert", help="add entities, or replace those with the same ids"))
    delete = actions.add_parser("delete", help="delete entities")
    delete.add_argument("index", type=Path)
    delete.add_argument("ids", nargs="+", metavar="ID", help="entity id")
    _add_keep(delete)
    delete.set_defaults(run=_delete)
    compact = actions.add_parser(
        "compact", help="drop dead rows, merge small segments, forget older snapshots"
    )
    compact.add_argument("index", type=Path)
    compact.set_defaults(run=_compact)
    snapshots = actions.add_parser("snapshots", help="list the snapshots that are kept")
    snapshots.add_argument("index", type=Path)
    snapshots.add_argument("--keep", type=int, help="first forget all but the newest so many")
    snapshots.set_defaults(run=_snapshots)


def _add_upsert(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("index", type=Path)
    add("--model", required=True, help="the model of the index: its folder, or 'base'")
    add("--kb", type=Path, required=True, help="entities in any form that index build reads")
    add("--images", type=Path, help="folder that image paths are relative to")
    add("--broken-images", choices=("error", "as-missing"), default="error")
    add("--batch-size", type=int, default=32, help="entities encoded together")
    add("--threads", type=int, help="CPU cores to use; all by default")
    _add_keep(parser)
    parser.set_defaults(run=_upsert)


def _add_keep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keep", type=int, default=8, help="snapshots that stay, the newest included")


def _upsert(args: argparse.Namespace) -> int:
    from mimic_engine.backends.encoders import open_featurizer
    from mimic_engine.data.images import BrokenImages
    from mimic_engine.data.source import entity_stream
    from mimic_engine.encoding.knowledge_base import KnowledgeBaseFeaturizer
    from mimic_engine.index.store import Index
    from mimic_engine.index.writer import IndexWriter

    stream = entity_stream(args.kb, images=args.images)
    if not (entities := list(stream())):
        raise DataError(f"{args.kb}: holds no entities")
    index = Index.open(args.index)
    precision = str(index.manifest.extra.get("precision", "fp32"))  # the one of all other entities
    featurizer = open_featurizer(args.model, precision=precision, threads=args.threads)
    source = KnowledgeBaseFeaturizer(featurizer, BrokenImages(args.broken_images))
    with IndexWriter(index, source, keep_snapshots=args.keep, batch_size=args.batch_size) as writer:
        change = writer.upsert(entities)
    counts = stream.counts
    _say(
        args.index,
        change,
        f"{change.added} added, {change.replaced} replaced, {counts.with_image} with a picture, "
        f"{counts.missing_images} pictures named but not there, {len(source.broken.found)} broken",
    )
    for broken in source.broken.found:
        print(f"taken for missing: {broken.source} of {broken.owner}: {broken.reason}", file=sys.stderr)
    return 0


def _delete(args: argparse.Namespace) -> int:
    from mimic_engine.index.store import Index
    from mimic_engine.index.writer import IndexWriter

    with IndexWriter(Index.open(args.index), keep_snapshots=args.keep) as writer:
        change = writer.delete(args.ids)
    _say(args.index, change, f"{change.deleted} deleted")
    return 0


def _compact(args: argparse.Namespace) -> int:
    from mimic_engine.index.store import Index
    from mimic_engine.index.writer import IndexWriter

    with IndexWriter(Index.open(args.index)) as writer:
        change = writer.compact()
        segments = len(writer.index.segments)
    _say(args.index, change, f"compacted to {segments} segments")
    return 0


def _snapshots(args: argparse.Namespace) -> int:
    from mimic_engine.index.snapshots import list_snapshots
    from mimic_engine.index.store import Index
    from mimic_engine.index.writer import IndexWriter

    if args.keep is not None:
        with IndexWriter(Index.open(args.index, verify=False)) as writer:
            writer.forget(args.keep)
    for kept in list_snapshots(args.index):
        print(
            f"{kept.generation:>8} {kept.created} {kept.count:>12,} entities "
            f"{len(kept.segments):>4} segments {kept.rows - kept.count:>8,} dead rows"
        )
    return 0


def _say(index: Path, change: Change, what: str) -> None:
    print(f"{index}: snapshot {change.generation}: {what}; {change.entities} entities", file=sys.stderr)
