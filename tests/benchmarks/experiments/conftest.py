"""A small declared experiment over the tiny data set, and the runner around it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.experiments.data import open_data
from benchmarks.experiments.declaration import read_experiment
from benchmarks.experiments.runner import Runner, Setting
from tests.tiny_training import data, encoders, one_thread, options  # noqa: F401 - fixtures

TOML = """
title = "Text and pictures"
question = "What does the text unit add?"
expected = "A lot."
data = ["tiny"]
baseline = "full"
[options]
max_length = 12
image_size = 32
batch_size = 12
epochs = 2
lr = 3e-3
validate_every = 1
encode_batch = 16
precision = "fp32"
[[configuration]]
name = "full"
[[configuration]]
name = "no-text"
options = { tglu = false }
"""


@pytest.fixture
def declared(tmp_path: Path) -> Callable[..., Path]:
    """Writes the declaration, with (old, new) replaced in it and lines added at its end."""

    def write(*changes: tuple[str, str], more: str = "") -> Path:
        text = TOML
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "tiny.toml"
        path.write_text(text + more, "utf-8")
        return path

    return write


@pytest.fixture
def setting(tmp_path: Path, encoders: tuple[Path, Path]) -> Callable[..., Setting]:  # noqa: F811
    """The command line's part; keyword arguments change it."""
    base = {
        "out": tmp_path / "out",
        "cache": tmp_path / "cache",
        "seeds": 2,
        "encoder": "bert-vit",
        "text_source": str(encoders[0]),
        "image_source": str(encoders[1]),
        "device": "cpu",
    }
    return lambda **changes: Setting(**(base | changes))


@pytest.fixture
def runner(
    declared: Callable[..., Path],
    setting: Callable[..., Setting],
    data: Path,  # noqa: F811
) -> Callable[..., Runner]:
    """A runner of the declaration; keyword arguments change the setting."""

    def build(path: Path | None = None, probes=None, others=(), **changes) -> Runner:
        probes = probes or {}
        experiment = read_experiment(path or declared(), probes)
        return Runner(experiment, open_data(data, "tiny", others), setting(**changes), probes)

    return build
