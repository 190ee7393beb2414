"""A PyTorch model's graphs as stages of a chain: what there is to run where no engine and no provider is."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from mimic_engine.chain.graphs import GRAPHS, GraphShapes, LaunchedGraphs, ShapesOf
from mimic_engine.layout import Placed
from mimic_engine.model.fold import FoldMention
from mimic_engine.model.mimic import Mimic

Call = Callable[..., Mapping[str, Tensor]]
_INPUTS = {
    "text_encoder": ("input_ids", "attention_mask", "token_type_ids"),
    "image_encoder": ("pixels",),
    "mention_fold": ("text_cls", "text_tokens", "text_mask", "image_cls", "image_tokens"),
}


def torch_graphs(model: Mimic) -> LaunchedGraphs:
    """The graphs of a model that lies on the chain's device, encoders and matcher each in its own type.

    Parameters
    ----------
    model : in eval mode.
    """
    encoder, fold = model.encoder, FoldMention(model.matcher)

    def text(*tensors: Tensor) -> dict[str, Tensor]:
        out = encoder.text_backbone(*tensors)
        return {"cls": out.cls, "tokens": out.tokens}

    def image(pixels: Tensor) -> dict[str, Tensor]:
        out = encoder.project_image(encoder.image_backbone(pixels))
        return {"cls": out.cls, "tokens": out.tokens}

    def folded(*tensors: Tensor) -> dict[str, Tensor]:
        return {f"mention_{name}": tensor for name, tensor in fold(*tensors).items()}

    calls: dict[str, tuple[Call, nn.Module]] = {
        "text_encoder": (text, encoder),
        "image_encoder": (image, encoder),
        "mention_fold": (folded, model.matcher),
    }
    launches = {name: _launch(call, _INPUTS[name], module) for name, (call, module) in calls.items()}
    text_config, image_config = model.config.text, model.config.image
    shapes = _shapes({name: call for name, (call, _) in calls.items()}, model)
    return LaunchedGraphs("torch", text_config, image_config, shapes, launches)


@torch.no_grad()
def _shapes(calls: Mapping[str, Call], model: Mimic) -> dict[str, GraphShapes]:
    """Shapes of every graph, from what it gives for one row."""
    weight, other = next(model.encoder.parameters()), next(model.matcher.parameters())
    length, size = model.config.text.max_length, model.config.image.size
    ids = torch.ones((1, length), dtype=torch.int64, device=weight.device)
    pixels = torch.zeros((1, 3, size, size), dtype=weight.dtype, device=weight.device)
    given: dict[str, tuple[Tensor, ...]] = {"text_encoder": (ids, ids, ids * 0), "image_encoder": (pixels,)}
    found: dict[str, GraphShapes] = {}
    for name in GRAPHS:
        if name == "mention_fold":
            features = (*_features(calls, given, "text"), ids, *_features(calls, given, "image"))
            given[name] = tuple(t.to(other.dtype) for t in features)
        inputs = {n: ("batch", *t.shape[1:]) for n, t in zip(_INPUTS[name], given[name], strict=True)}
        outputs = {n: ("batch", *t.shape[1:]) for n, t in calls[name](*given[name]).items()}
        found[name] = ShapesOf(inputs, outputs)
    return found


def _features(
    calls: Mapping[str, Call], given: Mapping[str, tuple[Tensor, ...]], kind: str
) -> tuple[Tensor, ...]:
    return tuple(calls[f"{kind}_encoder"](*given[f"{kind}_encoder"]).values())


def _launch(
    call: Call, inputs: tuple[str, ...], module: nn.Module
) -> Callable[[Mapping[str, Placed]], Callable[[], None]]:
    """A call's launch: its inputs cast to the module's type, its outputs copied to where they belong."""

    def bind(arrays: Mapping[str, Placed]) -> Callable[[], None]:
        given: list[Tensor] = [arrays[name].native for name in inputs]
        dtype = next(module.parameters()).dtype

        @torch.no_grad()
        def launch() -> None:
            tensors = [t.to(dtype) if t.is_floating_point() else t for t in given]
            for name, tensor in call(*tensors).items():
                arrays[name].native.copy_(tensor)

        return launch

    return bind
