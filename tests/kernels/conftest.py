"""Starts the tests in Triton's interpreter with the session: they take minutes, and a core is mostly idle."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

import pytest

ROOT = Path(__file__).parents[2]
ASKS = "test_the_gpu_kernels_pass_in_the_interpreter"  # the test that waits for them


FOLDERS = ("tests/kernels/interpreted", "tests/gpu/interpreted")


class InterpretedRun:
    """A run of the interpreted tests in a process of its own, behind everything else.

    The interpreter is chosen when Triton is imported, so it cannot be turned on and off in one process.
    """

    def __init__(self) -> None:
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed at the session's end
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *FOLDERS],
            cwd=ROOT,
            env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )
        os.setpriority(os.PRIO_PROCESS, self._process.pid, 5)

    def result(self) -> tuple[int, str]:
        """Wait; the exit status and the end of what it printed."""
        status = self._process.wait()
        self._output.seek(0)
        return status, self._output.read().decode(errors="replace")[-10_000:]

    def stop(self) -> None:
        """End it if it still runs."""
        self._process.kill()
        self._process.wait()
        self._output.close()


RUN = pytest.StashKey[InterpretedRun]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start what a test of this session will ask for."""
    asked = any(item.name == ASKS for item in session.items)
    if asked and not session.config.option.collectonly and importlib.util.find_spec("triton"):
        session.config.stash[RUN] = InterpretedRun()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave nothing behind."""
    if RUN in config.stash:
        config.stash[RUN].stop()


@pytest.fixture
def interpreted_run(request: pytest.FixtureRequest) -> InterpretedRun:
    """The run that was started with the session, or a skip."""
    if RUN not in request.config.stash:
        pytest.skip("Triton is not installed")
    return request.config.stash[RUN]
