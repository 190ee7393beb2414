"""The GPU scan and what is above it, kernels and all, on the CPU: in Triton's interpreter.

``tests/kernels/test_interpreted.py`` runs these tests in a process of their own.
"""

import os

import pytest

from tests.kernels.interpreted.fixtures import make_folded, sorted_topk

__all__ = ["make_folded", "sorted_topk"]
collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]


@pytest.fixture
def little_room(monkeypatch):
    """Buffers of the scan so small that its second passes run."""
    from mimic_engine.gpu import passes

    monkeypatch.setattr(passes, "LEAST_SURVIVORS", 16)
    monkeypatch.setattr(passes, "FIRST", 16)
