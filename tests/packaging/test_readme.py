"""The README: short, its two commands as they are run, its figures from result files; and the notices."""

import re

import pytest

from mimic_engine.base.archives import EFFICIENTNET, MINILM
from mimic_engine.demo.archives import ARCHIVES
from tests.packaging.pages import ROOT, blocks, commands, links

PAGE = ROOT / "README.md"
README = PAGE.read_text("utf-8")
DEMO = "pip install -e '.[demo]' && .venv/bin/python -m mimic_engine.serve --demo"
TESTS = "pip install -e '.[test]' && .venv/bin/python -m pytest"


def test_it_is_short():
    assert len(README.splitlines()) < 180


def test_its_first_screen_shows_the_page():
    first = README[: README.index("## ")]
    assert len(first.splitlines()) < 15
    assert re.search(r"^!\[.+\]\(docs/page\.png\)$", first, flags=re.MULTILINE)


@pytest.mark.parametrize("command", [DEMO, TESTS])
def test_one_command_sets_up_and_runs(command):
    assert f"python3 -m venv .venv && .venv/bin/{command}\n" in blocks(PAGE, "bash")


def test_the_ci_runs_the_test_command():
    assert [".venv/bin/python", "-m", "pytest"] in commands(PAGE)
    ci = (ROOT / ".ci" / "run").read_text("utf-8")
    assert """"$venv/bin/pip" install -q -e '.[test]'""" in ci
    assert '"$venv/bin/python" -m pytest' in ci


def test_every_figure_is_a_row_of_the_results():
    rows = [line for line in README.splitlines() if line.endswith(".json` |")]
    assert len(rows) >= 5
    assert set(rows) <= set((ROOT / "docs" / "results.md").read_text("utf-8").splitlines())


def test_every_page_can_be_reached():
    reached, waiting = set(), [PAGE]
    while waiting:
        page = waiting.pop()
        if page not in reached and page.suffix == ".md":
            reached.add(page)
            waiting += [(page.parent / target.partition("#")[0]).resolve() for target in links(page)]
    assert set((ROOT / "docs").rglob("*.md")) <= reached


def test_the_notices_name_every_package_of_the_demo_with_its_licence():
    rows = [line for line in (ROOT / "NOTICE.md").read_text("utf-8").splitlines() if line.startswith("| ")]
    packages = (MINILM, EFFICIENTNET, *ARCHIVES)
    for archive in packages:
        [row] = [r for r in rows if f"`{archive.requirement}`" in r]
        assert row.rstrip(" |").endswith(archive.licence)
    assert len(rows) == len(packages) + 1  # and the head
