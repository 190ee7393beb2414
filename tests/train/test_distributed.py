"""Two processes with the same global batch give the losses of one."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mimic_engine.train.config import TrainConfig
from mimic_engine.train.distributed import Group


def _losses(run: Path) -> list[list[float]]:
    with (run / "log.csv").open() as file:
        return [
            [float(r[n]) for n in ("loss", "loss_total", "loss_vdlu", "mrr")] for r in csv.DictReader(file)
        ]


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--gradient-cache", "3", "--mined-negatives", "4", "--ema", "0.5"]])
def test_two_processes_train_as_one(
    options: Callable[..., TrainConfig], tmp_path: Path, more: list[str]
) -> None:
    # A ViT has no dropout, and its gradients pass through the gathered entity features.
    config = options(train_image_encoder=True, batch_size=11, extra_negatives=2, accumulate=2)
    flags = [
        *(
            "--encoder",
            config.encoder,
            "--text-source",
            config.text_source,
            "--image-source",
            config.image_source,
        ),
        *("--data", str(config.data), "--max-length", "12", "--image-size", "32", "--batch-size", "11"),
        *("--epochs", "2", "--validate-every", "1", "--lr", "0.003", "--device", "cpu", "--threads", "1"),
        *("--extra-negatives", "2", "--accumulate", "2", "--train-image-encoder", *more),
    ]
    alone, pair = tmp_path / "alone", tmp_path / "pair"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for out, launcher in ((alone, []), (pair, torchrun)):
        command = [sys.executable, *launcher, "-m", "mimic_engine.train", *flags, "--out", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    assert np.array(_losses(pair)) == pytest.approx(np.array(_losses(alone)), rel=2e-4)
    assert (pair / "best" / "config.json").is_file()


@pytest.mark.parametrize(("rows", "world"), [(1, 2), (5, 2), (6, 3), (7, 1)])
def test_shares_cover_all_rows_in_order_and_are_equal(rows: int, world: int) -> None:
    shares = [Group(rank, world).share(np.arange(rows) + 10) for rank in range(world)]
    assert len({len(s) for s in shares}) == 1
    assert np.array_equal(np.concatenate(shares)[:rows], np.arange(rows) + 10)
