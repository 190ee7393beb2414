"""Options of a training run, declared once: a frozen dataclass from which the command line is made.

The defaults are the published recipe (section 4.1.4 of the paper and its
code); encoder presets say where pretrained weights and preprocessing come from.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from mimic_engine.config import EncoderConfig, ImageConfig, MatcherConfig, ModelConfig, TextConfig
from mimic_engine.errors import InvalidInputError

UNITS = ("tglu", "vdlu", "concat", "cmfu")
_HALF = (0.5, 0.5, 0.5)


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Every option of ``python -m mimic_engine.train``; the names are the flags."""

    data: Path = field(metadata={"help": "data set folder (published MIMIC format, or JSONL / Parquet)"})
    out: Path = field(metadata={"help": "run folder: best/, last.pt, log.csv, curve.png, tensorboard/"})

    encoder: Literal["clip", "minilm-efficientnet", "bert-vit"] = _option("clip", "encoder preset")
    text_source: str | None = _option(None, "text encoder: local folder or hub id (preset's own by default)")
    image_source: str | None = _option(None, "image encoder: local folder, weights file or hub id")
    max_length: int = _option(40, "text tokens a side, padding included")
    window: Literal["start", "mention"] = _option(
        "start", "what is read of a sentence that is too long: its start, or what is around the mention"
    )
    image_size: int = _option(224, "pixels a side")
    entity_pictures: Literal["first", "mean"] = _option(
        "first", "an entity's image is its first, or the mean of the features of several"
    )
    max_pictures: int = _option(8, "images of an entity that --entity-pictures mean takes, at most")
    train_text_encoder: bool = _option(False, "fine-tune the text encoder (frozen and cached by default)")
    train_image_encoder: bool = _option(False, "fine-tune the image encoder (frozen and cached by default)")
    freeze_embeddings: bool = _option(
        False, "keep the word-embedding table as it is in a trained text encoder"
    )

    tglu: bool = _option(True, "text unit on or off")
    vision: Literal["vdlu", "concat", "off"] = _option("vdlu", "vision unit, its ablation, or none")
    cmfu: bool = _option(True, "cross-modal unit on or off")
    mask_padding: bool = _option(False, "leave padding tokens out of TGLU (the published model has them in)")
    unit_losses: str = _option("all", "'all', 'none', or units whose own loss is added, comma-separated")

    lr: float = _option(1e-5, "learning rate")
    encoder_lr: float | None = _option(None, "learning rate of trained encoders (default: --lr)")
    head_lr: float | None = _option(None, "learning rate of projections and matcher (default: --lr)")
    schedule: Literal["constant", "linear", "cosine"] = _option(
        "constant", "decay to zero over the run, or none"
    )
    warmup: float = _option(0.0, "share of the steps over which the rate rises linearly from zero")
    beta1: float = _option(0.9, "AdamW beta 1")
    beta2: float = _option(0.999, "AdamW beta 2")
    eps: float = _option(1e-4, "AdamW epsilon")
    weight_decay: float = _option(1e-4, "AdamW weight decay, not on biases and layer norms")
    grad_clip: float = _option(0.0, "largest gradient norm; 0 = no clipping")
    accumulate: int = _option(1, "batches a step; negatives stay within each batch")

    gradient_cache: int = _option(
        0, "rows whose scores and features are in memory with their graph at a time; 0 = the whole batch"
    )
    ema: float = _option(
        0.0, "decay of a moving average of the weights, which is validated and kept; 0 = none"
    )

    batch_size: int = _option(128, "mentions a batch, over all processes")
    epochs: int = _option(20, "passes over the training mentions")
    max_steps: int = _option(0, "stop after this many steps; 0 = no limit")
    same_entity: Literal["merge", "ignore"] = _option(
        "merge", "mentions of one entity in a batch share its column, or count as negatives (as published)"
    )
    hard_batches: float = _option(
        0.0, "share of each batch filled with mentions of confusably named entities"
    )
    names_in_loss: bool = _option(
        False, "add what names are worth to the scores in loss, mining and validation"
    )
    drop_images: float = _option(
        0.0, "share of mention images taken for missing in training, so that text alone stays useful"
    )
    drop_texts: float = _option(
        0.0, "share of mentions with an image whose text is left out in training, so that images count"
    )
    extra_negatives: int = _option(0, "entities of confusable names added to each batch as negatives")
    mined_negatives: int = _option(
        0, "entities added to each batch that the model itself ranks high for its mentions and wrongly"
    )
    mine_depth: int = _option(16, "wrong entities kept of each mention's ranking, to draw from")
    mine_from: int = _option(1, "epochs before the first mining")
    mine_every: int = _option(1, "epochs between minings")

    validate_every: int = _option(2, "epochs between validations")
    patience: int = _option(3, "validations without a better MRR before training stops")
    dev_limit: int = _option(0, "validate on this many mentions, drawn once; 0 = all")
    precision: Literal["fp32", "bf16", "auto"] = _option(
        "auto", "of the encoders; auto: bf16 on a GPU, else fp32"
    )
    device: str = _option("auto", "torch device; auto: a GPU if there is one")
    threads: int = _option(0, "CPU threads; 0 = as torch chooses")
    seed: int = _option(0, "of weights, batches and dropout")
    encode_batch: int = _option(128, "rows a batch where encoders run without gradients")
    cache: Path | None = _option(None, "folder of cached features; OUT/cache if not given")  # noqa: RUF009
    cache_dtype: Literal["float16", "float32"] = _option("float32", "of cached features")
    broken_images: Literal["error", "as-missing"] = _option("error", "what to do with an unreadable image")
    resume: bool = _option(False, "go on from OUT/last.pt")

    def __post_init__(self) -> None:
        _check_limits(self)

    def model_config(self) -> ModelConfig:
        """Configuration of the model that the run trains (encoder widths are filled in when it is built)."""
        text, image, encoder = _preset(self)
        matcher = MatcherConfig(
            tglu=self.tglu, vision=self.vision, cmfu=self.cmfu, mask_padding=self.mask_padding
        )
        count = self.max_pictures if self.entity_pictures == "mean" else 1
        return ModelConfig(text, replace(image, entity_pictures=count), encoder, matcher)

    @property
    def loss_units(self) -> tuple[str, ...]:
        """Units whose own loss is added to the overall one."""
        on = self.model_config().matcher.units
        if self.unit_losses in ("all", "none"):
            return on if self.unit_losses == "all" else ()
        chosen = tuple(u.strip() for u in self.unit_losses.split(","))
        wrong = sorted(set(chosen) - set(on))
        if wrong:
            raise InvalidInputError(f"--unit-losses: {wrong} are not among the units that are on, {list(on)}")
        return chosen

    def to_json(self) -> dict[str, Any]:
        """All options, paths as strings."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}


def portable(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of :meth:`TrainConfig.to_json` without those that name paths on one machine."""
    paths = ("data", "out", "cache", "text_source", "image_source")
    return {name: value for name, value in options.items() if name not in paths}


