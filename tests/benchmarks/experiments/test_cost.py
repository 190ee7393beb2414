"""Counts of cost against counts by hand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.experiments.cost import (
    count_cost,
    fold_multiply_adds,
    index_bytes_per_entity,
    pair_multiply_adds,
    used_parameters,
)
from mimic_engine.train.run import _read, build_trainer

L, D, T, G, P = 12, 96, 32, 24, 5  # tokens, width, text width, image width, patches
TEXT = {"vision": "off", "cmfu": False}


def _encode(config):
    config.out.mkdir(parents=True, exist_ok=True)
    return build_trainer(config, _read(config), "cpu")._encode


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


NORM = 2 * D
DUAL = 3 * _linear(D, D) + _linear(D, 1) + 2 * NORM
PROJECTIONS = {"cls": _linear(G, D), "tokens": _linear(G, D)}


@pytest.mark.parametrize(
    ("change", "parameters"),
    [
        (TEXT, 2 * 2 * T + 4 * _linear(T, D) + NORM),
        ({"tglu": False, "cmfu": False}, 2 * _linear(G, D) + 2 * NORM + 2 * DUAL),
        (
            {"tglu": False, "vision": "off"},  # CMFU: global text and patches alone
            2 * T + NORM + PROJECTIONS["tokens"] + _linear(T, D) + _linear(D, D) + _linear(D, 1) + NORM,
        ),
        (
            {"tglu": False, "vision": "concat", "cmfu": False},
            2 * T + NORM + PROJECTIONS["cls"] + _linear(T + D, D),
        ),
    ],
)
def test_parameters_are_those_that_the_score_depends_on(options, change, parameters):
    assert used_parameters(_encode(options(**change))) == parameters


@pytest.mark.parametrize(
    ("change", "pair", "fold"),
    [
        (TEXT, L * L * D + L * D + T, L * T * D + T * D),  # fold: queries, fc_cls
        (TEXT | {"mask_padding": True}, L * L * D + L * L + L * D + T, None),
        ({"tglu": False, "cmfu": False}, 2 * 5 * D, None),
        ({"tglu": False, "vision": "off"}, D, None),
        ({"tglu": False, "vision": "concat", "cmfu": False}, D, G * D + P * G * D + (T + D) * D),
    ],
)
def test_multiply_adds(options, change, pair, fold):
    encode = _encode(options(**change))
    assert pair_multiply_adds(encode) == pair
    if fold is not None:
        assert fold_multiply_adds(encode.model, encode) == fold


def test_index_bytes(options):
    assert index_bytes_per_entity(_encode(options(**TEXT))) == 2 * (T + L * D + D) + 4
    masked = _encode(options(**TEXT, mask_padding=True))
    assert index_bytes_per_entity(masked) == 2 * (T + L * D + D) + 4 + 4 * L


def test_counting_leaves_the_model_as_it_is(options):
    encode = _encode(options())
    before = {n: p.detach().clone() for n, p in encode.model.named_parameters()}
    cost = count_cost(encode).to_json()
    assert set(cost) == {"parameters", "pair_multiply_adds", "fold_multiply_adds", "index_bytes_per_entity"}
    assert all(
        p.grad is None and np.array_equal(p.detach(), before[n]) for n, p in encode.model.named_parameters()
    )
