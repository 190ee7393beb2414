"""Whether requests stay on the GPU from tokens to results: decided once, when a linker is opened.

The GPU scan needs torch and Triton; they are imported when the encoders run on a GPU and not before.
"""

from __future__ import annotations

import logging

from mimic_engine.backends.encoders import GPU_BACKENDS
from mimic_engine.backends.scan import INSTALL
from mimic_engine.encoding.cache import CachingFeaturizer
from mimic_engine.encoding.featurizer import Featurizer
from mimic_engine.errors import BackendError, InvalidInputError, MissingDependencyError
from mimic_engine.scan.ranker import Ranker
from mimic_engine.types import CHAINS, ChainChoice

logger = logging.getLogger(__name__)


def takes_pipeline(choice: ChainChoice, featurizer: Featurizer, scan: Ranker) -> bool:
    """Whether requests go through the GPU pipeline.

    Parameters
    ----------
    choice : "on", "off", or "auto": where the encoders and the scan are on the GPU and no mentions are
        remembered; the log says why else.
    featurizer, scan : as they were opened.

    Raises
    ------
    InvalidInputError
        If the choice is none of these.
    BackendError, MissingDependencyError
        If the choice is "on" and something stands in the way.
    """
    if choice not in CHAINS:
        raise InvalidInputError(f"chain: {choice!r} is not one of {', '.join(CHAINS)}", field="chain")
    if choice == "off":
        return False
    try:
        _check(featurizer, scan)
    except (BackendError, MissingDependencyError) as error:
        if choice == "on":
            raise
        logger.info("passed over: %s", error)
        return False
    return True


def _check(featurizer: Featurizer, scan: Ranker) -> None:
    if featurizer.backend not in GPU_BACKENDS:
        name = featurizer.backend
        raise BackendError(f"chain: the encoders run on {name!r}, not on {' or '.join(GPU_BACKENDS)}")
    if isinstance(featurizer, CachingFeaturizer):
        raise BackendError("chain: mentions are remembered on the host; mention_cache_bytes=0 keeps none")
    try:
        from mimic_engine.gpu.scan import CudaScan
    except ImportError as error:
        raise MissingDependencyError(f"chain: it needs torch and Triton ({error}): {INSTALL}") from error
    if not isinstance(scan, CudaScan):
        raise BackendError(f"chain: the scan runs on {scan.scorer_name!r}, not on the GPU")
