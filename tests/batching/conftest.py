"""Batchers that are closed when the test is over."""

import pytest

from mimic_engine.batching.batcher import Batcher
from tests.batching.device import Device, wait_ready


@pytest.fixture
def make():
    made = []

    def start(run, limits=None, **options):
        batcher = Batcher(run, limits, **options)
        made.append((batcher, run))
        assert "warm_up" in options or wait_ready(batcher, 10)
        return batcher

    yield start
    for batcher, run in made:
        if isinstance(run, Device):
            run.open()
        assert batcher.close(10)
