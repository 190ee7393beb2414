"""What the load tools ask: mentions of a data set as bodies of requests, with the engine's own answers.

By default the demo's test mentions, with their pictures; any other model, index and records by options.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.service.open_loop import Question
from benchmarks.service.process import serve_command
from mimic_engine.data.records import read_mentions
from mimic_engine.demo import read_demo
from mimic_engine.demo.prepare import prepare_demo
from mimic_engine.engine.linker import Linker
from mimic_engine.errors import DataError
from mimic_engine.types import Mention

INPUTS = ("text", "picture", "mixed")
TOP_K = 5
BATCH = 16


@dataclass(frozen=True, slots=True)
class Scene:
    """A model with its index, and what is asked of them."""

    model: Path
    index: Path
    mentions: tuple[Mention, ...]

    @classmethod
    def open(cls, args: argparse.Namespace) -> Scene:
        """Read what the options of :func:`add_arguments` name.

        Raises
        ------
        DataError
            If only some of model, index and mentions are named, or no mention is of the kind asked for.
        """
        named = [args.model, args.index, args.mentions]
        if all(n is None for n in named):
            paths = prepare_demo()
            model, index = paths.model, paths.index
            found = [m.mention for m in read_demo(paths.data).mentions["test"]]
        elif None in named:
            raise DataError("name all of --model, --index and --mentions, or none of them for the demo")
        else:
            model, index = args.model, args.index
            found = [m.mention for m in read_mentions(args.mentions)]
        chosen = choose(found, args.input, args.questions)
        if not chosen:
            raise DataError(f"none of {len(found)} mentions is of kind {args.input!r}")
        return cls(model, index, chosen)

    @contextmanager
    def copied(self) -> Iterator[Scene]:
        """The same with a copy of the index, for a run that changes it."""
        with TemporaryDirectory() as folder:
            yield replace(self, index=Path(shutil.copytree(self.index, Path(folder) / "index")))

    def command(self, args: argparse.Namespace) -> list[str]:
        """Command of the service that is asked."""
        threads = [] if args.threads is None else ["--threads", str(args.threads)]
        bound = [] if args.cores is None else ["taskset", "--cpu-list", ",".join(map(str, args.cores))]
        return [*bound, *serve_command(self.model, self.index, [*threads, *args.serve])]

    def questions(self, threads: int | None = None) -> list[Question]:
        """Bodies with the answers that the engine gives."""
        with closing(Linker.open(self.model, self.index, threads=threads)) as linker:
            top_k, known = min(TOP_K, len(linker.index)), min(TOP_K + 1, len(linker.index))
            results = [
                result
                for start in range(0, len(self.mentions), BATCH)
                for result in linker.link(self.mentions[start : start + BATCH], known)
            ]
        return [
            Question(body_of(mention, top_k), top_k, tuple((c.id, c.score) for c in result.candidates))
            for mention, result in zip(self.mentions, results, strict=True)
        ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that name the scene and the service's options."""
    parser.add_argument("--model", type=Path, help="exported model; without it the demo is asked")
    parser.add_argument("--index", type=Path, help="index of that model")
    parser.add_argument("--mentions", type=Path, help="mentions (.jsonl) to ask it about")
    parser.add_argument("--input", choices=INPUTS, default="mixed", help="what is asked (%(default)s)")
    parser.add_argument("--questions", type=int, default=400, help="different mentions (%(default)s)")
    parser.add_argument("--threads", type=int, help="cores of service and engine; all by default")
    parser.add_argument(
        "--cores",
        type=_cores,
        help="numbers of the cores that the service has to itself, 0 or 0,1; this program takes the others "
        "(Linux). By default both share all",
    )
    parser.add_argument(
        "--serve", nargs=argparse.REMAINDER, default=[], help="the rest are flags of the service"
    )


def leave_cores(args: argparse.Namespace) -> None:
    """Keep off the cores that ``--cores`` gives to the service.

    Raises
    ------
    DataError
        If that leaves none, or one of them is not there.
    """
    if args.cores is None:
        return
    mine = os.sched_getaffinity(0)
    if not set(args.cores) < mine:
        raise DataError(f"--cores: {args.cores} must be some, and not all, of {sorted(mine)}")
    os.sched_setaffinity(0, mine - set(args.cores))


def _cores(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def choose(mentions: Sequence[Mention], kind: str, count: int) -> tuple[Mention, ...]:
    """At most ``count`` mentions, always the same: all as text, those with a picture, or as they come."""
    if kind == "text":
        mentions = list(dict.fromkeys(replace(m, image=None) for m in mentions))
    elif kind == "picture":
        mentions = [m for m in mentions if m.image is not None]
    return tuple(random.Random(7).sample(list(mentions), min(count, len(mentions))))


def body_of(mention: Mention, top_k: int) -> bytes:
    """JSON of ``POST /v1/link``; the picture travels as base64."""
    body = {"mention": mention.mention, "sentence": mention.sentence, "top_k": top_k}
    if mention.image is not None:
        data = mention.image if isinstance(mention.image, bytes) else Path(mention.image).read_bytes()
        body["image"] = base64.b64encode(data).decode()
    return json.dumps(body).encode()
