"""What ``link`` measures: encoders on a backend, a pipeline over N entities, requests, and what checks them.

Encoders have the published shapes (CLIP ViT-B/32) and random weights, which is
fine for timing. What random encoders give tells entities apart so badly that no
bound could prove anything, so after the fold the folded mentions are replaced,
on the device, by those of the synthetic entities that ``scan_gpu`` searches: the
encoders take their true time, and the search has the data of the scan report.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.data import World, cluster, fold_entities, fold_mentions
from benchmarks.gpu.torch_graphs import torch_graphs
from benchmarks.scan.published_model import Towers, build_model, export, random_mentions, save_tokenizer
from mimic_engine.backends.encoders import TOLERANCE
from mimic_engine.encoding.featurizer import Featurizer, PreparedMention
from mimic_engine.encoding.graph_names import MENTION
from mimic_engine.encoding.manifest import ModelManifest
from mimic_engine.encoding.onnx import precisions
from mimic_engine.encoding.torch import TorchSession
from mimic_engine.errors import EngineError, InvalidInputError
from mimic_engine.export.build_trt import build, plan
from mimic_engine.export.engines import BuildOptions
from mimic_engine.gpu.device import open_device
from mimic_engine.gpu.engine_files import FOLDER
from mimic_engine.gpu.layout import Placed
from mimic_engine.gpu.onnx_cuda import CudaSession, check_provider
from mimic_engine.gpu.pipeline import GpuPipeline, InFlightBatch
from mimic_engine.gpu.request import Bucket, LaunchableGraph, RequestPlan, Stage
from mimic_engine.gpu.scan import CudaScan
from mimic_engine.gpu.stream import TorchDevice
from mimic_engine.gpu.tensorrt import TensorRtSession
from mimic_engine.gpu.tensorrt_library import load_library
from mimic_engine.images import ImagePreprocessor
from mimic_engine.model.units import Mimic
from mimic_engine.scan.scan import TopK
from mimic_engine.text import TextPreprocessor
from mimic_engine.types import Mention, MentionArrays, Mode

CASES = (("torch", "fp32"), ("torch", "fp16"), ("cuda", "fp16"), ("tensorrt", "fp16"))
TYPES = {"fp32": torch.float32, "fp16": torch.float16}
TOP_K = 10
SCORE_TOLERANCE = 2e-3  # of two searches over one set of folded mentions, in a score


@dataclass(frozen=True, slots=True)
class Opened:
    """The graphs of a model on a backend, and the device with the stream that they run on."""

    graphs: Mapping[str, LaunchableGraph]
    device: TorchDevice
    owner: Any  # keeps the stream


class Encoders:
    """The model in PyTorch and exported, requests for it, and what it should give them.

    Parameters
    ----------
    folder : for what is exported.
    world : whose matcher it has.
    towers : size of the encoders.
    batch : requests at most.
    """

    def __init__(self, folder: Path, world: World, towers: Towers, batch: int) -> None:
        weights = {name: value.cpu() for name, value in world.weights.items()}
        self.world = world
        self.model: Mimic = build_model(folder / "clip", weights, towers)
        self._folder, self._exported = folder, False
        session = TorchSession(self.model)
        tokenizer = folder / "tokenizer.json"
        save_tokenizer(tokenizer)
        text = TextPreprocessor.open(tokenizer, session.text_config)
        self.featurizer = Featurizer(session, text, ImagePreprocessor(session.image_config))
        self.mentions: Sequence[Mention] = random_mentions(batch, seed=1)
        self.folded = self.featurizer.mentions(self.mentions)

    def open(self, backend: str, precision: str) -> Opened:
        """The graphs on a backend; errors as of the backend, before anything is exported."""
        where = self.world.device
        if backend == "torch":
            moved = copy.deepcopy(self.model).to(where)
            moved.encoder.to(TYPES[precision])
            own = torch.cuda.Stream(where) if where.type == "cuda" else None
            handle = 0 if own is None else int(own.cuda_stream)
            return Opened(torch_graphs(moved), TorchDevice(where, handle), own)
        session = self._cuda(precision) if backend == "cuda" else self._tensorrt(precision)
        return Opened(session.graphs, TorchDevice(where, session.device.stream), session)

    def _cuda(self, precision: str) -> CudaSession:
        check_provider()
        return CudaSession.open(self._export(), precision=precision)

    def _tensorrt(self, precision: str) -> TensorRtSession:
        library, cuda = load_library("tensorrt"), open_device()
        folder = self._export()
        manifest, jobs = ModelManifest.read(folder), []
        for graph, chosen in precisions(precision).items():
            jobs += plan(manifest, chosen, [cuda.architecture], [graph])
        for _ in build(library, folder, folder / FOLDER, manifest, jobs, BuildOptions()):
            pass
        return TensorRtSession.open(folder, precision=precision, device=cuda)

    def _export(self) -> Path:
        if not self._exported:
            export(self.model, self._folder, ("fp32", "fp16"))
            self._exported = True
        return self._folder / "model"


class Substituted(RequestPlan):
    """The plan of a request with one more stage: the search gets ``folded`` instead of what was folded."""

    def __init__(self, *given: Any, folded: MentionArrays, **options: Any) -> None:
        super().__init__(*given, **options)
        self._given = {n: torch.from_numpy(a).to(self.scan.device) for n, a in folded.items()}

    def stages(self, bucket: Bucket, arrays: Mapping[str, Placed]) -> list[Stage]:
        """Those of a request, and the replacement before the last."""
        stages = super().stages(bucket, arrays)

        def launch() -> None:
            for name, tensor in self._given.items():
                target = arrays[f"{MENTION}{name}"].native
                target[: len(tensor)].copy_(tensor[: len(target)])

        stages.insert(-1, Stage("substitute", launch))
        return stages


@dataclass(frozen=True, slots=True)
class Bench:
    """A pipeline over N entities with encoders of one backend, and another without the replacement."""

    encoders: Encoders
    pipeline: GpuPipeline
    honest: GpuPipeline  # searches what was folded
    given: MentionArrays  # what the search gets
    prepared: tuple[PreparedMention, ...]

    @classmethod
    def make(cls, encoders: Encoders, opened: Opened, scan: CudaScan, given: MentionArrays) -> Bench:
        """The pipelines, and the requests."""
        inputs = (opened.graphs, encoders.featurizer.missing, scan)
        pipeline = GpuPipeline(opened.device, Substituted(*inputs, folded=given, top_ks=(TOP_K,)))
        honest = GpuPipeline(opened.device, RequestPlan(*inputs, top_ks=(TOP_K,)))
        prepared = tuple(encoders.featurizer.prepare(m) for m in encoders.mentions)
        return cls(encoders, pipeline, honest, given, prepared)

    def prepare(self, mention: Mention) -> PreparedMention:
        """A request as it waits for its batch."""
        return self.encoders.featurizer.prepare(mention)

    def bucket(self, prepared: Sequence[PreparedMention], mode: Mode) -> Bucket:
        """The bucket of a batch."""
        return self.pipeline.plan.bucket(prepared, TOP_K, mode)

    def start(self, prepared: Sequence[PreparedMention], mode: Mode) -> InFlightBatch:
        """A batch on the device."""
        return self.pipeline.start(prepared, TOP_K, mode)

    def finish(self, batch: InFlightBatch) -> TopK:
        """Its ranked rows."""
        return self.pipeline.finish(batch)

    def answer(self, prepared: Sequence[PreparedMention], mode: Mode) -> TopK:
        """Start and finish."""
        return self.finish(self.start(prepared, mode))

    def check(self, batch: int, mode: Mode, precision: str) -> float:
        """Relative error of what is folded; EngineError if that or an answer is wrong, captured or not."""
        prepared = self.prepared[:batch]
        worst = max(self._folding_error(prepared, mode) for _ in range(2))
        if not worst <= TOLERANCE[precision]:
            raise EngineError(f"folded mentions are wrong by {worst:.1e}, allowed {TOLERANCE[precision]:.0e}")
        expected = self.pipeline.plan.scan.search(self.given.block(0, batch), TOP_K, mode="exact")
        for _ in range(3):  # as launches, captured, replayed
            found = self.answer(prepared, mode)
            gap = float(np.abs(found.scores - expected.scores).max())
            if mode != "coded" and not gap <= SCORE_TOLERANCE:
                raise EngineError(
                    f"{mode} b={batch}: scores differ by {gap:.1e} from those of a plain search"
                )
        return worst

    def _folding_error(self, prepared: Sequence[PreparedMention], mode: Mode) -> float:
        batch = self.honest.start(prepared, TOP_K, mode)
        try:
            found = dict(self.honest.folded(batch).items())
        finally:
            self.honest.finish(batch)
        expected = dict(self.encoders.folded.block(0, len(prepared)).items())
        if found.keys() != expected.keys():
            raise EngineError(f"folded arrays {sorted(found)}, expected {sorted(expected)}")
        return max(
            float(np.abs(found[n] - e).max()) / max(float(np.abs(e).max()), 1e-30)
            for n, e in expected.items()
        )


def open_scan(world: World, n: int, centroids: int, batch: int, seed: int) -> tuple[CudaScan, MentionArrays]:
    """The scan over N synthetic entities in float16, and folded mentions of some of them."""
    if n < 1:
        raise InvalidInputError(f"entities: must be at least 1, got {n}")
    entities = fold_entities(world, n, "float16")
    book = cluster(world, entities, centroids)
    gold = torch.randint(0, n, (batch,), generator=torch.Generator().manual_seed(seed))
    scan = CudaScan((entities,), world.constants, device=str(world.device), codes=book)
    return scan, fold_mentions(world, gold, seed + 3)
