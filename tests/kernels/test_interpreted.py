"""The tests of the GPU kernels in Triton's interpreter; conftest.py starts them in a process of their own."""

import pytest


@pytest.mark.timeout(900)
def test_the_gpu_kernels_pass_in_the_interpreter(interpreted_run):
    status, output = interpreted_run.result()
    assert status == 0, output
    assert " passed" in output
