"""Declaration of an experiment: what is asked, what is expected, and which trainings answer it.

A TOML file::

    title = "..."
    question = "..."
    expected = "..."
    data = ["WikiMEL", "demo"]          # data sets that it is meant for
    baseline = "full"                   # the configuration that others are compared with; optional
    probes = ["seen"]                   # optional
    [options]                           # of every configuration
    lr = 1e-3
    [[configuration]]
    name = "no-tglu"
    options = { tglu = false }
    [grid]                              # optional: a configuration for each combination
    lr = [1e-4, 1e-3]

``name`` is the file's stem where it is left out. Which values an option takes is
said in :mod:`benchmarks.experiments.options`.
"""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.experiments.options import check_together, checked_options
from mimic_engine.errors import InvalidInputError

FOLDER = Path(__file__).parent
TRAIN_ON = ("own", "others")
OTHER_DEV = "Who trains on other data sets has their dev mentions: nothing is compared on dev."
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9=,+._-]*")
_TEXTS = ("title", "question", "expected")
_PARTS = ("options", "configuration", "grid", "two_by_two", "found")
_KEYS = ("name", *_TEXTS, "data", *_PARTS, "probes", "baseline", "timed")


@dataclass(frozen=True, slots=True)
class Configuration:
    """One training of an experiment, to be repeated over seeds."""

    name: str
    options: Mapping[str, Any]  # of TrainConfig, the experiment's common ones included
    train_on: str = "own"  # "own": the data set's training mentions; "others": those of other data sets


@dataclass(frozen=True, slots=True)
class TwoByTwo:
    """Two changes, alone and together; the last four are names of configurations."""

    first: str
    second: str
    neither: str
    only_first: str
    only_second: str
    both: str

    @property
    def configurations(self) -> tuple[str, ...]:
        """The four names."""
        return self.neither, self.only_first, self.only_second, self.both


@dataclass(frozen=True, slots=True)
class Experiment:
    """A declared grid of trainings."""

    name: str
    title: str
    question: str
    expected: str
    data: tuple[str, ...]
    configurations: tuple[Configuration, ...]
    probes: tuple[str, ...] = ()
    baseline: str | None = None
    two_by_two: TwoByTwo | None = None
    timed: bool = False  # whether its configurations are timed beside each other
    found: Mapping[str, str] = field(default_factory=dict)  # what somebody read in the results, by data set


def find_experiment(name: str, folder: Path = FOLDER) -> Path:
    """The file of an experiment: its stem in ``folder``, or a path.

    Raises
    ------
    InvalidInputError
        If there is none; lists those that there are.
    """
    if name.endswith(".toml"):
        if not Path(name).is_file():
            raise InvalidInputError(f"experiment: no file {name}")
        return Path(name)
    known = sorted(path.stem for path in folder.glob("*.toml"))
    if name not in known:
        names = ", ".join(known) or "none"
        raise InvalidInputError(
            f"experiment: {name!r} is not one of {names} (in {folder}), nor the path of a .toml file"
        )
    return folder / f"{name}.toml"


def read_experiment(path: Path, probes: Collection[str]) -> Experiment:
    """Read and check a declaration.

    Parameters
    ----------
    path : the file.
    probes : the probes that there are.

    Raises
    ------
    InvalidInputError
        If it is no TOML, a key, option, probe or configuration is unknown, missing or named twice,
        or a value is wrong; names the file, the key, the value and the known ones.
    """
    content = _load(path)
    _check_keys(content, _KEYS, str(path))
    texts = {key: _text(content, key, str(path)) for key in _TEXTS}
    configurations = tuple(_configurations(content, path))
    names = [c.name for c in configurations]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidInputError(f"{path}: two configurations are named {twice[0]!r}")
    baseline = _text(content, "baseline", str(path)) if "baseline" in content else None
    if baseline is not None:
        _check_known(baseline, names, f"{path}: baseline")
    asked = _texts(content, "probes", path)
    for probe in asked:
        _check_known(probe, probes, f"{path}: probes")
    name = _text(content, "name", str(path)) if "name" in content else path.stem
    return Experiment(
        name=_named(name, str(path)),
        **texts,
        data=_texts(content, "data", path),
        configurations=configurations,
        probes=asked,
        baseline=baseline,
        two_by_two=_two_by_two(content, names, path),
        timed=_flag(content, "timed", path),
        found=_found(content, path),
    )


