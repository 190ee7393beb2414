"""The compiled kernels over drawn arrays, on every instruction set of this processor."""

import pytest

from mimic_engine.scan.cpu import CpuKernels

SETS = CpuKernels.instruction_sets() if CpuKernels.available() else ("none",)
compiled = pytest.mark.skipif(
    SETS == ("none",), reason="no compiled kernels here: python hatch_build.py makes them"
)
every_set = pytest.mark.parametrize("isa", SETS)


def kernels(pairs, isa, **options):
    return CpuKernels(pairs.constants, isa, **options)


def changed(arrays, **values):
    return type(arrays)(**(dict(arrays.items()) | values))
