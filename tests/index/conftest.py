"""Fixtures of the index tests."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mimic_engine.index.build import build_index
from mimic_engine.index.store import Index


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The module ``tiny.py`` beside this file: a deterministic fold and a small knowledge base."""
    spec = importlib.util.spec_from_file_location("index_tiny", Path(__file__).parent / "tiny.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is flushed; what is flushed, and when, is tested in ``test_durability.py``."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def built(tiny: ModuleType, tmp_path: Path) -> Callable[..., Index]:
    """Builds a small index, of segments of four rows."""

    def build(count: int = 11, fold: Any = None, **options: Any) -> Index:
        fold, options = fold or tiny.HashFold(), {"segment_rows": 4} | options
        build_index(fold, tiny.knowledge_base(count), tmp_path / "kb", progress=False, **options)
        return Index.open(tmp_path / "kb")

    return build
