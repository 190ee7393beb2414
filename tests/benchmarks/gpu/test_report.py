"""The GPU report without a GPU: what fails is written down, ratios and rooflines are what they say."""

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from benchmarks.gpu import scans as gpu_scans
from benchmarks.gpu.checks import Check
from benchmarks.gpu.data import World, cluster, fold_entities, fold_mentions
from benchmarks.gpu.report import main, outcome, payload
from benchmarks.gpu.run import DRY, Report, Row
from mimic_engine.errors import EngineError
from mimic_engine.kernels.reference import scores_ref
from mimic_engine.scan.scan import TopK

CPU = torch.device("cpu")


def report(**options) -> Report:
    return Report(replace(DRY, **options), CPU, "none")


def row(mode="exact", n=1_000_000, b=1, ms=2.0, roofline=1.5) -> Row:
    return Row(
        mode, "triton", "float16", n, b, ms, ms, True, 1.0, None, roofline, 1.0, 0.0, 0.0, None, None, "none"
    )


@pytest.fixture(scope="module")
def world():
    return World.make(CPU, 3)


def test_a_part_that_fails_is_written_down_and_the_next_runs(capsys):
    found, ran = report(), []

    def broken():
        raise EngineError("no such device")

    found.part("first", broken)
    found.part("second", lambda: ran.append(1))
    assert ran == [1]
    assert found.problems == ["first: EngineError: no such device"]
    late = report(budget_s=0.0)
    late.part("third", lambda: ran.append(2))
    assert ran == [1]
    assert "not begun" in late.problems[0]
    assert payload(late)["rows"] == []
    assert "PROBLEM" in capsys.readouterr().out


def test_an_error_that_is_not_known_never_passes():
    assert Check("k", "float16", 1, 1, 1e-4, 1e-3).passed
    for error in (2e-3, float("inf"), float("nan")):
        assert not Check("k", "float16", 1, 1, error, 1e-3).passed


def test_outcome_takes_the_worst_of_each():
    rows = [
        row(ms=2.0),
        row(b=8, ms=8.0, roofline=2.0),
        row("certified", ms=0.5),
        row("certified", b=8, ms=1.0),
        row("coded", n=5),
    ]
    assert outcome(rows) == {
        "exact_over_roofline": 4.0,
        "certified_over_exact_at_1e6": 4.0,
        "coded_over_exact_at_1e6": None,
    }


def test_roofline_is_the_larger_of_bytes_and_operations():
    found = report()
    assert gpu_scans._roofline_ms(found, "exact", 10, 1, 103_000) is None
    found.ceilings = {"copy_bytes_per_s": 1e9, "bf16_flop_per_s": 1e30}
    assert gpu_scans._roofline_ms(found, "exact", 10, 1, 103_000) == pytest.approx(0.103)
    assert gpu_scans._roofline_ms(found, "certified", 10, 1, 103_000) == pytest.approx(0.0262)
    found.ceilings = {"copy_bytes_per_s": 1e30, "bf16_flop_per_s": 1e9}
    one, eight = (gpu_scans._roofline_ms(found, "exact", 10, b, 103_000) for b in (1, 8))
    assert eight == pytest.approx(8 * one)
    assert one >= 10 * 2 * 40 * 40 * 96 / 1e9 * 1e3


def test_a_wrong_answer_is_refused():
    reference = torch.arange(20.0).repeat(2, 1)
    rows = np.tile(np.arange(19, 9, -1), (2, 1))
    gpu_scans._check_answer(
        TopK(rows, rows.astype(np.float32), {}, ("exact",) * 2, np.full(2, 20)), reference
    )
    rows[1, 3] = 2
    with pytest.raises(EngineError, match="places differ"):
        gpu_scans._check_answer(
            TopK(rows, rows.astype(np.float32), {}, ("exact",) * 2, np.full(2, 20)), reference
        )


def test_features_are_the_same_whichever_rows_are_asked_for(world):
    whole = world.entities(0, 5)
    part = world.entities(3, 5)
    assert torch.equal(whole.text_tokens[3:], part.text_tokens)
    assert torch.equal(whole.image_cls[3:], part.image_cls)


def test_a_mention_finds_its_entity_and_codes_fit(world):
    entities = fold_entities(world, 60, "float32")
    gold = torch.tensor([7, 41])
    total = scores_ref(fold_mentions(world, gold, 1), entities, world.constants).total
    assert total.shape == (2, 60)
    book = cluster(world, entities, 8)
    assert book.segments[0].shape == (60, 40) and book.segments[0].dtype == np.uint8
    assert book.segments[0].max() < 8
    half = fold_entities(world, 3, "int8")
    back = half.tglu_query * half.tglu_query_scale[..., None]
    np.testing.assert_allclose(
        back, entities.tglu_query[:3], rtol=0, atol=np.abs(entities.tglu_query[:3]).max() / 200
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so(capsys):
    assert main([]) == 2
    assert "--dry-run" in capsys.readouterr().err
