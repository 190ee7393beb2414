"""A batch in pieces gives the losses and gradients of the batch in one piece, dropout included."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from mimic_engine.train.config import TrainConfig
from mimic_engine.train.encode import RecordEncoder
from mimic_engine.train.optimiser import set_modes
from mimic_engine.train.run import _read, build_trainer
from mimic_engine.train.sampler import Batch
from mimic_engine.train.trainer import Trainer

Options = Callable[..., TrainConfig]
Build = Callable[[TrainConfig], Trainer]
TRAINED = {"train_text_encoder": True, "train_image_encoder": True}

# Pieces add up the terms of a gradient in another order, and a library may multiply one row in another way
# than many. Two orders of a sum of n terms t differ by at most 2 n u sum |t| (Higham, "Accuracy and Stability
# of Numerical Algorithms", section 4.2), u the unit roundoff. The longest sums here have a term for each
# mention, each column and each token of both: n <= 12 * 16 * 12 * 12. The terms of a softmax loss cancel, so
# sum |t| may be well above the gradient; a hundred times the largest gradient of all is allowed for. In
# float32 (u = 2^-24) this would allow for an error of a third of the largest gradient and test nothing, so
# all is computed in float64.
TERMS, CANCELLED = 12 * 16 * 12 * 12, 100
TOLERANCE = 2 * TERMS * 2.0**-53 * CANCELLED  # 6e-10 of the largest gradient
# Encoders in bf16 round what comes out of every product, forth and back, to u = 2^-8. One row and many rows
# add up the product in float32 in different orders, so some values fall on the other side of a rounding. Two
# layers have about twenty roundings one after another, and twenty more on the way back, independent of each
# other: sqrt(40) u = 2.5 %; the loss lies behind half of them, and is a mean over mentions.
COARSE = 2e-2
COARSE_LOSS = 5e-3


@pytest.fixture
def in_double(monkeypatch: pytest.MonkeyPatch) -> Build:
    """A trainer whose every float32 is a float64, but for encoders that run in bf16."""
    tensor = RecordEncoder._tensor

    def build(config: TrainConfig) -> Trainer:
        trainer = _trainer(config)
        if config.precision == "fp32":
            trainer.model.double()
            monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
            monkeypatch.setattr(RecordEncoder, "_tensor", lambda self, array: tensor(self, array).double())
        return trainer

    return build


def _trainer(config: TrainConfig) -> Trainer:
    config.out.mkdir(parents=True, exist_ok=True)
    return build_trainer(config, _read(config), "cpu")


def _gradients(
    trainer: Trainer, batch: Batch, step: int = 3
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Losses and gradients of half the loss of a batch, random states the same at the start."""
    torch.manual_seed(5)
    trainer.model.zero_grad()
    losses = trainer.batch_loss.backward(batch, 0.5, step)
    return losses, {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("rows", [1, 5, 12, 99])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"drop_images": 0.4, "drop_texts": 0.4, "mask_padding": True},
        {"drop_texts": 0.4, "names_in_loss": True},
        {"vision": "off", "cmfu": False},
        TRAINED,
        TRAINED | {"mask_padding": True, "extra_negatives": 4, "freeze_embeddings": True},
        TRAINED | {"precision": "bf16"},
    ],
)
def test_losses_and_gradients_are_those_of_the_whole_batch(
    options: Options, in_double: Build, change: dict, rows: int
) -> None:
    trainer = in_double(options(**change))
    trainer.model.eval()  # without dropout, pieces of any size agree
    batch = trainer.sampler.batches(0)[0]
    losses, whole = _gradients(trainer, batch)
    trainer.batch_loss._config = replace(trainer.config, gradient_cache=rows)
    got, pieces = _gradients(trainer, batch)
    coarse = change.get("precision") == "bf16"
    assert got == pytest.approx(losses, rel=COARSE_LOSS if coarse else TOLERANCE)
    assert pieces.keys() == whole.keys()
    largest = max(float(g.abs().max()) for g in whole.values())
    for name, gradient in whole.items():
        error = float((pieces[name] - gradient).abs().max())
        assert error < (COARSE if coarse else TOLERANCE) * largest, name


def test_dropout_of_the_second_pass_is_that_of_the_first(options: Options, in_double: Build) -> None:
    trainer = in_double(options(**TRAINED))
    set_modes(trainer.model, trainer.config)
    batch = trainer.sampler.batches(0)[0]
    losses, whole = _gradients(trainer, batch)
    after = torch.get_rng_state()
    trainer.batch_loss._config = replace(
        trainer.config, gradient_cache=12
    )  # one piece a side: the same draws
    got, pieces = _gradients(trainer, batch)
    assert torch.equal(torch.get_rng_state(), after)
    assert got == pytest.approx(losses, rel=TOLERANCE)
    trainer.model.eval()
    assert _gradients(trainer, batch)[0] != pytest.approx(losses, rel=1e-3)  # dropout did something
    largest = max(float(g.abs().max()) for g in whole.values())
    for name, gradient in whole.items():
        torch.testing.assert_close(pieces[name], gradient, rtol=0, atol=TOLERANCE * largest)


def test_no_graph_of_the_whole_batch_is_held(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = _trainer(options(**TRAINED, gradient_cache=3))
    encode, seen = type(trainer._encode).__call__, []

    def counting(self: object, records: object, *args: object, **options: object) -> object:
        seen.append((len(records), torch.is_grad_enabled()))
        return encode(self, records, *args, **options)

    monkeypatch.setattr(type(trainer._encode), "__call__", counting)
    batch = trainer.sampler.batches(0)[0]
    _gradients(trainer, batch)
    assert max(rows for rows, _ in seen) == 3
    first, second = ([rows for rows, grad in seen if grad is on] for on in (False, True))
    assert first == second
    assert sum(first) == len(batch.mentions) + len(batch.entities)
