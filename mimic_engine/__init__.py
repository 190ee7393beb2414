"""Multimodal entity linking with MIMIC: open a model and an index, link mentions.

>>> from mimic_engine import Linker, Mention          # doctest: +SKIP
>>> linker = Linker.open("model/", "index/")          # doctest: +SKIP
>>> linker.link([Mention("Jordan", "Jordan lies east of Israel.")], top_k=3)  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mimic_engine._version import __version__
from mimic_engine.types import Candidate, Entity, LinkResult, Mention

if TYPE_CHECKING:
    from mimic_engine.engine.linker import Linker
    from mimic_engine.index.store import Index
    from mimic_engine.index.writer import IndexWriter

__all__ = ["Candidate", "Entity", "Index", "IndexWriter", "LinkResult", "Linker", "Mention", "__version__"]

_LAZY = {
    "Linker": "mimic_engine.engine.linker",
    "Index": "mimic_engine.index.store",
    "IndexWriter": "mimic_engine.index.writer",
}


def __getattr__(name: str) -> Any:
    """Import the heavier public names on first use, so that ``import mimic_engine`` stays light."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'mimic_engine' has no attribute {name!r}")
