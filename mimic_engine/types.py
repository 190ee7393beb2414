"""Input and output: mentions, entities, candidates; and the arrays between stages.

No I/O and no arithmetic here. Axes: ``B`` mentions, ``N`` entities, ``L`` text
tokens, ``P`` image patches, ``D`` interaction width (96), ``T`` width of the
global text vector, ``G`` width of the global image vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
ImageSource = bytes | str | Path  # encoded bytes, or the path of an image file
Mode = Literal["exact", "certified", "coded"]  # how a scan answers, see mimic_engine/scan/scan.py
MODES: tuple[Mode, ...] = get_args(Mode)
KernelChoice = Literal["auto", "cpu", "onnx"]  # what scores on the CPU
KERNELS: tuple[KernelChoice, ...] = get_args(KernelChoice)
ScorerChoice = Literal["auto", "cpu", "cuda", "onnx"]  # what scores, see mimic_engine/backends/scan.py
SCORERS: tuple[ScorerChoice, ...] = get_args(ScorerChoice)
PlacementChoice = Literal["auto", "device", "host"]  # where a GPU scan keeps the entities' token queries
PLACEMENTS: tuple[PlacementChoice, ...] = get_args(PlacementChoice)
ChainChoice = Literal[
    "auto", "on", "off"
]  # whether requests stay on the GPU, see mimic_engine/backends/pipeline.py
CHAINS: tuple[ChainChoice, ...] = get_args(ChainChoice)
DeviceLayer = Literal["auto", "pycuda", "cuda-core"]  # what TensorRT and ONNX Runtime have memory from
DEVICE_LAYERS: tuple[DeviceLayer, ...] = get_args(DeviceLayer)


@dataclass(frozen=True, slots=True)
class Mention:
    """A surface form in its sentence, with an optional image (bytes or a path)."""

    mention: str
    sentence: str
    image: ImageSource | None = None


@dataclass(frozen=True, slots=True)
class Entity:
    """A knowledge-base entry. ``images`` are bytes or paths; how many the model uses is its own.

    ``aliases`` are other names that mean it, ``popularity`` is how often it is meant at all (page views,
    sitelinks, sales): a number from 0 on, None where it is not known.
    """

    id: str
    name: str
    description: str = ""
    images: tuple[ImageSource, ...] = ()
    type: str = ""
    aliases: tuple[str, ...] = ()
    popularity: float | None = None


@dataclass(frozen=True, slots=True)
class LabelledMention:
    """A mention with its gold entity id: what training and evaluation read."""

    mention: Mention
    answer: str
    id: str = ""


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """A token of a mention's text, as the model reads it.

    ``part`` is "mention", "sentence" or "special"; ``text`` is characters ``start:stop`` of that part,
    and empty for a special token.
    """

    text: str
    part: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """Where the score of one candidate comes from.

    ``contributions`` are the shares of the units, of the names and of the prior in the score, which is their
    sum. ``matched_name`` is the name or alias that shares most with the mention, None where none shares
    anything or names were not asked. ``attention`` holds, for each
    token of :attr:`LinkResult.tokens`, how much of TGLU's attention it got from this entity's description;
    with ``padding_attention``, what went to padding, they sum to 1. Both are None in a model without TGLU.
    """

    contributions: Mapping[str, float]
    attention: tuple[float, ...] | None
    padding_attention: float | None
    matched_name: str | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """One ranked entity: its id, name, total score, and the scores of the units.

    The model's units are those of section 3.3 of the paper, by name: "tglu", "vdlu" and "cmfu" in the
    published model. The total is their mean, and where names count the sum of it and of "name" and "prior".
    ``probability`` is that of this entity among the ranked ones and "none of these"; None in a model that was
    not calibrated for it.
    """

    id: str
    name: str
    score: float
    units: Mapping[str, float]
    explanation: Explanation | None = None
    probability: float | None = None


@dataclass(frozen=True, slots=True)
class LinkResult:
    """Ranked candidates of one mention, best first.

    ``text_truncated`` says that the text was longer than the model's limit and
    was cut, as the model itself does. ``mode`` says how the scan answered: "exact" and
    "certified" give the same candidates, "coded" those among its best estimates.
    ``entities_scored`` says how many entities were scored exactly. ``tokens`` are those that
    explanations speak of, where they were asked for. ``nil_probability`` is that of "none of these", None in
    a model that was not calibrated for it.
    """

    candidates: tuple[Candidate, ...]
    text_truncated: bool
    has_image: bool
    mode: Mode
    entities_scored: int
    tokens: tuple[TokenSpan, ...] | None = None
    nil_probability: float | None = None


@dataclass(frozen=True, slots=True)
class LinkOptions:
    """How one mention is to be answered.

    ``top_k`` entities, among ``candidates`` (ids) and ``types`` if given (both: entities that
    meet both), found in ``mode``; ``rerank`` is the number of entities that mode "coded" scores
    exactly (default: what the index was calibrated for). ``explain`` adds an
    :class:`Explanation` to every candidate. Without ``names`` the score is the model's alone.
    """

    top_k: int = 10
    candidates: tuple[str, ...] | None = None
    types: tuple[str, ...] | None = None
    mode: Mode = "certified"
    rerank: int | None = None
    explain: bool = False
    names: bool = True


DEFAULT_OPTIONS = LinkOptions()


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Token ids of B texts, padded to L. ``truncated[b]`` says that text b was cut."""

    input_ids: NDArray[np.int64]  # (B, L)
    attention_mask: NDArray[np.int64]  # (B, L), 1 = real token
    token_type_ids: NDArray[np.int64]  # (B, L); zeros for CLIP
    truncated: NDArray[np.bool_]  # (B,)

    @classmethod
    def joined(cls, batches: Sequence[TokenBatch]) -> TokenBatch:
        """The rows of all batches, one after another."""
        names = ("input_ids", "attention_mask", "token_type_ids", "truncated")
        return cls(*(np.concatenate([getattr(b, name) for b in batches]) for name in names))


