"""What README and docs tell a reader: links lead somewhere, commands are understood, names exist."""

import argparse
import ast
import importlib
import json
import os
import re
import sys
import tomllib
from pathlib import Path

import pytest

from benchmarks import RESULTS
from mimic_engine.server.app import create_app
from mimic_engine.server.errors import HTTP_CODES, TABLE
from mimic_engine.wire import decode_link
from tests.packaging.pages import PAGES, ROOT, anchors, blocks, commands, links, name_of

GENERATED = {"docs/results.md", "docs/settings.md", "docs/experiments.md"}
COMMANDS = {" ".join(words): words for page in PAGES for words in commands(page)}
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
SERVING = (ROOT / "docs" / "serving.md").read_text("utf-8")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_file_and_a_heading(page):
    for target in links(page):
        name, _, heading = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if RESULTS in file.parents and not RESULTS.is_dir():
            continue  # the result files are not part of this distribution
        assert file.exists(), target
        assert not heading or heading in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_headings_can_be_told_apart(page):
    headings = re.findall(r"^#{1,3} (.+)$", page.read_text("utf-8"), flags=re.MULTILINE)
    assert len(set(headings)) == len(headings)


class Understood(BaseException):
    """The options of a command were parsed: the rest is not run."""


@pytest.fixture
def parse_only(monkeypatch):
    """Commands stop once they have parsed their options."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, args=None, namespace=None):
        parse(self, args, namespace)
        raise Understood

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    return monkeypatch


def main_of(words: list[str]):
    """The function behind a command of ours, and its arguments; None for somebody else's command."""
    program, *arguments = words
    if program.endswith("/mimic-engine"):
        return importlib.import_module("mimic_engine.cli.main").main, arguments
    if not program.endswith("/python"):
        return None
    flag, *rest = arguments
    name, rest = (rest[0], rest[1:]) if flag == "-m" else (script_module(flag), rest)
    if name == "pytest":
        return None
    package = importlib.import_module(name)
    module = importlib.import_module(f"{name}.__main__") if hasattr(package, "__path__") else package
    return module.main, rest


def script_module(script: str) -> str:
    assert (ROOT / script).is_file(), script
    return f"mimic_engine.{script.removesuffix('.py').replace('/', '.')}"


@pytest.mark.parametrize("command", [c for c in COMMANDS if "/python " in c or "/mimic-engine " in c])
def test_every_command_is_understood(command, parse_only, capsys):
    if (found := main_of(COMMANDS[command])) is None:
        return
    main, arguments = found
    parse_only.setattr(sys, "argv", ["command", *arguments])
    try:
        main()
    except Understood:
        return
    except SystemExit:
        pytest.fail(f"{command}: {capsys.readouterr().err}")
    pytest.fail(f"{command}: took no options")


def test_a_command_that_is_wrong_is_noticed(parse_only, capsys):
    main, arguments = main_of([".venv/bin/mimic-engine", "link", "--no-such-flag", "x"])
    with pytest.raises(SystemExit):
        main(arguments)
    assert "--model" in capsys.readouterr().err


def test_other_programs_are_called_with_what_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    stages = re.findall(
        r"^FROM \S+ AS (\w+)$", (ROOT / "deploy" / "Dockerfile").read_text("utf-8"), flags=re.M
    )
    for command, words in COMMANDS.items():
        match Path(words[0]).name:
            case "pip":
                assert set(re.findall(r"\[([\w,-]+)\]", command)) <= set(extras), command
            case "docker" if words[1] == "build":
                assert words[words.index("--target") + 1] in stages and (ROOT / words[3]).is_file(), command
            case "curl":
                assert re.search(r" http://127\.0\.0\.1:8080(/v1/\S+) ", command)[1] in routes(), command
                for body in (words[i + 1] for i, word in enumerate(words) if word == "-d"):
                    decode_link(body.encode())
            case "gpu_report.sh":
                assert os.access(ROOT / words[0], os.X_OK), command
            case program:
                assert program in ("python", "python3", "mimic-engine", "docker"), command


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_examples_compile_and_import_what_exists(page):
    for body in blocks(page, "python"):
        compile(body, page.name, "exec")
        for node in ast.walk(ast.parse(body)):
            for alias in node.names if isinstance(node, ast.ImportFrom) else ():
                assert hasattr(importlib.import_module(node.module), alias.name), (
                    f"{node.module}.{alias.name}"
                )


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_json_examples_are_records(page):
    for line in "".join(blocks(page, "json")).splitlines():
        fields = set(json.loads(line))
        assert {"id", "name"} <= fields or {"mention", "sentence"} <= fields, line


