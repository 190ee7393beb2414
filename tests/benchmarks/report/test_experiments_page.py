"""``docs/experiments.md`` and its tables: current, and what they say of made-up results."""

import json
import re
from pathlib import Path

import pytest

from benchmarks.report.experiment_results import mean_of, read_experiment
from benchmarks.report.experiment_section import LONG_TABLE, records
from benchmarks.report.experiments_page import DECLARED, FOLDER, PAGE, main, read_findings, render
from mimic_engine.errors import DataError
from mimic_engine.provenance import write_result

COMMAND = "python -m benchmarks.experiments ablation --data WikiMEL --out runs"


def metrics(hit: float) -> dict:
    hits = {f"hits@{k}": min(1.0, hit + 0.01 * k) for k in (1, 3, 5, 10, 20)}
    return hits | {"mrr": hit + 0.05, "mr": 3.5, "mentions": 40, "candidates": 900}


def run(seed: int, hit: float, *, test: bool = True, probes: dict | None = None) -> dict:
    return {
        "seed": seed,
        "status": "done",
        "dev": metrics(hit),
        "test": metrics(hit - 0.1) if test else None,
        "train_seconds": 60.0 + seed,
        "steps": 100,
        "epochs": 2,
        "curve": [{"epoch": 1, "loss": 2.0, "mrr": 0.5, "hits@1": 0.4}],
        "probes": probes or {},
        "cost": {"parameters": 1234567, "pair_multiply_adds": 1536 + seed},
    }


def lost(seed: int) -> dict:
    reading = {"dev": None, "test": None, "probes": {}, "cost": None}
    return run(seed, 0.5) | reading | {"status": "diverged", "message": "loss is nan at step 7"}


def result(**changes: object) -> dict:
    probes = [
        {
            "seen": {"seen": metrics(0.8 + s / 10), "unseen": metrics(0.4), "entities": {"train": 9, "seen": 4}},
            "calibration": {"temperature": 1.5, "bins": [{"confidence": 0.1 * i, "accuracy": 0.2} for i in range(LONG_TABLE)]},
        }
        for s in (0, 1)
    ]  # fmt: skip
    full = {
        "name": "full",
        "options": {"lr": 0.001},
        "runs": [run(0, 0.7, probes=probes[0]), run(1, 0.8, probes=probes[1])],
        "timing": {"scan_ms": 2.5, "scorer": "cpu"},
    }
    worse = {"name": "no-tglu", "options": {"lr": 0.001, "tglu": False}, "runs": [run(0, 0.5), run(1, 0.5)]}
    odd = {"name": "no-cmfu", "options": {"lr": 0.001, "cmfu": False}, "runs": [run(0, 0.75), lost(1)]}
    said = {
        "name": "ablation",
        "title": "Ablation",
        "question": "What does each unit add?",
        "expected": "Each helps.",
    }
    data = {"name": "WikiMEL", "test_is": "test", "entities": {"records": 900, "missing_images": 3}}
    made = {"experiment": said, "data": data, "baseline": "full", "configurations": [full, worse, odd]}
    return made | changes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "benchmarks" / "results" / "experiments"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def pages(folder: Path, tmp_path: Path):
    """Write result files by stem and render all pages, by their paths in ``docs/``."""

    def make(**files: dict) -> dict[str, str]:
        for stem, payload in files.items():
            name = stem.replace("_", "-")
            write_result(folder / f"{name}.json", payload, command_line=COMMAND)
        docs = tmp_path / "docs"
        made = render(folder, docs / "experiments.md", tmp_path)
        return {path.relative_to(docs).as_posix(): text for path, text in made.items()}

    return make


@pytest.fixture
def page(pages):
    """Write result files of one data set and render its page."""

    def make(**files: dict) -> str:
        [_, text] = pages(**files).values()
        return text

    return make


