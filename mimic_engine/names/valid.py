"""Limits of a name, its aliases and a popularity; one rule for files, the service and the library."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Sequence

from mimic_engine.names.text import normal_form

MAX_ALIASES = 1_000
MAX_NAME_CHARS = 10_000


def name_fault(name: object, aliases: Sequence[object], popularity: object) -> str | None:
    """The fault in the names or the popularity of an entity: field, limit and value; None if nothing.

    A name and an alias have something to read and no control character; ``popularity`` is a finite number
    from 0 on, or None where it is unknown.
    """
    if len(aliases) > MAX_ALIASES:
        return f"aliases: at most {MAX_ALIASES:,}, got {len(aliases):,}"
    for field, value in (("name", name), *((f"aliases[{i}]", alias) for i, alias in enumerate(aliases))):
        if fault := _text_fault(value):
            return f"{field}: {fault}"
    if popularity is None:
        return None
    if isinstance(popularity, bool) or not isinstance(popularity, int | float):
        return f"popularity: expected a number from 0 on, got {type(popularity).__name__}"
    if not 0 <= popularity <= sys.float_info.max:
        return f"popularity: expected a number from 0 on, got {popularity}"
    return None


def _text_fault(value: object) -> str | None:
    if not isinstance(value, str):
        return f"expected text, got {type(value).__name__}"
    if len(value) > MAX_NAME_CHARS:
        return f"at most {MAX_NAME_CHARS:,} characters, got {len(value):,}"
    if any("\ud800" <= c <= "\udfff" for c in value):
        return "is not valid Unicode: holds a surrogate"
    control = next((c for c in value if unicodedata.category(c) == "Cc"), None)
    if control is not None:
        return f"holds the control character U+{ord(control):04X}"
    return None if normal_form(value) else "is empty"
