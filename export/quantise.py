"""Quantise the encoders to int8 or fp8, measure what it costs, and ship it only if Hits@1 holds.

    python export/quantise.py MODEL_DIR --data DATA [--precision fp8] [--points 0.2] [--json FILE] [--dry-run]

DATA is a data set with ``train`` mentions to calibrate on and ``test``
mentions to judge by. Several ways are tried, the most quantised first; the
first one that loses at most ``--points`` of Hits@1 (in percentage points)
becomes the model's int8 (or fp8) precision. Exits with 1, and the folder unchanged, if
none does. The entities are encoded in float32, as an index is.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mimic_engine.data.source import Dataset, open_dataset
from mimic_engine.encoding.featurizer import mean_images
from mimic_engine.encoding.graph_names import (
    ENCODERS,
    FOLDS,
    IMAGE_ENCODER,
    PIXELS,
    SCORER,
    TEXT_ENCODER,
    TEXT_INPUTS,
    TOTAL,
)
from mimic_engine.encoding.manifest import GraphEntry, ModelManifest, StoredFile
from mimic_engine.encoding.onnx import OnnxGraph, available_threads
from mimic_engine.encoding.session import GraphSession, RunnableGraph
from mimic_engine.errors import DataError, InvalidInputError, MimicError
from mimic_engine.export.precision import to_calibrated_int8, to_fp8, to_int8
from mimic_engine.files import replace_file
from mimic_engine.images import ImagePreprocessor
from mimic_engine.provenance import write_result
from mimic_engine.text import TextPreprocessor
from mimic_engine.types import Array, ImageFeatures, ImageSource, LabelledMention, TextFeatures, TokenBatch

# Ways to quantise (text encoder, image encoder), the most quantised first; None leaves it float32.
Ways = tuple[tuple[str | None, str | None], ...]
WAYS: Mapping[str, Ways] = {
    "int8": (
        ("calibrated", "calibrated"),
        ("dynamic", "calibrated"),
        ("dynamic", "dynamic"),
        ("dynamic", None),
    ),
    "fp8": (("fp8", "fp8"), ("fp8", None), (None, "fp8")),
}
Feeds = Sequence[Mapping[str, NDArray[np.generic]]]


def _to_int8(fp32: Path, int8: Path, feeds: Feeds) -> None:
    del feeds  # ranges of activations are found at run time
    to_int8(fp32, int8)


QUANTISERS: Mapping[str, Callable[[Path, Path, Feeds], None]] = {
    "calibrated": to_calibrated_int8,
    "dynamic": _to_int8,
    "fp8": to_fp8,
}
POINTS = 0.2
CALIBRATION = 64  # mentions
_ROWS = 8  # of a calibration input, and of a block of mentions that is scored


@dataclass(frozen=True, slots=True)
class Outcome:
    """Cost of one way: fractions of mentions whose gold entity is first."""

    text: str | None
    image: str | None
    hits_at_1: float
    fp32_hits_at_1: float
    mentions: int
    bytes: int

    @property
    def lost_points(self) -> float:
        """Hits@1 lost against float32, in percentage points."""
        return 100 * (self.fp32_hits_at_1 - self.hits_at_1)


class Inputs:
    """Preprocessed texts and images; each image once, however many mentions share it."""

    def __init__(
        self,
        manifest: ModelManifest,
        tokens: TokenBatch,
        images: Sequence[ImageSource | None],
    ) -> None:
        self.tokens = tokens
        self._load = ImagePreprocessor(manifest.image)
        self.sources: list[ImageSource | None] = list(dict.fromkeys(images))
        place = {source: i for i, source in enumerate(self.sources)}
        self.which = np.array([place[source] for source in images])  # (R,)

    def pixels(self, start: int, stop: int) -> Array:
        """Distinct images start:stop; (n, 3, S, S)."""
        chosen = self.sources[start:stop]
        return np.stack([self._load.missing() if s is None else self._load(s) for s in chosen])

    def image_features(self, encode: Callable[[Array], ImageFeatures]) -> ImageFeatures:
        """Features of every row, each distinct image encoded once."""
        parts = [encode(self.pixels(i, i + 32)) for i in range(0, len(self.sources), 32)]
        cls, tokens = (np.concatenate(p) for p in zip(*((f.cls, f.tokens) for f in parts), strict=True))
        return ImageFeatures(cls[self.which], tokens[self.which])


class Judge:
    """Hits@1 of the test mentions for given encoders, against entities in float32."""

    def __init__(
        self, folder: Path, manifest: ModelManifest, data: Dataset, limit: int, threads: int
    ) -> None:
        self._folder, self._manifest, self._threads = folder, manifest, threads
        self._fp32 = {name: self.open(name) for name in (*ENCODERS, *FOLDS, SCORER)}
        mentions = _mentions(data, "test")[: limit or None]
        self._inputs = _mention_inputs(folder, manifest, mentions)
        row = {entity.id: i for i, entity in enumerate(data.entities)}
        self._gold = np.array([row[m.answer] for m in mentions])  # (M,)
        entities = data.entities
        albums = [e.images[: manifest.image.entity_pictures] or (None,) for e in entities]
        images = [source for album in albums for source in album]
        inputs = Inputs(manifest, _text(folder, manifest).entities(entities), images)
        session = self.session({})
        text, image = session.encode_text(inputs.tokens), inputs.image_features(session.encode_image)
        image = mean_images(image, [len(album) for album in albums])
        self._entities = dict(session.fold_entities(text, image).items())
        self._text: dict[str | None, TextFeatures] = {}
        self._image: dict[str | None, ImageFeatures] = {}

    def open(self, name: str, path: Path | None = None) -> OnnxGraph:
        """A graph of the model, or another one in its place."""
        if path is None:
            return OnnxGraph.open(
                self._folder, self._manifest, name, "fp32", threads=self._threads, verify=True
            )
        return OnnxGraph(path, self._manifest.entry(name, "fp32"), self._threads)

    def session(self, other: Mapping[str, RunnableGraph]) -> GraphSession:
        """The model in float32, with other graphs in some places."""
        return GraphSession(self._manifest, {**self._fp32, **other}, self._folder / "tokenizer.json", "onnx")

    def hits_at_1(self, ways: tuple[str | None, str | None], graphs: Mapping[tuple[str, str], Path]) -> float:
        """Share of mentions whose gold entity alone is best; features of a way are computed once."""
        text, image = ways
        if text not in self._text:
            other = (
                {} if text is None else {TEXT_ENCODER: self.open(TEXT_ENCODER, graphs[TEXT_ENCODER, text])}
            )
            self._text[text] = self.session(other).encode_text(self._inputs.tokens)
        if image not in self._image:
            other = (
                {}
                if image is None
                else {IMAGE_ENCODER: self.open(IMAGE_ENCODER, graphs[IMAGE_ENCODER, image])}
            )
            self._image[image] = self._inputs.image_features(self.session(other).encode_image)
        return float((self._ranks(self._text[text], self._image[image]) == 1).mean())

    def _ranks(self, text: TextFeatures, image: ImageFeatures) -> NDArray[np.int64]:
        """1-based rank of the gold entity of each mention, ties counted against it; (M,)."""
        mentions = {f"mention_{k}": a for k, a in self.session({}).fold_mentions(text, image).items()}
        entities = {f"entity_{k}": a for k, a in self._entities.items()}
        ranks = []
        for i in range(0, len(self._gold), _ROWS):
            block = {name: array[i : i + _ROWS] for name, array in mentions.items()}
            total = self._fp32[SCORER].run(block | entities)[TOTAL]  # (b, N)
            gold = total[np.arange(len(total)), self._gold[i : i + _ROWS]]
            ranks.append((total >= gold[:, None]).sum(1))
        return np.concatenate(ranks)


def _mentions(data: Dataset, split: str) -> Sequence[LabelledMention]:
    found = data.splits.get(split, ())
    if not found:
        raise DataError(f"{data.path}: no mentions in split {split!r}")
    return found


def _mention_inputs(folder: Path, manifest: ModelManifest, mentions: Sequence[LabelledMention]) -> Inputs:
    tokens = _text(folder, manifest).mentions([m.mention for m in mentions])
    return Inputs(manifest, tokens, [m.mention.image for m in mentions])


def _text(folder: Path, manifest: ModelManifest) -> TextPreprocessor:
    return TextPreprocessor.open(folder / manifest.tokenizer.file, manifest.text)


def quantise_all(
    folder: Path,
    manifest: ModelManifest,
    data: Dataset,
    out: Path,
    precision: str = "int8",
    count: int = CALIBRATION,
) -> dict[tuple[str, str], Path]:
    """Every encoder quantised in every way, by graph and way, written into ``out``; from train mentions."""
    mentions = _mentions(data, "train")
    chosen = [mentions[i] for i in np.linspace(0, len(mentions) - 1, min(count, len(mentions))).astype(int)]
    inputs = _mention_inputs(folder, manifest, chosen)
    feeds: dict[str, Feeds] = {
        TEXT_ENCODER: [_token_feed(inputs.tokens, i) for i in range(0, len(chosen), _ROWS)],
        IMAGE_ENCODER: [{PIXELS: inputs.pixels(i, i + _ROWS)} for i in range(0, len(inputs.sources), _ROWS)],
    }
    found = {}
    for place, name in enumerate(ENCODERS):
        fp32 = manifest.entry(name, "fp32").onnx.check(folder, verify=True)
        for way in sorted({pair[place] or "" for pair in WAYS[precision]} - {""}):
            path = found[name, way] = out / f"{name}.{way}.onnx"
            QUANTISERS[way](fp32, path, feeds[name])
    return found


def _token_feed(tokens: TokenBatch, start: int) -> dict[str, NDArray[np.int64]]:
    return {name: getattr(tokens, name)[start : start + _ROWS] for name in TEXT_INPUTS}


def decide(
    judge: Judge,
    ways: Ways,
    graphs: Mapping[tuple[str, str], Path],
    points: float,
    mentions: int,
    sizes: Mapping[str, int],
) -> tuple[Outcome | None, list[Outcome]]:
    """Try the ways in their order; the first that loses at most ``points``, and all that were tried."""
    fp32, tried = judge.hits_at_1((None, None), graphs), []
    for text, image in ways:
        size = sum(
            sizes[name] if way is None else graphs[name, way].stat().st_size
            for name, way in zip(ENCODERS, (text, image), strict=True)
        )
        outcome = Outcome(text, image, judge.hits_at_1((text, image), graphs), fp32, mentions, size)
        tried.append(outcome)
        print(f"text {text}, image {image}: Hits@1 {outcome.hits_at_1:.4f}, float32 {fp32:.4f}", flush=True)
        if outcome.lost_points <= points + 1e-9:
            return outcome, tried
    return None, tried


def ship(
    folder: Path,
    manifest: ModelManifest,
    precision: str,
    chosen: Outcome,
    graphs: Mapping[tuple[str, str], Path],
) -> ModelManifest:
    """Make the chosen graphs the model's quantised precision; what stays float32 is entered as it is."""
    entries: dict[str, dict[str, GraphEntry]] = {name: dict(e) for name, e in manifest.graphs.items()}
    for name, way in zip(ENCODERS, (chosen.text, chosen.image), strict=True):
        entry = manifest.entry(name, "fp32")
        if way is not None:
            file = f"graphs/{name}.{precision}.onnx"
            with replace_file(folder / file) as temporary:
                shutil.copyfile(graphs[name, way], temporary)
            entry = GraphEntry.of(StoredFile.of(folder, file), entry.inputs, entry.outputs)
        entries[name][precision] = entry
    new = replace(manifest, graphs=entries)
    new.write(folder)
    return new


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="quantise.py", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("model", type=Path, help="exported model folder")
    add("--data", type=Path, required=True, help="data set folder with train and test mentions")
    add("--precision", choices=tuple(WAYS), default="int8", help="8-bit integers or floats (%(default)s)")
    add(
        "--points",
        type=float,
        default=POINTS,
        help="Hits@1 that may be lost, percentage points (%(default)s)",
    )
    add("--calibration", type=int, default=CALIBRATION, help="train mentions to calibrate on (%(default)s)")
    add("--limit", type=int, default=0, help="only the first test mentions; 0 = all")
    add("--threads", type=int, help="CPU cores to use; all by default")
    add("--json", type=Path, help="write what was measured here")
    add("--dry-run", action="store_true", help="measure and decide, change nothing")
    return parser.parse_args(argv)


