"""An encoder over other pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from mimic_engine.train.config import TrainConfig
from mimic_engine.train.run import _read, build_trainer

Options = Callable[..., TrainConfig]


@torch.no_grad()
def test_other_pictures_are_not_taken_from_the_cache_of_the_first(options: Options) -> None:
    config = options()
    config.out.mkdir()
    encode = build_trainer(config, _read(config), "cpu")._encode
    encode.model.eval()
    corpus, records = encode.corpus, np.arange(6)
    turned = replace(corpus, pictures=corpus.pictures[::-1], owners=corpus.owners[::-1])
    other = encode.over(turned)
    back = np.where(corpus.picture > 0, len(corpus.pictures) + 1 - corpus.picture, 0)
    same = encode.over(replace(turned, picture=back))
    for view in (other, same):
        view.fill_caches(config.out / "cache", dtype="float32", batch_size=16, progress=False)
    before, shown, again = (e(records) for e in (encode, other, same))
    assert not torch.allclose(before.image_cls, shown.image_cls)
    torch.testing.assert_close(before.text_tokens, shown.text_tokens)
    torch.testing.assert_close(before.image_tokens, again.image_tokens)
    hidden = encode.over(replace(corpus, picture=np.zeros_like(corpus.picture)))(records)
    missing = encode(records, without_image=np.full(6, True))
    torch.testing.assert_close(hidden.image_cls, missing.image_cls)
