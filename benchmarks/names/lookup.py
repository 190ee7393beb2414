"""Lookups of names: the index's own forms beside SQLite's FTS5, tantivy and scipy.sparse.

Every machinery holds the same names and answers the same surfaces (as they are, last words, misspelt). Ours
gives four exact features of every entity that shares something; of the others what is timed is the least
that would have to be asked of them: all names with a word or enough trigrams of the surface, without their
features. ``found`` is the share of surfaces for which the name that is meant is in the answer.
Times are of one thread; ``bytes`` is what lies on the disk, or in memory where nothing lies on the disk.
"""

from __future__ import annotations

import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.names.made_up import make_names, make_surfaces
from mimic_engine.errors import EngineError, MissingDependencyError
from mimic_engine.names.features import LEAST_CHARS, name_features
from mimic_engine.names.forms import FormArrays
from mimic_engine.names.lookup import NameLookup
from mimic_engine.names.text import grams, normal_form, words

SEGMENT_ROWS = 65_536  # of an index, by default
SURFACES = 300
ADDED = 1000  # names of an update, which make a segment of their own
CHECKED = 20  # surfaces whose features are held against the readable twin, over CHECKED_ROWS rows each
CHECKED_ROWS = 200
EXPECTED = (
    "Ours below 1 ms at a million forms where compiled, some milliseconds in NumPy; FTS5, scipy.sparse tens "
    "of milliseconds there, for they read every posting of every trigram; tantivy a few. None gives features."
)


class Machinery(Protocol):
    """Something that holds names and finds those like a surface."""

    size_bytes: int

    def find(self, surface: str) -> Sequence[int]:
        """Numbers of the names that share something with the surface."""

    def add(self, names: Sequence[str]) -> None:
        """Take up more names, with the next numbers."""


class Forms:
    """The index's own lookup."""

    def __init__(self, names: Sequence[str], folder: Path, *, compiled: bool) -> None:  # noqa: ARG002
        parts = [names[i : i + SEGMENT_ROWS] for i in range(0, len(names), SEGMENT_ROWS)]
        self._segments = [FormArrays.of([name] for name in part) for part in parts]
        self._rows, self._compiled = [len(p) for p in parts], compiled
        self.size_bytes = sum(a.nbytes for s in self._segments for a in s.items().values())
        self.lookup = NameLookup(self._segments, self._rows, compiled=compiled)

    def add(self, names: Sequence[str]) -> None:
        """A segment more, and the words of all counted anew, as a change of an index does."""
        self._segments.append(FormArrays.of([name] for name in names))
        self._rows.append(len(names))
        self.lookup = NameLookup(self._segments, self._rows, compiled=self._compiled)

    def find(self, surface: str) -> Sequence[int]:
        """Rows that have a feature."""
        return self.lookup.features(surface).rows.tolist()


class Fts5:
    """SQLite's full text search, one table of words and one of trigrams."""

    def __init__(self, names: Sequence[str], folder: Path) -> None:
        path = folder / "names.sqlite"
        self._db = sqlite3.connect(path)
        self._db.execute("CREATE VIRTUAL TABLE word USING fts5(form, content='', detail=none)")
        self._db.execute(
            "CREATE VIRTUAL TABLE gram USING fts5(form, content='', detail=none, tokenize='trigram')"
        )
        self._count = 0
        self.add(names)
        self.size_bytes = path.stat().st_size

    def add(self, names: Sequence[str]) -> None:
        """Insert and commit."""
        rows = [(i, normal_form(name)) for i, name in enumerate(names, self._count)]
        for table in ("word", "gram"):
            self._db.executemany(f"INSERT INTO {table}(rowid, form) VALUES (?, ?)", rows)
        self._db.commit()
        self._count += len(names)

    def find(self, surface: str) -> Sequence[int]:
        """Names with one of the words, or one of the trigrams."""
        normal = normal_form(surface)
        found: set[int] = set()
        three = {normal[i : i + 3] for i in range(len(normal) - 2)}
        for table, terms in (("word", words(normal)), ("gram", sorted(three))):
            if terms:
                asked = " OR ".join('"' + t.replace('"', '""') + '"' for t in terms)
                found.update(r for (r,) in self._db.execute(f"SELECT rowid FROM {table}(?)", (asked,)))
        return list(found)


class Tantivy:
    """tantivy, a field of words and one of trigrams; the best 1,000 by BM25."""

    def __init__(self, names: Sequence[str], folder: Path) -> None:
        tantivy = _library("tantivy")
        builder = tantivy.SchemaBuilder()
        builder.add_unsigned_field("row", stored=True)
        for field in ("word", "gram"):
            builder.add_text_field(field, tokenizer_name="whitespace", index_option="freq")
        self._index = tantivy.Index(builder.build(), str(folder))
        self._count, self._document = 0, tantivy.Document
        self.add(names)
        self.size_bytes = sum(p.stat().st_size for p in folder.iterdir())

    def add(self, names: Sequence[str]) -> None:
        """Add, commit, merge."""
        writer = self._index.writer(200_000_000, 1)
        for i, name in enumerate(names, self._count):
            normal = normal_form(name)
            writer.add_document(self._document(row=i, word=normal, gram=_gram_text(normal)))
        writer.commit()
        writer.wait_merging_threads()
        self._index.reload()
        self._searcher = self._index.searcher()
        self._count += len(names)

    def find(self, surface: str) -> Sequence[int]:
        """The best 1,000 of those with a word or a trigram."""
        normal = normal_form(surface)
        terms = [f'word:"{w}"' for w in words(normal)] + [f'gram:"{g}"' for g in _gram_text(normal).split()]
        hits = self._searcher.search(self._index.parse_query(" OR ".join(terms)), 1000).hits
        return [self._searcher.doc(address)["row"][0] for _, address in hits]


