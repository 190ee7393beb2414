"""Several processes under torchrun: who encodes which rows of a global batch, and what is exchanged.

The batch of ``--batch-size`` mentions is global. Each process encodes its share
of the mentions and of the entity columns; entity features are gathered with
their gradients, so every mention meets every column, and the loss is that of
one process with the same batch. Gradients are summed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mimic_engine.model.units import Features
from mimic_engine.train.corpus import Rows

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Group:
    """One process among ``world``; alone, it exchanges nothing."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def main(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    def share(self, rows: Rows) -> Rows:
        """Rows that this process encodes: an equal part, the last ones filled up with the first row."""
        if self.world == 1:
            return rows
        each = -(-len(rows) // self.world)
        padded = np.concatenate([rows, np.repeat(rows[:1], each * self.world - len(rows))])
        return padded[self.rank * each : (self.rank + 1) * each]

    def gather(self, features: Features, rows: int) -> Features:
        """The features of all ``rows`` rows from every process's :meth:`share`, with gradients."""
        if self.world == 1:
            return features
        return Features(*(_gather(t)[:rows] for t in features))

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of all processes; a parameter without one counts as zero."""
        if self.world == 1:
            return
        trained = [p for p in parameters if p.requires_grad]
        flat = torch.cat(
            [(p.grad if p.grad is not None else torch.zeros_like(p)).reshape(-1) for p in trained]
        )
        dist.all_reduce(flat)
        for p, part in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
            p.grad = part.view_as(p)

    def sum(self, values: Tensor) -> Tensor:
        """Sum of a tensor over all processes."""
        if self.world > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def main_first(self, action: Callable[[], None]) -> None:
        """Run ``action`` in the main process, then in the others (which find its files)."""
        if self.main:
            action()
        if self.world > 1:
            dist.barrier()
        if not self.main:
            action()

    def from_main(self, value: T) -> T:
        """The main process's number or array, in every process."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


def join_group(device: str) -> Group:
    """Join the group that torchrun set up, or be alone; the caller ends it with :func:`leave_group`."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Group()
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return Group(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))


def leave_group(group: Group) -> None:
    """Undo :func:`join_group`."""
    if group.world > 1:
        dist.destroy_process_group()


class _GatherRows(torch.autograd.Function):
    """All-gather along the first axis; the gradient of each process's rows is summed over the processes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:  # noqa: ARG004
        """(R, ...) of this process to (world * R, ...)."""
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ARG004
        """Gradient of this process's rows."""
        grad = grad.contiguous()
        dist.all_reduce(grad)
        each = grad.shape[0] // dist.get_world_size()
        return grad[dist.get_rank() * each : (dist.get_rank() + 1) * each]


def _gather(rows: Tensor) -> Tensor:
    return _GatherRows.apply(rows)  # type: ignore[no-untyped-call]
