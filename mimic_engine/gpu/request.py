"""Plan of a batch of requests on the GPU: token ids and pixels -> encoders -> fold -> search.

A batch takes the least bucket that holds it: (rows, images, tokens, k, mode).
Images are fewer than rows where mentions have none: a row without one gets the
features of the missing image, which were computed once. A text encoder of free
length runs at the bucket's length; its states are padded with zeros to the
model's.

Name scores of a mention, where the linker weighs names, are two arrays of the
inputs, padded to :data:`MAX_NAMES`; the prior lies on the device.

A search is all launches, in every mode: the chunks of an index are known
beforehand, and a certified search counts the survivors that had no room instead
of asking the host what to do. What is left to the host is the order of a short
list, and another search for a mention that fell short
(:meth:`~mimic_engine.gpu.scan.CudaScan.settle`), which the answer's mode then
says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from mimic_engine.encoding.buckets import LENGTH, ROWS, bucket, length_buckets
from mimic_engine.encoding.featurizer import PreparedMention
from mimic_engine.encoding.graph_names import (
    CLS,
    FEATURES,
    IDS,
    IMAGE_ENCODER,
    MASK,
    MENTION,
    MENTION_FOLD,
    PIXELS,
    TEXT_CLS,
    TEXT_ENCODER,
    TEXT_INPUTS,
    TEXT_MASK,
    TEXT_TOKENS,
    TOKENS,
)
from mimic_engine.encoding.manifest import Shape
from mimic_engine.errors import InvalidInputError
from mimic_engine.gpu.layout import Layout, Placed, Spec
from mimic_engine.gpu.passes import ShortList
from mimic_engine.gpu.scan import SPARE, CudaScan, Mask, list_length
from mimic_engine.gpu.session import Launch, lengths
from mimic_engine.gpu.terms import DeviceTerms, write_names
from mimic_engine.kernels.stream_topk import MAX_K, check_k
from mimic_engine.scan.scan import TopK
from mimic_engine.scan.terms import NameScores
from mimic_engine.types import ImageFeatures, MentionArrays, Mode

# A pipeline is captured for one k. Requests get the first of these that is no less, and the rest is cut off.
TOP_K_BUCKETS = (10, *(2**n - SPARE for n in range(5, 11)))
# Name scores of a mention that the inputs have room for. Room is uploaded whether it is used or not: 8 KiB a
# mention. Among the 20,000 entities of WikiMEL or RichpediaMEL a mention has 673 at most, 99% have 353 or
# fewer; they grow with the entities, and a mention with more is searched without the pipeline.
MAX_NAMES = 1024
NAME_ROWS, NAME_SCORES = "name_rows", "name_scores"

HostArrays = Mapping[str, NDArray[Any]]


class LaunchableGraph(Protocol):
    """A graph that a stage can launch; a :class:`~mimic_engine.gpu.session.DeviceGraph` is one."""

    @property
    def inputs(self) -> Mapping[str, Shape]:
        """Shapes by name; a string stands for an axis of any length."""
        ...

    @property
    def outputs(self) -> Mapping[str, Shape]:
        """Shapes by name, as the inputs."""
        ...

    @property
    def capturable(self) -> bool:
        """Whether a CUDA graph can hold what a launcher queues."""
        ...

    def launcher(self, arrays: Mapping[str, Placed]) -> Launch:
        """A call that queues the graph on arrays at fixed addresses."""
        ...


@dataclass(frozen=True, slots=True)
class Bucket:
    """Sizes and mode that a pipeline is captured for."""

    rows: int
    images: int
    tokens: int
    k: int
    mode: Mode


@dataclass(frozen=True, slots=True)
class Layouts:
    """The arrays of one bucket: uploaded, passed on by stages, folded, and downloaded."""

    inputs: Layout
    work: Layout
    folded: Layout
    results: Layout


@dataclass(frozen=True, slots=True)
class Stage:
    """Work that ``launch`` queues on the device's stream, on arrays at fixed addresses."""

    name: str
    launch: Launch
    capturable: bool = True  # whether a CUDA graph can hold it