def parse_args(argv: Sequence[str] | None = None) -> TrainConfig:
    """Read the command line; exits with a message and status 2 where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m mimic_engine.train",
        description="Train MIMIC on a data set. The defaults are the published recipe.",
    )
    hints = get_type_hints(TrainConfig)
    for f in fields(TrainConfig):
        _add_flag(parser, f.name, hints[f.name], f.default, f.metadata["help"])
    try:
        return TrainConfig(**vars(parser.parse_args(argv)))
    except InvalidInputError as error:
        parser.error(str(error))


def _add_flag(parser: argparse.ArgumentParser, name: str, hint: Any, default: Any, text: str) -> None:
    flag = "--" + name.replace("_", "-")
    if default is MISSING:
        parser.add_argument(flag, type=Path, required=True, help=text)
        return
    text = text if default is None else f"{text} (default: {default})"
    if hint is bool:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=text)
        return
    if get_origin(hint) is Literal:
        parser.add_argument(flag, choices=get_args(hint), default=default, help=text)
        return
    kinds = [k for k in (get_args(hint) or (hint,)) if k is not type(None)]
    parser.add_argument(flag, type=kinds[0], default=default, help=text)


def _preset(c: TrainConfig) -> tuple[TextConfig, ImageConfig, EncoderConfig]:
    if c.encoder == "clip":
        source = c.text_source or "openai/clip-vit-base-patch32"
        encoder = EncoderConfig("clip", "clip", source, source)
        return TextConfig(c.max_length, "literal", window=c.window), ImageConfig(c.image_size), encoder
    text = TextConfig(c.max_length, "tokenizer", window=c.window)
    if c.encoder == "bert-vit":
        text_source = c.text_source or "bert-base-uncased"
        image_source = c.image_source or "google/vit-base-patch16-224-in21k"
        encoder = EncoderConfig("bert", "vit", text_source, image_source, "cls")
        return text, ImageConfig(c.image_size, mean=_HALF, std=_HALF), encoder
    assert c.text_source is not None and c.image_source is not None
    encoder = EncoderConfig("bert", "efficientnet-lite0", c.text_source, c.image_source, "mean")
    return text, ImageConfig(c.image_size, 1.0, (127.0,) * 3, (128.0,) * 3), encoder


def _check_limits(c: TrainConfig) -> None:
    at_least = {"batch_size": 2, "accumulate": 1, "epochs": 1, "max_length": 4, "image_size": 8}
    at_least |= {"validate_every": 1, "patience": 1, "encode_batch": 1, "seed": 0}
    at_least |= {"max_steps": 0, "dev_limit": 0, "threads": 0, "extra_negatives": 0}
    at_least |= {"mined_negatives": 0, "mine_depth": 1, "mine_from": 0, "mine_every": 1}
    at_least |= {"gradient_cache": 0, "max_pictures": 2}
    for name, limit in at_least.items():
        if getattr(c, name) < limit:
            raise InvalidInputError(f"{_flag(name)}: {getattr(c, name)} is less than {limit}")
    for name in ("lr", "encoder_lr", "head_lr", "eps"):
        value = getattr(c, name)
        if value is not None and not value > 0:
            raise InvalidInputError(f"{_flag(name)}: {value} is not positive")
    for name in ("warmup", "hard_batches", "drop_images", "drop_texts"):
        if not 0 <= getattr(c, name) <= 1:
            raise InvalidInputError(f"{_flag(name)}: {getattr(c, name)} is not between 0 and 1")
    if c.drop_images + c.drop_texts > 1:
        raise InvalidInputError(
            f"--drop-images and --drop-texts: {c.drop_images} and {c.drop_texts} add up to more than 1"
        )
    for name in ("beta1", "beta2", "ema"):
        if not 0 <= getattr(c, name) < 1:
            raise InvalidInputError(f"{_flag(name)}: {getattr(c, name)} is not at least 0 and less than 1")
    for name in ("weight_decay", "grad_clip"):
        if not getattr(c, name) >= 0:
            raise InvalidInputError(f"{_flag(name)}: {getattr(c, name)} is negative")
    if not c.tglu and c.vision == "off" and not c.cmfu:
        raise InvalidInputError("--no-tglu, --vision off and --no-cmfu: every unit is off")
    if c.encoder == "minilm-efficientnet" and not (c.text_source and c.image_source):
        raise InvalidInputError("--encoder minilm-efficientnet: give --text-source and --image-source")
    if c.encoder == "clip" and c.image_source not in (None, c.text_source):
        raise InvalidInputError("--image-source: clip encodes both; give --text-source alone")
    if c.freeze_embeddings and not c.train_text_encoder:
        raise InvalidInputError("--freeze-embeddings: has no effect without --train-text-encoder")
    if c.gradient_cache and c.train_image_encoder and c.encoder == "minilm-efficientnet":
        raise InvalidInputError(
            "--gradient-cache: EfficientNet-Lite0 in training (--train-image-encoder) normalises by "
            "statistics of its whole batch, which cannot be encoded in pieces"
        )
    for name in ("extra_negatives", "mined_negatives"):
        if c.same_entity == "ignore" and getattr(c, name):
            raise InvalidInputError(f"{_flag(name)}: needs --same-entity merge")
    _ = c.loss_units


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
