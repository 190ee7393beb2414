"""Gradient caching: features of one side of a batch, in pieces, whose gradients are taken in a second pass.

Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory
Limited Setup". Not in the paper of MIMIC: it changes the memory that a batch
takes (one more pass of the encoders), not what is computed. Dropout is repeated
from saved random states. Encoders whose output for a record depends on the rest
of the batch in training (batch statistics) cannot be passed in pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mimic_engine.model.matcher import Features
from mimic_engine.train.encode import RecordEncoder

Rows = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Inputs:
    """What is encoded of one side of a batch: R records, their text length, what is left out."""

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
