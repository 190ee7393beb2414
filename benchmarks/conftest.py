"""Sizes and shared inputs of the benchmarks.

python -m pytest benchmarks --bench-size=full --benchmark-json=benchmarks/results/pytest.json
python -m pytest benchmarks -q --benchmark-disable     # smoke: small sizes, every answer checked
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.scan.published_inputs import Features, random_features, random_weights
from benchmarks.scan.published_loop import published_scores
from benchmarks.scan.published_model import Towers, build_model, build_random_index, export
from benchmarks.service.engine_side import TOLERANCES, fold_entities, load_matcher
from benchmarks.timing import repeat
from mimic_engine import Linker
from mimic_engine.encoding.onnx import OnnxSession, available_threads
from mimic_engine.encoding.torch import TorchSession
from mimic_engine.model.fold import fold_constants
from mimic_engine.model.units import Matcher
from mimic_engine.types import Array, EntityArrays

Note = Callable[..., None]
SecondsOf = Callable[[Callable[[], object]], float]


@dataclass(frozen=True, slots=True)
class BenchSize:
    """How much one run measures."""

    entities: tuple[int, ...]  # N of the scans
    batches: tuple[int, ...]  # B of the scans
    linked: int  # N of the end-to-end benchmarks
    rows: int  # of a batch of encoders and folds
    towers: Towers


SIZES = {
    "small": BenchSize((300,), (1, 8), 300, 3, Towers(layers=1, image_width=64)),
    "full": BenchSize((2_000, 20_000), (1, 8, 20), 2_000, 8, Towers()),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--bench-size``."""
    parser.addoption("--bench-size", choices=tuple(SIZES), default="small", help="how much to measure")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a benchmark for every N (``scene``) and B (``batch``) of the size."""
    size = SIZES[metafunc.config.getoption("--bench-size")]
    if "batch" in metafunc.fixturenames:
        metafunc.parametrize("batch", size.batches, ids=lambda b: f"b{b}")
    if "dtype" in metafunc.fixturenames:
        metafunc.parametrize("dtype", tuple(TOLERANCES))
    if "scene" in metafunc.fixturenames:
        metafunc.parametrize("scene", size.entities, indirect=True, scope="session", ids=lambda n: f"n{n}")


@pytest.fixture(scope="session")
def bench_size(pytestconfig: pytest.Config) -> BenchSize:
    """The size that was asked for."""
    return SIZES[pytestconfig.getoption("--bench-size")]


@pytest.fixture(scope="session")
def threads() -> int:
    """Cores for both sides."""
    return available_threads()


@pytest.fixture(scope="session")
def weights() -> dict[str, Tensor]:
    """Random weights under the published names."""
    return random_weights(seed=0)


@pytest.fixture(scope="session")
def matcher(weights: dict[str, Tensor]) -> Matcher:
    """The engine's matcher with these weights."""
    return load_matcher(weights)


class Scene:
    """N random entities, raw and folded, and the published loop's answers, each computed and timed once."""

    def __init__(self, weights: dict[str, Tensor], matcher: Matcher, n: int, threads: int) -> None:
        self.raw = random_features(n, seed=1)
        self.folded: dict[str, EntityArrays] = {d: fold_entities(matcher, self.raw, d) for d in TOLERANCES}
        self._weights, self._threads = weights, threads
        self._answers: dict[int, tuple[Array, float]] = {}

    def baseline(self, mentions: Features) -> tuple[Array, float]:
        """Scores (B, N) by the published loop, and its seconds; one answer a batch size is kept."""
        if len(mentions) not in self._answers:
            torch.set_num_threads(self._threads)
            published_scores(self._weights, mentions.block(0, 1), self.raw.block(0, 16))  # warm-up
            timed, scores = repeat(lambda: published_scores(self._weights, mentions, self.raw), budget_s=0)
            self._answers[len(mentions)] = scores["total"].numpy(), min(timed.seconds)  # (B, N)
        return self._answers[len(mentions)]


@pytest.fixture(scope="session")
def scene(
    request: pytest.FixtureRequest, weights: dict[str, Tensor], matcher: Matcher, threads: int
) -> Scene:
    """The entities of one N."""
    return Scene(weights, matcher, request.param, threads)


@dataclass(frozen=True, slots=True)
class BenchModel:
    """One model, exported and in PyTorch."""

    folder: Path
    onnx: OnnxSession
    torch: TorchSession


@pytest.fixture(scope="session")
def model(
    tmp_path_factory: pytest.TempPathFactory,
    weights: dict[str, Tensor],
    bench_size: BenchSize,
    threads: int,
) -> BenchModel:
    """The published architecture with random weights, exported."""
    folder = tmp_path_factory.mktemp("bench_model")
    built = build_model(folder / "clip", weights, bench_size.towers)
    exported = export(built, folder)
    return BenchModel(exported, OnnxSession.open(exported, threads=threads), TorchSession(built))


@dataclass(frozen=True, slots=True)
class LinkScene:
    """A linker over random entities, their raw features, and how to open another one like it."""

    linker: Linker
    entities: Features
    open: Callable[[], Linker]


@pytest.fixture(scope="session")
def link_scene(
    tmp_path_factory: pytest.TempPathFactory,
    model: BenchModel,
    matcher: Matcher,
    bench_size: BenchSize,
    threads: int,
) -> Iterator[LinkScene]:
    """The model over a half-precision index of random entities."""
    raw = random_features(bench_size.linked, seed=1)
    out = tmp_path_factory.mktemp("bench_index") / "index"
    folded = fold_entities(matcher, raw, "float16")
    build_random_index(folded, fold_constants(matcher), model.onnx.model_hash, out)

    def opened() -> Linker:
        return Linker.open(model.folder, out, threads=threads)

    linker = opened()
    yield LinkScene(linker, raw, opened)
    linker.close()


@pytest.fixture
def compare(benchmark: Any) -> Note:
    """Note in ``extra_info`` what the benchmark amounts to; ``compare(pairs=..., baseline_s=...)``."""

    def note(*, baseline_s: float | None = None, **per_second: int) -> None:
        if benchmark.stats is None:  # --benchmark-disable: nothing was timed
            return
        seconds = benchmark.stats.stats.min
        for name, count in per_second.items():
            benchmark.extra_info[f"{name}_per_s"] = count / seconds
        if baseline_s is not None:
            benchmark.extra_info["baseline_ms"] = 1e3 * baseline_s
            benchmark.extra_info["ratio_to_baseline"] = baseline_s / seconds

    return note


@pytest.fixture(scope="session")
def seconds_of() -> SecondsOf:
    """Shortest of three runs of a call, after a warm-up, in seconds."""

    def measure(call: Callable[[], object]) -> float:
        call()
        times = []
        for _ in range(3):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return float(np.min(times))

    return measure
