"""Terms on the device: the bits of those that the CPU's scan adds, block by block and row by row."""

import numpy as np
import pytest
import torch

from mimic_engine.gpu.terms import NO_ROW, DeviceTerms, write_names
from mimic_engine.scan.terms import NameScores, ScoreTerms

ENTITIES, MENTIONS = 90, 4
PRIOR = np.random.default_rng(1).normal(0, 2, ENTITIES).astype(np.float32)
CPU = torch.device("cpu")


def names_of(*counts, entities=ENTITIES, size=3.0, seed=0):
    """Name scores of as many mentions as counts."""
    rng = np.random.default_rng(seed)
    rows = [np.sort(rng.choice(entities, count, replace=False)) for count in counts]
    return [NameScores(r.astype(np.int64), (size * rng.random(len(r))).astype(np.float32)) for r in rows]


def terms_of(counts, prior):
    """The terms on the device and on the host."""
    names = names_of(*counts)
    on_device = DeviceTerms.of(names, None if prior is None else torch.from_numpy(prior), 9.0, CPU)
    return on_device, ScoreTerms(prior, 3.0).of(names, len(names))


@pytest.mark.parametrize("prior", [None, PRIOR], ids=["names", "prior"])
@pytest.mark.parametrize("counts", [(7, 0, 90, 1), (0, 0, 0, 0)])
@pytest.mark.parametrize("block", [1, 25, 90])
def test_blocks_get_what_is_added_to_all_rows(prior, counts, block):
    on_device, on_host = terms_of(counts, prior)
    scores = np.random.default_rng(2).normal(size=(MENTIONS, ENTITIES)).astype(np.float32)
    found = torch.from_numpy(scores.copy())
    for start in range(0, ENTITIES, block):
        on_device.add_to_block(found[:, start : start + block], start)
    for row, own in zip(scores, on_host, strict=True):
        own.add_to_all(row)
    np.testing.assert_array_equal(found, scores)


@pytest.mark.parametrize("prior", [None, PRIOR], ids=["names", "prior"])
def test_listed_rows_get_their_own(prior):
    on_device, on_host = terms_of((7, 0, 90, 1), prior)
    rng = np.random.default_rng(3)
    rows = rng.integers(0, ENTITIES, (MENTIONS, 33))
    scores = rng.normal(size=rows.shape).astype(np.float32)
    found = torch.from_numpy(scores.copy())
    on_device.add_to_listed(found, torch.from_numpy(rows.astype(np.int32)))
    for row, own, listed in zip(scores, on_host, rows, strict=True):
        own.add_to(row, listed)
    np.testing.assert_array_equal(found, scores)


def test_what_stands_for_no_row_reaches_no_other():
    on_device, _ = terms_of((7, 0, 90, 1), PRIOR)
    rows = torch.tensor([[-(2**31), -1, ENTITIES, NO_ROW]] * MENTIONS, dtype=torch.int32)
    on_device.add_to_listed(torch.zeros(rows.shape), rows)  # nothing is read outside of the terms


def test_names_are_padded():
    rows, scores = np.empty((2, 3), np.int32), np.empty((2, 3), np.float32)
    write_names([NameScores(np.array([4, 8]), np.array([1.5, 2.5], np.float32)), *names_of(0)], rows, scores)
    assert rows.tolist() == [[4, 8, NO_ROW], [NO_ROW] * 3]
    assert scores.tolist() == [[1.5, 2.5, 0], [0, 0, 0]]
