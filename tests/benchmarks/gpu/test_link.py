"""The benchmark of whole requests without a GPU: what is wrong is not timed, rows say what they should."""

import importlib.util
import json

import numpy as np
import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

import triton.language

from benchmarks.gpu import link as link_gpu
from benchmarks.gpu.data import World, fold_mentions
from benchmarks.gpu.link import Options, Row, main, payload, row, saturation, stages, times_ms
from benchmarks.gpu.link_cases import Bench, Encoders
from benchmarks.scan.published_model import Towers
from mimic_engine.errors import EngineError
from mimic_engine.gpu.request import RequestPlan, Stage
from mimic_engine.kernels.reference import scores_ref
from mimic_engine.scan.scan import TopK

CPU = torch.device("cpu")
N = 23


class Oracle:
    """A scan without kernels: searches by the reference, and launches nothing."""

    modes = ("exact", "certified")
    device, passes = CPU, None

    def __init__(self, world, entities):
        self.constants, self.entities = world.constants, entities
        self.off = 0.0

    def __len__(self):
        return self.entities.rows

    def mask(self, allowed):
        assert allowed is None

    def search(self, mentions, k, mode):
        total = scores_ref(mentions, self.entities, self.constants).total
        rows = np.argsort(-total, 1, kind="stable")[:, :k]
        scores = np.take_along_axis(total, rows, 1)
        return TopK(rows, scores, {}, (mode,) * len(rows), np.full(len(rows), N))

    def settle(self, fetched, k, mode, take, allowed=None, names=None):
        found = self.search(take(list(range(len(fetched.counts)))), k, mode)
        return TopK(found.rows, found.scores + self.off, {}, found.modes, found.scored)


@pytest.fixture(scope="module")
def world():
    return World.make(CPU, 3)


@pytest.fixture(scope="module")
def encoders(world, tmp_path_factory):
    return Encoders(tmp_path_factory.mktemp("model"), world, Towers(1, 64), 2)


@pytest.fixture
def bench(world, encoders, monkeypatch):
    from benchmarks.gpu.data import fold_entities

    oracle = Oracle(world, fold_entities(world, N, "float32"))
    monkeypatch.setattr(RequestPlan, "search", lambda *_: Stage("search", lambda: None))
    given = fold_mentions(world, torch.tensor([3, 20]), 1)
    return Bench.make(encoders, encoders.open("torch", "fp32"), oracle, given)


def test_a_row_says_what_was_timed(bench):
    options = Options(seconds=0.0)
    found = row(bench, ("torch", "fp32"), N, 2, "exact", options, "none", published=1e-3)
    assert (found.n, found.batch, found.mode, found.backend) == (N, 2, "exact", "torch")
    assert found.p50_ms <= found.p99_ms and found.runs >= link_gpu.RUNS and found.per_s > 0
    assert found.graphs == 1 and found.launched == ()
    assert found.folding_error < 1e-4 and found.scored_share == 1
    assert found.ratio_to_published == pytest.approx(1e-3 * N * 2 / found.p50_ms)
    assert list(found.stages) == [
        "prepare", "start", "finish",
        "text_encoder", "image_encoder", "assemble", "mention_fold", "substitute", "search",
    ]  # fmt: skip
    assert all(ms > 0 for ms in found.stages.values())


def test_saturation_keeps_two_batches_under_way(bench, monkeypatch):
    most, real = [], bench.pipeline.finish

    def finish(batch):
        most.append(bench.pipeline.free)
        return real(batch)

    monkeypatch.setattr(bench.pipeline, "finish", finish)
    assert saturation(bench, 2, "exact", 0.0) > 0
    assert min(most) == 0 and len(most) == link_gpu.RUNS


def test_a_wrong_answer_is_refused(bench):
    bench.pipeline.plan.scan.off = 0.01
    with pytest.raises(EngineError, match="scores differ by 1"):
        bench.check(2, "certified", "fp32")


def test_wrong_encoders_are_refused(bench, encoders, monkeypatch):
    wrong = {n: a + np.float32(0.01) * np.abs(a).max() for n, a in encoders.folded.items()}
    monkeypatch.setattr(encoders, "folded", type(encoders.folded)(**wrong))
    with pytest.raises(EngineError, match="folded mentions are wrong by"):
        bench.check(2, "exact", "fp32")


def test_stages_are_timed_apart_without_harm_to_the_pipeline(bench):
    before = bench.answer(bench.prepared, "exact")
    stages(bench, 2, "exact", 0.0)
    np.testing.assert_array_equal(bench.answer(bench.prepared, "exact").rows, before.rows)
    assert bench.pipeline.free == 2


def test_the_command_writes_rows_and_says_what_failed(world, monkeypatch, tmp_path):
    """Without kernels: the search is empty, so that the answers are wrong, and nothing of them is timed."""
    monkeypatch.setattr(RequestPlan, "search", lambda *_: Stage("search", lambda: None))
    monkeypatch.setattr(link_gpu, "open_scan", lambda world, n, *rest: (broken, mentions))
    broken = Oracle(world, None)
    broken.search = lambda *_, **__: (_ for _ in ()).throw(EngineError("no kernels"))
    broken.settle = broken.search
    mentions = fold_mentions(world, torch.tensor([0, 1]), 1)
    out = tmp_path / "link_gpu.json"
    monkeypatch.setattr(Oracle, "__len__", lambda self: N)
    monkeypatch.setattr(triton.language, "topk", triton.language.topk)  # the dry run replaces it
    assert main(["--dry-run", "--out", str(out)]) == 1
    result = json.loads(out.read_text("utf-8"))
    assert result["rows"] == []
    assert all(key.startswith("torch fp32 n=40 ") for key in result["skipped"])
    assert all("failed: " in why for why in result["skipped"].values())


def test_payload_takes_the_best_single_mention():
    def at(ms, n=110_000, batch=1, mode="certified"):
        return Row(
            "torch",
            "fp16",
            "none",
            mode,
            n,
            batch,
            ms,
            ms,
            ms,
            1.0,
            {},
            1,
            (),
            0.0,
            0.0,
            0.0,
            None,
            5,
        )

    rows = [at(4.0), at(2.5), at(1.0, batch=8), at(1.0, n=20), at(1.0, mode="coded")]
    assert payload(rows, {}, Options(), None)["outcome"] == {"one_mention_p50_ms": 2.5}
    assert payload([], {"tensorrt fp16": "not installed"}, Options(), None)["outcome"] == {
        "one_mention_p50_ms": None
    }


def test_timing_runs_often_enough():
    assert len(times_ms(lambda: None, 0.0)) == link_gpu.RUNS


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so(capsys):
    assert main([]) == 2
    assert "--dry-run" in capsys.readouterr().err