@dataclass(frozen=True, slots=True)
class _ArrayGroup:
    """Optional arrays that share their first axis; absent arrays belong to units that are off."""

    def items(self) -> Iterator[tuple[str, Array]]:
        """Yield (name, array) for every array that is present, in declaration order."""
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None:
                yield f.name, value

    @property
    def rows(self) -> int:
        """Length of the shared first axis."""
        present = next(iter(self.items()), None)
        return 0 if present is None else int(present[1].shape[0])

    def block(self, start: int, stop: int) -> Self:
        """Rows start:stop of every array, without a copy."""
        return type(self)(**{name: value[start:stop] for name, value in self.items()})

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> Self:
        """The given rows of every array, copied."""
        index = np.asarray(rows, np.int64)
        return type(self)(**{name: value[index] for name, value in self.items()})


@dataclass(frozen=True, slots=True)
class MentionArrays(_ArrayGroup):
    """B mentions after folding (see ``mimic_engine/model/fold.py``), float32.

    The scores are functions of these and of :class:`EntityArrays` alone.
    """

    text_cls: Array | None = None  # (B, T) layer-normed global text, for g2g
    tglu_key: Array | None = None  # (B, L, D)
    tglu_value: Array | None = None  # (B, L, D), each row centred over D
    tglu_key_mask: Array | None = None  # (B, L), 1 = attend; absent where padding is not masked
    vdlu_query: Array | None = None  # (B, 3, D): u, cq, A_q of the dual mention -> entity
    vdlu_query_scalars: Array | None = None  # (B, 7)
    vdlu_key: Array | None = None  # (B, 3, D): cv, A_v, k of the dual entity -> mention
    vdlu_key_scalars: Array | None = None  # (B, 7)
    concat: Array | None = None  # (B, D), when VDLU is replaced by concatenation
    cmfu: Array | None = None  # (B, D)


@dataclass(frozen=True, slots=True)
class EntityArrays(_ArrayGroup):
    """N entities after folding: what an index stores. Vectors float32 or float16, the rest float32.

    ``tglu_query`` may be int8 too, each token row a multiple of its ``tglu_query_scale``.
    """

    text_cls: Array | None = None  # (N, T)
    tglu_query: Array | None = None  # (N, L, D), scaled by 1/sqrt(D)
    tglu_query_scale: Array | None = None  # (N, L) float32; present exactly where tglu_query is int8
    tglu_token_weight: Array | None = None  # (N, L), sums to 1; absent where padding is not masked
    tglu_cls: Array | None = None  # (N, D): LN.weight * fc_cls(cls), centred over D
    tglu_bias: Array | None = None  # (N,): LN.bias . fc_cls(cls)
    vdlu_query: Array | None = None  # (N, 3, D): u, cq, A_q of the dual entity -> mention
    vdlu_query_scalars: Array | None = None  # (N, 7)
    vdlu_key: Array | None = None  # (N, 3, D): cv, A_v, k of the dual mention -> entity
    vdlu_key_scalars: Array | None = None  # (N, 7)
    concat: Array | None = None  # (N, D)
    cmfu: Array | None = None  # (N, D)


@dataclass(frozen=True, slots=True)
class FoldConstants:
    """The few numbers of the model that the scores need beyond the folded arrays.

    ``units`` are the units that are on ("tglu", "vdlu" or "concat", "cmfu"), in
    that order. ``gate_bias`` and ``bias_norm`` hold, for the dual entity ->
    mention and the dual mention -> entity, the constant inside VDLU's gate and
    the squared norm of its centred bias.
    """

    width: int
    units: tuple[str, ...]
    layer_norm_eps: float = 1e-5
    gate_bias: tuple[float, float] = (0.0, 0.0)
    bias_norm: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, slots=True)
class TextFeatures:
    """Output of a text encoder: a global vector and one local vector a token."""

    cls: Array  # (B, T)
    tokens: Array  # (B, L, token width)
    mask: Array  # (B, L), 1 = real token


@dataclass(frozen=True, slots=True)
class ImageFeatures:
    """Output of an image encoder after its projections: a global and P local vectors of width D."""

    cls: Array  # (B, D)
    tokens: Array  # (B, P, D)


@dataclass(frozen=True, slots=True)
class Scores:
    """Total and unit scores of B mentions against n entities, float32 (B, n)."""

    total: Array
    units: Mapping[str, Array] = field(default_factory=dict)  # keys: FoldConstants.units
