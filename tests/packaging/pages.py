"""The pages that people read, taken apart: fenced blocks, shell commands, links, headings."""

import re
import shlex
from pathlib import Path

from benchmarks.report.markdown import anchor

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "NOTICE.md", *(ROOT / "docs").rglob("*.md")])
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} (.+)$", flags=re.MULTILINE)


def name_of(page: Path) -> str:
    """A page's path in the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """Bodies of the fenced blocks in one language."""
    return [body for found, body in _FENCE.findall(page.read_text("utf-8")) if found == language]


def commands(page: Path) -> list[list[str]]:
    """Every shell command, split into words; lines that end in a backslash are joined.

    What follows the ``--serve`` of a benchmark are flags of the service: a command of their own here.
    """
    text = "\n".join(blocks(page, "bash")).replace("\\\n", " ")
    parts = [part for line in text.splitlines() for part in line.split("&&")]
    found = [words for part in parts if (words := shlex.split(part, comments=True))]
    serving = [words[words.index("--serve") + 1 :] for words in found if "--serve" in words]
    return [*found, *([".venv/bin/python", "-m", "mimic_engine.serve", *flags] for flags in serving)]


def links(page: Path) -> list[str]:
    """Targets of the links to files and headings of this repository."""
    prose = _FENCE.sub("", page.read_text("utf-8"))
    return [target for target in _LINK.findall(prose) if "://" not in target]


def anchors(page: Path) -> set[str]:
    """What a link to a heading of the page ends in."""
    return {anchor(heading) for heading in _HEADING.findall(_FENCE.sub("", page.read_text("utf-8")))}