def _run(args: argparse.Namespace) -> int:
    for name in ("calibration", "limit", "points"):
        least = 1 if name == "calibration" else 0
        if getattr(args, name) < least:
            raise InvalidInputError(f"--{name}: {getattr(args, name)} is below {least}")
    manifest = ModelManifest.read(args.model)
    data = open_dataset(args.data, splits=("train", "test"))
    threads = args.threads or available_threads()
    mentions = len(_mentions(data, "test")[: args.limit or None])
    with tempfile.TemporaryDirectory() as work:
        graphs = quantise_all(args.model, manifest, data, Path(work), args.precision, args.calibration)
        judge = Judge(args.model, manifest, data, args.limit, threads)
        sizes = {name: manifest.entry(name, "fp32").onnx.bytes for name in ENCODERS}
        chosen, tried = decide(judge, WAYS[args.precision], graphs, args.points, mentions, sizes)
        if chosen is not None and not args.dry_run:
            ship(args.model, manifest, args.precision, chosen, graphs)
    report = {
        "model_hash": manifest.model_hash,
        "precision": args.precision,
        "allowed_points": args.points,
        "calibrated_on": args.calibration,
        "tried": [asdict(o) | {"lost_points": o.lost_points} for o in tried],
        "shipped": None if chosen is None else {"text": chosen.text, "image": chosen.image},
    }
    if args.json:
        write_result(args.json, report)
    if chosen is None:
        print(f"not shipped: every way loses more than {args.points} points: {json.dumps(report['tried'])}")
        return 1
    print(f"shipped: text {chosen.text}, image {chosen.image}, {chosen.lost_points:+.2f} points lost")
    return 0


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
