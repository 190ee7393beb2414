"""The benchmark of name lookups: every machinery finds the names, and a wrong feature stops it."""

import numpy as np
import pytest

from benchmarks.names import lookup
from benchmarks.names.made_up import make_names, make_surfaces
from mimic_engine.errors import EngineError
from mimic_engine.names.features import NameFeatures
from mimic_engine.scan.cpu import CpuKernels


@pytest.mark.parametrize("kind", ["forms", "forms, NumPy", "fts5"])
def test_a_row_says_what_was_found(kind, monkeypatch):
    if kind == "forms" and not CpuKernels.available():
        pytest.skip("no compiled kernels")
    monkeypatch.setattr(lookup, "SURFACES", 30)
    [row] = lookup.measure([400], [kind])
    assert (row["machinery"], row["forms"]) == (kind, 400)
    assert row["found"] == 1.0
    assert 0 < row["p50_us"] <= row["p99_us"]
    assert row["bytes"] > 0
    assert 0 < row["answers"] <= 400
    assert row["update_s"] > 0


def test_a_wrong_feature_is_an_error(monkeypatch, tmp_path):
    names = make_names(200)
    forms = lookup.Forms(names, tmp_path, compiled=False)
    monkeypatch.setattr(forms.lookup, "features", lambda surface: NameFeatures.none())
    with pytest.raises(EngineError, match="the lookup gives None"):
        lookup.check(forms.lookup, names, make_surfaces(names, 30)[1])


def test_names_are_the_same_for_the_same_seed():
    assert make_names(50) == make_names(50)
    assert make_names(50) != make_names(50, seed=1)
    assert np.mean([len(n.split()) for n in make_names(2000)]) == pytest.approx(2.2, abs=0.2)
