"""The recipe of a request: what is folded on fixed arrays is what the featurizer folds, in every bucket."""

import importlib.util
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from mimic_engine.encoding.featurizer import Featurizer
from mimic_engine.encoding.manifest import ModelManifest
from mimic_engine.encoding.onnx import OnnxSession
from mimic_engine.engine.gpu_linker import fill
from mimic_engine.gpu.graphs import EngineGraphs, torch_graphs
from mimic_engine.gpu.pipeline import Chain, Stage
from mimic_engine.gpu.request import PREFIX, Bucket, RequestRecipe
from mimic_engine.gpu.stream import TorchDevice
from mimic_engine.images import ImagePreprocessor
from mimic_engine.model.checkpoint import load_checkpoint
from mimic_engine.text import TextPreprocessor
from mimic_engine.types import Mention
from tests.gpu.bound import cpu_graphs
from tests.gpu.fakes import FakeDevice
from tests.gpu.test_tensorrt import open_graph

CPU = torch.device("cpu")


class Sums:
    """A search that answers with a sum of each mention's folded values, in ``g2l``."""

    modes = ("exact", "certified")

    def room(self, bucket):
        return bucket.k

    def stage(self, bucket, folded, results):
        def launch():
            total = sum(p.native.flatten(1).sum(1) for p in folded.values())
            results["g2l"].native.copy_(total[:, None].expand(-1, bucket.k))

        return Stage("search", launch)


def featurizer(session):
    return Featurizer(
        session,
        TextPreprocessor.open(session.tokenizer_json, session.text_config),
        ImagePreprocessor(session.image_config),
    )


def mentions(picture, pattern):
    """One mention for each letter: p has a picture, t has none; texts of different lengths."""
    words = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]
    return [
        Mention(words[i % 10], " ".join(words[: 1 + 3 * i % 7]), picture if letter == "p" else None)
        for i, letter in enumerate(pattern)
    ]


def folded_by(chain, recipe, prepared, k=3, mode="exact"):
    """Folded arrays and answers of a chain."""
    mask = np.concatenate([p.tokens.attention_mask for p in prepared])
    pictures = sum(p.pixels is not None for p in prepared)
    bucket = recipe.bucket(len(prepared), pictures, mask, k, mode)
    flight = chain.start(bucket, lambda host: fill(host, prepared))

    def read(results, fetch):
        arrays = {n.removeprefix(PREFIX): a[: len(prepared)].copy() for n, a in fetch().items()}
        return arrays, results["g2l"][: len(prepared)].copy()

    return bucket, *chain.finish(flight, read)


def compare(graphs, reference, picture, patterns, device=None):
    kind = RequestRecipe if device is None else device.late(RequestRecipe)
    recipe = kind(graphs, Sums(), reference.missing, CPU, rows=(1, 4, 8), places=(3, 9))
    chain = Chain(device or TorchDevice(CPU), recipe)
    buckets = set()
    for pattern in patterns:
        prepared = [reference.prepare(m) for m in mentions(picture, pattern)]
        bucket, found, answers = folded_by(chain, recipe, prepared)
        expected = dict(reference.fold_prepared(prepared).items())
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            scale = max(1.0, float(np.abs(value).max()))
            np.testing.assert_allclose(found[name], value, rtol=0, atol=2e-5 * scale, err_msg=name)
        total = sum(a.reshape(len(prepared), -1).sum(1) for a in expected.values())
        np.testing.assert_allclose(answers[:, 0], total, rtol=1e-4, atol=1e-2)
        buckets.add(bucket)
    return chain, buckets


PATTERNS = ("t", "p", "tp", "ptt", "pppp", "ttptt", "tttttttt", "pppppppp", "p", "tp", "t")


def test_onnx_runtime_on_fixed_arrays(tiny_model, tiny_picture):
    reference = featurizer(OnnxSession.open(tiny_model, threads=1))
    chain, buckets = compare(cpu_graphs(tiny_model), reference, tiny_picture, PATTERNS)
    assert {(b.rows, b.pictures) for b in buckets} == {
        (1, 0), (1, 1), (4, 1), (4, 4), (8, 1), (8, 0), (8, 8)
    }  # fmt: skip
    for bucket, program in chain.programs.items():
        alone = {"text_encoder", "mention_fold"} | ({"image_encoder"} if bucket.pictures else set())
        assert set(program.launched) == alone  # a session cannot be captured
        assert program.graphs == 2


def test_torch_modules_on_fixed_arrays(tiny_model, tiny_checkpoint, tiny_picture):
    reference = featurizer(OnnxSession.open(tiny_model, threads=1))
    model = load_checkpoint(tiny_checkpoint).model
    graphs = torch_graphs(model)
    chain, _ = compare(graphs, reference, tiny_picture, PATTERNS[:6])
    assert all(p.graphs == 1 and not p.launched for p in chain.programs.values())


def test_engines_on_fixed_arrays_of_a_device_that_runs_late(tiny_model, tiny_picture):
    """The engines' own library queues on the chain's stream, and the same stream is captured."""
    device = FakeDevice()
    stream = device.stream()
    manifest = ModelManifest.read(tiny_model)
    graphs = {
        name: open_graph(tiny_model, manifest, name, device, rows=(1, 4, 8))
        for name in ("text_encoder", "image_encoder", "mention_fold")
    }
    chained = OnFake(device, stream)
    reference = featurizer(OnnxSession.open(tiny_model, threads=1))
    chain, _ = compare(
        EngineGraphs(manifest, graphs, stream.handle), reference, tiny_picture, PATTERNS, chained
    )
    assert all(p.graphs == 1 for p in chain.programs.values())
    assert device.calls.count("replay") == len(PATTERNS) - len(chain.programs)


class OnFake(TorchDevice):
    """Torch's memory; the stream is the fake device's, which runs when it is waited for."""

    def __init__(self, device, stream):
        super().__init__(CPU)
        self.fake, self.own = device, stream

    def queue(self, work):
        self.fake.queue(self.own.handle, work)

    def late(self, recipe):
        """A recipe whose stages of torch wait for the stream as the engines do."""
        device = self

        class Late(recipe):
            def stages(self, bucket, arrays):
                return [
                    replace(s, launch=partial(device.queue, s.launch))
                    if s.name in ("assemble", "search")
                    else s
                    for s in super().stages(bucket, arrays)
                ]

        return Late

    def upload(self, host, memory):
        self.queue(lambda: super(OnFake, self).upload(host, memory))

    def copy(self, source, target, size_bytes):
        self.queue(lambda: super(OnFake, self).copy(source, target, size_bytes))

    def download(self, memory, host):
        self.queue(lambda: super(OnFake, self).download(memory, host))

    def finish(self, event):
        self.fake.synchronize(self.own)

    def capture(self, work):
        self.fake.synchronize(self.own)
        return self.fake.capture(self.own, work)

    def replay(self, graph):
        self.fake.replay(graph, self.own)


def test_largest_holds_every_bucket(tiny_model):
    reference = featurizer(OnnxSession.open(tiny_model, threads=1))
    recipe = RequestRecipe(cpu_graphs(tiny_model), Sums(), reference.missing, CPU)
    most = recipe.layouts(recipe.largest)
    for rows in recipe.rows:
        for pictures in (0, *(p for p in recipe.rows if p <= rows)):
            for k in recipe.places:
                layouts = recipe.layouts(Bucket(rows, pictures, recipe.lengths[0], k, "exact"))
                for kind in ("inputs", "work", "folded", "results"):
                    getattr(layouts, kind).check(getattr(most, kind).size_bytes)
