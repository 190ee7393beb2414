"""Pictures that come with an entity: kept beside the index while anybody has them, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from mimic_engine.index.entities import image_path
from mimic_engine.index.verify import verify_index
from mimic_engine.index.writer import IndexWriter
from mimic_engine.types import Entity

pytestmark = pytest.mark.usefixtures("quick_disk")


def test_pictures_given_as_bytes_are_kept_until_nobody_has_them(built, tiny):
    index = built()
    with IndexWriter(index, tiny.HashFold(), keep_images=True) as writer:
        writer.upsert(
            [Entity("new", "New", images=(b"one", b"two")), Entity("other", "Other", images=(b"one",))]
        )
        index = writer.index
        for name in ("new", "other"):
            path = index.image(int(index.rows([name])[0]))
            assert path is not None and path.read_bytes() == b"one"
        writer.upsert([Entity("new", "New", images=(b"three",))])
        assert len(list((index.path / "pictures").iterdir())) == 2  # an older snapshot may still show "one"
        writer.compact()
        index = writer.index
        kept = {path.read_bytes() for path in (index.path / "pictures").iterdir()}
        assert kept == {b"one", b"three"}
        path = index.image(int(index.rows(["new"])[0]))
        assert path is not None and path.read_bytes() == b"three"
    assert verify_index(index.path)


def test_pictures_are_kept_only_where_asked_and_named_files_stay_where_they_are(built, tiny):
    index = built()
    with IndexWriter(index, tiny.HashFold()) as writer:
        writer.upsert(
            [
                Entity("bytes", "B", images=(b"one",)),
                Entity("path", "P", images=("some/file.png",)),
                Entity("url", "U", images=("https://example.org/a.png",)),
                Entity("none", "N"),
            ]
        )
        index = writer.index
        paths = [index.image(int(row)) for row in index.rows(["bytes", "path", "url", "none"])]
        assert paths == [None, Path("some/file.png"), None, None]
        assert not (index.path / "pictures").exists()


def test_no_name_of_a_picture_leads_out_of_the_folder(tmp_path):
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "kb" / "pictures").mkdir(parents=True)
    assert image_path(tmp_path / "kb", "sha256:../../secret") is None
    assert image_path(tmp_path / "kb", "sha256:" + "0" * 64) is None
