"""A linker whose requests stay on the GPU, in the place of one whose parts are there. No torch unless so."""

from __future__ import annotations

from mimic_engine.backends.pipeline import takes_pipeline
from mimic_engine.engine.linker import Linker
from mimic_engine.types import ChainChoice


def choose_pipeline(linker: Linker, choice: ChainChoice) -> Linker:
    """A linker over the GPU pipeline and the linker's parts, or the linker itself.

    Parameters
    ----------
    linker : as it was opened; what is returned takes its place.
    choice : as of :func:`~mimic_engine.backends.pipeline.takes_pipeline`, with its errors.
    """
    if not takes_pipeline(choice, linker.featurizer, linker._scan):
        return linker
    from mimic_engine.engine.gpu_linker import GpuLinker

    return GpuLinker.over(linker)
