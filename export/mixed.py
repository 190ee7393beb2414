"""Mixed precision: which layer groups of a graph must stay float32 so that it holds its tolerance, and why.

    python export/mixed.py MODEL_DIR --precision fp16 [--graph image_encoder] [--max-error 0.02] [--dry-run]

Runs on the CPU: float32 arithmetic with every narrow value rounded to its
type (:mod:`mimic_engine.export.emulated`), on real inputs. A precision that
holds as a whole is left as it is. Otherwise each group's harm alone is
measured, and groups go back to float32, the most harmful first, until the
graph holds; then those that turned out not to be needed are narrowed again.
The mixed graph takes the place of the precision's, and a report names what
stayed float32.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from mimic_engine.encoding.graph_names import ENCODERS, TEXT_ENCODER
from mimic_engine.encoding.manifest import GraphEntry, ModelManifest, StoredFile
from mimic_engine.encoding.onnx import OnnxGraph
from mimic_engine.errors import InvalidInputError, MimicError, ModelError
from mimic_engine.export.emulated import EmulatedGraph
from mimic_engine.export.samples import Arrays, own_records, prepare, read_records
from mimic_engine.export.typed import TYPES, Keep, kept_in_float32, to_typed
from mimic_engine.files import write_atomic
from mimic_engine.provenance import write_result

# Largest error of any output, relative to its largest value.
MAX_ERROR = {"fp16": 0.02, "bf16": 0.1}
_LAYER = re.compile(r"^(.*?\.\d+)(?=[./]|$)")  # up to the first number: "encoder.text.model.encoder.layer.0"


def group_of(node: onnx.NodeProto) -> str:
    """Layer group of a node, by its place in the model: a numbered layer, or the module outside of them."""
    place = node.name.rpartition("/")[0]
    found = _LAYER.match(place)
    return found.group(1) if found else ".".join(place.split(".")[:3]) or "outside"


@dataclass(frozen=True, slots=True)
class Kept:
    """A group that stays float32, and the error of the graph where this group alone is narrow."""

    group: str
    error_alone: float


@dataclass(frozen=True, slots=True)
class Search:
    """Result of a search: ``error`` of the graph with ``kept`` in float32, ``whole`` of it all narrow."""

    whole: float
    error: float
    kept: tuple[Kept, ...]
    groups: int


def search(error_of: Callable[[frozenset[str]], float], groups: Sequence[str], allowed: float) -> Search:
    """The groups to keep in float32.

    Parameters
    ----------
    error_of : relative error of the graph with a set of groups in float32.
    groups : all groups, in the graph's order.
    allowed : largest error.

    Raises
    ------
    ModelError
        If the graph is beyond it with every group in float32.
    """
    everything = frozenset(groups)
    whole = error_of(frozenset())
    if whole <= allowed:
        return Search(whole, whole, (), len(groups))
    alone = {group: error_of(everything - {group}) for group in groups}
    kept: set[str] = set()
    error = whole
    for group in sorted(groups, key=lambda g: -alone[g]):
        kept.add(group)
        error = error_of(frozenset(kept))
        if error <= allowed:
            break
    if not error <= allowed:
        raise ModelError(f"beyond {allowed:.1e} with every group in float32: {error:.1e}")
    for group in sorted(kept, key=lambda g: alone[g]):
        narrower = error_of(frozenset(kept - {group}))
        if narrower <= allowed:
            kept.remove(group)
            error = narrower
    return Search(whole, error, tuple(Kept(g, alone[g]) for g in groups if g in kept), len(groups))


class MixedGraph:
    """One encoder of an exported model, in a precision with some groups in float32."""

    def __init__(
        self, folder: Path, manifest: ModelManifest, name: str, precision: str, feeds: Arrays
    ) -> None:
        self._entry = manifest.entry(name, "fp32")
        if self._entry.data is not None:
            raise ModelError(f"{name}: over 2 GB; a mixed precision is searched for smaller graphs")
        reference = OnnxGraph.open(folder, manifest, name, "fp32", threads=1, verify=True)
        self._fp32 = onnx.load(folder / self._entry.onnx.file)
        self._name, self._precision, self._feeds = name, precision, feeds
        self._expected = reference.run(feeds)
        self._rule = kept_in_float32(name, self._fp32.graph)
        nodes = [n for n in self._fp32.graph.node if not self._rule(n)]
        self.groups = tuple(dict.fromkeys(group_of(node) for node in nodes))

    def typed(self, kept: frozenset[str]) -> onnx.ModelProto:
        """The graph with these groups in float32."""
        keep: Keep = lambda node: self._rule(node) or group_of(node) in kept  # noqa: E731
        return to_typed(self._name, self._fp32, self._precision, keep)

    def error(self, kept: frozenset[str]) -> float:
        """Largest error of any output relative to its largest value; infinite where a value is not finite."""
        found = EmulatedGraph(self._name, self._entry, self.typed(kept)).run(self._feeds)
        return max(_relative(found[name], expected) for name, expected in self._expected.items())


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    if not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - expected).max()) / max(float(np.abs(expected).max()), 1e-30)


def write(folder: Path, manifest: ModelManifest, name: str, precision: str, typed: onnx.ModelProto) -> None:
    """Put a mixed graph in the place of a precision's graph."""
    onnx.checker.check_model(typed, full_check=True)
    file = f"graphs/{name}.{precision}.onnx"
    write_atomic(folder / file, typed.SerializeToString())
    fp32 = manifest.entry(name, "fp32")
    entry = GraphEntry.of(StoredFile.of(folder, file), fp32.inputs, fp32.outputs)
    graphs = {g: {**by, precision: entry} if g == name else by for g, by in manifest.graphs.items()}
    replace(manifest, graphs=graphs).write(folder)


