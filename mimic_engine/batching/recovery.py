"""Recovery of a failed device: how often to try, how long to wait between, and when only a restart helps.

The thread that does it, and who is told meanwhile, are the matter of :mod:`mimic_engine.batching.batcher`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from mimic_engine.device_errors import device_error
from mimic_engine.errors import DeviceLostError, InvalidInputError

LONGEST_DELAY_S = 30.0
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recovery:
    """Attempts to take a device up anew after an error.

    ``rebuild`` does it or raises; it runs at once, and after a failure again, ``delay_s`` later,
    then twice as long and so on, ``attempts`` times in all.
    """

    rebuild: Callable[[], None]
    attempts: int = 5
    delay_s: float = 0.5

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise InvalidInputError(f"attempts: must be at least 1, got {self.attempts}")
        if self.delay_s < 0:
            raise InvalidInputError(f"delay_s: must be at least 0, got {self.delay_s}")

    def run(self, wait: Callable[[float], bool]) -> bool:
        """Try until the device is back; False if ``wait`` (seconds) said that nobody needs it any more.

        Raises
        ------
        DeviceLostError
            If the context is broken, or every attempt failed: only a new process helps.
        """
        for attempt in range(self.attempts):
            if attempt and not wait(min(LONGEST_DELAY_S, self.delay_s * 2 ** (attempt - 1))):
                return False
            start = time.monotonic()
            try:
                self.rebuild()
            except Exception as error:
                fault = device_error("recovery", error)
                if isinstance(fault, DeviceLostError):
                    raise fault from error
                logger.warning("recovery %d of %d failed: %s", attempt + 1, self.attempts, error)
                failure = error
            else:
                logger.warning("the device is back after %.1f s", time.monotonic() - start)
                return True
        raise DeviceLostError(
            f"the device did not come back in {self.attempts} attempts", reason="it did not come back"
        ) from failure
