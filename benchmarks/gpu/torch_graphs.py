"""A PyTorch model's graphs as stages of the GPU pipeline: for machines where no engine and no provider is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mimic_engine.encoding.graph_names import (
    CLS,
    FEATURES,
    IMAGE_ENCODER,
    MENTION,
    MENTION_FOLD,
    PIXELS,
    TEXT_ENCODER,
    TEXT_INPUTS,
    TOKENS,
)
from mimic_engine.encoding.manifest import Shape
from mimic_engine.gpu.layout import Placed
from mimic_engine.model.fold import FoldMention
from mimic_engine.model.units import Mimic

Call = Callable[..., Mapping[str, Tensor]]
_INPUTS = {
    TEXT_ENCODER: TEXT_INPUTS,
    IMAGE_ENCODER: (PIXELS,),
    MENTION_FOLD: FEATURES,
}


@dataclass(frozen=True, slots=True)
class TorchGraph:
    """A call of a module, launched on torch's current stream.

    Inputs are cast to the module's type; outputs are copied to where they belong.
    """

    call: Call
    module: nn.Module
    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]
    capturable: bool = True

    def launcher(self, arrays: Mapping[str, Placed]) -> Callable[[], None]:
        """A call that runs the module on arrays at fixed addresses."""
        given: list[Tensor] = [arrays[name].native for name in self.inputs]
        dtype = next(self.module.parameters()).dtype

        @torch.no_grad()
        def launch() -> None:
            tensors = [t.to(dtype) if t.is_floating_point() else t for t in given]
            for name, tensor in self.call(*tensors).items():
                arrays[name].native.copy_(tensor)

        return launch


def torch_graphs(model: Mimic) -> dict[str, TorchGraph]:
    """The graphs of a model in eval mode, encoders and matcher each in its own type."""
    encoder, fold = model.encoder, FoldMention(model.matcher)

    def text(*tensors: Tensor) -> dict[str, Tensor]:
        out = encoder.text_backbone(*tensors)
        return {CLS: out.cls, TOKENS: out.tokens}

    def image(pixels: Tensor) -> dict[str, Tensor]:
        out = encoder.project_image(encoder.image_backbone(pixels))
        return {CLS: out.cls, TOKENS: out.tokens}

    def folded(*tensors: Tensor) -> dict[str, Tensor]:
        return {MENTION + name: tensor for name, tensor in fold(*tensors).items()}

    calls: dict[str, tuple[Call, nn.Module]] = {
        TEXT_ENCODER: (text, encoder),
        IMAGE_ENCODER: (image, encoder),
        MENTION_FOLD: (folded, model.matcher),
    }
    shapes = _shapes({name: call for name, (call, _) in calls.items()}, model)
    return {name: TorchGraph(*calls[name], *shapes[name]) for name in calls}


@torch.no_grad()
def _shapes(
    calls: Mapping[str, Call], model: Mimic
) -> dict[str, tuple[Mapping[str, Shape], Mapping[str, Shape]]]:
    """Shapes of the inputs and outputs of every graph, from what it gives for one row."""
    weight, other = next(model.encoder.parameters()), next(model.matcher.parameters())
    length, size = model.config.text.max_length, model.config.image.size
    ids = torch.ones((1, length), dtype=torch.int64, device=weight.device)
    pixels = torch.zeros((1, 3, size, size), dtype=weight.dtype, device=weight.device)
    given: dict[str, tuple[Tensor, ...]] = {TEXT_ENCODER: (ids, ids, ids * 0), IMAGE_ENCODER: (pixels,)}
    out = {name: calls[name](*given[name]) for name in given}
    features = (*out[TEXT_ENCODER].values(), ids, *out[IMAGE_ENCODER].values())
    given[MENTION_FOLD] = tuple(t.to(other.dtype) for t in features)
    out[MENTION_FOLD] = calls[MENTION_FOLD](*given[MENTION_FOLD])
    return {
        name: (
            {n: ("batch", *t.shape[1:]) for n, t in zip(_INPUTS[name], given[name], strict=True)},
            {n: ("batch", *t.shape[1:]) for n, t in out[name].items()},
        )
        for name in calls
    }