def row(text: str, heading: str, first: str) -> list[str]:
    """The cells of the row that begins with ``first`` in the section of this heading."""
    part = text[text.index(heading) :]
    line = next(line for line in part.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_pages_are_current():
    if not FOLDER.parent.is_dir():
        pytest.skip("the result files are not part of this distribution")
    written = {p: p.read_text("utf-8") for p in [PAGE, *PAGE.with_suffix("").glob("*.md")]}
    assert written == render(), "run python -m benchmarks.report.experiments_page"
    assert len(written[PAGE].splitlines()) < 300


def test_without_results_it_says_so_and_still_says_what_cannot_be_compared(pages, tmp_path):
    made = pages()
    text = made.pop("experiments.md")
    assert "There is no result file yet." in text and "## What cannot be compared" in text
    assert made == {}
    assert render(tmp_path / "nowhere", tmp_path / "p.md", tmp_path) == {tmp_path / "p.md": text}


def test_the_first_page_has_every_experiment_once_and_links_to_its_tables(pages):
    made = pages(ablation_WikiMEL=result(), ablation_demo=result(data={"name": "demo"}))
    assert list(made) == ["experiments.md", "experiments/WikiMEL.md", "experiments/demo.md"]
    text = made["experiments.md"]
    assert text.count("## Ablation\n") == 1
    assert "**Asked:** What does each unit add?" in text and "**Expected:** Each helps." in text
    assert "- [demo](experiments/demo.md#ablation): **Came out:** best on dev" in text
    head = row(text, "# Experiments", "experiment")
    assert head == ["experiment", "WikiMEL", "demo"]
    assert row(text, "# Experiments", "[Ablation](#ablation)")[1:] == ["full 0.6600 ± 0.0707"] * 2


def test_the_first_page_counts_the_data(pages):
    splits = {"train": {"with_image": 7}, "dev": {"with_image": 2}}
    data = {"name": "WikiMEL", "splits": splits, "entities": {"records": 900, "with_image": 3}}
    data |= {"mentions": {"train": 1800, "dev": 50, "test": 40}}
    text = pages(ablation_WikiMEL=result(data=data))["experiments.md"]
    assert row(text, "## What cannot", "WikiMEL")[1:] == ["900", "3", "1,800 / 50 / 40", "9", "40"]


def test_a_section_says_what_was_done_and_came_out(page):
    text = page(ablation_WikiMEL=result())
    assert text.startswith("# Experiments on WikiMEL\n") and "## Ablation\n" in text
    assert f"`{COMMAND}`" in text
    said = next(line for line in text.splitlines() if line.startswith("**Came out:**"))
    assert "best on dev by H@1 is `full` (0.7600 ± 0.0707), on test 0.6600 ± 0.0707" in said
    assert "H@1 on test against `full`: from `no-tglu` -0.2500 ± 0.0707 to `no-cmfu` +0.0500." in said


def test_options_are_told_apart_from_what_all_share(page):
    text = page(ablation_WikiMEL=result())
    assert "All: `lr = 0.001`\n" in text
    assert "- `full`: nothing else\n- `no-tglu`: `tglu = false`\n- `no-cmfu`: `cmfu = false`\n" in text


def test_differences_are_between_the_same_seeds_and_the_diverged_are_named(page):
    text = page(ablation_WikiMEL=result())
    head = "### Test: Ablation"
    assert row(text, head, "full")[1:] == [
        *("0.6600 ± 0.0707", "0.6800 ± 0.0707", "0.7000 ± 0.0707", "0.7000 ± 0.0707"),
        *("-", "-", "-", "-", "2"),
    ]
    assert row(text, head, "no-tglu")[5:] == [*["-0.2500 ± 0.0707"] * 4, "2"]
    assert row(text, head, "no-cmfu")[5:] == [*["+0.0500"] * 4, "1, 1 diverged"]
    assert "- `no-cmfu`, seed 1: loss is nan at step 7" in text


def test_where_test_was_not_read_dev_speaks(page):
    runs = [{"name": n, "options": {}, "runs": [run(0, h, test=False)]} for n, h in (("a", 0.5), ("b", 0.6))]
    text = page(x_demo=result(configurations=runs, baseline="a", data={"name": "demo"}))
    assert "best on dev by H@1 is `b` (0.6100). H@1 on dev against `a`: `b` +0.1000." in text
    assert row(text, "### Test", "b")[1:6] == ["-"] * 5
    alone = page(x_demo=result(configurations=runs, baseline=None, data={"name": "demo"}))
    assert "best on dev by H@1 is `b` (0.6100)." in alone and "against" not in alone


def test_when_every_run_diverged_nothing_is_best(page):
    runs = [{"name": "a", "options": {}, "runs": [lost(0), lost(1)]}]
    text = page(x_demo=result(configurations=runs, baseline="a"))
    assert "**Came out:** no run was completed." in text
    assert row(text, "### Test", "a")[-1] == "0, 2 diverged"
    assert "### Cost" not in text


def test_what_somebody_read_in_the_results_stands_with_them(pages, tmp_path):
    (tmp_path / "ablation.toml").write_text('[found]\nWikiMEL = "Text is nearly all of it."\n')
    made = pages(ablation_WikiMEL=result(), ablation_demo=result(data={"name": "demo"}))
    assert "**In words:** Text is nearly all of it." in made["experiments/WikiMEL.md"]
    assert "In words" not in made["experiments/demo.md"]
    assert "- [WikiMEL](experiments/WikiMEL.md#ablation): Text is nearly all" in made["experiments.md"]


def test_everything_that_was_found_is_of_a_result():
    if not FOLDER.is_dir():
        pytest.skip("the result files are not part of this distribution")
    assert set(read_findings(DECLARED)) <= {file.stem for file in FOLDER.glob("*.json")}


def test_costs_and_data_are_tables(page):
    text = page(ablation_WikiMEL=result())
    assert row(text, "### Cost", "full") == ["full", "1,234,567", "1,536", "2.5", "cpu"]
    assert row(text, "### Cost", "no-tglu") == ["no-tglu", "1,234,567", "1,536"]
    assert row(text, "### Data", "entities") == ["entities", "900", "3"]


def test_probes_are_tables_of_means_and_long_ones_are_folded_away(page):
    text = page(ablation_WikiMEL=result())
    seen = text[text.index("### Probe seen") : text.index("### Probe calibration")]
    assert row(seen, "###", "full / seen")[1] == "0.86" and row(seen, "###", "full / unseen")[1] == "0.41"
    assert row(seen, "###", "full / entities") == ["full / entities", "9", "4"] and "<details>" not in seen
    calibration = text[text.index("### Probe calibration") :]
    assert row(calibration, "###", "full") == ["full", "1.5"]
    assert f"<summary>{LONG_TABLE} rows: confidence, accuracy</summary>" in calibration
    assert row(calibration, "###", "full / bins / 3")[1:] == ["0.3", "0.2"]


def test_plots_of_an_experiment_stand_in_its_section(pages, folder):
    for stem in ("ablation-WikiMEL", "ablation-WikiMEL-reliability", "ablation-WikiMEL-2", "other"):
        (folder / f"{stem}.png").touch()
    made = pages(ablation_WikiMEL=result(), ablation_WikiMEL_2=result(data={"name": "two"}))
    links = re.compile(r"\]\((\.\./\.\./benchmarks/results/experiments/(.*)\.png)\)")
    first, second = (links.findall(made[f"experiments/{name}.md"]) for name in ("WikiMEL", "two"))
    assert [stem for _, stem in first] == ["ablation-WikiMEL", "ablation-WikiMEL-reliability"]
    assert [stem for _, stem in second] == ["ablation-WikiMEL-2"]


def test_a_two_by_two_is_shown(page):
    spread = {"mean": 0.02, "std": None, "n": 1}
    adds = {"both": {"test": {"hits@1": spread, "mrr": {"mean": None, "std": None, "n": 0}}, "dev": {}}}
    text = page(x_demo=result(two_by_two={"first": "gate", "only_first": "a", "adds": adds}))
    assert "first: gate; only first: a." in text
    assert row(text, "### Two by two", "both")[1:5] == ["+0.0200", "-", "-", "-"]


def test_names_with_bars_do_not_break_a_table(page):
    runs = [{"name": "a|b", "options": {}, "runs": [run(0, 0.5)]}]
    assert r"| a\|b |" in page(x_demo=result(configurations=runs, baseline=None))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: r.pop("baseline"), "baseline: missing"),
        (lambda r: r["experiment"].pop("expected"), r"experiment\.expected: missing"),
        (lambda r: r["configurations"][1]["runs"][0].update(status="lost"), r"configurations\[1\]\.runs\[0\]\.status: must be"),
        (lambda r: r["configurations"][0]["runs"][0]["dev"].update(mrr="high"), r"dev\.mrr: must be a number"),
        (lambda r: r["configurations"][2]["runs"][1].pop("message"), r"runs\[1\]\.message: missing"),
        (lambda r: r.update(baseline="none"), "without baseline 'none'"),
        (lambda r: r["configurations"].append(r["configurations"][0]), "twice the same"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named_with_the_key(folder, tmp_path, capsys, damage, message):
    payload = json.loads(json.dumps(result()))
    damage(payload)
    write_result(folder / "x-demo.json", payload)
    with pytest.raises(DataError, match=rf"x-demo\.json: .*{message}"):
        read_experiment(folder / "x-demo.json")
    out = tmp_path / "docs" / "experiments.md"
    assert main([str(folder), "--out", str(out)]) == 2
    assert capsys.readouterr().err.startswith("error: x-demo.json") and not out.exists()


def test_dev_mentions_of_other_data_sets_are_compared_with_nothing(page):
    others = {"name": "others", "options": {"train_on": "others"}, "runs": [run(0, 0.95), run(1, 0.95)]}
    text = page(ablation_WikiMEL=result(configurations=[result()["configurations"][0], others]))
    assert row(text, "### Test: Ablation", "others")[5] == "+0.2000 ± 0.0707"
    assert row(text, "### Dev: Ablation", "others")[5:9] == ["-"] * 4
    assert "best on dev by H@1 is `full`" in text
    assert "Who trains on other data sets has their dev mentions" in text
    assert "Who trains on" not in page(ablation_WikiMEL=result())


def test_the_command_writes_the_pages(pages, folder, tmp_path):
    made = pages(ablation_elsewhere=result())
    docs = tmp_path / "docs"
    assert main([str(folder), "--out", str(docs / "experiments.md")]) == 0
    assert {p.relative_to(docs).as_posix(): p.read_text("utf-8") for p in docs.rglob("*.md")} == made


def test_means_go_leaf_by_leaf():
    one = {"a": 1, "b": [1, 2], "c": None, "d": "x", "e": {"f": 2.0}, "g": [1], "h": True}
    two = {"a": 3, "b": [3, 2], "c": 4.0, "d": "x", "e": {"f": 3.0, "new": 1}, "g": [1, 2], "h": True}
    assert mean_of([one, two]) == {
        "a": 2, "b": [2, 2], "c": 4.0, "d": "x", "e": {"f": 2.5, "new": 1}, "g": [1], "h": True,
    }  # fmt: skip
    assert mean_of([]) is None and mean_of([None, None]) is None


def test_records_are_found_at_every_depth():
    value = {
        "t": 1,
        "deep": {"x": {"y": 2}},
        "points": [{"a": 1}, {"a": 2}],
        "list": [5, 6],
        "empty": [],
        "no": {},
    }
    assert list(records(value)) == [
        ((), {"t": 1}),
        (("deep", "x"), {"y": 2}),
        (("points", "0"), {"a": 1}),
        (("points", "1"), {"a": 2}),
        (("list",), {"0": 5, "1": 6}),
    ]
