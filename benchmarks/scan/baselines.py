"""Other people's scans beside ours, as orientation: late interaction, and one vector an entity.

    python -m benchmarks.scan.baselines --out benchmarks/results/scan_baselines.json

maxsim-cpu scores as many token pairs (40 x 40 of width 96) without a softmax;
faiss searches one 512-wide vector an entity, flat and with an inverted file, as
a linker with a single vector an entity would. They answer other questions than
MIMIC's scores do: the rows say what the same number of entities costs, not who
is right. Every exact answer is checked; of the inverted file the share of its own
exact top 10 is reported. maxsim-cpu uses all cores, whatever ``--threads`` says.
Needs ``pip install maxsim-cpu==0.1.0``; faiss comes with mimic-engine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.scan.published_loop import random_features, random_weights
from benchmarks.service.engine_side import fold_entities, fold_mentions, load_matcher
from benchmarks.timing import Timed, repeat, sgemm_gflops
from mimic_engine.encoding.onnx import available_threads
from mimic_engine.errors import EngineError, InvalidInputError, MimicError, MissingDependencyError
from mimic_engine.model.fold import fold_constants
from mimic_engine.provenance import write_result
from mimic_engine.scan.cpu import CpuKernels
from mimic_engine.scan.scan import Scan
from mimic_engine.types import MODES

TOKENS, WIDTH, VECTOR = 40, 96, 512
TOP_K = 10
_LISTS, _PROBES = 512, 16


@dataclass(frozen=True, slots=True)
class BaselineRow:
    """One library's time for one mention against N entities."""

    name: str
    n: int
    b: int
    ms: float
    median_ms: float
    runs: int
    bytes_per_entity: int
    top10_contained: float  # of its own exact answer


def measure(args: argparse.Namespace, say: Callable[[str], None]) -> list[BaselineRow]:
    """Time every library on random features; raises EngineError where an answer is wrong."""
    rows = []
    for row in [*_ours(args), *_maxsim(args), *_faiss(args)]:
        rows.append(row)
        say(f"{row.name} n={row.n}: {row.ms:.2f} ms, {row.bytes_per_entity} bytes an entity")
    return rows


def _ours(args: argparse.Namespace) -> Iterator[BaselineRow]:
    weights = random_weights(seed=args.seed)
    matcher = load_matcher(weights)
    entities = fold_entities(matcher, random_features(args.n, seed=args.seed + 1), "float16")
    mention = fold_mentions(matcher, random_features(1, seed=args.seed + 2))
    scan = Scan([entities], CpuKernels(fold_constants(matcher)), threads=args.threads)
    exact = scan.search(mention, TOP_K, mode="exact").rows[0]
    size = sum(a[0].nbytes for _, a in entities.items())
    for mode in MODES[:2]:
        timed, found = repeat(partial(scan.search, mention, TOP_K, mode=mode), args.seconds)
        if found.rows[0].tolist() != exact.tolist():
            raise EngineError(f"{mode}: not the exact answer")
        yield _row(f"mimic_engine {mode}", args.n, timed, size, 1.0)
    scan.close()


def _maxsim(args: argparse.Namespace) -> Iterator[BaselineRow]:
    try:
        from maxsim_cpu import maxsim_scores
    except ImportError as error:
        raise MissingDependencyError("maxsim-cpu is not installed: pip install maxsim-cpu==0.1.0") from error
    rng = np.random.default_rng(args.seed)
    documents = rng.standard_normal((args.n, TOKENS, WIDTH), np.float32)
    query = rng.standard_normal((TOKENS, WIDTH), np.float32)
    few = np.einsum("id,njd->nij", query, documents[:64]).max(2).sum(1)  # (64,)
    timed, scores = repeat(lambda: np.asarray(maxsim_scores(query, documents)), args.seconds)
    if not np.allclose(scores[:64], few, rtol=1e-4):
        raise EngineError(f"maxsim-cpu: scores differ from NumPy's by {np.abs(scores[:64] - few).max():.2e}")
    yield _row("maxsim-cpu", args.n, timed, documents[0].nbytes, 1.0)


def _faiss(args: argparse.Namespace) -> Iterator[BaselineRow]:
    import faiss

    faiss.omp_set_num_threads(args.threads)
    rng = np.random.default_rng(args.seed)
    centres = rng.standard_normal((256, VECTOR), np.float32)
    vectors = centres[rng.integers(0, 256, args.n)] + rng.standard_normal((args.n, VECTOR), np.float32)
    queries = vectors[rng.integers(0, args.n, 64)] + 0.5 * rng.standard_normal((64, VECTOR), np.float32)
    expected = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :TOP_K]  # (64, K)
    flat = faiss.IndexFlatIP(VECTOR)
    lists = faiss.IndexIVFFlat(faiss.IndexFlatIP(VECTOR), VECTOR, _LISTS, faiss.METRIC_INNER_PRODUCT)
    lists.train(vectors)
    lists.nprobe = _PROBES
    for name, index in (("faiss flat", flat), (f"faiss IVF{_LISTS} probing {_PROBES}", lists)):
        index.add(vectors)
        timed, _ = repeat(partial(index.search, queries[:1], TOP_K), args.seconds)
        contained = _contained(index.search(queries, TOP_K)[1], expected)
        if name == "faiss flat" and contained < 0.99:
            raise EngineError(f"faiss flat: {contained:.1%} of NumPy's top {TOP_K}")
        yield _row(name, args.n, timed, vectors[0].nbytes, contained)


def _contained(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.mean([np.isin(e, f).mean() for e, f in zip(expected, found, strict=True)]))


def _row(name: str, n: int, timed: Timed, size: int, contained: float) -> BaselineRow:
    return BaselineRow(name, n, 1, timed.least_ms, timed.median_ms, len(timed.seconds), size, contained)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scan.baselines", description=__doc__.partition("\n")[0]
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="result file to write")
    add("--n", type=int, default=110_000, help="entities (%(default)s)")
    add("--threads", type=int, default=available_threads(), help="%(default)s")
    add("--seconds", type=float, default=3.0, help="spent on each (%(default)s)")
    add("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    try:
        if args.n < _LISTS or args.threads < 1:
            raise InvalidInputError(f"--n: at least {_LISTS}; --threads: at least 1")
        gflops = sgemm_gflops(args.threads)
        rows = measure(args, lambda line: print(line, flush=True))
        payload = {"threads": args.threads, "sgemm_gflops": gflops, "rows": [asdict(r) for r in rows]}
        print(write_result(args.out, payload))
    except MimicError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
