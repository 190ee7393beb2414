"""Evaluation of a model on a data set: ``python -m mimic_engine.evaluate`` (section 4.1.3 of the paper).

Every mention is ranked among all entities by the exact scan, or among candidates that
a file gives it (:mod:`mimic_engine.evaluate.candidates`); a tie counts against the gold
entity. Where the model was calibrated to weigh names, it is evaluated with and without
them. The encoders of an exported model run on ONNX Runtime, those of a training
checkpoint on PyTorch; entities come from an index or are folded in memory. Mentions go
through in batches, so memory does not grow with their number.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mimic_engine.backends.encoders import open_featurizer
from mimic_engine.backends.scan import open_kernels
from mimic_engine.base.model import find_model
from mimic_engine.calibration.stored import Calibration
from mimic_engine.data.images import BrokenImages
from mimic_engine.data.source import Dataset, open_dataset
from mimic_engine.data.with_candidates import CandidateCounts, MentionWithCandidates, read_with_candidates
from mimic_engine.encoding.featurizer import Featurizer, PreparedMention
from mimic_engine.encoding.knowledge_base import KnowledgeBaseFeaturizer
from mimic_engine.encoding.manifest import CPU_PRECISIONS
from mimic_engine.engine.weighed_names import WeighedNames, score_terms
from mimic_engine.errors import DataError, InvalidInputError, MimicError, ModelError
from mimic_engine.evaluate.ambiguity import GROUPS, SurfaceAmbiguity, in_group, known_names
from mimic_engine.evaluate.candidates import CandidateSetRanks
from mimic_engine.index.store import Index
from mimic_engine.metrics import Metrics, ranking_metrics
from mimic_engine.names.forms import FormArrays
from mimic_engine.names.lookup import NameLookup
from mimic_engine.provenance import header, write_result
from mimic_engine.scan.base import ScanKernels
from mimic_engine.scan.scan import Scan
from mimic_engine.scan.terms import NameScores
from mimic_engine.types import Entity, EntityArrays, LabelledMention, MentionArrays

SPLITS = ("train", "dev", "test")
RowsOf = Callable[[Sequence[str]], NDArray[np.int64]]  # entity ids to their rows, (n,)
ENTITIES_PER_SEGMENT = 256
TIES = "counted against the gold entity: its rank is the number of entities that score at least as much"


class Ranker(Protocol):
    """A ranking of gold entities: :class:`~mimic_engine.scan.scan.Scan`, or one among the rows alive."""

    def __len__(self) -> int:
        """Entities N."""
        ...

    def ranks(
        self,
        mentions: MentionArrays,
        gold: NDArray[np.int64],
        *,
        names: Sequence[NameScores] | None = None,
    ) -> NDArray[np.int64]:
        """1-based rank (B,) of entity row ``gold[b]`` for each mention."""
        ...


@dataclass(frozen=True, slots=True)
class _Alive:
    """A scan among the rows that are alive, (N,) bool."""

    scan: Scan
    alive: NDArray[np.bool_]

    def __len__(self) -> int:
        return int(np.count_nonzero(self.alive))

    def ranks(
        self,
        mentions: MentionArrays,
        gold: NDArray[np.int64],
        *,
        names: Sequence[NameScores] | None = None,
    ) -> NDArray[np.int64]:
        return self.scan.ranks(mentions, gold, allowed=self.alive, names=names)


@dataclass(frozen=True, slots=True)
class _KnowledgeBase:
    """Entities to rank: folded arrays, which live (None: all), their rows by id, names, popularity (N,)."""

    segments: Sequence[EntityArrays]
    alive: NDArray[np.bool_] | None
    rows_of: RowsOf
    lookup: NameLookup
    popularity: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Metrics of all mentions and of parts of them (None where a part has no mention)."""

    all: Metrics
    with_image: Metrics | None
    without_image: Metrics | None
    by_ambiguity: Mapping[str, Metrics | None]  # by how many entities bear the mention's name
    by_name: Mapping[str, Metrics | None]  # by whether the answer bears it, see BY_NAME

    def to_json(self) -> dict[str, Any]:
        """The metrics of all mentions, with ``with_image``, ``without_image``, ``namesakes`` beside them."""
        parts = {"with_image": self.with_image, "without_image": self.without_image}
        return (
            self.all.to_json()
            | {name: m and m.to_json() for name, m in parts.items()}
            | {"namesakes": {group: m and m.to_json() for group, m in self.by_ambiguity.items()}}
            | {"names": {group: m and m.to_json() for group, m in self.by_name.items()}}
        )


