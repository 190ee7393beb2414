"""Training takes denormal numbers for zero, on all of PyTorch's threads, and puts that back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from benchmarks.train_step import measure
from mimic_engine.data.source import open_dataset
from mimic_engine.train.config import TrainConfig
from mimic_engine.train.run import build_trainer, denormals_as_zero, flushes_denormals, train
from mimic_engine.train.trainer import Trainer

DENORMAL = 1e-40

pytestmark = pytest.mark.skipif(
    not torch.set_flush_denormal(False), reason="this processor cannot take denormals for zero"
)


def test_denormals_are_zero_inside_and_themselves_afterwards() -> None:
    number = torch.tensor(DENORMAL)
    with denormals_as_zero():
        assert flushes_denormals()
        assert number * 1 == 0
        with denormals_as_zero():
            pass
        assert flushes_denormals()
    assert not flushes_denormals()
    assert number * 1 > 0


def test_they_are_put_back_after_an_error() -> None:
    with pytest.raises(KeyError), denormals_as_zero():
        raise KeyError
    assert not flushes_denormals()


def test_threads_that_start_inside_have_them_as_zero_too() -> None:
    program = f"""
import torch
from mimic_engine.data.source import open_dataset
from mimic_engine.train.run import denormals_as_zero
with denormals_as_zero():
    torch.set_num_threads(4)
    numbers = torch.full((1 << 22,), {DENORMAL})
    print(int((numbers * 1).count_nonzero()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"


def test_a_training_takes_its_steps_so(
    options: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    step = Trainer.step

    def watched(trainer: Trainer, batches: object) -> dict[str, float]:
        seen.append(flushes_denormals())
        return step(trainer, batches)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "step", watched)
    train(options(max_steps=2))
    assert seen == [True, True]
    assert not flushes_denormals()


def test_the_benchmark_compares_losses_before_it_tells_a_time(options: Callable[..., TrainConfig]) -> None:
    def trainer(seed: int) -> Trainer:
        config = options(seed=seed)
        return build_trainer(config, open_dataset(config.data, splits=("train", "dev")), "cpu")

    row = measure((trainer(0), trainer(0)), steps=2)
    assert row["steps"] == 2
    assert row["ratio"] == pytest.approx(row["denormals_s"] / row["zeros_s"])
    assert row["loss_distance"] <= 1e-3
    with pytest.raises(SystemExit, match="losses"):
        measure((trainer(0), trainer(1)), steps=2)
