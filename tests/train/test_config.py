"""Flags are the dataclass; wrong use ends with status 2 and a message that names flag and value."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from mimic_engine.errors import InvalidInputError
from mimic_engine.train.config import TrainConfig, parse_args

BASE = ["--data", "d", "--out", "o"]


def test_defaults_are_the_published_recipe() -> None:
    c = parse_args(BASE)
    assert (c.lr, c.beta1, c.beta2, c.eps, c.weight_decay) == (1e-5, 0.9, 0.999, 1e-4, 1e-4)
    assert (c.batch_size, c.epochs, c.validate_every, c.patience) == (128, 20, 2, 3)
    assert c.loss_units == ("tglu", "vdlu", "cmfu")
    model = c.model_config()
    assert (model.text.max_length, model.text.pairing, model.image.size) == (40, "literal", 224)
    assert model.encoder.text_source == "openai/clip-vit-base-patch32"
    assert not model.matcher.mask_padding


def test_every_option_is_a_flag() -> None:
    changed = parse_args([
        *BASE, "--no-tglu", "--vision", "concat", "--mask-padding", "--unit-losses", "cmfu", "--lr", "0.5",
        "--cache", "c", "--same-entity", "ignore", "--encoder", "bert-vit", "--image-source", "i",
    ])  # fmt: skip
    assert changed.model_config().matcher.units == ("concat", "cmfu")
    assert changed.loss_units == ("cmfu",)
    assert (changed.cache, changed.lr) == (Path("c"), 0.5)
    assert changed.model_config().encoder.image_source == "i"
    with pytest.raises(SystemExit) as stop:
        parse_args(["--help"])
    assert stop.value.code == 0


def test_help_names_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_args(["--help"])
    out = capsys.readouterr().out
    assert all("--" + f.name.replace("_", "-") in out for f in fields(TrainConfig))


@pytest.mark.parametrize(("arguments", "message"), [
    (["--batch-size", "1"], "--batch-size: 1 is less than 2"),
    (["--lr", "0"], "--lr: 0.0 is not positive"),
    (["--lr", "nan"], "--lr: nan is not positive"),
    (["--hard-batches", "1.5"], "--hard-batches: 1.5 is not between 0 and 1"),
    (["--weight-decay", "-1"], "--weight-decay: -1.0 is negative"),
    (["--no-tglu", "--no-cmfu", "--vision", "off"], "every unit is off"),
    (["--unit-losses", "tglu,concat"], r"\['concat'\] are not among"),
    (["--encoder", "minilm-efficientnet"], "give --text-source and --image-source"),
    (["--text-source", "a", "--image-source", "b"], "clip encodes both"),
    (["--freeze-embeddings"], "no effect without --train-text-encoder"),
    (["--extra-negatives", "2", "--same-entity", "ignore"], "needs --same-entity merge"),
    (["--mined-negatives", "2", "--same-entity", "ignore"], "--mined-negatives: needs --same-entity merge"),
    (["--mine-depth", "0"], "--mine-depth: 0 is less than 1"),
    (["--ema", "1"], "--ema: 1.0 is not at least 0 and less than 1"),
    (["--gradient-cache", "-1"], "--gradient-cache: -1 is less than 0"),
    (["--gradient-cache", "8", "--train-image-encoder", "--encoder", "minilm-efficientnet",
      "--text-source", "a", "--image-source", "b"], "--gradient-cache: EfficientNet-Lite0"),
    (["--epochs", "many"], "invalid int value"),
    (["--precision", "fp8"], "invalid choice"),
    (["--colour"], "unrecognized arguments"),
])  # fmt: skip
def test_wrong_use(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    import re

    with pytest.raises(SystemExit) as stop:
        parse_args([*BASE, *arguments])
    assert stop.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_limits_hold_without_the_command_line_too() -> None:
    with pytest.raises(InvalidInputError, match="--accumulate: 0"):
        TrainConfig(Path("d"), Path("o"), accumulate=0)
