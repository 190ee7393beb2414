"""Compile an exported model into TensorRT engines, one optimisation profile a bucket.

    python export/build_trt.py MODEL_DIR OUT [--flavor tensorrt|rtx] [--precision fp16] [--target sm_89,...]

The precision is that of the exported graph; there are no precision flags.
Every engine gets a sidecar manifest (:mod:`mimic_engine.gpu.engine_files`).
``--dry-run`` prints what would be built and what is missing. Exits with 1 if
something is missing or a graph is rejected, with 2 on a wrong option.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mimic_engine.encoding import buckets
from mimic_engine.encoding.graph_names import GRAPHS, TEXT_ENCODER
from mimic_engine.encoding.manifest import QUANTISED, GraphEntry, ModelManifest
from mimic_engine.errors import (
    BackendError,
    InvalidInputError,
    MimicError,
    MissingDependencyError,
    ModelError,
)
from mimic_engine.export.engines import BuildOptions, build_engine
from mimic_engine.export.profiles import Profile, profiles, shapes
from mimic_engine.files import write_atomic
from mimic_engine.gpu.device import open_device
from mimic_engine.gpu.engine_files import EngineRecord, engine_file, graph_sha256
from mimic_engine.gpu.tensorrt_library import FLAVOURS, Flavour, Library, load_library

FP8_FROM = 89  # the first architecture that multiplies 8-bit floats (Ada)


@dataclass(frozen=True, slots=True)
class Job:
    """One engine to build."""

    graph: str
    precision: str  # of the graph; fp32 where the model has it in no other
    target: str
    entry: GraphEntry
    profiles: tuple[Profile, ...]

    @property
    def file(self) -> str:
        """Name of the engine file."""
        return engine_file(self.graph, self.precision, self.target)


def plan(
    manifest: ModelManifest,
    precision: str,
    targets: Sequence[str],
    graphs: Sequence[str] = GRAPHS,
    rows: Sequence[int] = buckets.ROWS,
) -> list[Job]:
    """The engines of a model in a precision, for each target.

    Raises
    ------
    ModelError
        If the model was not exported in the precision.
    InvalidInputError
        If a graph has no such name, or the buckets do not ascend.
    """
    unknown = [name for name in graphs if name not in GRAPHS]
    if unknown:
        raise InvalidInputError(f"graphs: {unknown} are not among {', '.join(GRAPHS)}")
    try:
        manifest.entry(TEXT_ENCODER, precision)
    except ModelError as error:
        if precision not in QUANTISED:
            raise
        raise ModelError(f"{error}; make it: python export/quantise.py --precision {precision}") from error
    jobs = []
    for target in targets:
        for name in graphs:
            chosen = precision if precision in manifest.graphs[name] else "fp32"
            entry = manifest.entry(name, chosen)
            found = tuple(profiles(entry, manifest.widths["length"], rows))
            jobs.append(Job(name, chosen, target, entry, found))
    return jobs


def build(
    library: Library,
    model: Path,
    out: Path,
    manifest: ModelManifest,
    jobs: Sequence[Job],
    options: BuildOptions,
) -> Iterator[EngineRecord]:
    """Build the engines one by one into ``out``; each appears whole, with its manifest.

    Raises
    ------
    ModelError
        If a graph is missing or changed, or the library rejects it.
    BackendError
        If the library does not start.
    """
    for job in jobs:
        if job.entry.data is not None:
            job.entry.data.check(model, verify=True)
        graph = job.entry.onnx.check(model, verify=True)
        spans = [shapes(job.entry, profile) for profile in job.profiles]
        engine, seconds = build_engine(library, graph, job.target, spans, options)
        write_atomic(out / job.file, engine)
        record = EngineRecord(
            manifest.model_hash,
            job.graph,
            job.precision,
            graph_sha256(job.entry),
            library.flavour.name,
            library.version,
            job.target,
            job.profiles,
            seconds,
            len(engine),
            hashlib.sha256(engine).hexdigest(),
            stripped=options.strip,
            version_compatible=options.version_compatible,
            verified=None,
        )
        record.write(out)
        yield record


def targets_of(flavour: Flavour, given: str | None) -> tuple[str, ...]:
    """Architectures to build for: those given, or that of the device at hand.

    Raises
    ------
    InvalidInputError
        If the flavour cannot build for one of them here.
    BackendError
        If none is given and there is no device, or the flavour needs one.
    """
    names = () if given is None else tuple(dict.fromkeys(t.strip() for t in given.split(",")))
    for name in names:
        flavour.check_target(name)
    if names and flavour.targets is not None:
        return names
    try:
        here = open_device().architecture
    except (BackendError, MissingDependencyError) as error:
        hint = "give --target" if flavour.targets is not None else "it builds only for the GPU at hand"
        raise BackendError(f"{flavour.title}: no device to build for: {error}; {hint}") from error
    for name in names:
        if name != here:
            raise InvalidInputError(
                f"target: {flavour.title} builds for the GPU at hand, {here}, not {name!r}"
            )
    flavour.check_target(here)
    return (here,)


def check_floats(precision: str, targets: Sequence[str]) -> None:
    """Raise InvalidInputError if a target computes in no 8-bit floats and the precision is fp8."""
    for target in targets:
        number = target.removeprefix("sm_")
        if precision == "fp8" and number.isdigit() and int(number) < FP8_FROM:
            raise InvalidInputError(
                f"target: {target!r} has no 8-bit floats; fp8 needs sm_{FP8_FROM} or later"
            )


def _dry_run(args: argparse.Namespace, flavour: Flavour) -> int:
    """Say what would be built, and what is missing; 1 if something is."""
    missing: list[str] = []
    targets: tuple[str, ...] = ("?",)
    try:
        targets = targets_of(flavour, args.target)
        check_floats(args.precision, targets)
    except BackendError as error:
        missing.append(str(error))
    try:
        version = load_library(flavour.name).version
        print(f"{flavour.title} {version}")
    except MissingDependencyError as error:
        missing.append(str(error))
    for job in plan(args.manifest, args.precision, targets, args.graphs, args.profiles):
        try:
            job.entry.onnx.check(args.model, verify=True)
            if job.entry.data is not None:
                job.entry.data.check(args.model, verify=True)
        except ModelError as error:
            missing.append(str(error))
        print(f"{args.out / job.file}: from {job.entry.onnx.file}, {len(job.profiles)} profiles")
        for profile in job.profiles:
            print("  " + ", ".join(f"{axis} {low}..{high}" for axis, (low, _, high) in profile.items()))
    for line in missing:
        print(f"missing: {line}", file=sys.stderr)
    return 1 if missing else 0


def _rows(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="build_trt.py", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("model", type=Path, help="exported model folder (export/to_onnx.py)")
    add("out", type=Path, help="folder for the engines; MODEL_DIR/engines is where the runtime looks")
    add("--flavor", choices=tuple(FLAVOURS), default="tensorrt", help="default: %(default)s")
    add("--precision", default="fp16", help="one that the model was exported in (default: %(default)s)")
    add("--profiles", type=_rows, default=buckets.ROWS, metavar="N,...", help="buckets of rows (%(default)s)")
    add("--target", metavar="SM,...", help="architectures such as sm_89; the device at hand by default")
    add("--graphs", type=_names, default=GRAPHS, metavar="NAME,...", help="all by default")
    add("--workspace-gib", type=float, default=4.0, help="memory that a build may use (default: %(default)s)")
    add("--timing-cache", type=Path, help="file that later builds reuse; made where missing (tensorrt)")
    add("--strip", action="store_true", help="leave the weights out; the runtime puts them in (with --refit)")
    add("--refit", action="store_true", help="let weights be replaced")
    add("--version-compatible", action="store_true", help="run on later versions of the same major one, too")
    add("--dry-run", action="store_true", help="print what would be built and what is missing")
    return parser.parse_args(argv)


def _check_options(args: argparse.Namespace, flavour: Flavour) -> None:
    for name, reason in flavour.refused.items():
        if getattr(args, name):
            raise InvalidInputError(f"--{name.replace('_', '-')}: not with {flavour.title}: {reason}")
    if args.strip and not args.refit:
        raise InvalidInputError("--strip: needs --refit, or the weights could never be put in")
    if not 0 < args.workspace_gib <= 1024:
        raise InvalidInputError(f"--workspace-gib: {args.workspace_gib} is not between 0 and 1024")
    if args.out.exists() and not args.out.is_dir():
        raise InvalidInputError(f"{args.out}: is no folder")


def _run(args: argparse.Namespace) -> int:
    flavour = FLAVOURS[args.flavor]
    _check_options(args, flavour)
    args.manifest = ModelManifest.read(args.model)
    if args.dry_run:
        return _dry_run(args, flavour)
    targets = targets_of(flavour, args.target)
    check_floats(args.precision, targets)
    jobs = plan(args.manifest, args.precision, targets, args.graphs, args.profiles)
    options = BuildOptions(
        args.workspace_gib, args.timing_cache, args.strip, args.refit, args.version_compatible
    )
    library = load_library(flavour.name)
    for record in build(library, args.model, args.out, args.manifest, jobs, options):
        print(f"{args.out / record.file}: {record.bytes / 1e6:.1f} MB, {record.seconds:.2f} s", flush=True)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = _arguments(argv)
    try:
        return _run(args)
    except InvalidInputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except MimicError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