class RequestPlan:
    """The buckets, arrays and stages of requests over one model and one state of an index.

    Parameters
    ----------
    graphs : of the model, on the device.
    missing : features of the missing image, of one row.
    scan : over the index, on the same device.
    allowed : rows (N,) that may be answered with; all by default.
    rerank : estimates that mode "coded" scores exactly.
    rows : numbers of mentions that there are buckets for.
    top_ks : numbers of results that there are buckets for.
    names : whether name scores and the prior count: for every mention of the plan, or for none.
    """

    def __init__(
        self,
        graphs: Mapping[str, LaunchableGraph],
        missing: ImageFeatures,
        scan: CudaScan,
        allowed: Mask | None = None,
        rerank: int | None = None,
        *,
        rows: Sequence[int] = ROWS,
        top_ks: Sequence[int] = TOP_K_BUCKETS,
        names: bool = False,
    ) -> None:
        self.graphs, self.scan, self.allowed, self.names = graphs, scan, allowed, names
        self.passes = scan.passes  # of the index as it lies on the device now
        self.rows, self.top_ks = tuple(rows), tuple(top_ks)
        self._rerank = rerank
        self._missing = [torch.from_numpy(np.array(a)).to(scan.device) for a in (missing.cls, missing.tokens)]
        self._length = int(graphs[MENTION_FOLD].inputs[TEXT_MASK][1])  # tokens of the model
        free = LENGTH in graphs[TEXT_ENCODER].inputs[IDS]
        self.lengths = length_buckets(self._length) if free else (self._length,)
        self._mask = scan.mask(allowed)
        self._candidates = len(scan) if allowed is None else int(np.count_nonzero(allowed))

    @property
    def modes(self) -> Sequence[Mode]:
        """Those of the scan whose list the device has room for."""
        return tuple(m for m in self.scan.modes if list_length(1, m, self._rerank) <= MAX_K)

    @property
    def largest(self) -> Bucket:
        """As many rows, images, tokens and results as there may be."""
        rows, k = self.rows[-1], self.top_ks[-1]
        return max((Bucket(rows, rows, self._length, k, mode) for mode in self.modes), key=self._room)

    def bucket(self, mentions: Sequence[PreparedMention], k: int, mode: Mode) -> Bucket:
        """The least bucket for a batch."""
        mask = np.concatenate([m.tokens.attention_mask for m in mentions])  # (B, L)
        used = int(np.flatnonzero(mask.any(axis=0)).max(initial=0)) + 1
        images = sum(m.pixels is not None for m in mentions)
        rows = bucket(len(mentions), self.rows)
        room = 0 if not images else min(rows, bucket(images, self.rows))
        return Bucket(rows, room, bucket(used, self.lengths), bucket(k, self.top_ks), mode)

    def layouts(self, bucket: Bucket) -> Layouts:
        """The arrays of a bucket; see the module for what they are."""
        rows, tokens = bucket.rows, bucket.tokens
        inputs: dict[str, Spec] = dict.fromkeys(TEXT_INPUTS, ((rows, tokens), np.int64))
        inputs["image_of"] = ((rows,), np.int64)  # number of a row's image, -1 without one
        pixels = self.graphs[IMAGE_ENCODER].inputs[PIXELS]
        inputs[PIXELS] = (_sized(pixels, bucket.images, tokens), np.float32)
        if self.names:
            inputs[NAME_ROWS] = ((rows, MAX_NAMES), np.int32)
            inputs[NAME_SCORES] = ((rows, MAX_NAMES), np.float32)
        work: dict[str, Spec] = {}
        for kind, encoder, count in (("text", TEXT_ENCODER, rows), ("image", IMAGE_ENCODER, bucket.images)):
            for name, shape in self.graphs[encoder].outputs.items():
                work[f"{kind}.{name}"] = (_sized(shape, count, tokens), np.float32)
                work[f"{kind}_{name}"] = (_sized(shape, rows, self._length), np.float32)
        work[TEXT_MASK] = ((rows, self._length), np.float32)
        folded: dict[str, Spec] = {
            name: (_sized(shape, rows, self._length), np.float32)
            for name, shape in self.graphs[MENTION_FOLD].outputs.items()
        }
        results = _result_arrays(rows, self._room(bucket))
        return Layouts(Layout(inputs), Layout(work), Layout(folded), Layout(results))

    def fill(
        self,
        host: HostArrays,
        mentions: Sequence[PreparedMention],
        names: Sequence[NameScores] | None = None,
    ) -> None:
        """Write B mentions to the inputs of their bucket; rows and images beyond them repeat the last.

        ``names`` are their name scores, :data:`MAX_NAMES` at most each, or None where the plan counts none.

        Raises
        ------
        InvalidInputError
            If the plan counts names and there are none, or the other way, or a mention has too many.
        """
        if self.names != (names is not None):
            raise InvalidInputError(
                f"names: the plan counts {'them' if self.names else 'none'}", field="names"
            )
        if names is not None and max(len(name.rows) for name in names) > MAX_NAMES:
            raise InvalidInputError(f"names: a batch has room for {MAX_NAMES} a mention", field="names")
        rows, tokens = host[IDS].shape
        source = [min(row, len(mentions) - 1) for row in range(rows)]
        for name in TEXT_INPUTS:
            for row, b in enumerate(source):
                host[name][row] = getattr(mentions[b].tokens, name)[0, :tokens]
        has = np.array([m.pixels is not None for m in mentions])  # (B,)
        host["image_of"][:] = np.where(has, np.cumsum(has) - 1, -1)[source]
        pixels = [m.pixels for m in mentions if m.pixels is not None]
        for row in range(len(host[PIXELS])):
            host[PIXELS][row] = pixels[min(row, len(pixels) - 1)]
        if names is not None:
            write_names([names[b] for b in source], host[NAME_ROWS], host[NAME_SCORES])

    def stages(self, bucket: Bucket, arrays: Mapping[str, Placed]) -> list[Stage]:
        """Encoders, assembly, fold, search, over the bucket's arrays of all four kinds."""
        stages = [self._graph(TEXT_ENCODER, {n: arrays[n] for n in TEXT_INPUTS} | _part(arrays, "text."))]
        if bucket.images:
            feeds = {PIXELS: arrays[PIXELS]} | _part(arrays, "image.")
            stages.append(self._graph(IMAGE_ENCODER, feeds))
        stages.append(Stage("assemble", _Assembly(_tensors(arrays), self._missing, bucket.images)))
        fold = (*FEATURES, *self.graphs[MENTION_FOLD].outputs)
        stages.append(self._graph(MENTION_FOLD, {name: arrays[name] for name in fold}))
        stages.append(self.search(bucket, arrays))
        return stages

    def search(self, bucket: Bucket, arrays: Mapping[str, Placed]) -> Stage:
        """The last stage: from folded mentions to results."""
        tensors = _tensors(arrays)
        mentions = {n.removeprefix(MENTION): tensors[n] for n in self.graphs[MENTION_FOLD].outputs}
        terms = self.scan.terms_of(tensors[NAME_ROWS], tensors[NAME_SCORES]) if self.names else None
        launch = _Search(
            self.scan, bucket, mentions, terms, tensors, self._mask, self._candidates, self._rerank
        )
        return Stage("search", launch, self.scan.capturable(bucket.mode))

    def answer(
        self,
        results: HostArrays,
        mentions: int,
        k: int,
        mode: Mode,
        take: Callable[[Sequence[int]], MentionArrays],
        names: Sequence[NameScores] | None = None,
    ) -> TopK:
        """The k best of B mentions, from the results of their bucket.

        ``take`` folds some of them, ``names`` are as in :meth:`fill`.
        """
        shortlist = ShortList.of(results, mentions)
        return self.scan.settle(shortlist, k, mode, take, allowed=self.allowed, names=names)

    def _graph(self, name: str, arrays: Mapping[str, Placed]) -> Stage:
        graph = self.graphs[name]
        return Stage(name, graph.launcher(arrays), graph.capturable)

    def _room(self, bucket: Bucket) -> int:
        """Candidates that come back for a mention: what the scan keeps."""
        return check_k(list_length(bucket.k, bucket.mode, self._rerank))


