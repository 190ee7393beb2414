"""Whether a linker's requests stay on the GPU: chosen once, when it is opened.

The chain needs torch and Triton; they are imported when its encoders run on a GPU and not before.
"""

from __future__ import annotations

import logging
from pathlib import Path

from mimic_engine.backends.scan import INSTALL
from mimic_engine.engine.linker import GPU_BACKENDS, Linker
from mimic_engine.errors import (
    BackendError,
    EngineError,
    InvalidInputError,
    MissingDependencyError,
    ModelError,
)
from mimic_engine.types import CHAINS, ChainChoice

logger = logging.getLogger(__name__)


def choose_chain(
    linker: Linker,
    model: str | Path,
    choice: ChainChoice,
    *,
    precision: str = "fp32",
    engines: str | Path | None = None,
) -> Linker:
    """A chain on the GPU over the linker's parts, or the linker itself.

    Parameters
    ----------
    linker : as it was opened; a chain takes its place.
    model, precision, engines : that it was opened with.
    choice : "on", "off", or "auto": a chain where the encoders and the scan are on the GPU, no
        mentions are remembered, and it can be opened; the log says why else.

    Raises
    ------
    InvalidInputError
        If the choice is none of these.
    BackendError, MissingDependencyError, ModelError, EngineError
        If the choice is "on" and there can be no chain.
    """
    if choice not in CHAINS:
        raise InvalidInputError(f"chain: {choice!r} is not one of {', '.join(CHAINS)}", field="chain")
    if choice == "off":
        return linker
    try:
        return _chained(linker, Path(model), precision, engines)
    except (BackendError, MissingDependencyError, ModelError, EngineError) as error:
        if choice == "on":
            raise
        logger.info("passed over: %s", error)
        return linker


def _chained(linker: Linker, model: Path, precision: str, engines: str | Path | None) -> Linker:
    backend = linker.featurizer.backend
    if backend not in GPU_BACKENDS:
        raise BackendError(f"chain: the encoders run on {backend!r}, not on {' or '.join(GPU_BACKENDS)}")
    if linker.cache is not None:
        raise BackendError("chain: mentions are remembered on the host; mention_cache_bytes=0 keeps none")
    try:
        from mimic_engine.engine.gpu_open import chain_over
    except ImportError as error:
        raise MissingDependencyError(f"chain: it needs torch and Triton ({error}): {INSTALL}") from error
    return chain_over(linker, model, precision=precision, engines=engines)
