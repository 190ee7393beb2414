"""Whole trainings on tiny data: the loss falls, resuming changes nothing, accumulation, checkpoints."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mimic_engine.errors import DataError, EngineError, InvalidInputError, ModelError
from mimic_engine.model.checkpoint import load_checkpoint
from mimic_engine.train.__main__ import main
from mimic_engine.train.config import TrainConfig
from mimic_engine.train.run import _read, build_trainer, train
from mimic_engine.train.sampler import Batch
from mimic_engine.train.trainer import Trainer

Options = Callable[..., TrainConfig]


def _trainer(config: TrainConfig) -> Trainer:
    config.out.mkdir(parents=True, exist_ok=True)
    return build_trainer(config, _read(config), "cpu")


def _losses(trainer: Trainer) -> list[float]:
    return [row["loss"] for row in trainer.fit().rows]


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"train_text_encoder": True, "mask_padding": True},
        {
            "train_text_encoder": True,
            "train_image_encoder": True,
            "precision": "bf16",
            "freeze_embeddings": True,
        },
        {"vision": "concat", "hard_batches": 0.5, "extra_negatives": 3, "mined_negatives": 4},
    ],
)
def test_training_lowers_the_loss_and_leaves_everything_behind(options: Options, change: dict) -> None:
    config = options(epochs=6, validate_every=3, **change)
    trainer = _trainer(config)
    losses = _losses(trainer)
    assert losses[-1] < 0.8 * losses[0]
    with (config.out / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(r["loss"]) for r in rows] == losses
    assert [bool(r["mrr"]) for r in rows] == [False, False, True] * 2
    assert (config.out / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert list((config.out / "tensorboard").iterdir())
    best = load_checkpoint(config.out / "best")
    assert best.extra["dev"]["mrr"] == pytest.approx(trainer.progress.best_mrr)
    assert best.extra["dev"]["candidates"] == 18


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"train_text_encoder": True, "schedule": "cosine", "warmup": 0.2},
        # Stopped in the third epoch: its mined entities are the second's, which only the state still holds.
        {"mined_negatives": 3, "mine_every": 2, "mine_depth": 4},
        {"ema": 0.9, "gradient_cache": 5},
    ],
)
def test_a_resumed_run_gives_the_same_losses_bit_for_bit(
    options: Options, tmp_path: Path, change: dict
) -> None:
    whole = options(out=tmp_path / "whole", epochs=4, **change)
    expected = _trainer(whole)
    losses = _losses(expected)
    part = replace(whole, out=tmp_path / "part")
    stopped = _trainer(part)
    step = stopped.step

    def interrupted(batches: Sequence[Batch]) -> dict[str, float]:
        if stopped.progress.step == 7:  # within the third epoch of three steps
            raise KeyboardInterrupt
        return step(batches)

    stopped.step = interrupted
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    torch.manual_seed(99)
    resumed = _trainer(replace(part, resume=True))
    assert _losses(resumed) == losses
    assert len(losses) == 4
    for a, b in zip(expected.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_resume_with_other_options_is_refused(options: Options) -> None:
    config = options(epochs=1)
    _trainer(config).fit()
    with pytest.raises(InvalidInputError, match=r"--lr: 0.003 before, 0.5 now"):
        _trainer(replace(config, resume=True, lr=0.5)).fit()
    with pytest.raises(InvalidInputError, match="holds a run; give --resume"):
        train(config)
    (config.out / "last.pt").write_bytes(b"PK damaged")
    with pytest.raises(ModelError, match=r"last.pt cannot be read"):
        _trainer(replace(config, resume=True)).fit()
    with pytest.raises(ModelError, match="no run to go on with"):
        _trainer(replace(config, resume=True, out=config.out / "elsewhere")).fit()


def test_accumulating_is_the_gradient_of_the_mean_over_the_batches(options: Options) -> None:
    trainer = _trainer(options(accumulate=2))
    trainer.model.eval()
    one, two = trainer.sampler.batches(0)[:2]
    gradients = []
    for weights in (((one, 0.5), (two, 0.5)), ((one, 1.0),), ((two, 1.0),)):
        trainer.model.zero_grad()
        for batch, weight in weights:
            trainer.batch_loss.backward(batch, weight, 0)
        gradients.append(
            torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])
        )
    torch.testing.assert_close(gradients[0], (gradients[1] + gradients[2]) / 2)


def test_early_stop_after_patience_validations_without_a_better_mrr(options: Options) -> None:
    trainer = _trainer(options(epochs=30, lr=1e-12, patience=2))
    progress = trainer.fit()
    assert progress.epoch == 3
    assert progress.waited == 2


def test_steps_stop_at_the_limit_and_the_last_epoch_is_validated(options: Options) -> None:
    progress = _trainer(options(max_steps=4, validate_every=9)).fit()
    assert (progress.step, progress.epoch) == (4, 2)
    assert "mrr" in progress.rows[-1]


def test_a_loss_that_is_not_a_number_stops_with_the_step(options: Options) -> None:
    trainer = _trainer(options())
    with torch.no_grad():
        trainer.model.matcher.text_cls_layernorm.weight.fill_(float("nan"))
    with pytest.raises(EngineError, match=r"step 1: the loss is nan .* lower --lr \(0.003\)"):
        trainer.fit()


def test_what_is_frozen_stays_as_it_was(options: Options) -> None:
    trainer = _trainer(options(train_text_encoder=True, freeze_embeddings=True, epochs=1))
    before = {n: p.clone() for n, p in trainer.model.named_parameters()}
    trainer.fit()
    changed = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert not any(n.startswith("encoder.image.") or n.endswith("word_embeddings.weight") for n in changed)
    assert any(n.startswith("encoder.text.") for n in changed)
    assert any(n.startswith("matcher.cmfu.") for n in changed)


def test_only_chosen_weights_decay(options: Options) -> None:
    trainer = _trainer(options(train_text_encoder=True, encoder_lr=1e-5, head_lr=1e-3, weight_decay=0.1))
    by_id = {id(p): n for n, p in trainer.model.named_parameters()}
    for group in trainer.optimiser.param_groups:
        for p in group["params"]:
            name = by_id[id(p)]
            plain = name.endswith("bias") or "norm" in name.lower()
            assert group["weight_decay"] == (0.0 if plain else 0.1), name
            assert group["base_lr"] == (1e-5 if name.startswith("encoder.text.") else 1e-3), name


def test_cutting_padding_leaves_the_scores_as_they_are(options: Options) -> None:
    trainer = _trainer(options(train_text_encoder=True, mask_padding=True))
    encode, model = trainer._encode, trainer.model.eval()
    records = np.arange(20)
    assert encode.length(records[:3]) < 12
    with torch.no_grad():
        full = encode(records, 12)
        whole = model.encoder.text_backbone(
            *(
                torch.from_numpy(a[records])
                for a in (
                    encode.corpus.tokens.input_ids,
                    encode.corpus.tokens.attention_mask,
                    encode.corpus.tokens.token_type_ids,
                )
            )
        )
        plain = full._replace(text_cls=whole.cls, text_tokens=whole.tokens)
        torch.testing.assert_close(model(encode(records), encode(records)).total, model(plain, plain).total)


def test_cached_padding_is_that_of_the_own_masking(options: Options, tmp_path: Path) -> None:
    records = np.arange(20)
    kept = {}
    for masked in (True, False):  # over one cache
        encode = _trainer(options(mask_padding=masked, cache=tmp_path / "cache"))._encode
        kept[masked] = encode(records, 12).text_tokens
    trained = _trainer(options(train_text_encoder=True))._encode
    trained.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(kept[False], trained(records, 12).text_tokens)
    padding = encode.corpus.tokens.attention_mask[records] == 0
    assert (kept[True][padding] == 0).all(-1).any() and kept[False][padding].any(-1).all()


def test_a_broken_image_stops_or_is_listed_even_from_the_cache(
    options: Options, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = tmp_path / "data"
    shutil.copytree(data, damaged)
    (damaged / "4.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"4\.png.*entity 'E4'"):
        _trainer(options(data=damaged))
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        _trainer(options(data=damaged, broken_images="as-missing"))
        assert "1 broken images are taken for missing" in caplog.text
        assert "4.png (entity 'E4')" in caplog.text


def test_the_command_line_reports_errors_in_one_line(
    options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "run")]) == 1
    assert "nowhere" in capsys.readouterr().err