def report(name: str, precision: str, allowed: float, found: Search) -> Mapping[str, object]:
    """Result of a search, as JSON types; an infinite error is null."""
    return {
        "graph": name,
        "precision": precision,
        "allowed_error": allowed,
        "error_all_narrow": _finite(found.whole),
        "error": _finite(found.error),
        "groups": found.groups,
        "kept_in_float32": [{"group": k.group, "error_alone": _finite(k.error_alone)} for k in found.kept],
    }


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mixed.py", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("model", type=Path, help="exported model folder")
    add("--precision", choices=tuple(TYPES), required=True)
    add("--graph", choices=ENCODERS, action="append", help="both encoders by default")
    add("--max-error", type=float, help=f"relative to an output's largest value (default: {MAX_ERROR})")
    add("--mentions", type=Path, help=".jsonl or .parquet; our own 24 by default")
    add("--entities", type=Path, help=".jsonl or .parquet; our own 24 by default")
    add("--limit", type=int, default=16, help="records read of each file (%(default)s)")
    add("--json", type=Path, help="write the report here")
    add("--dry-run", action="store_true", help="search and report, change nothing")
    return parser.parse_args(argv)


def _run(args: argparse.Namespace) -> int:
    if (args.mentions is None) != (args.entities is None):
        raise InvalidInputError("--mentions and --entities: give both or neither")
    allowed = MAX_ERROR[args.precision] if args.max_error is None else args.max_error
    manifest = ModelManifest.read(args.model)
    records = read_records(args.mentions, args.entities, args.limit) if args.mentions else own_records()
    mentions, entities = (part[: args.limit] for part in records)
    sample = prepare(args.model, manifest, mentions, entities).mentions
    reports = []
    for name in args.graph or ENCODERS:
        feeds = sample.text if name == TEXT_ENCODER else sample.image
        graph = MixedGraph(args.model, manifest, name, args.precision, feeds)
        found = search(graph.error, graph.groups, allowed)
        reports.append(report(name, args.precision, allowed, found))
        print(f"{name} {args.precision}: all narrow {found.whole:.1e}, allowed {allowed:.1e}")
        for kept in found.kept:
            print(f"  float32: {kept.group}, by itself narrow {kept.error_alone:.1e}")
        if found.kept:
            print(f"  error with {len(found.kept)} of {found.groups} groups in float32: {found.error:.1e}")
        if found.kept and not args.dry_run:
            write(
                args.model,
                manifest,
                name,
                args.precision,
                graph.typed(frozenset(k.group for k in found.kept)),
            )
            manifest = ModelManifest.read(args.model)
    if args.json:
        write_result(args.json, {"model_hash": manifest.model_hash, "searches": reports})
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
