"""The recipe of a request: token ids and pixels -> encoders -> fold -> search, on fixed arrays of a bucket.

A bucket is (rows, pictures, tokens, k, mode). Pictures are fewer than rows where
mentions have none: a row without one gets the features of the missing picture,
which were computed once. A text encoder of free length runs at the bucket's
length; its states are padded with zeros to the model's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from mimic_engine.encoding.buckets import LENGTH, ROWS, bucket, length_buckets
from mimic_engine.encoding.manifest import Shape
from mimic_engine.gpu.graphs import DeviceGraphs
from mimic_engine.gpu.layout import Layout, Placed, Spec
from mimic_engine.gpu.pipeline import Layouts, Stage
from mimic_engine.gpu.scan import SPARE, CudaScan, list_length
from mimic_engine.kernels.stream_topk import MAX_K, check_k
from mimic_engine.types import ImageFeatures, Mode

# A whole search as launches alone, from folded mentions at fixed addresses to results at fixed
# addresses. What a CUDA graph can hold of a search is all of it, in every mode: the chunks of an index
# are known beforehand, and a certified search counts the survivors that had no room instead of asking
# the host what to do. What is left to the host is the order of a short list, and another search for a
# mention that fell short (:meth:`CudaScan.settled`), which the answer's mode then says. Only exact
# searches whose token queries lie on the host cannot be captured: they copy chunks on a stream of their
# own.

# A graph is made for one k. Requests get the first of these that is no less, and the rest is cut off.
PLACES = (10, *(2**n - SPARE for n in range(5, 11)))


def result_arrays(batch: int, room: int) -> dict[str, tuple[tuple[int, ...], DTypeLike]]:
    """Shapes and types of the results of B mentions: fields of ``Fetched``, K = ``room``."""
    listed, one = (batch, room), (batch,)
    return {
        "rows": (listed, np.int32),
        "first": (listed, np.float32),
        "counts": (one, np.int32),
        "scored": (one, np.int64),
        "overflow": (one, np.int64),
        "parts": ((3, *listed), np.float32),
        "g2l": (listed, np.float32),
    }


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """One kind of search: the k best in a mode, among the allowed rows (N,) uint8 on the device."""

    k: int
    mode: Mode
    rerank: int | None = None
    allowed: Tensor | None = None
    candidates: int | None = None


class SearchStage:
    """Launches one search; what it launches may be captured.

    Parameters
    ----------
    scan : over the index.
    plan : what is searched.
    mentions : folded arrays of B mentions, on the device, by name.
    results : of :func:`result_arrays`, on the device, by name.
    """

    def __init__(
        self, scan: CudaScan, plan: SearchPlan, mentions: Mapping[str, Tensor], results: Mapping[str, Tensor]
    ) -> None:
        self._scan, self._plan, self._mentions, self._results = scan, plan, mentions, results
        self._kept: tuple[Tensor, ...] = ()

    @property
    def capturable(self) -> bool:
        """Whether a CUDA graph can hold it."""
        return self._plan.mode != "exact" or self._scan.index.placement == "device"

    def launch(self) -> None:
        """Queue the search on the current stream."""
        plan, scan = self._plan, self._scan
        prepared = scan.prepare(self._mentions, plan.mode)
        found = scan.launch(prepared, plan.k, plan.mode, plan.allowed, plan.candidates, plan.rerank)
        parts, g2l = scan.passes.units(prepared, found.rows, found.counts)
        given = {
            "rows": found.rows,
            "first": found.scores,
            "counts": found.counts,
            "scored": found.scored,
            "overflow": found.overflow,
            "parts": parts,
            "g2l": g2l,
        }
        for name, tensor in given.items():
            self._results[name].copy_(tensor)
        self._kept = scan.passes.workspace  # a later search may replace them; what was captured needs these


def allowed_rows(scan: CudaScan, allowed: np.ndarray | None) -> Tensor | None:
    """A mask (N,) on the device of the scan, as :class:`SearchPlan` takes it."""
    if allowed is None:
        return None
    return torch.from_numpy(allowed.astype(np.uint8)).to(scan.index.device)


IDS = ("input_ids", "attention_mask", "token_type_ids")
_FEATURES = ("text_cls", "text_tokens", "text_mask", "image_cls", "image_tokens")
PREFIX = "mention_"  # of the fold's outputs


@dataclass(frozen=True, slots=True)
class Bucket:
    """What a program is made for."""

    rows: int
    pictures: int
    tokens: int
    k: int
    mode: Mode


class Search(Protocol):
    """The last stage of a request."""

    @property
    def modes(self) -> Sequence[Mode]:
        """The modes that there are."""
        ...

    def room(self, bucket: Bucket) -> int:
        """Candidates that come back for a mention."""
        ...

    def stage(self, bucket: Bucket, folded: Mapping[str, Placed], results: Mapping[str, Placed]) -> Stage:
        """A search of folded mentions, by field name, to the arrays of ``result_arrays``."""
        ...


class ScanSearch:
    """The search by a scan on the same device.

    Parameters
    ----------
    scan : over the index.
    allowed : rows (N,) uint8 on the device that may be answered with, or None.
    rerank : estimates that mode "coded" scores exactly.
    """

    def __init__(self, scan: CudaScan, allowed: Tensor | None = None, rerank: int | None = None) -> None:
        self._scan, self._allowed, self._rerank = scan, allowed, rerank
        self._candidates = len(scan) if allowed is None else int(allowed.count_nonzero())

    @property
    def modes(self) -> Sequence[Mode]:
        """Those of the scan whose list the device has room for."""
        return tuple(m for m in self._scan.modes if list_length(1, m, self._rerank) <= MAX_K)

    def room(self, bucket: Bucket) -> int:
        """What the scan keeps."""
        return check_k(list_length(bucket.k, bucket.mode, self._rerank))

    def stage(self, bucket: Bucket, folded: Mapping[str, Placed], results: Mapping[str, Placed]) -> Stage:
        """The scan's launches."""
        plan = SearchPlan(bucket.k, bucket.mode, self._rerank, self._allowed, self._candidates)
        search = SearchStage(self._scan, plan, _tensors(folded), _tensors(results))
        return Stage("search", search.launch, search.capturable)


