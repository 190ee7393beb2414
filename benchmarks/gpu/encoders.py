"""Encoders on every backend that opens here: right first, then timed, a row for each batch.

The published shapes (CLIP ViT-B/32, 40 tokens) with random weights, which is
fine for timing. Each backend is compared with PyTorch in float32 on the CPU
before it is timed, and is not timed if it is wrong. ``text_encoder`` and
``image_encoder`` are one call each; ``mention`` is a whole request up to the
folded arrays. Backends that do not open are listed with the reason.

    python -m benchmarks.gpu.encoders --out benchmarks/results/encoders.json

On a machine without a GPU, or with ``--device cpu``, the rows are the CPU's: ONNX
Runtime in float32, float16 and int8 (weights of random numbers, so the tolerance is
the engine's own), PyTorch eager and compiled. ``first_ms`` is the first call after
the session's warm-up; held against ``p50_ms`` it says what the warm-up left to do.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import RESULTS
from benchmarks.scan.published_inputs import random_weights
from benchmarks.scan.published_model import Towers, build_model, export
from mimic_engine.backends.encoders import TOLERANCE
from mimic_engine.encoding.featurizer import EncoderSession, warm_up
from mimic_engine.encoding.manifest import ModelManifest
from mimic_engine.encoding.onnx import OnnxSession, available_threads, precisions
from mimic_engine.encoding.torch import TorchSession
from mimic_engine.errors import BackendError, EngineError, InvalidInputError, MimicError
from mimic_engine.export.build_trt import build, plan
from mimic_engine.export.engines import BuildOptions
from mimic_engine.gpu.device import open_device
from mimic_engine.gpu.engine_files import FOLDER
from mimic_engine.gpu.onnx_cuda import CudaSession
from mimic_engine.gpu.tensorrt import TensorRtSession
from mimic_engine.gpu.tensorrt_library import load_library
from mimic_engine.model.units import Mimic
from mimic_engine.provenance import write_result
from mimic_engine.types import Array, TokenBatch

EXPORTED = ("fp32", "fp16", "bf16", "int8")
ENGINES = ("fp32", "fp16", "bf16")
CASES = tuple(
    [("torch", p) for p in ("fp32", "bf16")]
    + [("torch-compile", p) for p in ("fp32", "bf16")]
    + [("onnx", p) for p in ("fp32", "fp16", "int8")]
    + [("cuda", p) for p in ("fp32", "fp16")]
    + [("tensorrt", p) for p in ENGINES]
)
GRAPHS = ("text_encoder", "image_encoder", "mention")
RUNS = 5  # at least, of each call


@dataclass(frozen=True, slots=True)
class Row:
    """One call timed; ``per_s`` counts texts, pictures or mentions at the median time."""

    backend: str
    precision: str
    device: str
    graph: str
    batch: int
    length: int
    p50_ms: float
    p99_ms: float
    per_s: float
    max_abs_error: float
    relative_error: float
    runs: int
    start_s: float  # from files to the end of the warm-up, all graphs together
    first_ms: float  # the first call after the warm-up
    first_ratio: float  # of it to the median


class Bench:
    """The model on disk and in PyTorch, the inputs, and what PyTorch says to them.

    Parameters
    ----------
    model : in float32 on the CPU.
    folder : where it is exported to, engines included.
    device : name of the device that is not the CPU, or None.
    """

    def __init__(
        self, model: Mimic, folder: Path, batches: Sequence[int], threads: int, device: str | None
    ) -> None:
        torch.set_num_threads(threads)
        self.model, self.threads, self.device = model, threads, device
        self.folder = export(model, folder, EXPORTED)
        self.manifest = ModelManifest.read(self.folder)
        self._reference = TorchSession(model)
        self.inputs = {b: _inputs(self.manifest, b) for b in batches}
        self.expected = {b: {g: call(self._reference, g, *i) for g in GRAPHS} for b, i in self.inputs.items()}

    def open(self, backend: str, precision: str) -> EncoderSession:
        """A session; errors as of the backend."""
        if backend.startswith("torch"):
            return self._torch(precision, compiled=backend == "torch-compile")
        if backend == "onnx":
            return OnnxSession.open(self.folder, precision=precision, threads=self.threads)
        if backend == "cuda":
            return CudaSession.open(self.folder, precision=precision)
        self._build_engines(precision)
        return TensorRtSession.open(self.folder, precision=precision)

    def warm_up(self, session: EncoderSession, *, compiled: bool) -> None:
        """Every bucket, as the engine does; a compiled model only at the batches that are timed.

        A size of its own is compiled for each, which takes up to a minute.
        """
        if not compiled:
            warm_up(session)
            return
        for inputs in self.inputs.values():
            call(session, "mention", *inputs)

    def _torch(self, precision: str, *, compiled: bool) -> TorchSession:
        import copy

        if self.device is None and precision != "fp32":
            raise BackendError("torch: bf16 is for a GPU")
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        moved = copy.deepcopy(self.model).to("cpu" if self.device is None else "cuda", dtype)
        return TorchSession(moved, compiled=compiled)

    def _build_engines(self, precision: str) -> None:
        device = open_device()
        library = load_library("tensorrt")
        jobs = []
        for graph, chosen in precisions(precision).items():
            jobs += plan(self.manifest, chosen, [device.architecture], [graph])
        for _ in build(library, self.folder, self.folder / FOLDER, self.manifest, jobs, BuildOptions()):
            pass

    def device_of(self, backend: str) -> str:
        """Name of the device that a backend runs on."""
        return "cpu" if self.device is None or backend == "onnx" else self.device


def _inputs(manifest: ModelManifest, batch: int) -> tuple[TokenBatch, Array]:
    """Full texts of random letters and pictures of noise, so that no length is cut."""
    rng, length, size = np.random.default_rng(batch), manifest.widths["length"], manifest.image.size
    ids = rng.integers(1, 40, (batch, length))
    tokens = TokenBatch(ids, np.ones_like(ids), np.zeros_like(ids), np.zeros(batch, np.bool_))
    return tokens, rng.standard_normal((batch, 3, size, size), np.float32)


def call(session: EncoderSession, graph: str, tokens: TokenBatch, pixels: Array) -> list[Array]:
    """What is timed: one encoder, or both with the mention's fold."""
    if graph == "text_encoder":
        text = session.encode_text(tokens)
        return [text.cls, text.tokens]
    if graph == "image_encoder":
        image = session.encode_image(pixels)
        return [image.cls, image.tokens]
    folded = session.fold_mentions(session.encode_text(tokens), session.encode_image(pixels))
    return [array for _, array in folded.items()]