def evaluate(
    featurizer: Featurizer,
    scan: Ranker,
    mentions: Sequence[LabelledMention],
    gold: NDArray[np.int64],
    ambiguity: SurfaceAmbiguity,
    names: WeighedNames,
    broken: BrokenImages,
    *,
    batch_size: int = 64,
    progress: bool = True,
) -> tuple[Evaluation, Evaluation | None]:
    """Rank the gold entity of each mention among all entities of a scan.

    Gives the evaluation as the model answers, and where it weighs names another by its own score alone.

    Parameters
    ----------
    featurizer : the model.
    scan : over the folded entities of the same model.
    mentions : M labelled mentions, at least one.
    gold : (M,) int64, entity row of each answer.
    ambiguity : of surface forms in the knowledge base.
    names : of the entities, with what they weigh.
    broken : policy for mention images that cannot be decoded; lists them.
    batch_size : mentions that are encoded and ranked at a time.
    progress : show a progress bar.

    Raises
    ------
    DataError
        If an image is broken and the policy is to stop.
    InvalidInputError
        If there are no mentions.
    """
    ranks, alone, images = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.bool_)]
    with tqdm(total=len(mentions), desc="mentions", unit="mention", disable=not progress) as bar:
        for start in range(0, len(mentions), batch_size):
            stop = min(start + batch_size, len(mentions))
            prepared = [prepare_labelled(featurizer, m, broken) for m in mentions[start:stop]]
            arrays = featurizer.fold_prepared(prepared)
            alone.append(scan.ranks(arrays, gold[start:stop]))
            if names.weights:
                scores = [names.scores(m.mention) for m in mentions[start:stop]]
                ranks.append(scan.ranks(arrays, gold[start:stop], names=scores))
            images.append(np.array([p.pixels is not None for p in prepared]))
            bar.update(stop - start)
    has_image = np.concatenate(images)
    surfaces = [m.mention.mention for m in mentions]
    bearers = ambiguity.counts(surfaces)
    known = known_names(names.lookup, surfaces, gold)

    def evaluation(rank: NDArray[np.int64]) -> Evaluation:
        def part(chosen: NDArray[np.bool_]) -> Metrics | None:
            return ranking_metrics(rank[chosen], len(scan)) if chosen.any() else None

        return Evaluation(
            ranking_metrics(rank, len(scan)),
            part(has_image),
            part(~has_image),
            {group: part(in_group(bearers, group)) for group in GROUPS},
            {group: part(chosen) for group, chosen in known.items()},
        )

    of_model = evaluation(np.concatenate(alone))
    return (evaluation(np.concatenate(ranks)), of_model) if names.weights else (of_model, None)