def _load(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInputError(f"{path}: cannot be read as TOML: {error}") from error


def _configurations(content: Mapping[str, Any], path: Path) -> Iterator[Configuration]:
    common = checked_options(_table(content, "options", str(path)), f"{path}: options")
    declared = content.get("configuration", [])
    if not isinstance(declared, list):
        raise InvalidInputError(f"{path}: configuration: is declared as [[configuration]], once for each")
    grid = list(_grid(content, path))
    if not declared and not grid:
        raise InvalidInputError(f"{path}: declares no [[configuration]] and no [grid]")
    for number, entry in enumerate(declared, 1):
        yield _configuration(entry, common, f"{path}: configuration {number}")
    for name, options in grid:
        yield _whole(name, common | options, "own", str(path))


def _configuration(entry: Mapping[str, Any], common: dict[str, Any], where: str) -> Configuration:
    _check_keys(entry, ("name", "options", "train_on"), where)
    name = _named(_text(entry, "name", where), where)
    where = f"{where} ({name})"
    train_on = _text(entry, "train_on", where) if "train_on" in entry else "own"
    _check_known(train_on, TRAIN_ON, f"{where}: train_on")
    return _whole(name, common | checked_options(_table(entry, "options", where), where), train_on, where)


def _whole(name: str, options: dict[str, Any], train_on: str, where: str) -> Configuration:
    check_together(options, where if name in where else f"{where}: configuration {name}")
    return Configuration(name, options, train_on)


def _grid(content: Mapping[str, Any], path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and options of each combination; the name says the options' values."""
    axes = _table(content, "grid", str(path))
    for option, values in axes.items():
        if not isinstance(values, list) or not values:
            raise InvalidInputError(f"{path}: grid: {option!r} is {values!r}, not a list of values")
    for values in itertools.product(*axes.values()) if axes else ():
        options = checked_options(dict(zip(axes, values, strict=True)), f"{path}: grid")
        name = ",".join(f"{option}={_short(value)}" for option, value in options.items())
        yield _named(name, f"{path}: grid"), options


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower().replace(",", "+")


def _two_by_two(content: Mapping[str, Any], names: Sequence[str], path: Path) -> TwoByTwo | None:
    if "two_by_two" not in content:
        return None
    entry, where = _table(content, "two_by_two", str(path)), f"{path}: two_by_two"
    keys = ("first", "second", "neither", "only_first", "only_second", "both")
    _check_keys(entry, keys, where)
    table = TwoByTwo(**{key: _text(entry, key, where) for key in keys})
    for name in table.configurations:
        _check_known(name, names, where)
    return table


def _table(content: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    value = content.get(key, {})
    if not isinstance(value, dict):
        raise InvalidInputError(f"{where}: {key}: {value!r} is not a table")
    return value


def _text(content: Mapping[str, Any], key: str, where: str) -> str:
    value = content.get(key)
    if not isinstance(value, str) or not value:
        problem = "is missing" if key not in content else f"{value!r} is not a text"
        raise InvalidInputError(f"{where}: {key}: {problem}")
    return value


def _texts(content: Mapping[str, Any], key: str, path: Path) -> tuple[str, ...]:
    value = content.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InvalidInputError(f"{path}: {key}: {value!r} is not a list of texts")
    return tuple(value)


def _found(content: Mapping[str, Any], path: Path) -> dict[str, str]:
    table = _table(content, "found", str(path))
    return {name: _text(table, name, f"{path}: found") for name in table}


def _flag(content: Mapping[str, Any], key: str, path: Path) -> bool:
    value = content.get(key, False)
    if not isinstance(value, bool):
        raise InvalidInputError(f"{path}: {key}: {value!r} is not true or false")
    return value


def _named(name: str, where: str) -> str:
    if not _NAME.fullmatch(name):
        raise InvalidInputError(f"{where}: name: {name!r} is not made of letters, digits and = , + . _ -")
    return name


def _check_keys(content: Any, known: Sequence[str], where: str) -> None:
    if not isinstance(content, dict):
        raise InvalidInputError(f"{where}: {content!r} is not a table")
    for key in content:
        _check_known(key, known, f"{where}: key")


def _check_known(value: str, known: Collection[str], where: str) -> None:
    if value not in known:
        raise InvalidInputError(f"{where}: {value!r} is not one of {', '.join(known) or 'none'}")
