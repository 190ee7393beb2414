"""Changes of an index while it is served: one writer a change, with the model that folded the index."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mimic_engine.backends.encoders import open_featurizer
from mimic_engine.data.images import BrokenImages
from mimic_engine.encoding.featurizer import Featurizer
from mimic_engine.encoding.knowledge_base import KnowledgeBaseFeaturizer
from mimic_engine.index.store import Index
from mimic_engine.index.writer import Change, IndexWriter
from mimic_engine.types import Entity


class IndexChanges:
    """Upserts and deletes in an index folder; for one thread at a time.

    The folder is locked only while a change lasts, so that the command line may change it too. The encoders
    are opened at the first upsert, in the precision of all other entities, whatever mentions are encoded in.
    Images are kept, for people to look at.

    Parameters
    ----------
    model, index : their folders.
    threads : CPU cores for the encoders; all by default.
    """

    def __init__(self, model: Path, index: Path, *, threads: int | None = None) -> None:
        self._model, self._index, self._threads = model, index, threads
        self._opened: tuple[str, Featurizer] | None = None  # and in which precision

    def upsert(self, entities: Sequence[Entity]) -> Change:
        """Add or replace entities.

        Raises
        ------
        DataError
            If an entity cannot be stored, or its image is broken.
        IndexLockedError, IndexWriteError
            If somebody else is changing the index; if the files cannot be written.
        """
        index = Index.open(self._index, verify=False)
        source = KnowledgeBaseFeaturizer(self._featurizer(index), BrokenImages("error"))
        with IndexWriter(index, source, keep_images=True) as writer:
            return writer.upsert(entities)

    def delete(self, ids: Sequence[str]) -> Change:
        """Delete entities.

        Raises
        ------
        UnknownEntityError
            If the index does not hold one of the ids.
        InvalidInputError
            If none would be left.
        IndexLockedError, IndexWriteError
            As in :meth:`upsert`.
        """
        with IndexWriter(Index.open(self._index, verify=False)) as writer:
            return writer.delete(ids)

    def _featurizer(self, index: Index) -> Featurizer:
        precision = str(index.manifest.extra.get("precision", "fp32"))
        if self._opened is None or self._opened[0] != precision:
            self._opened = precision, open_featurizer(self._model, precision=precision, threads=self._threads)
        return self._opened[1]
