"""Inputs of the published evaluation loop: weights under the published names, raw features of both sides.

Holds their shapes, the checks on them, and random ones for timing and tests;
the arithmetic is in :mod:`benchmarks.scan.published_loop`. Follows sections 3.2 and 3.3
of the MIMIC paper (arXiv 2307.09721) and the names of its published
checkpoints. Nothing is imported from the engine's model: this is the
independent side of a comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from mimic_engine.errors import InvalidInputError, ModelError

TEXT_LENGTH = 40  # L of the published configuration
CLIP_PATCHES = 50  # P of ViT-B/32: 49 patches and CLS


@dataclass(frozen=True, slots=True)
class Widths:
    """Last axes of the features and of the units; the defaults are the published CLIP configuration."""

    text_cls: int = 512
    text_tokens: int = 512
    image_cls: int = 96
    image_tokens: int = 96
    tglu: int = 96
    vdlu: int = 96
    cmfu: int = 96

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> Self:
        """Read the widths off a state dict, whose shapes must agree with each other.

        Parameters
        ----------
        weights
            State dict of the published names; keys that do not start with
            ``matcher.`` (the encoders) are not looked at, and
            ``matcher.cmfu.context_layer_norm``, which nothing uses, may be absent.

        Raises
        ------
        ModelError
            If a name is missing or a shape contradicts the others; lists all of them.
        """
        missing = sorted(
            name
            for name in published_shapes(cls())
            if name not in weights and "context_layer_norm" not in name
        )
        if missing:
            raise ModelError(f"weights: missing {missing}")
        widths = cls(
            text_cls=weights["matcher.text_cls_layernorm.weight"].shape[0],
            text_tokens=weights["matcher.text_tokens_layernorm.weight"].shape[0],
            image_cls=weights["matcher.image_cls_layernorm.weight"].shape[0],
            image_tokens=weights["matcher.image_tokens_layernorm.weight"].shape[0],
            tglu=weights["matcher.tglu.fc_query.weight"].shape[0],
            vdlu=weights["matcher.vdlu.dual_ent2men.cls_fc.weight"].shape[0],
            cmfu=weights["matcher.cmfu.text_fc.weight"].shape[0],
        )
        wrong = [
            f"{name}: shape {tuple(weights[name].shape)}, expected {shape}"
            for name, shape in published_shapes(widths).items()
            if name in weights and tuple(weights[name].shape) != shape
        ]
        if wrong:
            raise ModelError("weights: " + "; ".join(wrong))
        return widths


@dataclass(frozen=True, slots=True)
class Features:
    """Raw encoder features of n mentions or entities, one dtype, all on the host."""

    text_cls: Tensor  # (n, T)
    text_tokens: Tensor  # (n, L, Tt)
    image_cls: Tensor  # (n, I)
    image_tokens: Tensor  # (n, P, It)

    def __post_init__(self) -> None:
        rows = {f.name: getattr(self, f.name).shape[0] for f in fields(self)}
        if len(set(rows.values())) != 1:
            raise InvalidInputError(f"features: the first axes must be equal, got {rows}")

    def __len__(self) -> int:
        return self.text_cls.shape[0]

    @property
    def values_per_row(self) -> int:
        """Numbers kept for one mention or entity (25,888 in the published configuration)."""
        return sum(getattr(self, f.name)[0].numel() for f in fields(self))

    def block(self, start: int, stop: int, device: torch.device | None = None) -> Features:
        """Rows start:stop, on ``device`` if one is given (a copy where that is not the host)."""
        return Features(**{f.name: getattr(self, f.name)[start:stop].to(device) for f in fields(self)})

    def to(self, dtype: torch.dtype) -> Features:
        """The same features in another dtype."""
        return Features(**{f.name: getattr(self, f.name).to(dtype) for f in fields(self)})

    def check(self, name: str, widths: Widths, dtype: torch.dtype) -> None:
        """Raise InvalidInputError, naming ``name``, unless these fit a model of these widths and dtype."""
        for f in fields(self):
            tensor, width = getattr(self, f.name), getattr(widths, f.name)
            axes = 3 if f.name.endswith("tokens") else 2
            if tensor.ndim != axes or tensor.shape[-1] != width:
                raise InvalidInputError(
                    f"{name}.{f.name}: shape {tuple(tensor.shape)}, needs {axes} axes, the last {width}"
                )
            if axes == 3 and tensor.shape[1] == 0:
                raise InvalidInputError(
                    f"{name}.{f.name}: shape {tuple(tensor.shape)}, at least 1 token is needed"
                )
            if tensor.dtype != dtype:
                raise InvalidInputError(f"{name}.{f.name}: dtype {tensor.dtype}, the weights are {dtype}")


def published_shapes(widths: Widths) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the published matcher (315,491 numbers at the default widths)."""
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, inputs: int, outputs: int) -> None:
        shapes[f"matcher.{name}.weight"], shapes[f"matcher.{name}.bias"] = (outputs, inputs), (outputs,)

    def layer_norm(name: str, width: int) -> None:
        shapes[f"matcher.{name}.weight"] = shapes[f"matcher.{name}.bias"] = (width,)

    for feature in ("text_cls", "text_tokens", "image_cls", "image_tokens"):
        layer_norm(f"{feature}_layernorm", getattr(widths, feature))
    for projection in ("fc_query", "fc_key", "fc_value"):
        linear(f"tglu.{projection}", widths.text_tokens, widths.tglu)
    linear("tglu.fc_cls", widths.text_cls, widths.tglu)
    layer_norm("tglu.layer_norm", widths.tglu)
    for dual in ("vdlu.dual_ent2men", "vdlu.dual_men2ent"):
        linear(f"{dual}.cls_fc", widths.image_cls, widths.vdlu)
        linear(f"{dual}.tokens_fc", widths.image_tokens, widths.vdlu)
        linear(f"{dual}.fc", widths.vdlu, widths.vdlu)
        linear(f"{dual}.gate_fc", widths.vdlu, 1)
        layer_norm(f"{dual}.add_layer_norm", widths.vdlu)
        layer_norm(f"{dual}.layer_norm", widths.vdlu)
    linear("cmfu.text_fc", widths.text_cls, widths.cmfu)
    linear("cmfu.image_fc", widths.image_tokens, widths.cmfu)
    linear("cmfu.gate_fc", widths.cmfu, 1)
    layer_norm("cmfu.gate_layer_norm", widths.cmfu)
    layer_norm("cmfu.context_layer_norm", widths.cmfu)
    return shapes