@pytest.mark.parametrize("page", [p for p in PAGES if name_of(p) not in GENERATED], ids=name_of)
def test_files_that_are_named_exist(page):
    prose = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    for name in re.findall(r"`([\w./-]+\.(?:py|sh|toml))`", prose):
        places = [ROOT / name, *(ROOT / folder / name for folder in ("mimic_engine", "export"))]
        assert any(place.is_file() for place in places), name


def test_functions_of_the_walks_are_defined_in_their_files():
    rows = re.findall(r"^\| `([\w/]+\.py)` \| (.+?) \| .* \|$", ARCHITECTURE, flags=re.MULTILINE)
    assert len(rows) > 20
    for file, functions in rows:
        source = (ROOT / file).read_text("utf-8")
        for part in re.findall(r"[A-Za-z_]+", " ".join(re.findall(r"`([\w.]+)`", functions))):
            assert re.search(rf"\b(def|class) {part}\b", source), f"{part} in {file}"


def listed_folders() -> list[str]:
    return re.findall(r"^\| `([\w/]+)/` \|", ARCHITECTURE, flags=re.MULTILINE)


def test_the_tree_names_every_folder():
    folders = {
        "mimic_engine",
        *(f"mimic_engine/{p.parent.name}" for p in ROOT.glob("mimic_engine/*/__init__.py")),
    }
    folders -= {"mimic_engine/kernels", "mimic_engine/export"}  # their files are kernels/ and export/
    assert folders <= set(listed_folders())
    assert all((ROOT / folder).is_dir() for folder in listed_folders())


def test_folders_import_only_those_above_them_in_the_tree():
    order = {folder: place for place, folder in enumerate(listed_folders())}

    def folder_of(module: str) -> str:
        parts = module.split(".")[1:] or [""]
        inner = parts[0] if parts[0] in ("kernels", "export") else f"mimic_engine/{parts[0]}"
        return inner if inner in order else "mimic_engine"

    for folder, place in order.items():
        if folder == "mimic_engine" or folder.split("/")[0] not in ("mimic_engine", "kernels", "export"):
            continue  # what lies directly in the package is first and last
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "mimic_engine":
                    for name in (f"{node.module}.{alias.name}" for alias in node.names):
                        assert order[folder_of(name)] <= place, f"{path.relative_to(ROOT)} imports {name}"


def routes() -> set[str]:
    from tests.server import word_linker

    app = create_app(word_linker.WordLinker())
    app.state.service.close()
    return {route.path for route in app.routes}


def test_the_page_on_serving_names_every_route_and_error():
    pages = {"/", "/docs", "/openapi.json"}  # for people, and what they load
    for path in routes():
        plain = re.sub(r"\{(\w+):\w+\}", r"{\1}", path).replace("entity_id", "id")
        if plain not in pages and "static" not in plain:
            assert re.search(rf"`(GET|PUT|POST|DELETE) {re.escape(plain)}`", SERVING), plain
    for _, status, code in TABLE:
        assert re.search(rf"^\| {status} \|.*`{code}`", SERVING, flags=re.MULTILINE), code
    for code in set(HTTP_CODES.values()) - {"client_gone"}:  # nobody is there to read that one
        assert f"`{code}`" in SERVING, code
