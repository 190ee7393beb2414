"""Damaged and hostile ``names.safetensors``: refused with an error that names it, or harmless to a lookup."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mimic_engine.errors import IndexFormatError
from mimic_engine.index.arrays import read_array_file, write_array_file
from mimic_engine.index.build import build_index
from mimic_engine.index.manifest import FileRecord, read_manifest, write_manifest
from mimic_engine.index.store import Index
from mimic_engine.types import Entity
from tests.index.tiny import HashFold

FILE = "segments/00000/names.safetensors"
NAMES = ("Jordan", "Michael Jordan", "the river", "Ünï", "東京都", "a b c", "a b")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("names") / "kb"
    entities = [Entity(f"Q{i}", NAMES[i % 7], aliases=(f"Alias {i % 3}", f"a{i} x")) for i in range(20)]
    build_index(HashFold(), lambda: entities, out, progress=False)
    return out


@pytest.fixture
def index(pristine, tmp_path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "kb"))


def change(index: Path, name: str, value) -> None:
    """Replace an array, or drop it; the manifest agrees with what comes of it."""
    arrays = {n: a.copy() for n, a in read_array_file(index / FILE).items()}
    if value is None:
        del arrays[name]
    else:
        arrays[name] = value(arrays.get(name)) if callable(value) else value
    write_array_file(index / FILE, arrays)
    sign(index)


def sign(index: Path) -> None:
    manifest, file = read_manifest(index), index / FILE
    first = manifest.segments[0]
    files = dict(first.files) | {file.name: FileRecord.of(file)}
    write_manifest(index, replace(manifest, segments=(replace(first, files=files),)))


def refused(index: Path, *, verify: bool) -> str:
    with pytest.raises(IndexFormatError) as caught:
        Index.open(index, verify=verify)
    assert str(index / FILE) in str(caught.value)
    return str(caught.value)


def with_entry(at: int, value: int):
    def changed(array: np.ndarray) -> np.ndarray:
        array[at] = value
        return array

    return changed


def swapped(a: int, b: int):
    def changed(array: np.ndarray) -> np.ndarray:
        array[[a, b]] = array[[b, a]]
        return array

    return changed


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("form_row", None, "expected"),
        ("more", np.zeros(3, np.uint8), "expected"),
        ("form_row", lambda a: a.astype(np.uint64), "array form_row: uint64"),
        ("text", lambda a: a.reshape(1, -1), "of one axis"),
        ("gram_count", lambda a: a.astype(np.uint32), "array gram_count: uint32"),
        *((n, lambda a: a[:-1], "entries, expected") for n in ("sorted_form", "gram_count", "text_offset")),
        *(
            (n, lambda a: a[:-1], "expected|runs from")
            for n in ("word_offset", "posting_offset", "form_word")
        ),
        *((n, lambda a: a[:-1], "expected|runs from") for n in ("word_hash", "gram_code", "gram_offset")),
        *((n, lambda a: a[:-1], "expected|runs from") for n in ("posting", "gram_posting", "text")),
        *(
            (n, with_entry(-1, 2**63), "runs from")
            for n in ("text_offset", "word_offset", "posting_offset", "gram_offset")
        ),
        ("text_offset", with_entry(0, 1), "runs from 1"),
        ("word_offset", with_entry(1, 0), "does not ascend"),
        ("word_offset", with_entry(1, 2**63), "does not ascend"),
        ("text_offset", lambda a: a[:0], "entries, expected"),
    ],
)
def test_shapes_and_types_are_always_checked(index, verify, name, value, fault):
    change(index, name, value)
    assert re.search(fault, refused(index, verify=verify))


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("form_row", with_entry(-1, 20), "20 is not under 20"),
        ("form_row", swapped(0, -1), "does not ascend"),
        ("sorted_form", with_entry(3, 10**6), "is not under"),
        ("sorted_form", swapped(0, -1), "is not the order"),
        ("sorted_form", lambda a: np.full_like(a, a[0]), "is not the order"),
        ("form_word", with_entry(0, 2**32 - 1), "is not under"),
        ("posting", with_entry(0, 2**32 - 1), "is not under"),
        ("posting", lambda a: np.zeros_like(a), "does not ascend"),
        ("gram_posting", with_entry(-1, 2**32 - 1), "is not under"),
        ("gram_posting", lambda a: np.zeros_like(a), "does not ascend"),
        ("word_hash", swapped(0, -1), "does not ascend"),
        ("word_hash", lambda a: np.full_like(a, a[0]), "does not ascend"),
        ("gram_code", swapped(0, 1), "does not ascend"),
        ("text_offset", with_entry(1, 2**63), "does not ascend"),
        ("posting_offset", with_entry(1, 2**64 - 1), "does not ascend"),
        ("gram_offset", swapped(1, 2), "does not ascend"),
        ("text", lambda a: np.full_like(a, 0xFF), "utf-8"),
    ],
)
def test_entries_outside_and_out_of_order(index, name, value, fault):
    change(index, name, value)
    assert fault in refused(index, verify=True)


def test_a_form_that_begins_within_a_character(index):
    arrays = read_array_file(index / FILE)
    form = next(i for i, at in enumerate(arrays["text_offset"].tolist()) if arrays["text"][at] >= 0xE0)
    change(index, "text_offset", with_entry(form, int(arrays["text_offset"][form]) + 1))
    assert "within a character" in refused(index, verify=True)


SEARCH = """
import random, sys
import numpy as np
from mimic_engine.index.arrays import read_array_file
from mimic_engine.names.forms import FormArrays
from mimic_engine.names.lookup import NameLookup
whole = read_array_file(__import__("pathlib").Path(sys.argv[1]))
rng, survived = random.Random(1), 0
for _ in range(1500):
    arrays = {n: a.copy() for n, a in whole.items()}
    for _ in range(rng.choice((1, 3))):
        name = rng.choice(sorted(set(arrays) - {"text"}))
        array, top = arrays[name], np.iinfo(arrays[name].dtype).max
        array[rng.randrange(len(array))] = rng.choice((0, 1, len(array), top, rng.randrange(int(top))))
    alive = np.arange(20) % 3 > 0 if rng.random() < 0.5 else None
    try:
        lookup = NameLookup([FormArrays.read(arrays, 20, verify=False)], [20], alive)
        for text in ("Michael Jordan", "Alias 1", "a b c", "東京都"):
            lookup.find(text, 5)
            rows = lookup.features(text, "the river").rows
            assert len(rows) == 0 or 0 <= rows.min() <= rows.max() < 20
        survived += 1
    except (ValueError, IndexError):
        pass
print(survived)
"""


def test_no_lookup_reads_outside_even_unverified_arrays(pristine):
    """Searched in a process of its own: a read outside would end it."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", SEARCH, str(pristine / FILE)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert 100 < int(done.stdout) < 1500


@pytest.mark.parametrize("verify", [True, False])
def test_random_bytes_in_the_header(index, verify):
    data, rng = bytearray((index / FILE).read_bytes()), random.Random(3)
    for _ in range(60):
        at = rng.randrange(600)
        before, data[at] = data[at], rng.randrange(256)
        (index / FILE).write_bytes(data)
        sign(index)
        try:
            Index.open(index, verify=verify)
        except IndexFormatError as error:
            assert FILE in str(error)
        data[at] = before
