"""Options that an experiment may set: those of a training run, less what the command line says; checked."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mimic_engine.errors import InvalidInputError
from mimic_engine.train.config import TrainConfig

# What the command line of the runner says, for all configurations alike.
GIVEN = frozenset(
    (
        *("data", "out", "encoder", "text_source", "image_source", "seed", "cache", "resume"),
        *("device", "threads", "broken_images"),
    )
)


def known_options() -> tuple[str, ...]:
    """Names of the options that a declaration may set."""
    return tuple(f.name for f in fields(TrainConfig) if f.name not in GIVEN)


def checked_options(options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Options with values of the declared types (whole numbers are taken where fractions may stand).

    Raises
    ------
    InvalidInputError
        If a name is unknown or a value of the wrong type; begins with ``where``.
    """
    hints, known = get_type_hints(TrainConfig), known_options()
    checked = {}
    for name, value in options.items():
        if name in GIVEN:
            raise InvalidInputError(
                f"{where}: option {name!r} is given on the command line, not in a declaration"
            )
        if name not in known:
            raise InvalidInputError(f"{where}: unknown option {name!r}; known ones are {', '.join(known)}")
        checked[name] = _checked(value, hints[name], f"{where}: option {name!r}")
    return checked


def check_together(options: Mapping[str, Any], where: str) -> None:
    """Check that the options make a training; raises InvalidInputError that begins with ``where``."""
    try:
        TrainConfig(
            data=Path(),
            out=Path(),
            encoder="minilm-efficientnet",
            text_source="text",
            image_source="image",
            **options,
        )
    except InvalidInputError as error:
        raise InvalidInputError(f"{where}: {error}") from error


def _checked(value: Any, hint: Any, where: str) -> Any:
    if get_origin(hint) is Literal:
        if value not in get_args(hint) or not isinstance(value, str):
            raise InvalidInputError(f"{where}: {value!r} is not one of {', '.join(get_args(hint))}")
        return value
    union = get_origin(hint) in (Union, types.UnionType)
    kinds = [k for k in (get_args(hint) if union else (hint,)) if k is not type(None)]
    if float in kinds and type(value) is int:
        return float(value)
    if type(value) not in kinds:
        names = " or ".join(k.__name__ for k in kinds)
        raise InvalidInputError(f"{where}: {value!r} is of type {type(value).__name__}, not {names}")
    return value
