"""The engine's own scan over the entities of a corpus, under a model that may be in training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mimic_engine.model.fold import fold_constants
from mimic_engine.scan.base import ScanKernels
from mimic_engine.scan.blocks import BlockKernels
from mimic_engine.scan.cpu import CpuKernels
from mimic_engine.scan.scan import Scan
from mimic_engine.scan.torch import TorchScorer
from mimic_engine.train.encode import RecordEncoder, fold_entities
from mimic_engine.train.names import TERMS
from mimic_engine.types import FoldConstants


@contextmanager
def entity_scan(encode: RecordEncoder, batch_size: int, threads: int | None = None) -> Iterator[Scan]:
    """Fold all entities of the corpus, ``batch_size`` at a time, and scan them; about 19 KB an entity.

    Entities of equal scores are ordered by id, as the engine orders those of an index.

    PyTorch's threads are put down to one meanwhile: the scan spreads its blocks over ``threads`` of its
    own, by default as many as PyTorch had.
    """
    entities = fold_entities(encode, encode.corpus.entities, batch_size)
    before = torch.get_num_threads()
    kernels = kernels_for(fold_constants(encode.model.matcher), str(encode.device))
    torch.set_num_threads(1)
    ids = encode.corpus.ids
    scan = Scan(
        [entities],
        kernels,
        threads=threads or before,
        tie_key=lambda rows: [ids[row] for row in rows],
        terms=TERMS,
    )
    try:
        yield scan
    finally:
        scan.close()
        torch.set_num_threads(before)


def kernels_for(constants: FoldConstants, device: str) -> ScanKernels:
    """Compiled kernels where they are installed and the model is on the CPU, else PyTorch on ``device``."""
    if device == "cpu" and CpuKernels.available():
        return CpuKernels(constants)
    return BlockKernels(TorchScorer(constants, device), constants)
