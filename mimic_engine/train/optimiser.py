"""Optimiser of a training: AdamW with the recipe's parameter groups, schedules, the average of the weights.

What is trained is decided here too: encoders that are kept as they are get no
gradients and stay in evaluation mode.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mimic_engine.model.checkpoint import HEADS
from mimic_engine.model.units import Mimic
from mimic_engine.train.config import TrainConfig


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


class WeightAverage:
    """Exponential moving average of a model's trained parameters, validated and kept as the best.

    Not in the paper. The average starts without a bias towards the first weights (as Adam's moments are
    corrected, Kingma and Ba 2015): after step t it is the mean of the weights after steps 1 to t, each
    weighed ``decay ** (t - step)``. Running statistics of batch norms are not averaged but the model's.

    Parameters
    ----------
    model : whose parameters that require gradients are averaged.
    decay : at least 0 and less than 1; about the last 1 / (1 - decay) steps count.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._steps = 0
        self._live = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._mean = {name: p.detach().clone() for name, p in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        self._steps += 1
        share = (1 - self._decay) / (1 - self._decay**self._steps)  # of the newest weights; 1 at first
        for name, mean in self._mean.items():
            mean.lerp_(self._live[name], share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights inside, and its own again afterwards, bit for bit."""
        own = {name: p.detach().clone() for name, p in self._live.items()}
        self._copy(self._mean)
        try:
            yield
        finally:
            self._copy(own)

    def state(self) -> dict[str, Any]:
        """State for :meth:`restore`: steps taken in, and the average."""
        return {"steps": self._steps, "mean": self._mean}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state`."""
        self._steps = int(state["steps"])
        for name, mean in self._mean.items():
            mean.copy_(state["mean"][name])

    @torch.no_grad()
    def _copy(self, weights: Mapping[str, Tensor]) -> None:
        for name, p in self._live.items():
            p.copy_(weights[name])


def _is_image(name: str) -> bool:
    """Whether a parameter or module of the encoder belongs to the image backbone."""
    return name.startswith(("encoder.image.", "encoder.clip.vision", "encoder.clip.visual"))
