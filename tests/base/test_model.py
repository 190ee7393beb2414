"""The base model made ready: once, whole or not at all, and named in the place of a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mimic_engine.base import model as base
from mimic_engine.cli.main import main
from mimic_engine.encoding.manifest import ModelManifest
from mimic_engine.errors import DataError, ModelError

WEIGHTS = Path(base.__file__).parent / base.WEIGHTS


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders that were made, by something that writes a manifest and no model."""
    folders: list[Path] = []

    def make(out: Path, weights: Path, cache: Path, progress: bool) -> None:
        out.mkdir(parents=True)
        (out / "manifest.json").write_text("{}", encoding="utf-8")
        folders.append(out)

    monkeypatch.setattr(base, "_make", make)
    return folders


def test_a_folder_is_itself_and_base_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[Path]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert base.find_model("some/folder") == Path("some/folder")
    assert base.find_model("./base") == base.find_model(Path("base")) == Path("base")
    assert made == []
    folder = base.find_model("base", progress=False)
    assert made == [folder]
    assert folder == tmp_path / "mimic_engine" / "base" / f"model-{base.base_version(WEIGHTS)}"


def test_other_weights_or_another_calibration_are_another_model(tmp_path: Path) -> None:
    config, fitted = (tmp_path / name for name in ("config.json", "calibration.json"))
    config.write_text('{"model_hash": "a"}', encoding="utf-8")
    fitted.write_text("1", encoding="utf-8")
    versions = [base.base_version(tmp_path)]
    fitted.write_text("2", encoding="utf-8")
    versions.append(base.base_version(tmp_path))
    config.write_text('{"model_hash": "b"}', encoding="utf-8")
    versions.append(base.base_version(tmp_path))
    assert len(set(versions)) == 3


@pytest.mark.parametrize("content", [None, "{}", "[]"])
def test_an_installation_without_weights_says_so(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match="weights are not in this installation"):
        base.trained_hash(tmp_path)


def test_a_failed_fetch_leaves_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(cache: Path, progress: bool) -> None:
        raise DataError("no network")

    monkeypatch.setattr(base, "fetch_encoders", fail)
    with pytest.raises(DataError, match="no network"):
        base.base_model(tmp_path, progress=False)
    assert not list(tmp_path.glob("model-*"))


def test_the_card_says_what_it_was_trained_on() -> None:
    card = base.base_card()
    assert {"trained_on", "licences", "figures"} <= card.keys()


def test_calibrating_the_shared_model_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[Path]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["calibrate", "--model", "base", "--index", "i", "--mentions", "m.jsonl"]) == 2
    said = capsys.readouterr().err
    assert "'base' is shared" in said and str(made[0]) in said


@pytest.fixture(scope="module")
def cache() -> Path:
    folder = os.environ.get("MIMIC_DEMO_CACHE")
    if not folder:
        pytest.skip("MIMIC_DEMO_CACHE is not set: no folder to fetch the encoders into")
    return Path(folder)


@pytest.mark.slow
def test_it_is_whole_and_a_later_use_needs_no_torch(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = base.base_model(cache, progress=False)
    manifest = ModelManifest.read(folder)
    assert manifest.model_hash == base.trained_hash(WEIGHTS)
    assert (folder / "calibration.json").read_bytes() == (WEIGHTS / "calibration.json").read_bytes()
    code = (
        "import sys; sys.modules.update(torch=None, transformers=None, onnx=None)\n"
        "from pathlib import Path; from mimic_engine.base import base_model\n"
        f"print(base_model(Path({str(cache)!r})))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(folder)
    assert main(["model", "info", str(folder)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["model_hash"] == manifest.model_hash and said["calibration"]["weights"]["words"] > 0