def fold_in_memory(
    featurizer: KnowledgeBaseFeaturizer, entities: Sequence[Entity], *, progress: bool = True
) -> list[EntityArrays]:
    """Folded arrays of all entities, in segments; about 19 KB an entity at a text length of 40."""
    starts = range(0, len(entities), ENTITIES_PER_SEGMENT)
    bar = tqdm(starts, desc="entities", unit=f"{ENTITIES_PER_SEGMENT} entities", disable=not progress)
    return [featurizer.entities(entities[i : i + ENTITIES_PER_SEGMENT]) for i in bar]


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate and write the result; 0, 1 with a message on an error that has one, 2 on wrong usage."""
    args = _parser().parse_args(argv)
    try:
        result = _run(args)
    except MimicError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if args.out is None:
        sys.stdout.write(json.dumps(header() | result, indent=2) + "\n")
    else:
        write_result(args.out, result)
    return 0


def _run(args: argparse.Namespace) -> dict[str, Any]:
    _check(args)
    args.model = find_model(args.model)
    splits = () if args.candidates is not None else tuple(dict.fromkeys(args.split or ["test"]))
    dataset = open_dataset(args.data, splits=splits)
    counts = CandidateCounts()
    candidate_sets = _candidate_sets(args, dataset, counts)
    broken = BrokenImages(args.broken_images)
    featurizer, kernels, notes = _open_model(args)
    known = _entities(args, dataset, KnowledgeBaseFeaturizer(featurizer, broken))
    weights = Calibration.read(args.model, featurizer.model_hash).weights
    terms = score_terms(weights, known.popularity, known.alive)
    # PyTorch spreads each block over its own threads; the other scorers take one core a block.
    scan = Scan(known.segments, kernels, threads=1 if kernels.name == "torch" else args.threads, terms=terms)
    ranker = scan if known.alive is None else _Alive(scan, known.alive)
    names = WeighedNames(known.lookup, weights)
    ambiguity = SurfaceAmbiguity([entity.name for entity in dataset.entities])
    result = {"model_hash": featurizer.model_hash, "ties": TIES, "scorer": kernels.name} | notes
    result["weights"] = asdict(weights)
    try:
        for split, mentions in dataset.splits.items():
            chosen = mentions[: args.limit or None]
            if not chosen:
                raise DataError(f"{args.data}: no mentions in split {split!r}")
            options = {"batch_size": args.batch_size, "progress": not args.quiet}
            gold = known.rows_of([m.answer for m in chosen])
            found, alone = evaluate(featurizer, ranker, chosen, gold, ambiguity, names, broken, **options)
            result[split] = found.to_json()
            if alone is not None:
                result[split]["without_names"] = alone.to_json()
        if args.candidates is not None:
            ranks = CandidateSetRanks(scan, known.rows_of, names.scores if weights else None)
            result["candidates"] = _among_candidates(args, featurizer, ranks, candidate_sets, broken)
    finally:
        scan.close()
    result["data"] = dataset.report.to_json()
    if args.candidates is not None:
        result["data"]["candidates"] = asdict(counts)
    result["broken_images"] = [f"{b.owner}: {b.source}" for b in broken.found]
    return result


def _check(args: argparse.Namespace) -> None:
    for name, least in (("batch_size", 1), ("limit", 0)):
        if getattr(args, name) < least:
            flag = "--" + name.replace("_", "-")
            raise InvalidInputError(f"{flag}: must be at least {least}, got {getattr(args, name)}")
    if args.out is not None and args.out.is_dir():
        raise InvalidInputError(f"--out: {args.out} is a folder")
    if args.candidates is not None and args.split is not None:
        raise InvalidInputError(
            "--split: of the data set's own mentions; --candidates has mentions of its own"
        )


def _candidate_sets(
    args: argparse.Namespace, dataset: Dataset, counts: CandidateCounts
) -> Sequence[MentionWithCandidates]:
    """The mentions of ``--candidates``, none without it."""
    if args.candidates is None:
        return ()
    mentions = read_with_candidates(args.candidates, dataset.entities, counts=counts)
    chosen = list(islice(mentions, args.limit or None))
    if not chosen:
        raise DataError(f"{args.candidates}: no mentions")
    return chosen


def _among_candidates(
    args: argparse.Namespace,
    featurizer: Featurizer,
    ranks: CandidateSetRanks,
    mentions: Sequence[MentionWithCandidates],
    broken: BrokenImages,
) -> dict[str, Any]:
    """Rank every mention's answer among its own candidates."""
    starts = range(0, len(mentions), args.batch_size)
    for start in tqdm(starts, desc="batches of mentions", disable=args.quiet):
        batch = mentions[start : start + args.batch_size]
        prepared = [prepare_labelled(featurizer, one.labelled, broken) for one in batch]
        ranks.add(featurizer.fold_prepared(prepared), batch)
    return {"file": args.candidates.name} | ranks.result().to_json()


