"""Texts and pictures that training leaves out of mentions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from mimic_engine.errors import InvalidInputError
from mimic_engine.train.config import TrainConfig
from mimic_engine.train.run import _read, build_trainer
from mimic_engine.train.trainer import Trainer

Options = Callable[..., TrainConfig]


def _trainer(config: TrainConfig) -> Trainer:
    config.out.mkdir(parents=True, exist_ok=True)
    return build_trainer(config, _read(config), "cpu")


@pytest.mark.parametrize("trained", [False, True])
def test_left_out_parts_are_those_of_the_empty_record(options: Options, trained: bool) -> None:
    encode = _trainer(options(train_text_encoder=trained))._encode
    encode.model.eval()
    records = np.arange(6)
    without = np.array([True, False, True, False, False, True])
    with torch.no_grad():
        plain, empty = encode(records), encode(np.array([encode.corpus.empty]))
        cut = encode(records, without_text=without, without_image=~without)
    assert empty.text_mask.sum() == 3  # [CLS] [SEP] [SEP]
    assert (encode.corpus.image[records] > 0).any()
    for name in ("text_cls", "text_tokens", "image_cls", "image_tokens"):
        left_out = without if name.startswith("text") else ~without
        for r in range(6):
            expected = getattr(empty, name)[0] if left_out[r] else getattr(plain, name)[r]
            torch.testing.assert_close(getattr(cut, name)[r], expected)


def test_what_is_left_out_depends_on_the_step_and_never_is_both(options: Options) -> None:
    trainer = _trainer(options(drop_images=0.4, drop_texts=0.5))
    records = trainer._train.records
    seen = []
    for step in range(20):
        no_image, no_text = trainer.batch_loss.left_out(records, step)
        again = trainer.batch_loss.left_out(records, step)
        np.testing.assert_array_equal(again, (no_image, no_text))
        assert not (no_image & no_text).any()
        assert not no_text[trainer._encode.corpus.image[records] == 0].any()
        seen.append((no_image.mean(), no_text.mean()))
    shares = np.mean(seen, axis=0)
    assert 0.2 < shares[0] < 0.6
    assert shares[1] > 0.1
    assert len(set(seen)) > 1


def test_nothing_is_left_out_by_default(options: Options) -> None:
    trainer = _trainer(options())
    no_image, no_text = trainer.batch_loss.left_out(trainer._train.records, 0)
    assert not no_image.any()
    assert not no_text.any()


def test_shares_over_one_are_refused(options: Options) -> None:
    with pytest.raises(InvalidInputError, match=r"0\.7 and 0\.4 add up to more than 1"):
        options(drop_images=0.7, drop_texts=0.4)
