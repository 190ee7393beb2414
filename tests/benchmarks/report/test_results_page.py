"""``docs/results.md``: current, of every result file, and made of nothing else."""

import json
import re
import shutil
from pathlib import Path

import pytest

from benchmarks import RESULTS
from benchmarks.report.results_page import ELSEWHERE, PAGE, TOPICS, _ms, main, render
from mimic_engine.errors import DataError

pytestmark = pytest.mark.skipif(
    not RESULTS.is_dir(), reason="the result files are not part of this distribution"
)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RESULTS, tmp_path / "results", ignore=shutil.ignore_patterns("experiments")))


def edit(file: Path, change) -> None:
    data = json.loads(file.read_text("utf-8"))
    change(data)
    file.write_text(json.dumps(data), "utf-8")


def test_the_page_is_current():
    assert PAGE.read_text("utf-8") == render(), "run python -m benchmarks.report.results_page"


def test_every_result_file_has_its_place():
    shown = [stem for topic in TOPICS for stem in topic.results] + list(ELSEWHERE)
    assert sorted(shown) == sorted(file.stem for file in RESULTS.glob("*.json"))
    sources = render().partition("## Where the numbers come from")[2]
    assert re.findall(r"^\| `(\w+)\.json` \|", sources, flags=re.MULTILINE) == sorted(shown)


@pytest.mark.parametrize(
    ("name", "change", "row"),
    [
        ("demo", lambda d: d["challenge"]["both"].update({"hits@1": 0.5}), "176 hand-checked .*Hits@1 0.500 with"),
        ("wikimel", lambda d: d["test"]["namesakes"]["1"].update(mentions=3000), "one entity bears.* of 3,000,"),
        ("int8", lambda d: d["tried"][2].update(hits_at_1=0.25), "int8 .*Hits@1 0.250, with"),
        ("scan_cpu", lambda d: d["rows"][17].update(ms=1234.5), r"20,818 entities, one mention .*certified 1,234 ms"),
        ("scan_cpu", lambda d: d["rows"][2].update(identical_top10=0.75), "published loop .*float32 75 %"),
        ("scan_agreement", lambda d: d["runs"]["wikimel"]["certified"].update(identical=0.5), "top 10 for 50 %"),
        ("load", lambda d: d.update(peak_per_s=99.6), "100 answers a second at most"),
        ("kill", lambda d: d.update(changes_found=546), "546 of 547 acknowledged"),
        ("soak", lambda d: d.update(errors=3), "answers, 3 errors"),
    ],
)  # fmt: skip
def test_a_row_is_what_the_file_says(results, name, change, row):
    assert not re.search(row, render(results))
    edit(results / f"{name}.json", change)
    assert re.search(rf"^\| .*{row}.* \| `{name}\.json` \|$", render(results), flags=re.MULTILINE)


def test_the_page_on_scale_has_the_measured_figures():
    growth = json.loads((RESULTS / "scan_growth.json").read_text("utf-8"))
    page = PAGE.with_name("scale.md").read_text("utf-8")
    for row in growth["rows"]:
        line = re.search(rf"^\| {row['n']:,} \|.*$", page, flags=re.MULTILINE)[0]
        assert f" {_ms(row['ms'])}" in line, row
    for size in ("certified", "coded"):
        assert f"**{growth['bytes_per_entity'][size]:,}**" in page


def test_what_is_missing_or_damaged_is_named(results, tmp_path, capsys):
    edit(results / "load.json", lambda d: d["rows"][0].pop("rate_per_s"))
    with pytest.raises(DataError, match=r"load\.json: rows\[0\]\.rate_per_s: missing"):
        render(results)
    (results / "demo.json").unlink()
    out = tmp_path / "results.md"
    assert main([str(results), "--out", str(out)]) == 2
    assert "demo.json: missing" in capsys.readouterr().err and not out.exists()


def test_the_command_writes_the_page(results, tmp_path):
    out = tmp_path / "docs" / "results.md"
    assert main([str(results), "--out", str(out)]) == 0
    assert out.read_text("utf-8") == render()
