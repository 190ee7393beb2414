"""``docs/settings.md``: the table of all settings, written from their one declaration.

python -m mimic_engine.server.settings_page > docs/settings.md
"""

from __future__ import annotations

import sys
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from mimic_engine.server.settings import Settings

_HEAD = """# Settings of the service

Every setting is a flag of `python -m mimic_engine.serve`, an environment variable, and a key of the TOML
file that `--config` names. A flag wins over a variable, a variable over the file. Limits that contradict
each other are refused at start. Files with keys hold one key a line; blank lines and lines that begin with
`#` are skipped.

This page is written by `python -m mimic_engine.server.settings_page`; a test keeps it current.

| Flag | Variable | TOML key | Value | Default | Meaning |
|---|---|---|---|---|---|
"""


def render() -> str:
    """Give the page in Markdown."""
    return _HEAD + "".join(_row(name, field) for name, field in Settings.model_fields.items())


def _row(name: str, field: FieldInfo) -> str:
    key = "" if name == "config" else f"`{name}`"
    flag, variable = f"`--{name.replace('_', '-')}`", f"`MIMIC_{name.upper()}`"
    cells = (flag, variable, key, _value(field), _default(field.default), str(field.description))
    return f"| {' | '.join(cells)} |\n"


def _value(field: FieldInfo) -> str:
    """Type and range in words."""
    kind: Any = field.annotation
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    if isinstance(kind, UnionType):
        kind = next(k for k in get_args(kind) if k is not type(None))
    if get_origin(kind) is tuple:
        return "texts with commas between"
    words = {int: "whole number", float: "number", str: "text", bool: "`true` or `false`"}[kind]
    return words + "".join(_range(rule) for rule in field.metadata)


def _range(rule: object) -> str:
    limits = (("ge", "at least"), ("gt", "above"), ("le", "at most"))
    return "".join(f", {words} {getattr(rule, name)}" for name, words in limits if hasattr(rule, name))


def _default(value: object) -> str:
    if value is None or value == ():
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:_}`" if isinstance(value, int) and value >= 100_000 else f"`{value}`"


if __name__ == "__main__":
    sys.stdout.write(render())
