"""The plan of a request: what is folded on fixed arrays is what the featurizer folds, in every bucket."""

import importlib.util
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from benchmarks.gpu.torch_graphs import torch_graphs
from mimic_engine.encoding.onnx import OnnxSession
from mimic_engine.errors import InvalidInputError
from mimic_engine.gpu.pipeline import GpuPipeline
from mimic_engine.gpu.request import MAX_NAMES, TOP_K_BUCKETS, Bucket, RequestPlan, Stage
from mimic_engine.gpu.scan import SPARE, list_length
from mimic_engine.gpu.stream import TorchDevice
from mimic_engine.gpu.terms import NO_ROW
from mimic_engine.kernels.stream_topk import MAX_K
from mimic_engine.model.checkpoint import load_checkpoint
from mimic_engine.types import Mention
from tests.gpu.bound import bound_session, featurizer
from tests.gpu.fakes import FakeDevice, PromptDevice
from tests.gpu.test_tensorrt import engine_session
from tests.gpu.test_terms import names_of

CPU = torch.device("cpu")
SCAN = SimpleNamespace(
    device=CPU,
    modes=("exact", "certified"),
    passes=None,
    mask=lambda allowed: None,
    capturable=lambda mode: True,
)


class Sums(RequestPlan):
    """A plan whose search answers with a sum of each mention's folded values."""

    def __init__(self, graphs, missing, **options):
        super().__init__(graphs, missing, SCAN, np.ones(3, bool), **options)

    def search(self, bucket, arrays):
        folded = [arrays[name].native for name in self.graphs["mention_fold"].outputs]

        def launch():
            total = sum(tensor.flatten(1).sum(1) for tensor in folded)
            arrays["g2l"].native.copy_(total[:, None].expand_as(arrays["g2l"].native))

        return Stage("search", launch)

    def answer(self, results, mentions, k, mode, take, names):
        return results["g2l"][:mentions, 0].copy()


def mentions(picture, pattern):
    """One mention for each letter: p has a picture, t has none; texts of different lengths."""
    words = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]
    return [
        Mention(words[i % 10], " ".join(words[: 1 + 3 * i % 7]), picture if letter == "p" else None)
        for i, letter in enumerate(pattern)
    ]


def compare(graphs, reference, picture, patterns, device=None):
    plan = Sums if device is None else device.late(Sums)
    plan = plan(graphs, reference.missing, rows=(1, 4, 8), top_ks=(3, 9))
    pipeline = GpuPipeline(device or TorchDevice(CPU, 0), plan)
    buckets = set()
    for pattern in patterns:
        prepared = [reference.prepare(m) for m in mentions(picture, pattern)]
        batch = pipeline.start(prepared, 3, "exact")
        found, answers = dict(pipeline.folded(batch).items()), pipeline.finish(batch)
        expected = dict(reference.fold_prepared(prepared).items())
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            scale = max(1.0, float(np.abs(value).max()))
            np.testing.assert_allclose(found[name], value, rtol=0, atol=2e-5 * scale, err_msg=name)
        total = sum(a.reshape(len(prepared), -1).sum(1) for a in expected.values())
        np.testing.assert_allclose(answers, total, rtol=1e-4, atol=1e-2)
        buckets.add(batch.bucket)
    return pipeline, buckets


PATTERNS = ("t", "p", "tp", "ptt", "pppp", "ttptt", "tttttttt", "pppppppp", "p", "tp", "t")


def test_onnx_runtime_on_fixed_arrays(tiny_model, tiny_picture):
    reference = featurizer(OnnxSession.open(tiny_model, threads=1))
    session = bound_session(tiny_model, PromptDevice())
    pipeline, buckets = compare(session.graphs, reference, tiny_picture, PATTERNS)
    assert {(b.rows, b.images) for b in buckets} == {
        (1, 0), (1, 1), (4, 1), (4, 4), (8, 1), (8, 0), (8, 8)
    }  # fmt: skip
    for bucket, captured in pipeline.captured.items():
        alone = {"text_encoder", "mention_fold"} | ({"image_encoder"} if bucket.images else set())
        assert set(captured.launched) == alone  # a session cannot be captured
        assert captured.graphs == 2


def test_torch_modules_on_fixed_arrays(tiny_model, tiny_checkpoint, tiny_picture):
    reference = featurizer(OnnxSession.open(tiny_model, threads=1))
    graphs = torch_graphs(load_checkpoint(tiny_checkpoint).model)
    pipeline, _ = compare(graphs, reference, tiny_picture, PATTERNS[:6])
    assert all(c.graphs == 1 and not c.launched for c in pipeline.captured.values())


