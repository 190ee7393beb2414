"""AdamW with the recipe's parameter groups, and the learning-rate schedules."""

from __future__ import annotations

import math

import torch
from torch import nn

from mimic_engine.model.mimic import Mimic
from mimic_engine.train.config import TrainConfig

HEADS = ("encoder.image_cls_fc.", "encoder.image_tokens_fc.", "matcher.")


def freeze(model: Mimic, config: TrainConfig) -> None:
    """Switch off the gradients of what the configuration keeps as it is."""
    for name, parameter in model.named_parameters():
        if not name.startswith(HEADS):
            side_trained = config.train_image_encoder if _is_image(name) else config.train_text_encoder
            parameter.requires_grad_(side_trained)
    if config.freeze_embeddings:
        text = model.encoder.clip.text_model if hasattr(model.encoder, "clip") else model.encoder.text.model  # type: ignore[union-attr]
        text.get_input_embeddings().weight.requires_grad_(False)  # type: ignore[union-attr, operator]


def set_modes(model: Mimic, config: TrainConfig) -> None:
    """Training mode, but evaluation mode for encoders that are not trained (dropout, batch statistics)."""
    model.train()
    for name, module in model.encoder.named_modules():
        if name and not (name + ".").startswith(("image_cls_fc.", "image_tokens_fc.")):
            trained = (
                config.train_image_encoder if _is_image(f"encoder.{name}.") else config.train_text_encoder
            )
            module.training = trained


def build_optimiser(model: Mimic, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the trained parameters: encoders and heads apart, no decay on biases and layer norms."""
    norms = {
        f"{prefix}.{n}"
        for prefix, m in model.named_modules()
        if isinstance(m, nn.LayerNorm | nn.BatchNorm2d)
        for n, _ in m.named_parameters()
    }
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = not (name in norms or name.endswith(".bias"))
            groups.setdefault((name.startswith(HEADS), decay), []).append(parameter)
    rates = {True: config.head_lr or config.lr, False: config.encoder_lr or config.lr}
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": rates[head],
                "base_lr": rates[head],
                "weight_decay": config.weight_decay if decay else 0.0,
            }
            for (head, decay), parameters in sorted(groups.items())
        ],
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


def rate_factor(step: int, total: int, config: TrainConfig) -> float:
    """Factor on every learning rate at a step (0-based) of a run of ``total`` steps.

    Linear from 0 over the warm-up, then constant, or down to 0 at ``total`` linearly or along a cosine.
    """
    rise = config.warmup * total
    if step < rise:
        return (step + 1) / (math.floor(rise) + 1)
    share = min(1.0, (step - rise) / max(1.0, total - rise))  # of the decay
    if config.schedule == "linear":
        return 1 - share
    return (1 + math.cos(math.pi * share)) / 2 if config.schedule == "cosine" else 1.0


def set_rates(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Set the rate of each group to its base rate times ``factor``."""
    for group in optimiser.param_groups:
        group["lr"] = group["base_lr"] * factor


def _is_image(name: str) -> bool:
    """Whether a parameter or module of the encoder belongs to the image backbone."""
    return name.startswith(("encoder.image.", "encoder.clip.vision", "encoder.clip.visual"))