class Sparse:
    """scikit-learn's hashing vectoriser and a scipy.sparse matrix by columns."""

    def __init__(self, names: Sequence[str], folder: Path) -> None:  # noqa: ARG002
        text = _library("sklearn.feature_extraction.text")
        options = {"n_features": 1 << 20, "norm": None, "alternate_sign": False, "binary": True}
        self._vectorisers = [
            text.HashingVectorizer(analyzer="char_wb", ngram_range=(3, 3), **options),
            text.HashingVectorizer(token_pattern=r"\S+", **options),
        ]
        normal = [normal_form(n) for n in names]
        self._matrices = [v.transform(normal).tocsc() for v in self._vectorisers]
        self._stack = _library("scipy.sparse").vstack
        self.size_bytes = sum(a.nbytes for m in self._matrices for a in (m.data, m.indices, m.indptr))

    def add(self, names: Sequence[str]) -> None:
        """Stack the rows below those that are there."""
        normal = [normal_form(n) for n in names]
        pairs = zip(self._matrices, self._vectorisers, strict=True)
        self._matrices = [self._stack([m, v.transform(normal)], format="csc") for m, v in pairs]

    def find(self, surface: str) -> Sequence[int]:
        """Names with one of the words, or two fifths of the trigrams."""
        found: set[int] = set()
        for vectoriser, matrix, share in zip(self._vectorisers, self._matrices, (0.4, 0.0), strict=True):
            asked = vectoriser.transform([normal_form(surface)]).indices
            hits = np.concatenate([matrix.indices[matrix.indptr[c] : matrix.indptr[c + 1]] for c in asked])
            rows, counts = np.unique(hits, return_counts=True)
            found.update(rows[counts > share * len(asked)].tolist())
        return list(found)


MACHINERY: dict[str, Callable[[Sequence[str], Path], Machinery]] = {
    "forms": lambda names, folder: Forms(names, folder, compiled=True),
    "forms, NumPy": lambda names, folder: Forms(names, folder, compiled=False),
    "fts5": Fts5,
    "tantivy": Tantivy,
    "scipy.sparse": Sparse,
}


def measure(counts: Sequence[int], machinery: Sequence[str]) -> Iterator[dict[str, Any]]:
    """One row a machinery and a number of forms.

    Raises
    ------
    EngineError
        If a feature is not that of the readable twin.
    """
    for count in counts:
        names = make_names(count)
        meant, surfaces = make_surfaces(names, SURFACES)
        for kind in machinery:
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                holds = MACHINERY[kind](names, Path(folder))
                build_s = time.perf_counter() - start
                if isinstance(holds, Forms):
                    check(holds.lookup, names, surfaces)
                row = {"machinery": kind, "forms": count, "bytes": holds.size_bytes, "build_s": build_s}
                row |= _times(holds, surfaces, [names[i] for i in meant], meant)
                start = time.perf_counter()
                holds.add(make_names(ADDED, seed=3))
                yield row | {"update_s": time.perf_counter() - start}


def check(lookup: NameLookup, names: Sequence[str], surfaces: Sequence[str]) -> None:
    """Hold features against the readable twin."""
    rng = np.random.default_rng(2)
    for surface in surfaces[:CHECKED]:
        found = lookup.features(surface)
        got = {int(r): (found.exact[i], found.words[i], found.chars[i]) for i, r in enumerate(found.rows)}
        rows = [*rng.integers(0, len(names), CHECKED_ROWS).tolist(), *list(got)[:CHECKED_ROWS]]
        for row in rows:
            exact, by_words, chars, _ = name_features(surface, "", [names[row]], lookup.idf)
            if not np.allclose(got.get(row, (0, 0, 0)), (exact, by_words, chars), atol=2.0**-22):
                raise EngineError(f"{surface!r} and {names[row]!r}: the lookup gives {got.get(row)}")


def _times(
    holds: Machinery, surfaces: Sequence[str], names: Sequence[str], meant: Sequence[int]
) -> dict[str, Any]:
    """Times of finding each surface, and how many find the name that is meant, where it is like it at all."""
    for surface in surfaces[:10]:
        holds.find(surface)
    times, sizes, hits = [], [], []
    for surface, name, row in zip(surfaces, names, meant, strict=True):
        start = time.perf_counter()
        found = holds.find(surface)
        times.append((time.perf_counter() - start) * 1e6)
        sizes.append(len(found))
        if _alike(surface, name):
            hits.append(row in found)
    return {
        "p50_us": float(np.percentile(times, 50)),
        "p99_us": float(np.percentile(times, 99)),
        "answers": float(np.mean(sizes)),
        "found": float(np.mean(hits)),
    }


def _alike(surface: str, name: str) -> bool:
    """Whether the name has the surface's words, or its trigrams nearly all."""
    ours, theirs = normal_form(surface), normal_form(name)
    if set(ours.split()) <= set(theirs.split()):
        return True
    a, b = grams(ours), grams(theirs)
    return 2 * len(a & b) >= LEAST_CHARS * (len(a) + len(b))


def _gram_text(normal: str) -> str:
    marked = f"_{normal.replace(' ', '_')}_"
    return " ".join(marked[i : i + 3] for i in range(len(marked) - 2))


def _library(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise MissingDependencyError(f"this benchmark needs {name.partition('.')[0]}: {error}") from error
