"""Arrays in one piece of memory: none overlaps, each is aligned, too little memory is refused."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimic_engine.errors import InvalidInputError
from mimic_engine.gpu.layout import ALIGNMENT, Layout

shapes = st.lists(st.integers(0, 7), max_size=3).map(tuple)
specs = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3),
    st.tuples(shapes, st.sampled_from(["uint8", "int32", "int64", "float32"])),
    max_size=6,
)


@given(specs)
def test_arrays_are_apart_and_aligned(arrays):
    layout = Layout(arrays)
    fields = list(layout.fields.values())
    assert list(layout.fields) == list(arrays)
    assert all(f.offset % ALIGNMENT == 0 for f in fields)
    assert all(a.offset + a.size_bytes <= b.offset for a, b in itertools.pairwise(fields))
    memory = np.zeros(layout.size_bytes, np.uint8)
    views = layout.views(memory)
    for number, (name, view) in enumerate(views.items(), start=1):
        assert (view.shape, view.dtype) == (arrays[name][0], np.dtype(arrays[name][1]))
        view[...] = number
    for number, view in enumerate(views.values(), start=1):
        assert (view == number).all()  # none has written to another


def test_memory_that_is_too_small_is_refused():
    layout = Layout({"a": ((3, 5), np.float32), "b": ((1,), np.int64)})
    assert layout.size_bytes == 512
    with pytest.raises(InvalidInputError, match="511 bytes, the arrays take 512"):
        layout.views(np.zeros(511, np.uint8))
