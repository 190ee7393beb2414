"""What the compiled passes refuse, by name; and an installation that has none."""

import subprocess
import sys

import numpy as np
import pytest

from mimic_engine.errors import InvalidInputError, MissingDependencyError
from tests.scan.arrays import Pairs, Shape
from tests.scan.compiled import changed, compiled, kernels


def wrong_inputs():
    pairs = Pairs(Shape(mentions=2, entities=9, mention_tokens=3, entity_tokens=4, width=8, text=5))
    e, m = pairs.entities, pairs.mentions
    out = np.empty((2, 9), np.float32)
    yield "missing", pairs, m, changed(e, cmfu=None), slice(None), out, "cmfu: missing"
    yield "width", pairs, m, changed(e, cmfu=e.cmfu[:, :7].copy()), slice(None), out, r"cmfu: shape \(9, 7\)"
    yield "rows", pairs, m, changed(e, cmfu=e.cmfu[:8]), slice(None), out, r"cmfu: shape \(8, 8\)"
    yield (
        "dtype",
        pairs,
        m,
        changed(e, tglu_cls=e.tglu_cls.astype(np.float64)),
        slice(None),
        out,
        "tglu_cls: .*dtype",
    )
    yield (
        "scale",
        pairs,
        m,
        changed(e, tglu_query=e.tglu_query.astype(np.int8)),
        slice(None),
        out,
        "tglu_query_scale",
    )
    yield (
        "order",
        pairs,
        m,
        changed(e, cmfu=np.asfortranarray(e.cmfu)),
        slice(None),
        out,
        "cmfu: not contiguous",
    )
    yield "text", pairs, changed(m, text_cls=m.text_cls[:, :4].copy()), e, slice(None), out, "text_cls: shape"
    yield (
        "tokens",
        pairs,
        changed(m, tglu_value=m.tglu_value[:, :2].copy()),
        e,
        slice(None),
        out,
        "tglu_value: shape",
    )
    yield "half", pairs, changed(m, cmfu=m.cmfu.astype(np.float16)), e, slice(None), out, "cmfu: .*dtype"
    long = np.zeros((2, 129, 8), np.float32)
    yield (
        "long",
        pairs,
        changed(m, tglu_key=long, tglu_value=long),
        e,
        slice(None),
        out,
        "tglu_key: 129 tokens",
    )
    yield "step", pairs, m, e, slice(0, 9, 2), out, "rows: a slice of step 2"
    yield "beyond", pairs, m, e, np.array([0, 9]), out[:, :2], "rows: number 9"
    yield "negative", pairs, m, e, np.array([-1]), out[:, :1], "rows: number -1"
    yield "shape", pairs, m, e, slice(0, 8), out, r"out: shape \(2, 9\)"
    yield "double", pairs, m, e, slice(None), out.astype(np.float64), "out: its dtype"
    yield "strided", pairs, m, e, slice(None), np.empty((2, 18), np.float32)[:, ::2], "out: its last axis"


@compiled
@pytest.mark.parametrize(
    ("pairs", "mentions", "entities", "rows", "out", "message"),
    [pytest.param(*case, id=name) for name, *case in wrong_inputs()],
)
def test_wrong_input_is_refused_by_name(pairs, mentions, entities, rows, out, message):
    k = kernels(pairs, None)
    with pytest.raises(InvalidInputError, match=message):
        k.totals(k.prepare(mentions), entities, rows, out)


@compiled
def test_wrong_codes_and_options_are_refused():
    pairs = Pairs(Shape(mentions=1, entities=3, mention_tokens=3, entity_tokens=4, width=8, text=5))
    k = kernels(pairs, None)
    centroids, out = np.zeros((5, 8), np.float32), np.empty((1, 3), np.float32)
    prepared = k.prepare(pairs.mentions, centroids)
    for codes, message in (
        (np.full((3, 4), 5, np.uint8), "codes: one is not below"),
        (np.zeros((3, 5), np.uint8), "codes: not a contiguous"),
        (np.zeros((3, 4), np.int32), "codes: dtype"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            k.estimates(prepared, pairs.entities, codes, slice(None), out)
    with pytest.raises(InvalidInputError, match="centroids"):
        k.estimates(k.prepare(pairs.mentions), pairs.entities, np.zeros((3, 4), np.uint8), slice(None), out)
    with pytest.raises(InvalidInputError, match="centroids: shape"):
        k.prepare(pairs.mentions, centroids[:, :7].copy())
    for row in (-1, 1):
        with pytest.raises(InvalidInputError, match=f"rows: number {row} is not within 1 mentions"):
            k.take(prepared, [row])
    with pytest.raises(InvalidInputError, match="isa: 'sse9'"):
        kernels(pairs, "sse9")
    with pytest.raises(InvalidInputError, match="sweeps: must be at least 1"):
        kernels(pairs, None, sweeps=0)


def test_an_installation_without_kernels_says_what_to_do():
    code = (
        "import sys; sys.modules['mimic_engine.kernels._cpu'] = None\n"
        "from mimic_engine.errors import MissingDependencyError\n"
        "from mimic_engine.scan.cpu import CpuKernels\n"
        "from mimic_engine.types import FoldConstants\n"
        "assert not CpuKernels.available()\n"
        "try: CpuKernels(FoldConstants(8, ('cmfu',)))\n"
        "except MissingDependencyError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "MIMIC_BUILD_KERNELS=require" in done.stdout
    assert issubclass(MissingDependencyError, ImportError)