def random_weights(
    widths: Widths | None = None, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """A state dict of the published names, drawn as a model looks after some training.

    Linear layers are uniform within 1 / sqrt(fan-in) (PyTorch's start), with
    normal biases of scale 0.1; layer norms are 1 and 0 plus normal noise of
    scale 0.1, so that a forgotten bias or scale shows in the scores. The same
    seed gives the same numbers in every dtype, up to rounding.
    """
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}
    for name, shape in published_shapes(widths or Widths()).items():
        if len(shape) == 2:
            value = (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1) / shape[1] ** 0.5
        else:
            value = 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64)
            if "norm" in name and name.endswith(".weight"):
                value += 1
        weights[name] = value.to(dtype)
    return weights


def random_features(
    rows: int,
    widths: Widths | None = None,
    *,
    length: int = TEXT_LENGTH,
    patches: int = CLIP_PATCHES,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Features:
    """Standard normal features of ``rows`` mentions or entities; the same seed gives the same numbers.

    The time of the loop does not depend on the values. Drawn in ``dtype``
    directly: at 25,888 values a row a detour through float64 would triple the memory.
    """
    widths = widths or Widths()
    for name, value in (("rows", rows), ("length", length), ("patches", patches)):
        if value < 1:
            raise InvalidInputError(f"{name}: must be at least 1, got {value}")
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    return Features(
        text_cls=normal(rows, widths.text_cls),
        text_tokens=normal(rows, length, widths.text_tokens),
        image_cls=normal(rows, widths.image_cls),
        image_tokens=normal(rows, patches, widths.image_tokens),
    )