class RequestRecipe:
    """A :class:`~mimic_engine.gpu.pipeline.Recipe` of requests.

    Parameters
    ----------
    graphs : encoders and fold.
    search : the last stage.
    missing : features of the missing picture, of one row.
    device : where ``missing`` is kept.
    rows : numbers of mentions that programs are made for.
    places : numbers of results that programs are made for.
    """

    def __init__(
        self,
        graphs: DeviceGraphs,
        search: Search,
        missing: ImageFeatures,
        device: torch.device,
        *,
        rows: Sequence[int] = ROWS,
        places: Sequence[int] = PLACES,
    ) -> None:
        self._graphs, self._search = graphs, search
        self.rows, self.places = tuple(rows), tuple(places)
        self._missing = [torch.from_numpy(np.array(a)).to(device) for a in (missing.cls, missing.tokens)]
        self._length = graphs.text_config.max_length
        free = LENGTH in graphs.entries["text_encoder"].inputs["input_ids"]
        self.lengths = length_buckets(self._length) if free else (self._length,)

    @property
    def modes(self) -> Sequence[Mode]:
        """The modes that programs are made for."""
        return self._search.modes

    @property
    def largest(self) -> Bucket:
        """As many rows, pictures, tokens and results as there may be."""
        rows, k = self.rows[-1], self.places[-1]
        return max((Bucket(rows, rows, self._length, k, mode) for mode in self.modes), key=self._search.room)

    def bucket(self, rows: int, pictures: int, mask: NDArray[np.int64], k: int, mode: Mode) -> Bucket:
        """The least bucket for a batch, whose texts have the attention mask (B, L)."""
        used = int(np.flatnonzero(mask.any(axis=0)).max(initial=0)) + 1
        size = bucket(rows, self.rows)
        room = 0 if not pictures else min(size, bucket(pictures, self.rows))
        return Bucket(size, room, bucket(used, self.lengths), bucket(k, self.places), mode)

    def layouts(self, bucket: Bucket) -> Layouts:
        """The arrays of a bucket; see the module for what they are."""
        rows, tokens = bucket.rows, bucket.tokens
        inputs: dict[str, Spec] = dict.fromkeys(IDS, ((rows, tokens), np.int64))
        inputs["picture"] = ((rows,), np.int64)  # number of a row's picture, -1 without one
        entries, work = self._graphs.entries, dict[str, Spec]()
        pixels = entries["image_encoder"].inputs["pixels"]
        inputs["pixels"] = (_sized(pixels, bucket.pictures, tokens), np.float32)
        for kind, count in (("text", rows), ("image", bucket.pictures)):
            for name, shape in entries[f"{kind}_encoder"].outputs.items():
                work[f"{kind}.{name}"] = (_sized(shape, count, tokens), np.float32)
                work[f"{kind}_{name}"] = (_sized(shape, rows, self._length), np.float32)
        work["text_mask"] = ((rows, self._length), np.float32)
        folded: dict[str, Spec] = {
            name: (_sized(shape, rows, self._length), np.float32)
            for name, shape in entries["mention_fold"].outputs.items()
        }
        results = result_arrays(rows, self._search.room(bucket))
        return Layouts(Layout(inputs), Layout(work), Layout(folded), Layout(results))

    def stages(self, bucket: Bucket, arrays: Mapping[str, Placed]) -> list[Stage]:
        """Encoders, assembly, fold, search."""
        graphs = self._graphs
        layouts = self.layouts(bucket)
        stages = [graphs.stage("text_encoder", {n: arrays[n] for n in IDS} | _part(arrays, "text."))]
        if bucket.pictures:
            feeds = {"pixels": arrays["pixels"]} | _part(arrays, "image.")
            stages.append(graphs.stage("image_encoder", feeds))
        stages.append(Stage("assemble", _Assembly(_tensors(arrays), self._missing, bucket.pictures)))
        fold = (*_FEATURES, *self._graphs.entries["mention_fold"].outputs)
        stages.append(graphs.stage("mention_fold", {name: arrays[name] for name in fold}))
        folded = {name.removeprefix(PREFIX): arrays[name] for name in layouts.folded.fields}
        stages.append(self._search.stage(bucket, folded, {n: arrays[n] for n in layouts.results.fields}))
        return stages