def check(found: Sequence[Array], expected: Sequence[Array], precision: str) -> tuple[float, float]:
    """Largest absolute error, and largest error relative to its output's largest value.

    Raises
    ------
    EngineError
        If the relative error is over the precision's tolerance, or a number is not finite.
    """
    errors = [
        (float(np.abs(f - e).max()), float(np.abs(e).max())) for f, e in zip(found, expected, strict=True)
    ]
    relative = max(error / scale for error, scale in errors)
    if not relative <= TOLERANCE[precision]:
        raise EngineError(f"wrong by {relative:.1e}, allowed {TOLERANCE[precision]:.0e}: not timed")
    return max(error for error, _ in errors), relative


def times_of(work: Callable[[], object], budget_s: float) -> list[float]:
    """Seconds of at least :data:`RUNS` runs, until the budget is spent."""
    seconds: list[float] = []
    while len(seconds) < RUNS or sum(seconds) < budget_s:
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return seconds


def measure(
    bench: Bench, cases: Sequence[tuple[str, str]], budget_s: float
) -> Iterator[Row | tuple[str, str]]:
    """Rows of every case that opens and is right; (case, reason) of the others."""
    for backend, precision in cases:
        try:
            start = time.perf_counter()
            session = bench.open(backend, precision)
            bench.warm_up(session, compiled=backend == "torch-compile")
            start_s = time.perf_counter() - start
            for batch in bench.inputs:
                for graph in GRAPHS:
                    yield _row(bench, session, (backend, precision), graph, batch, budget_s, start_s)
        except (MimicError, RuntimeError, ImportError) as error:  # torch raises RuntimeError
            yield f"{backend} {precision}", str(error)


