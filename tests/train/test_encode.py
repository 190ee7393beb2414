"""An encoder over other pictures, and entities that are alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from mimic_engine.train.config import TrainConfig
from mimic_engine.train.encode import fold_entities
from mimic_engine.train.run import _read, build_trainer

Options = Callable[..., TrainConfig]


@torch.no_grad()
def test_other_pictures_are_not_taken_from_the_cache_of_the_first(options: Options) -> None:
    config = options()
    config.out.mkdir()
    encode = build_trainer(config, _read(config), "cpu")._encode
    encode.model.eval()
    corpus, records = encode.corpus, np.arange(6)
    turned = replace(corpus, images=corpus.images[::-1], owners=corpus.owners[::-1])
    other = encode.over(turned)
    back = np.where(corpus.image > 0, len(corpus.images) + 1 - corpus.image, 0)
    same = encode.over(replace(turned, image=back))
    for view in (other, same):
        view.fill_caches(config.out / "cache", dtype="float32", batch_size=16, progress=False)
    before, shown, again = (e(records) for e in (encode, other, same))
    assert not torch.allclose(before.image_cls, shown.image_cls)
    torch.testing.assert_close(before.text_tokens, shown.text_tokens)
    torch.testing.assert_close(before.image_tokens, again.image_tokens)
    hidden = encode.over(replace(corpus, image=np.zeros_like(corpus.image)))(records)
    missing = encode(records, without_image=np.full(6, True))
    torch.testing.assert_close(hidden.image_cls, missing.image_cls)


@pytest.mark.parametrize("batch_size", [1, 5, 6, 18])
def test_entities_that_are_alike_have_the_same_bits_in_any_batch(options: Options, batch_size: int) -> None:
    config = options()
    config.out.mkdir()
    encode = build_trainer(config, _read(config), "cpu")._encode
    encode.model.eval()
    corpus, rows = encode.corpus, np.array([0, 1, 2, 0, 4, 5, 0, 7, 2, 9, 10, 11, 12, 13, 14, 15, 16, 1])
    alike = np.concatenate([rows, np.arange(18, len(corpus.image))])
    names = ("input_ids", "attention_mask", "token_type_ids")
    tokens = replace(corpus.tokens, **{name: getattr(corpus.tokens, name)[alike] for name in names})
    view = encode.over(replace(corpus, tokens=tokens, image=corpus.image[alike]))
    view.fill_caches(config.out / "cache", dtype="float32", batch_size=16, progress=False)
    found = fold_entities(view, view.corpus.entities, batch_size)
    for name, array in found.items():
        np.testing.assert_array_equal(array, array[rows], err_msg=name)
    expected = fold_entities(encode, rows, 18)
    for name, array in expected.items():
        atol = 1e-5 * np.abs(array).max()
        np.testing.assert_allclose(getattr(found, name), array, rtol=0, atol=atol, err_msg=name)