def prepare_labelled(
    featurizer: Featurizer, labelled: LabelledMention, broken: BrokenImages
) -> PreparedMention:
    """Tokenise and decode a mention; a broken image as ``broken`` says."""
    pixels = broken.load(featurizer.images, labelled.mention.image, f"mention {labelled.id!r}")
    tokens = featurizer.prepare(replace(labelled.mention, image=None)).tokens
    return PreparedMention(tokens, pixels)


def _open_model(args: argparse.Namespace) -> tuple[Featurizer, ScanKernels, dict[str, Any]]:
    """Featurizer and kernels of an exported model or a checkpoint, and what the result file says of them."""
    if (args.model / "manifest.json").is_file():
        featurizer = open_featurizer(args.model, precision=args.precision, threads=args.threads)
        kernels = open_kernels("auto", args.model, featurizer.constants)
        return featurizer, kernels, {"runtime": f"onnx {args.precision}"}
    if not (args.model / "config.json").is_file():
        raise ModelError(
            f"--model: {args.model} holds neither manifest.json (exported) nor config.json (checkpoint)"
        )
    if args.precision != "fp32":
        raise InvalidInputError(
            f"--precision: {args.precision!r} needs an exported model; a checkpoint runs in fp32"
        )
    from mimic_engine.evaluate.checkpoint import open_checkpoint

    return open_checkpoint(
        args.model, text_source=args.text_source, image_source=args.image_source, threads=args.threads
    )


def _entities(
    args: argparse.Namespace, dataset: Dataset, featurizer: KnowledgeBaseFeaturizer
) -> _KnowledgeBase:
    """The entities of an index, or those of the data set folded in memory."""
    if args.index is None:
        entities = dataset.entities
        row = {entity.id: i for i, entity in enumerate(entities)}
        folded = fold_in_memory(featurizer, entities, progress=not args.quiet)
        forms = FormArrays.of((entity.name, *entity.aliases) for entity in entities)
        unknown = float("nan")
        return _KnowledgeBase(
            folded,
            None,
            lambda ids: np.array([row[i] for i in ids], np.int64),
            NameLookup([forms], [len(entities)]),
            np.array([unknown if e.popularity is None else e.popularity for e in entities]),
        )
    index = Index.open(args.index)
    index.check_model(featurizer.model_hash)
    return _KnowledgeBase(index.segments, index.alive, index.rows, index.name_lookup, index.popularity)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mimic_engine.evaluate",
        description="Rank gold entities among all entities: Hits@k, MRR and mean rank, as JSON.",
    )
    add = parser.add_argument
    add("--model", required=True, help="exported model or training checkpoint (a folder), or 'base'")
    add("--data", type=Path, required=True, help="data set folder")
    add("--split", nargs="+", choices=SPLITS, help="splits to evaluate (default: test)")
    add("--candidates", type=Path, help="JSON of mentions with candidates of their own, instead of a split")
    add("--out", type=Path, help="result file (default: standard output)")
    add("--index", type=Path, help="index of the same model; by default the entities are folded in memory")
    add(
        "--precision",
        choices=CPU_PRECISIONS,
        default="fp32",
        help="of an exported model's encoders",
    )
    add("--text-source", help="text encoder of a checkpoint that leaves it out")
    add("--image-source", help="image encoder of a checkpoint that leaves it out")
    add("--batch-size", type=int, default=64, help="mentions at a time (default: 64)")
    add("--limit", type=int, default=0, help="only the first mentions of each split; 0 = all")
    add("--threads", type=int, help="CPU threads (default: all that the process may use)")
    add(
        "--broken-images",
        choices=("error", "as-missing"),
        default="error",
        help="what to do with a broken image",
    )
    add("--quiet", action="store_true", help="no progress bars")
    return parser


if __name__ == "__main__":
    sys.exit(main())
