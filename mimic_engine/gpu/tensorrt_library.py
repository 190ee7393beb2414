"""TensorRT and TensorRT for RTX: which library is which, how it is installed, what it can build for.

The library is imported when it is asked for and never before. Names that one
version has and another lacks are used in this module and in
:mod:`mimic_engine.export.engines` only, each with the versions it is for.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from mimic_engine.errors import InvalidInputError, MissingDependencyError


@dataclass(frozen=True, slots=True)
class Flavour:
    """One of the two libraries."""

    name: str
    title: str
    modules: tuple[str, ...]  # import names, the usual one first
    install: str
    targets: tuple[str, ...] | None  # architectures it builds for anywhere; None: the one of the GPU at hand
    refused: Mapping[str, str]  # option of a build -> why it does not take it

    def check_target(self, target: str) -> None:
        """Raise InvalidInputError if the library cannot build for an architecture ("sm_89")."""
        if self.targets is not None and target not in self.targets:
            other = "; for an H100 use --flavor tensorrt" if target == "sm_90" else ""
            raise InvalidInputError(
                f"target: {self.title} does not build for {target!r}, "
                f"only for {', '.join(self.targets)}{other}",
                field="target",
            )
        if not target.startswith("sm_") or not target[3:].isdigit():
            raise InvalidInputError(f"target: {target!r} is no architecture such as 'sm_90'", field="target")


TENSORRT = Flavour(
    "tensorrt", "TensorRT", ("tensorrt",), "pip install 'mimic-engine[tensorrt]'", targets=None, refused={}
)
RTX = Flavour(
    "rtx",
    "TensorRT for RTX",
    ("tensorrt_rtx", "tensorrt_rtx_bindings"),
    "pip install 'mimic-engine[tensorrt-rtx]'",
    targets=("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121"),
    refused={
        "timing_cache": "it tunes on the device that runs the engine",
        "version_compatible": "it has no lean runtime",
    },
)
FLAVOURS = {flavour.name: flavour for flavour in (TENSORRT, RTX)}


@dataclass(frozen=True, slots=True)
class Library:
    """An imported library: ``trt`` is the module, ``logger`` keeps what it says."""

    flavour: Flavour
    trt: Any
    version: str
    logger: Any


def load_library(flavour: str) -> Library:
    """Import a library by the name of its flavour ("tensorrt", "rtx").

    Raises
    ------
    InvalidInputError
        If there is no such flavour.
    MissingDependencyError
        If it is not installed; with the line that installs it.
    """
    if flavour not in FLAVOURS:
        raise InvalidInputError(f"flavor: {flavour!r} is not one of {', '.join(FLAVOURS)}", field="flavor")
    chosen = FLAVOURS[flavour]
    module = _import(chosen.modules)
    if module is None:
        raise MissingDependencyError(f"{chosen.title} is not installed: {chosen.install}")
    return Library(chosen, module, str(module.__version__), make_logger(module))


def _import(names: Sequence[str]) -> ModuleType | None:
    for name in names:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            if error.name != name:  # it is there and lacks something of its own
                raise MissingDependencyError(
                    f"{name} is installed and cannot be imported: {error}"
                ) from error
    return None


def make_logger(trt: Any) -> Any:
    """A logger that keeps errors, for the message of an exception, and prints nothing."""

    class KeepingLogger(trt.ILogger):  # type: ignore[misc]
        """Keeps what is logged as an error since :meth:`take` was last called."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            """Called by the library."""
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self._errors.append(message.strip())

        def take(self) -> str:
            """The errors since the last call, in one line."""
            errors, self._errors = self._errors, []
            return "; ".join(errors) or "it gave no reason"

    return KeepingLogger()
