"""A service as a process of its own: started, awaited, measured from outside, and drained at the end.

:func:`wait_ready` awaits one in this process.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self

from mimic_engine.errors import EngineError

if TYPE_CHECKING:
    from mimic_engine.server.service import LinkService

_READY = re.compile(r"[Rr]eady:? (?:http://[^\s:]+:)?(\d+)")
STOP_S = 60.0


def serve_command(model: Path, index: Path, options: Sequence[str] = ()) -> list[str]:
    """The command of a service on a free port; ``options`` are flags of ``mimic_engine.serve``."""
    return [
        *(sys.executable, "-m", "mimic_engine.serve", "--port", "0"),
        *("--model", str(model), "--index", str(index), *options),
    ]


class ServiceProcess:
    """``with ServiceProcess(command) as service``: it is ready inside, and has stopped with 0 after.

    The command says ``Ready: http://HOST:PORT`` on its standard output once it answers.

    Raises
    ------
    EngineError
        If it ends before it is ready, or with another status than 0; gives the end of its log.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)
        self.address = ""
        self._process: subprocess.Popen[str] | None = None
        self._log: IO[str] | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._log = self._stack.enter_context(tempfile.TemporaryFile("w+"))
        self._process = subprocess.Popen(
            self.command, stdout=subprocess.PIPE, stderr=self._log, text=True, start_new_session=True
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if found := _READY.search(line):
                self.address = f"http://127.0.0.1:{found[1]}"
                return self
        status = self._process.wait(STOP_S)
        with self._stack:
            self._process.stdout.close()
            raise self._failure(f"ended with status {status} before it was ready")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._running
        with self._stack, process:  # leaving closes its pipe
            try:
                process.send_signal(signal.SIGTERM)
                status = process.wait(STOP_S)
            finally:
                process.kill()
            if status and error is None:
                raise self._failure(f"ended with status {status}")

    @property
    def memory_bytes(self) -> int:
        """Resident memory of its own: not what it maps from files."""
        status = Path(f"/proc/{self._running.pid}/status").read_text("utf-8")
        kilobytes = {
            line.partition(":")[0]: line.split()[1] for line in status.splitlines() if line.endswith(" kB")
        }
        return 1024 * (int(kilobytes["RssAnon"]) + int(kilobytes["RssShmem"]))

    @property
    def _running(self) -> subprocess.Popen[str]:
        assert self._process is not None, "not started"
        return self._process

    def _failure(self, what: str) -> EngineError:
        assert self._log is not None
        self._log.seek(0)
        return EngineError(f"the service {what}: {' '.join(self.command)}\n{self._log.read()[-2000:]}")


def wait_ready(service: LinkService, timeout_s: float) -> None:
    """Wait for the warm-up of a service in this process; EngineError if it is not ready then."""
    end = time.monotonic() + timeout_s
    while (reason := service.unready_reason) is not None:
        if time.monotonic() > end:
            raise EngineError(f"the service is not ready after {timeout_s:g} s: {reason}")
        time.sleep(0.01)
