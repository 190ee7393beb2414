"""Options of the service, declared once: each field is a flag, a ``MIMIC_*`` variable and a TOML key.

Flags win over variables, variables over the file that ``--config`` names. Relations between limits are
checked when the settings are made. Keys are named by file, so that no secret is ever among the settings.

``python -m mimic_engine.server.settings > docs/settings.md`` writes the page that lists them.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import Field, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from mimic_engine.batching.queue import BatchLimits
from mimic_engine.types import ChainChoice, DeviceLayer, PlacementChoice, ScorerChoice


class ConfigFile(PydanticBaseSettingsSource):
    """The TOML file that a flag or variable named; its keys are those of :class:`Settings`, and no others."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Not asked for: :meth:`__call__` gives all fields at once."""
        raise NotImplementedError

    def __call__(self) -> dict[str, Any]:
        """Read the file; SettingsError names the file and what is wrong with it."""
        named = self.current_state.get("config")
        if named is None:
            return {}
        try:
            values = tomllib.loads(Path(named).read_text("utf-8"))
        except OSError as error:
            raise SettingsError(f"config: {named} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise SettingsError(f"config: {named} is not TOML: {error}") from error
        unknown = sorted(set(values) - set(self.settings_cls.model_fields) | {"config"} & set(values))
        if unknown:
            raise SettingsError(f"config: {named} has unknown keys {', '.join(unknown)}")
        return values


class Settings(BaseSettings):
    """Everything that ``python -m mimic_engine.serve`` can be told."""

    model_config = SettingsConfigDict(
        env_prefix="MIMIC_",
        extra="ignore",
        frozen=True,
        cli_prog_name="python -m mimic_engine.serve",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    config: str | None = Field(default=None, description="TOML file with any of the other settings")
    model: str | None = Field(
        default=None, description="Folder of the exported model, or base: the model that is shipped"
    )
    index: str | None = Field(default=None, description="Folder of the index")
    demo: bool = Field(
        default=False, description="Fetch and prepare the demo (first run: minutes), then serve it"
    )
    cache: str | None = Field(
        default=None, description="Folder for the demo's files, by default in the user's cache"
    )

    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on")
    port: int = Field(default=8080, ge=0, le=65535, description="Port to listen on; 0 takes a free one")
    backend: Literal["auto", "onnx", "cuda", "tensorrt", "torch"] = Field(
        default="auto", description="What runs the encoders; auto: the fastest that gives the CPU's answers"
    )
    precision: Literal["fp32", "fp16", "bf16", "int8", "fp8"] = Field(
        default="fp32", description="Of the encoder graphs; bf16 needs a GPU, and fp8 is faster only on one"
    )
    engines: str | None = Field(
        default=None, description="Folder of TensorRT engines, by default MODEL/engines"
    )
    checkpoint: str | None = Field(
        default=None, description="Folder that the model was exported from, for --backend torch"
    )
    device_layer: DeviceLayer = Field(
        default="auto",
        description="What encoders on a GPU have memory from; auto: PyCUDA where it is installed",
    )
    scorer: ScorerChoice = Field(
        default="auto",
        description="What scores; by default the GPU where the encoders use one, else the fastest on the CPU",
    )
    placement: PlacementChoice = Field(
        default="auto", description="Where a scan on the GPU keeps token queries; auto: there if they fit"
    )
    chain: ChainChoice = Field(
        default="auto",
        description="Whether requests stay on the GPU from tokens to results, two batches at a time; "
        "auto: where encoders and scan run there and MENTION_CACHE_BYTES is 0",
    )
    names: bool = Field(
        default=True,
        description="Count names and popularity of entities as the model was calibrated for; else not at all",
    )
    threads: int | None = Field(default=None, ge=1, description="Cores for encoders and scan; all by default")
    prepare_threads: int = Field(
        default=2, ge=1, le=256, description="Threads that decode images and tokenise"
    )
    mention_cache_bytes: int = Field(
        default=64_000_000, ge=0, description="Memory for mentions and pictures that come again; 0 keeps none"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="What is logged"
    )
    log_format: Literal["text", "json"] = Field(default="text", description="How a line of the log looks")
    access_log: bool = Field(default=False, description="Log a line for every request")
    otlp_endpoint: str | None = Field(
        default=None, description="URL of an OpenTelemetry collector (OTLP over HTTP) that gets traces"
    )
    otlp_sample_ratio: float = Field(
        default=1,
        ge=0,
        le=1,
        description="Share of requests that are traced, where the caller has not decided",
    )
    api_keys_file: str | None = Field(
        default=None, description="File with one key a line; every route but the probes then asks for one"
    )
    admin_key_file: str | None = Field(
        default=None, description="File with the key of /admin routes and entity changes; off without it"
    )

    max_batch_size: int = Field(default=32, ge=1, description="Mentions in one batch on the device")
    max_batch_cost: int = Field(
        default=64, ge=1, description="Cost of one batch: a mention 1, with image IMAGE_COST"
    )
    image_cost: int = Field(default=4, ge=1, description="Cost of a mention with an image")
    max_queue_delay_us: int = Field(
        default=0, ge=0, description="How long a batch may wait for company, microseconds"
    )
    max_queue_size: int = Field(
        default=256, ge=1, description="Mentions in preparation or waiting; more get 429"
    )
    queue_timeout_ms: float = Field(
        default=5_000, gt=0, description="How long a mention may wait in the queue"
    )

    timeout_ms: float = Field(default=30_000, gt=0, description="Deadline of a request that names none")
    max_timeout_ms: float = Field(default=120_000, gt=0, description="Longest deadline a request may name")
    max_body_bytes: int = Field(default=32_000_000, ge=1, description="Largest request body")
    max_image_bytes: int = Field(default=10_000_000, ge=1, description="Largest image, encoded")
    image_url_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Hosts that image_url may name; without any, no picture is fetched"
    )
    image_url_timeout_s: float = Field(
        default=3, gt=0, description="How long fetching a picture may take, seconds"
    )
    max_text_chars: int = Field(default=20_000, ge=1, description="Longest mention or sentence, characters")
    stream_window: int = Field(
        default=32, ge=1, description="Mentions of one /v1/link:stream that are worked on at a time"
    )
    max_mentions: int = Field(default=64, ge=1, description="Mentions in one /v1/link:batch")
    max_top_k: int = Field(default=100, ge=1, description="Largest top_k")
    max_candidates: int = Field(default=10_000, ge=1, description="Longest list of candidate ids")

    keep_alive_s: int = Field(
        default=75,
        ge=1,
        description="How long an idle connection stays open, seconds; longer than a proxy in front keeps it",
    )
    drain_grace_s: float = Field(
        default=0, ge=0, description="How long to go on accepting after readiness has failed, seconds"
    )
    drain_timeout_s: float = Field(
        default=30, gt=0, description="How long requests in flight may take to finish, seconds"
    )
    stall_timeout_s: float = Field(
        default=60,
        gt=0,
        description="Readiness fails when the device is stuck in one batch for so long, seconds",
    )

    device_attempts: int = Field(
        default=5, ge=1, description="How often to make a new session after a device error, before giving up"
    )
    device_retry_delay_s: float = Field(
        default=0.5,
        ge=0,
        description="Wait after the first attempt that failed, seconds; it doubles with each, up to 30",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources, first wins; the command line stands before them."""
        del dotenv_settings, file_secret_settings
        return init_settings, env_settings, ConfigFile(settings_cls)

    @field_validator("image_url_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """Take hosts as one text with commas too, as flags and variables give them."""
        texts = (value,) if isinstance(value, str) else value
        if not isinstance(texts, list | tuple):
            return value
        return tuple(part.strip() for text in texts for part in str(text).split(",") if part.strip())

    @model_validator(mode="after")
    def _check_relations(self) -> Self:
        smaller_than = (
            ("max_queue_size", "max_batch_size"),
            ("max_queue_size", "max_mentions"),
            ("max_batch_cost", "image_cost"),
            ("max_body_bytes", "max_image_bytes"),
            ("max_timeout_ms", "timeout_ms"),
        )
        for large, small in smaller_than:
            if getattr(self, large) < getattr(self, small):
                raise ValueError(f"{large}={getattr(self, large)} is below {small}={getattr(self, small)}")
        return self

    @model_validator(mode="after")
    def _check_chain(self) -> Self:
        if self.chain != "on":
            return self
        allowed: dict[str, tuple[str | int, ...]] = {
            "backend": ("auto", "cuda", "tensorrt"),
            "scorer": ("auto", "cuda"),
            "mention_cache_bytes": (0,),
        }
        for name, values in allowed.items():
            if (value := getattr(self, name)) not in values:
                raise ValueError(f"chain=on needs {name}={' or '.join(map(str, values))}, not {value}")
        return self

    def batch_limits(self) -> BatchLimits:
        """Give the knobs of the batcher."""
        return BatchLimits(
            max_batch_size=self.max_batch_size,
            max_batch_cost=self.max_batch_cost,
            max_queue_delay_us=self.max_queue_delay_us,
            max_queue_size=self.max_queue_size,
            queue_timeout_ms=self.queue_timeout_ms,
        )


_PAGE = """# Settings of the service

Every setting is a flag of `python -m mimic_engine.serve`, an environment variable, and a key of the TOML
file that `--config` names. A flag wins over a variable, a variable over the file. Limits that contradict
each other are refused at start. Files with keys hold one key a line; blank lines and lines that begin with
`#` are skipped.

This page is written by `python -m mimic_engine.server.settings`; a test keeps it current.

| Flag | Variable | TOML key | Value | Default | Meaning |
|---|---|---|---|---|---|
"""


def page() -> str:
    """Page of all settings, ``docs/settings.md``, in Markdown."""
    return _PAGE + "".join(_row(name, field) for name, field in Settings.model_fields.items())


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
    sys.stdout.write(page())