class _Assembly:
    """The fold's inputs from the encoders' outputs: text of the model's length, an image a row."""

    def __init__(self, arrays: Mapping[str, Tensor], missing: Sequence[Tensor], images: int) -> None:
        self._arrays, self._missing, self._images = arrays, missing, images

    @torch.no_grad()
    def __call__(self) -> None:
        arrays, tokens = self._arrays, self._arrays[IDS].shape[1]
        arrays[TEXT_CLS].copy_(arrays[f"text.{CLS}"])
        arrays[TEXT_TOKENS][:, :tokens].copy_(arrays[f"text.{TOKENS}"])  # (R, L, W)
        arrays[TEXT_TOKENS][:, tokens:].zero_()
        arrays[TEXT_MASK][:, :tokens].copy_(arrays[MASK])  # (R, L)
        arrays[TEXT_MASK][:, tokens:].zero_()
        for name, missing in zip((CLS, TOKENS), self._missing, strict=True):
            self._spread(arrays[f"image_{name}"], missing, f"image.{name}")

    def _spread(self, out: Tensor, missing: Tensor, encoded: str) -> None:
        """An image's features for every row that has one, those of the missing image for the others."""
        if not self._images:
            out.copy_(missing.expand_as(out))
            return
        image_of = self._arrays["image_of"]  # (R,)
        chosen = self._arrays[encoded].index_select(0, image_of.clamp(min=0))  # (R, ...)
        absent = (image_of < 0).view(-1, *[1] * (chosen.dim() - 1))
        out.copy_(torch.where(absent, missing, chosen))


