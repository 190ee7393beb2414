"""The loss of a batch and its gradients: each mention against all columns, in one piece or in several.

In one piece, features, scores and what their gradients need of the whole batch
are in memory at once. In several (:mod:`mimic_engine.train.gradient_cache`),
those of one piece are: first the features of the batch without what their
gradients need, then the scores, some mentions at a time, with the gradients of
the features, then the features again with those of the weights. The loss is a
mean over mentions, so the gradients are the same to rounding.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mimic_engine.model.loss import unit_consistent_loss
from mimic_engine.model.matcher import Features
from mimic_engine.train.config import TrainConfig
from mimic_engine.train.corpus import Split
from mimic_engine.train.distributed import Group
from mimic_engine.train.encode import RecordEncoder
from mimic_engine.train.gradient_cache import Inputs, PassedTwice
from mimic_engine.train.matching import batch_scores
from mimic_engine.train.sampler import Batch

Rows = NDArray[np.int64]
Flags = NDArray[np.bool_]


class BatchLoss:
    """Losses of batches of the training mentions under a model in training.

    Parameters
    ----------
    config : units whose loss is added, what is left out, rows of a piece (``gradient_cache``).
    encode : around the model.
    split : the training mentions.
    group : this process among others; each has its share of every batch.
    """

    def __init__(self, config: TrainConfig, encode: RecordEncoder, split: Split, group: Group) -> None:
        self._config = config
        self._encode = encode
        self._split = split
        self._group = group

    def backward(self, batch: Batch, weight: float, step: int) -> dict[str, float]:
        """Add the gradients of ``weight`` times the batch's loss; this batch's losses times ``weight``."""
        group, encode = self._group, self._encode
        mine = np.arange(len(batch.mentions))[group.rank :: group.world]
        records = self._split.records[batch.mentions]
        no_image, no_text = self.left_out(records, step)
        mentions = Inputs(records[mine], encode.length(records), no_image[mine], no_text[mine])
        columns = Inputs(group.share(batch.entities), encode.length(batch.entities))
        target = torch.from_numpy(batch.target[mine]).to(encode.device)
        run = self._in_pieces if self._config.gradient_cache else self._whole
        losses = run(mentions, columns, len(batch.entities), target, weight * len(mine) / len(records))
        parts = torch.stack(list(losses.values()))
        values = group.sum(torch.cat([parts.sum()[None], parts]))
        return dict(zip(("loss", *(f"loss_{n}" for n in losses)), values.tolist(), strict=True))

    def left_out(self, records: Rows, step: int) -> tuple[Flags, Flags]:
        """Which mentions of a batch lose their picture, and which their text; none that has a picture both.

        A function of seed, step and records alone, so that every process and a resumed run agree.
        """
        draw = np.random.default_rng([self._config.seed, step, int(records[0])])
        chance = draw.random(len(records))  # (B,)
        no_image = chance < self._config.drop_images
        no_text = (chance >= 1 - self._config.drop_texts) & (self._encode.corpus.picture[records] > 0)
        return no_image, no_text & ~no_image

    def _whole(
        self, mentions: Inputs, columns: Inputs, width: int, target: Tensor, share: float
    ) -> dict[str, Tensor]:
        """Gradients of ``share`` times the mean loss over these mentions; the losses times ``share``."""
        own = mentions.encoded(self._encode)
        entities = self._group.gather(columns.encoded(self._encode), width)
        return self._scored(own, entities, target, share)

    def _in_pieces(
        self, mentions: Inputs, columns: Inputs, width: int, target: Tensor, share: float
    ) -> dict[str, Tensor]:
        """As :meth:`_whole`, with what gradients need of one piece in memory at a time."""
        rows = self._config.gradient_cache
        own, others = (PassedTwice(self._encode, side, rows) for side in (mentions, columns))
        gathered = self._group.gather(others.joined(), width)
        entities = Features(*(t.detach().requires_grad_(t.requires_grad) for t in gathered))
        sums: dict[str, Tensor] = {}
        for piece, wanted in zip(own.features, target.split(rows), strict=True):
            part = share * len(wanted) / len(target)
            for name, value in self._scored(piece, entities, wanted, part).items():
                sums[name] = sums[name] + value if name in sums else value
        for tensor, leaf in zip(gathered, entities, strict=True):
            if leaf.grad is not None:
                tensor.backward(leaf.grad)
        own.backward()
        others.backward()
        return sums

    def _scored(
        self, mentions: Features, entities: Features, target: Tensor, share: float
    ) -> dict[str, Tensor]:
        scores = batch_scores(self._encode.model.matcher, mentions, entities)
        losses = unit_consistent_loss(scores, self._config.loss_units, target)
        (torch.stack(list(losses.values())).sum() * share).backward()
        return {name: value.detach() * share for name, value in losses.items()}