class _Assembly:
    """What the fold reads, of what the encoders gave: text of the model's length, a picture a row."""

    def __init__(self, arrays: Mapping[str, Tensor], missing: Sequence[Tensor], pictures: int) -> None:
        self._arrays, self._missing, self._pictures = arrays, missing, pictures

    @torch.no_grad()
    def __call__(self) -> None:
        arrays, tokens = self._arrays, self._arrays["input_ids"].shape[1]
        arrays["text_cls"].copy_(arrays["text.cls"])
        arrays["text_tokens"][:, :tokens].copy_(arrays["text.tokens"])  # (R, L, W)
        arrays["text_tokens"][:, tokens:].zero_()
        arrays["text_mask"][:, :tokens].copy_(arrays["attention_mask"])  # (R, L)
        arrays["text_mask"][:, tokens:].zero_()
        for name, missing in zip(("cls", "tokens"), self._missing, strict=True):
            self._spread(arrays[f"image_{name}"], missing, f"image.{name}")

    def _spread(self, out: Tensor, missing: Tensor, encoded: str) -> None:
        """A picture's features for every row that has one, those of the missing picture for the others."""
        if not self._pictures:
            out.copy_(missing.expand_as(out))
            return
        picture = self._arrays["picture"]  # (R,)
        chosen = self._arrays[encoded].index_select(0, picture.clamp(min=0))  # (R, ...)
        absent = (picture < 0).view(-1, *[1] * (chosen.dim() - 1))
        out.copy_(torch.where(absent, missing, chosen))


def _part(arrays: Mapping[str, Placed], prefix: str) -> dict[str, Placed]:
    return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}


def _sized(shape: Shape, rows: int, tokens: int) -> tuple[int, ...]:
    """A graph's shape with its free axes given."""
    return tuple(n if isinstance(n, int) else tokens if n == LENGTH else rows for n in shape)


def _tensors(arrays: Mapping[str, Placed]) -> dict[str, Any]:
    return {name: placed.native for name, placed in arrays.items()}