class _Search:
    """A search as launches alone, from folded mentions at fixed addresses to the result arrays."""

    def __init__(
        self,
        scan: CudaScan,
        bucket: Bucket,
        mentions: Mapping[str, Tensor],
        terms: DeviceTerms | None,
        results: Mapping[str, Tensor],
        allowed: Tensor | None,
        candidates: int,
        rerank: int | None,
    ) -> None:
        self._scan, self._bucket, self._mentions, self._results = scan, bucket, mentions, results
        self._terms = terms
        self._allowed, self._candidates, self._rerank = allowed, candidates, rerank
        self._kept: tuple[Tensor, ...] = ()

    def __call__(self) -> None:
        scan, k, mode = self._scan, self._bucket.k, self._bucket.mode
        prepared = scan.prepare(self._mentions, mode, self._terms)
        shortlist = scan.launch(prepared, k, mode, self._allowed, self._candidates, self._rerank)
        parts, g2l = scan.passes.units(prepared, shortlist.rows, shortlist.counts)
        given = {
            "rows": shortlist.rows,
            "first": shortlist.scores,
            "counts": shortlist.counts,
            "scored": shortlist.scored,
            "overflow": shortlist.overflow,
            "parts": parts,
            "g2l": g2l,
        }
        for name, tensor in given.items():
            self._results[name].copy_(tensor)
        self._kept = scan.passes.workspace  # a later search may replace them; what was captured needs these


def _result_arrays(rows: int, room: int) -> dict[str, Spec]:
    """The results of R mentions: fields of ``ShortList``, K = ``room``."""
    kinds: dict[str, tuple[tuple[int, ...], DTypeLike]] = {
        "rows": ((rows, room), np.int32),
        "first": ((rows, room), np.float32),
        "counts": ((rows,), np.int32),
        "scored": ((rows,), np.int64),
        "overflow": ((rows,), np.int64),
        "parts": ((3, rows, room), np.float32),
        "g2l": ((rows, room), np.float32),
    }
    return kinds


def _part(arrays: Mapping[str, Placed], prefix: str) -> dict[str, Placed]:
    return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}


def _sized(shape: Shape, rows: int, tokens: int) -> tuple[int, ...]:
    """A graph's shape with its free axes given."""
    return lengths(
        shape, {axis: tokens if axis == LENGTH else rows for axis in shape if isinstance(axis, str)}
    )


def _tensors(arrays: Mapping[str, Placed]) -> dict[str, Any]:
    return {name: placed.native for name, placed in arrays.items()}