def _row(
    bench: Bench,
    session: EncoderSession,
    case: tuple[str, str],
    graph: str,
    batch: int,
    budget_s: float,
    start_s: float,
) -> Row:
    """Check a call three times (a captured graph may differ from the run before it), then time it."""

    def work() -> list[Array]:
        return call(session, graph, *bench.inputs[batch])

    backend, precision = case
    start = time.perf_counter()
    work()
    first_ms = 1e3 * (time.perf_counter() - start)
    errors = max(check(work(), bench.expected[batch][graph], precision) for _ in range(3))
    seconds = times_of(work, budget_s)
    p50, p99 = (float(np.quantile(seconds, q)) for q in (0.5, 0.99))
    where = (backend, precision, bench.device_of(backend), graph, batch, bench.manifest.widths["length"])
    timed = (1e3 * p50, 1e3 * p99, batch / p50, *errors)
    return Row(*where, *timed, len(seconds), start_s, first_ms, first_ms / (1e3 * p50))


def device_name() -> str | None:
    """The GPU's name as torch says it, or None without one."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _cases(text: str) -> tuple[tuple[str, str], ...]:
    chosen = set(text.split(","))
    unknown = chosen - {backend for backend, _ in CASES}
    if unknown:
        raise argparse.ArgumentTypeError(f"no backends {sorted(unknown)}")
    return tuple(case for case in CASES if case[0] in chosen)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 1 if a backend opened and was wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.encoders", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--out", type=Path, default=RESULTS / "encoders.json", help="result file (%(default)s)")
    add("--batches", type=_numbers, default=(1, 8, 32), metavar="B,...", help="rows a call %(default)s")
    add("--backends", type=_cases, default=CASES, metavar="NAME,...", help="all by default")
    add("--device", choices=("auto", "cpu"), default="auto", help="cpu: as if there were no GPU")
    add("--seconds", type=float, default=1.0, help="spent on each row (%(default)s)")
    add("--layers", type=int, default=12, help="of each encoder (%(default)s)")
    add("--image-width", type=int, default=768, help="of the image encoder (%(default)s)")
    add("--threads", type=int, default=available_threads(), help="CPU cores (%(default)s)")
    args = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    try:
        if args.layers < 1 or args.threads < 1 or not args.batches or min(args.batches) < 1:
            raise InvalidInputError("--layers, --threads, --batches: at least 1")
        device = device_name() if args.device == "auto" else None
        with tempfile.TemporaryDirectory() as work:
            model = build_model(
                Path(work) / "clip", random_weights(seed=0), Towers(args.layers, args.image_width)
            )
            bench = Bench(model, Path(work), args.batches, args.threads, device)
            for found in measure(bench, args.backends, args.seconds):
                if isinstance(found, Row):
                    rows.append(asdict(found))
                    what = f"{found.backend} {found.precision} {found.graph} b={found.batch}"
                    print(f"{what}: {found.p50_ms:.2f} ms", flush=True)
                else:
                    skipped[found[0]] = found[1]
                    print(f"{found[0]}: {found[1]}")
        towers = {"layers": args.layers, "image_width": args.image_width, "weights": "random"}
        print(
            write_result(
                args.out, {"model": towers, "threads": args.threads, "rows": rows, "skipped": skipped}
            )
        )
    except MimicError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if any("not timed" in reason for reason in skipped.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
