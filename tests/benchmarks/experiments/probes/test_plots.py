"""Plots drawn from results."""

from __future__ import annotations

import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.experiments.probes.bad_images import bad_images
from benchmarks.experiments.probes.calibration import calibration
from benchmarks.experiments.probes.plots import draw_bad_images, draw_gates, draw_reliability
from mimic_engine.errors import InvalidInputError


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were written, as matplotlib has them."""
    figures = []
    savefig = Figure.savefig
    monkeypatch.setattr(
        Figure,
        "savefig",
        lambda self, *args, **named: (figures.append(self), savefig(self, *args, **named))[1],
    )
    return figures


def _points(axes):
    return {line.get_label(): line.get_xydata() for line in axes.get_lines()}


def _opened(path):
    with Image.open(path) as image:
        image.load()
        return image.format, image.size


def test_curves_and_gates_show_what_the_result_says(illustrated, make_run, tmp_path, drawn):
    result = json.loads(json.dumps(bad_images(make_run(illustrated), "dev", least=5)))
    result["treatments"]["noise"] = None  # as where the data has no images for a treatment
    draw_bad_images(result, tmp_path / "curve.png")
    draw_gates(result, tmp_path / "gate.png")
    assert {p.name for p in tmp_path.glob("*.png*")} >= {"curve.png", "gate.png"}
    assert not list(tmp_path.glob("*.new"))
    assert _opened(tmp_path / "curve.png") == ("PNG", (770, 462))
    curves, gates = drawn
    lines = _points(curves.axes[0])
    assert set(lines) == {*result["treatments"], "text only"} - {"noise"}
    expected = [[p["share"], p["hits@1"]] for p in result["treatments"]["half hidden"]["curve"]]
    np.testing.assert_allclose(lines["half hidden"], expected)
    assert set(lines["text only"][:, 1]) == {result["text_only"]["hits@1"]}
    assert [axes.get_title() for axes in gates.axes] == ["entity to mention", "mention to entity"]
    assert [t.get_text() for t in gates.axes[0].get_yticklabels()] == [
        "untreated",
        *(n for n in result["treatments"] if n != "noise"),
    ]
    gold = gates.axes[1].containers[0].lines[0].get_xdata()
    assert gold[0] == result["gate"]["gold"]["mention to entity"]["quantiles"]["50"]
    assert (
        gold[-1] == result["treatments"]["no picture"]["gate"]["gold"]["mention to entity"]["quantiles"]["50"]
    )


def test_reliability_shows_the_bins(tiny, make_run, tmp_path, drawn):
    result = calibration(make_run(tiny), "test", bins=4)
    draw_reliability(result, tmp_path / "reliability.png")
    left, right = (_points(axes) for axes in drawn[0].axes)
    after = left[f"after: error {result['after']['ece']:.3f}"]
    np.testing.assert_allclose(after, [[b["confidence"], b["accuracy"]] for b in result["after"]["bins"]])
    assert right["before"].shape == (10, 2)
    assert _opened(tmp_path / "reliability.png") == ("PNG", (990, 462))


def test_without_a_temperature_only_the_raw_scores_are_drawn(tiny, make_run, tmp_path, drawn):
    draw_reliability(calibration(make_run(tiny), "test", k=1), tmp_path / "reliability.png")
    assert list(_points(drawn[0].axes[1])) == ["before"]


def test_what_cannot_be_drawn_is_an_error(tiny, illustrated, make_run, tmp_path):
    few = bad_images(make_run(tiny), "dev")
    for draw in (draw_bad_images, draw_gates):
        with pytest.raises(
            InvalidInputError, match="nothing to draw: 12 mentions with a picture are too few"
        ):
            draw(few, tmp_path / "x.png")
    text = bad_images(make_run(illustrated, vision="off"), "dev", least=5)
    with pytest.raises(InvalidInputError, match="the model has no VDLU"):
        draw_gates(text, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
