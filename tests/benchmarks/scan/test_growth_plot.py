"""The growth plot draws what the result file holds."""

import json

from PIL import Image

from benchmarks.scan.growth_plot import draw


def test_a_plot_of_every_mode(tmp_path):
    row = {"n": 10, "ms": 1.0, "pass_bytes": 100, "resident_bytes": 10**9}
    rows = [{**row, "mode": m, "n": n} for m in ("certified", "coded") for n in (10, 100)]
    (tmp_path / "r.json").write_text(json.dumps({"rows": rows}))
    draw(tmp_path / "r.json", tmp_path / "r.png")
    with Image.open(tmp_path / "r.png") as image:
        assert image.size[0] > 500
        assert len(image.convert("RGB").getcolors(1 << 20)) > 50
