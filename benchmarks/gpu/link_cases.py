"""What ``link_gpu`` measures: encoders on a backend, a chain over N entities, requests, and what checks them.

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
from benchmarks.scan.published_model import Towers, build_model, export, random_mentions, save_tokenizer
from mimic_engine.backends.encoders import TOLERANCE
from mimic_engine.encoding.featurizer import Featurizer, PreparedMention
from mimic_engine.encoding.manifest import ModelManifest
from mimic_engine.encoding.onnx import precisions
from mimic_engine.encoding.torch import TorchSession
from mimic_engine.engine.gpu_linker import fill
from mimic_engine.errors import EngineError, InvalidInputError
from mimic_engine.export.build_trt import build, plan
from mimic_engine.export.engines import BuildOptions
from mimic_engine.gpu.device import open_device
from mimic_engine.gpu.engine_files import FOLDER
from mimic_engine.gpu.graphs import BoundGraphs, DeviceGraphs, EngineGraphs, torch_graphs
from mimic_engine.gpu.layout import Placed
from mimic_engine.gpu.onnx_cuda import check_provider
from mimic_engine.gpu.passes import Fetched
from mimic_engine.gpu.pipeline import Chain, HostArrays, Stage
from mimic_engine.gpu.request import PREFIX, Bucket, RequestRecipe, ScanSearch
from mimic_engine.gpu.scan import CudaScan
from mimic_engine.gpu.stream import TorchDevice
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
        self.model: Mimic = build_model(folder / "clip", weights, towers)
        self._folder, self._exported = folder, False
        session = TorchSession(self.model)
        tokenizer = folder / "tokenizer.json"
        save_tokenizer(tokenizer)
        text = TextPreprocessor.open(tokenizer, session.text_config)
        self.featurizer = Featurizer(session, text, ImagePreprocessor(session.image_config))
        self.mentions: Sequence[Mention] = random_mentions(batch, seed=1)
        self.folded = self.featurizer.mentions(self.mentions)

    def open(self, backend: str, precision: str, device: TorchDevice) -> DeviceGraphs:
        """The graphs on a backend; errors as of the backend, before anything is exported."""
        if backend == "torch":
            moved = copy.deepcopy(self.model).to(device.device)
            moved.encoder.to(TYPES[precision])
            return torch_graphs(moved)
        if backend == "cuda":
            check_provider()
            return BoundGraphs.open(self._export(), device.stream, precision=precision)
        library, cuda = load_library("tensorrt"), open_device()
        folder = self._export()
        manifest, jobs = ModelManifest.read(folder), []
        for graph, chosen in precisions(precision).items():
            jobs += plan(manifest, chosen, [cuda.architecture], [graph])
        for _ in build(library, folder, folder / FOLDER, manifest, jobs, BuildOptions()):
            pass
        return EngineGraphs.open(folder, device.stream, precision=precision, device=cuda)

    def _export(self) -> Path:
        if not self._exported:
            export(self.model, self._folder, ("fp32", "fp16"))
            self._exported = True
        return self._folder / "model"


class Substituted(RequestRecipe):
    """The recipe of a request with one more stage: the search gets ``folded`` instead of what was folded."""

    def __init__(self, *given: Any, folded: MentionArrays, **options: Any) -> None:
        super().__init__(*given, **options)
        self._given = {n: torch.from_numpy(a).to(self._missing[0].device) for n, a in folded.items()}

    def stages(self, bucket: Bucket, arrays: Mapping[str, Placed]) -> list[Stage]:
        """Those of a request, and the replacement before the last."""
        stages = super().stages(bucket, arrays)

        def launch() -> None:
            for name, tensor in self._given.items():
                target = arrays[f"{PREFIX}{name}"].native
                target[: len(tensor)].copy_(tensor[: len(target)])

        stages.insert(-1, Stage("substitute", launch))
        return stages


@dataclass(frozen=True, slots=True)
class Bench:
    """A chain over N entities with encoders of one backend, and another without the replacement."""

    encoders: Encoders
    scan: CudaScan
    chain: Chain[Bucket]
    honest: Chain[Bucket]  # searches what was folded
    given: MentionArrays  # what the search gets
    prepared: tuple[PreparedMention, ...]

    @classmethod
    def make(
        cls,
        encoders: Encoders,
        graphs: DeviceGraphs,
        scan: CudaScan,
        given: MentionArrays,
        device: TorchDevice,
    ) -> Bench:
        """The chains, and the requests."""
        options: dict[str, Any] = {"places": (TOP_K,)}
        missing, search = encoders.featurizer.missing, ScanSearch(scan)
        inputs = (graphs, search, missing, device.device)
        chain: Chain[Bucket] = Chain(device, Substituted(*inputs, folded=given, **options))
        honest: Chain[Bucket] = Chain(device, RequestRecipe(*inputs, **options))
        prepared = tuple(encoders.featurizer.prepare(m) for m in encoders.mentions)
        return cls(encoders, scan, chain, honest, given, prepared)

    def prepare(self, mention: Mention) -> PreparedMention:
        """A request as it waits for its batch."""
        return self.encoders.featurizer.prepare(mention)

    def bucket(self, prepared: Sequence[PreparedMention], mode: Mode) -> Bucket:
        """The bucket of a batch."""
        recipe = self.chain.recipe
        assert isinstance(recipe, RequestRecipe)
        mask = np.concatenate([p.tokens.attention_mask for p in prepared])
        return recipe.bucket(len(prepared), len(prepared), mask, TOP_K, mode)

    def start(self, prepared: Sequence[PreparedMention], mode: Mode) -> Any:
        """A batch on the device."""
        return self.chain.start(self.bucket(prepared, mode), lambda host: fill(host, prepared))

    def finish(self, flight: Any, batch: int, mode: Mode) -> TopK:
        """Its ranked rows."""

        def read(results: HostArrays, folded: Any) -> TopK:
            del folded
            return self.scan.settled(Fetched.of(results, batch), TOP_K, mode, self.given.take)

        return self.chain.finish(flight, read)

    def answer(self, prepared: Sequence[PreparedMention], mode: Mode) -> TopK:
        """Start and finish."""
        return self.finish(self.start(prepared, mode), len(prepared), mode)

    def check(self, batch: int, mode: Mode, precision: str) -> float:
        """Relative error of what is folded; EngineError if that or an answer is wrong, captured or not."""
        prepared = self.prepared[:batch]
        worst = max(self._folding_error(prepared, mode) for _ in range(2))
        if not worst <= TOLERANCE[precision]:
            raise EngineError(f"folded mentions are wrong by {worst:.1e}, allowed {TOLERANCE[precision]:.0e}")
        expected = self.scan.search(self.given.block(0, batch), TOP_K, mode="exact")
        for _ in range(3):  # as launches, captured, replayed
            found = self.answer(prepared, mode)
            gap = float(np.abs(found.scores - expected.scores).max())
            if mode != "coded" and not gap <= SCORE_TOLERANCE:
                raise EngineError(
                    f"{mode} b={batch}: scores differ by {gap:.1e} from those of a plain search"
                )
        return worst

    def _folding_error(self, prepared: Sequence[PreparedMention], mode: Mode) -> float:
        bucket, batch = self.bucket(prepared, mode), len(prepared)

        def read(results: HostArrays, folded: Any) -> dict[str, Any]:
            del results
            return {n.removeprefix(PREFIX): a[:batch].copy() for n, a in folded().items()}

        found = self.honest.run(bucket, lambda host: fill(host, prepared), read)
        expected = dict(self.encoders.folded.block(0, batch).items())
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
