"""What the README tells a reader to type exists: install specs, commands, flags, files."""

import re
import shlex
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

from mimic_engine.cli import main as cli
from mimic_engine.demo.archives import ARCHIVES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[list[str]]:
    """Every shell command of the README, split into words; lines that end in a backslash are joined."""
    text = "\n".join(body for language, body in BLOCKS if language == "bash").replace("\\\n", " ")
    parts = [part for line in text.splitlines() for part in line.partition("#")[0].split("&&")]
    return [words for part in parts if (words := shlex.split(part))]


def test_the_ci_runs_the_readmes_test_command():
    [install] = [c for c in commands() if "pip" in c[0] and c[-1] == ".[test]"]
    assert install[1:] == ["install", "-e", ".[test]"]
    assert [".venv/bin/python", "-m", "pytest"] in commands()
    ci = (ROOT / ".ci" / "run").read_text("utf-8")
    assert """"$venv/bin/pip" install -q -e '.[test]'""" in ci
    assert '"$venv/bin/python" -m pytest' in ci


def test_every_extra_that_is_named_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    named = set(re.findall(r"\[(\w+)\]'", README))
    assert {"demo", "test"} <= named <= set(extras)


@pytest.mark.parametrize("words", [c for c in commands() if c[0].endswith("mimic-engine")], ids=" ".join)
def test_every_command_line_is_understood(words):
    assert cli._parser().parse_args(words[1:]).run


def test_every_module_and_script_that_is_called_exists():
    called = {w for c in commands() for flag, w in pairwise(c) if flag == "-m"}
    for name in called - {"venv", "pytest"}:
        path = ROOT / name.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), name
    scripts = {w for c in commands() for w in c if w.endswith(".py")}
    assert scripts
    for script in scripts:
        assert (ROOT / script).is_file(), script


def test_files_that_the_text_links_to_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_python_examples_are_python():
    python = [body for language, body in BLOCKS if language == "python"]
    assert python
    for body in python:
        compile(body, "README.md", "exec")


def test_the_notices_name_every_package_of_the_demo_with_its_licence():
    rows = [line for line in (ROOT / "NOTICE.md").read_text("utf-8").splitlines() if line.startswith("| ")]
    for archive in ARCHIVES:
        [row] = [r for r in rows if f"`{archive.requirement}`" in r]
        assert row.rstrip(" |").endswith(archive.licence)
    assert len(rows) == len(ARCHIVES) + 1  # and the head


def test_flags_of_scripts_and_modules_exist():
    parsers = {
        "mimic_engine.train": ROOT / "mimic_engine" / "train" / "config.py",
        "benchmarks.experiments": ROOT / "benchmarks" / "experiments" / "__main__.py",
        "mimic_engine.evaluate": ROOT / "mimic_engine" / "evaluate" / "evaluate.py",
        "mimic_engine.serve": ROOT / "mimic_engine" / "server" / "settings.py",
        "benchmarks.report": ROOT / "benchmarks" / "report" / "report.py",
    }
    for words in commands():
        name = next((w for w in words if w in parsers or w.endswith(".py")), None)
        if name is not None:
            source = parsers.get(name, ROOT / name).read_text("utf-8")
            for flag in (w.removeprefix("--") for w in words if w.startswith("--")):
                assert f'"--{flag}"' in source or f"    {flag.replace('-', '_')}: " in source, (name, flag)