def test_engines_on_fixed_arrays_of_a_device_that_runs_late(tiny_model, tiny_picture):
    """The engines' own library queues on the session's stream, and the same stream is captured."""
    device = FakeDevice()
    session = engine_session(tiny_model, device, rows=(1, 4, 8))
    reference, late = featurizer(OnnxSession.open(tiny_model, threads=1)), OnFake(device)
    pipeline, _ = compare(session.graphs, reference, tiny_picture, PATTERNS, late)
    assert all(c.graphs == 1 for c in pipeline.captured.values())
    assert late.replays == len(PATTERNS) - len(pipeline.captured)


def test_the_host_and_the_pipeline_share_one_session(tiny_model, tiny_picture):
    """A batch of either between two of the other changes nothing."""
    session = bound_session(tiny_model, PromptDevice())
    both = featurizer(session)
    pipeline, _ = compare(session.graphs, both, tiny_picture, PATTERNS[:4])
    assert pipeline.plan.graphs is session.graphs


class OnFake(TorchDevice):
    """Torch's memory; the stream is the fake device's, which runs when it is waited for."""

    def __init__(self, device):
        super().__init__(CPU, 0)
        self.fake, self.replays = device, 0

    def late(self, plan):
        """A plan whose stages of torch wait for the stream as the engines do."""
        device = self

        class Late(plan):
            def stages(self, bucket, arrays):
                return [
                    replace(s, launch=partial(device.fake.queue, s.launch))
                    if s.name in ("assemble", "search")
                    else s
                    for s in super().stages(bucket, arrays)
                ]

        return Late

    def upload(self, host, memory):
        self.fake.queue(lambda: super(OnFake, self).upload(host, memory))

    def copy(self, source, target, size_bytes):
        self.fake.queue(lambda: super(OnFake, self).copy(source, target, size_bytes))

    def download(self, memory, host):
        self.fake.queue(lambda: super(OnFake, self).download(memory, host))

    def finish(self, event):
        self.fake.synchronize()

    def capture(self, work):
        self.fake.synchronize()
        work()
        graph, self.fake.queued = self.fake.queued, []
        return graph

    def replay(self, graph):
        self.replays += 1
        self.fake.queued.extend(graph)


def test_name_scores_lie_in_the_inputs_where_they_count(tiny_model, tiny_picture):
    session = bound_session(tiny_model)
    reference = featurizer(session)
    prepared = [reference.prepare(m) for m in mentions(tiny_picture, "ttt")]
    plans = [Sums(session.graphs, reference.missing, names=names) for names in (False, True)]
    layouts = [plan.layouts(plan.bucket(prepared, 1, "exact")).inputs for plan in plans]
    without, host = (layout.views(np.full(layout.size_bytes, 0xAB, np.uint8)) for layout in layouts)
    assert host.keys() - without.keys() == {"name_rows", "name_scores"}
    names = names_of(2, 0, MAX_NAMES, entities=5000)
    plans[1].fill(host, prepared, names)
    assert host["name_rows"].shape == (len(host["input_ids"]), MAX_NAMES)
    for b in range(3):
        count = len(names[b].rows)
        np.testing.assert_array_equal(host["name_rows"][b, :count], names[b].rows)
        np.testing.assert_array_equal(host["name_scores"][b, :count], names[b].scores)
        assert (host["name_rows"][b, count:] == NO_ROW).all() and not host["name_scores"][b, count:].any()
    np.testing.assert_array_equal(host["name_rows"][3:], host["name_rows"][[2] * len(host["name_rows"][3:])])
    with pytest.raises(InvalidInputError, match="names: the plan counts them"):
        plans[1].fill(host, prepared)
    with pytest.raises(InvalidInputError, match="names: the plan counts none"):
        plans[0].fill(without, prepared, names)
    with pytest.raises(InvalidInputError, match="names: a batch has room for 1024"):
        plans[1].fill(host, prepared, names_of(1, 1, MAX_NAMES + 1, entities=5000))


@pytest.mark.parametrize("names", [False, True])
def test_largest_holds_every_bucket(tiny_model, names):
    session = bound_session(tiny_model)
    plan = Sums(session.graphs, featurizer(session).missing, names=names)
    most = plan.layouts(plan.largest)
    for rows in plan.rows:
        for images in (0, *(p for p in plan.rows if p <= rows)):
            for k in plan.top_ks:
                layouts = plan.layouts(Bucket(rows, images, plan.lengths[0], k, "exact"))
                for kind in ("inputs", "work", "folded", "results"):
                    getattr(layouts, kind).check(getattr(most, kind).size_bytes)


def test_top_k_buckets_leave_room_for_neighbours():
    for k in TOP_K_BUCKETS:
        assert list_length(k, "certified") == k + SPARE <= MAX_K
    assert np.all(np.diff(TOP_K_BUCKETS) > 0)
