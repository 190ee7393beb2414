"""The moving average is the weighted mean of the weights after each step, and is what is validated and kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from mimic_engine.model.checkpoint import load_checkpoint
from mimic_engine.train.config import TrainConfig
from mimic_engine.train.optimiser import WeightAverage
from mimic_engine.train.run import _read, build_trainer


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
@pytest.mark.parametrize("steps", [1, 2, 17])
def test_it_is_the_weighted_mean_of_all_steps_without_the_first_weights(decay: float, steps: int) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    model.bias.requires_grad_(False)
    average, history, bias = WeightAverage(model, decay), [], model.bias.clone()
    for _ in range(steps):
        with torch.no_grad():
            model.weight.copy_(torch.randn(2, 3))
        average.update()
        history.append(model.weight.detach().clone())
    weights = torch.tensor([decay ** (steps - 1 - i) for i in range(steps)], dtype=torch.float64)
    expected = torch.einsum("s,sij->ij", weights / weights.sum(), torch.stack(history))
    with average.applied():
        torch.testing.assert_close(model.weight.detach(), expected)
        assert torch.equal(model.bias, bias)
    assert torch.equal(model.weight, history[-1])


def test_own_weights_come_back_even_after_an_error() -> None:
    model = nn.Linear(2, 2)
    average = WeightAverage(model, 0.9)
    with torch.no_grad():
        model.weight.add_(1)
    own = model.weight.detach().clone()
    with pytest.raises(KeyError), average.applied():
        assert not torch.equal(model.weight, own)
        raise KeyError
    assert torch.equal(model.weight, own)


def test_the_average_is_what_is_validated_and_kept(options: Callable[..., TrainConfig]) -> None:
    config = options(ema=0.8, epochs=3)
    config.out.mkdir()
    trainer = build_trainer(config, _read(config), "cpu")
    snapshots = []
    step = trainer.step

    def noting(batches: list) -> dict[str, float]:
        losses = step(batches)
        snapshots.append(trainer.model.matcher.tglu.fc_query.weight.detach().clone())
        return losses

    trainer.step = noting
    progress = trainer.fit()
    best = load_checkpoint(config.out / "best")
    taken = snapshots[: best.extra["epoch"] * 3]
    weights = torch.tensor([0.8 ** (len(taken) - 1 - i) for i in range(len(taken))])
    expected = torch.einsum("s,sij->ij", weights / weights.sum(), torch.stack(taken))
    torch.testing.assert_close(best.model.matcher.tglu.fc_query.weight.detach(), expected)
    assert not torch.allclose(expected, taken[-1], rtol=1e-3, atol=1e-5)
    assert torch.equal(trainer.model.matcher.tglu.fc_query.weight, snapshots[-1])
    assert progress.best_mrr == best.extra["dev"]["mrr"]
