"""Loss of a batch and its gradients: each mention against all columns, in one piece or in several.

In one piece, features, scores and what their gradients need of the whole batch
are in memory at once. In several, those of one piece are: first the features of
the batch without what their gradients need, then the scores, some mentions at a
time, with the gradients of the features, then the features again with those of
the weights (gradient caching: Gao et al. 2021, "Scaling Deep Contrastive Learning
Batch Size under Memory Limited Setup"; not in the paper of MIMIC). The loss is a
mean over mentions, so the gradients are the same to rounding, at the cost of one
more pass of the encoders. Dropout is repeated from saved random states. Encoders
whose output for a record depends on the rest of the batch in training (batch
statistics) cannot be passed in pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from mimic_engine.model.units import Features, unit_consistent_loss
from mimic_engine.train.config import TrainConfig
from mimic_engine.train.corpus import Rows, Split
from mimic_engine.train.distributed import Group
from mimic_engine.train.encode import RecordEncoder
from mimic_engine.train.matching import batch_scores
from mimic_engine.train.names import among
from mimic_engine.train.sampler import Batch

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
        wanted = Wanted(
            torch.from_numpy(batch.target[mine]).to(encode.device), self._name_scores(batch, mine, no_text)
        )
        run = self._in_pieces if self._config.gradient_cache else self._whole
        losses = run(mentions, columns, len(batch.entities), wanted, weight * len(mine) / len(records))
        parts = torch.stack(list(losses.values()))
        values = group.sum(torch.cat([parts.sum()[None], parts]))
        return dict(zip(("loss", *(f"loss_{n}" for n in losses)), values.tolist(), strict=True))

    def left_out(self, records: Rows, step: int) -> tuple[Flags, Flags]:
        """Which mentions of a batch lose their image, and which their text; none that has an image both.

        A function of seed, step and records alone, so that every process and a resumed run agree.
        """
        draw = np.random.default_rng([self._config.seed, step, int(records[0])])
        chance = draw.random(len(records))  # (B,)
        no_image = chance < self._config.drop_images
        no_text = (chance >= 1 - self._config.drop_texts) & (self._encode.corpus.image[records] > 0)
        return no_image, no_text & ~no_image

    def _name_scores(self, batch: Batch, mine: Rows, no_text: Flags) -> Tensor | None:
        """Name scores (b, C) of this process's mentions; 0 where the text is left out."""
        names = self._split.names
        if names is None:
            return None
        scores = among([names[m] for m in batch.mentions[mine]], batch.entities)
        scores[torch.from_numpy(no_text[mine])] = 0
        return scores.to(self._encode.device)

    def _whole(
        self, mentions: Inputs, columns: Inputs, width: int, wanted: Wanted, share: float
    ) -> dict[str, Tensor]:
        """Gradients of ``share`` times the mean loss over these mentions; the losses times ``share``."""
        own = mentions.encoded(self._encode)
        entities = self._group.gather(columns.encoded(self._encode), width)
        return self._scored(own, entities, wanted, share)

    def _in_pieces(
        self, mentions: Inputs, columns: Inputs, width: int, wanted: Wanted, share: float
    ) -> dict[str, Tensor]:
        """As :meth:`_whole`, with what gradients need of one piece in memory at a time."""
        rows = self._config.gradient_cache
        own, others = (PassedTwice(self._encode, side, rows) for side in (mentions, columns))
        gathered = self._group.gather(others.joined(), width)
        entities = Features(*(t.detach().requires_grad_(t.requires_grad) for t in gathered))
        sums: dict[str, Tensor] = {}
        for piece, some in zip(own.features, wanted.pieces(rows), strict=True):
            part = share * len(some.target) / len(wanted.target)
            for name, value in self._scored(piece, entities, some, part).items():
                sums[name] = sums[name] + value if name in sums else value
        for tensor, leaf in zip(gathered, entities, strict=True):
            if leaf.grad is not None:
                tensor.backward(leaf.grad)
        own.backward()
        others.backward()
        return sums

    def _scored(
        self, mentions: Features, entities: Features, wanted: Wanted, share: float
    ) -> dict[str, Tensor]:
        scores = batch_scores(self._encode.model.matcher, mentions, entities)
        losses = unit_consistent_loss(scores, self._config.loss_units, wanted.target)
        if wanted.names is not None:
            losses["names"] = cross_entropy(scores.total.float() + wanted.names, wanted.target)
        (torch.stack(list(losses.values())).sum() * share).backward()
        return {name: value.detach() * share for name, value in losses.items()}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Of b mentions the column of each answer, (b,), and the name scores against all columns, (b, C)."""

    target: Tensor
    names: Tensor | None

    def pieces(self, rows: int) -> Iterator[Wanted]:
        """The same in pieces of at most ``rows`` mentions."""
        targets = self.target.split(rows)
        names = [None] * len(targets) if self.names is None else self.names.split(rows)
        return map(Wanted, targets, names)


@dataclass(frozen=True, slots=True)
class Inputs:
    """One side of a batch to be encoded: R records, their text length, what is left out."""

    records: Rows  # (R,)
    length: int
    without_image: Flags | None = None  # (R,)
    without_text: Flags | None = None  # (R,)

    def __len__(self) -> int:
        return len(self.records)

    def pieces(self, rows: int) -> list[Inputs]:
        """The same in pieces of at most ``rows`` records."""
        return [self._piece(slice(i, i + rows)) for i in range(0, len(self), rows)]

    def encoded(self, encode: RecordEncoder) -> Features:
        """Features of the records."""
        return encode(
            self.records, self.length, without_image=self.without_image, without_text=self.without_text
        )

    def _piece(self, rows: slice) -> Inputs:
        image, text = (None if f is None else f[rows] for f in (self.without_image, self.without_text))
        return replace(self, records=self.records[rows], without_image=image, without_text=text)


class PassedTwice:
    """Features of one side without the graph that made them, and the way back through it, piece by piece.

    Parameters
    ----------
    encode : around the model.
    inputs : the side.
    rows : records of a piece.

    Attributes
    ----------
    features : of each piece, leaves of the graph that follows.
    """

    def __init__(self, encode: RecordEncoder, inputs: Inputs, rows: int) -> None:
        self._encode = encode
        self._pieces = inputs.pieces(rows)
        self._states: list[tuple[Tensor, ...]] = []
        self.features = [self._first(piece) for piece in self._pieces]

    def joined(self) -> Features:
        """Features of all records; gradients go to the pieces."""
        return Features(*(torch.cat(parts) for parts in zip(*self.features, strict=True)))

    def backward(self) -> None:
        """Compute the features once more, and take the gradients that the pieces got to the weights."""
        for piece, leaves, states in zip(self._pieces, self.features, self._states, strict=True):
            with _replayed(states, self._encode.device):
                again = piece.encoded(self._encode)
            pairs = [(t, leaf.grad) for t, leaf in zip(again, leaves, strict=True) if leaf.grad is not None]
            if pairs:
                torch.autograd.backward([t for t, _ in pairs], [grad for _, grad in pairs])

    def _first(self, piece: Inputs) -> Features:
        self._states.append(_random_states(self._encode.device))
        with torch.no_grad():
            features = piece.encoded(self._encode)
        trained = self._encode.trained_features
        return Features(*(t.requires_grad_(on) for t, on in zip(features, trained, strict=True)))


def _random_states(device: torch.device) -> tuple[Tensor, ...]:
    """States of the generators that dropout draws from, on the CPU and the device."""
    on_gpu = (torch.cuda.get_rng_state(device),) if device.type == "cuda" else ()
    return (torch.get_rng_state(), *on_gpu)


@contextmanager
def _replayed(states: tuple[Tensor, ...], device: torch.device) -> Iterator[None]:
    """The generators are in these states inside, and as they were afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.set_rng_state(states[0])
        for state in states[1:]:
            torch.cuda.set_rng_state(state, device)
        yield
