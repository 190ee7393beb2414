"""Folded entities on a GPU: resident, or with the token queries in pinned host memory.

Token queries are four fifths of an index. Where they do not fit on the device
they stay in page-locked host memory: a pass over all of them copies chunk after
chunk, the next one while the last is scored, and a pass over chosen rows reads
them across the bus. All else is resident. Knows nothing of scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mimic_engine.errors import EngineError, InvalidInputError
from mimic_engine.scan.base import Codes
from mimic_engine.types import EntityArrays

Placement = Literal["auto", "device", "host"]
QUERY = "tglu_query"
RESERVE_BYTES = 512 << 20  # left free for kernels and other users of the device
_COPY_BYTES = 64 << 20  # read from disk at a time
STREAM_BYTES = 128 << 20  # of one of the two chunks of token queries in flight


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows start:stop: arrays on the device by field name, codes (L, n), weights token by token (L, n)."""

    start: int
    stop: int
    arrays: Mapping[str, Tensor]
    codes: Tensor | None
    weight: Tensor | None

    @property
    def rows(self) -> int:
        """Entities of the chunk."""
        return self.stop - self.start


class DeviceIndex:
    """All segments of an index as one set of tensors.

    Parameters
    ----------
    segments : folded entities, row numbers running on from one to the next.
    device : where kernels run.
    codes : codes (rows, L) of every segment, or None.
    placement : where token queries lie; "auto" prefers the device.

    Raises
    ------
    InvalidInputError
        If there is no entity, or segments differ in their arrays.
    EngineError
        If the device has too little memory; the message says what would fit.
    """

    def __init__(
        self,
        segments: Sequence[EntityArrays],
        device: torch.device,
        *,
        codes: Sequence[Codes] | None = None,
        placement: Placement = "auto",
    ) -> None:
        filled = [s for s in segments if s.rows]
        if not filled:
            raise InvalidInputError("segments: the index holds no entity")
        self.rows = sum(s.rows for s in filled)
        self.device = device
        parts = [dict(s.items()) for s in filled]
        if any(p.keys() != parts[0].keys() for p in parts):
            raise InvalidInputError("segments: they do not hold the same arrays")
        sizes = {name: sum(p[name].nbytes for p in parts) for name in parts[0]}
        extra = 0 if codes is None else sum(c.nbytes for c in codes)
        self.placement = self._place(placement, sizes, extra)
        try:
            self.arrays = {name: self._joined(name, [p[name] for p in parts]) for name in parts[0]}
            self.codes = None if codes is None else self._by_token(codes)
            weight = self.arrays.get("tglu_token_weight")
            self.token_weight = None if weight is None or codes is None else weight.T.contiguous()  # (L, N)
        except torch.OutOfMemoryError as error:
            raise _too_small(sizes, extra, _free(device), self.rows) from error
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def chunks(self, rows: int, *, queries: bool) -> Iterator[Chunk]:
        """The index in chunks of at most ``rows`` entities, on the device.

        ``queries`` says whether token queries are read; if they lie on the host
        they are copied, one chunk ahead.
        """
        if queries and self.placement == "host":
            yield from self._streamed(rows)
            return
        for start in range(0, self.rows, rows):
            yield self._view(start, min(start + rows, self.rows))

    def _view(self, start: int, stop: int, query: Tensor | None = None) -> Chunk:
        arrays = {name: t[start:stop] for name, t in self.arrays.items() if name != QUERY}
        if query is not None:
            arrays[QUERY] = query
        elif QUERY in self.arrays:
            arrays[QUERY] = self.arrays[QUERY][start:stop]
        codes, weight = (None if t is None else t[:, start:stop] for t in (self.codes, self.token_weight))
        return Chunk(start, stop, arrays, codes, weight)

    def _streamed(self, rows: int) -> Iterator[Chunk]:
        """Chunks whose queries are copied into two buffers by turns, on a stream of their own."""
        source = self.arrays[QUERY]
        row_bytes = source[0].numel() * source.element_size()
        rows = min(rows, self.rows, max(1, STREAM_BYTES // row_bytes))
        buffers = [
            torch.empty((rows, *source.shape[1:]), dtype=source.dtype, device=self.device) for _ in range(2)
        ]
        starts = list(range(0, self.rows, rows))
        ready = [self._copy(source, buffers[i], starts[i], rows, None) for i in range(min(2, len(starts)))]
        for turn, start in enumerate(starts):
            stop = min(start + rows, self.rows)
            buffer = buffers[turn % 2]
            copied = ready[turn % 2]
            if copied is not None:
                torch.cuda.current_stream(self.device).wait_event(copied)
            yield self._view(start, stop, buffer[: stop - start])
            if turn + 2 < len(starts):
                done = self._mark()
                ready[turn % 2] = self._copy(source, buffer, starts[turn + 2], rows, done)

    def _mark(self) -> torch.cuda.Event | None:
        """An event behind the work given to the current stream so far."""
        if self._stream is None:
            return None
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _copy(
        self, source: Tensor, buffer: Tensor, start: int, rows: int, after: torch.cuda.Event | None
    ) -> torch.cuda.Event | None:
        """Copy rows of ``source`` to ``buffer`` once ``after`` has passed; an event for its end."""
        part = source[start : start + rows]
        if self._stream is None:
            buffer[: len(part)].copy_(part)
            return None
        if after is not None:
            self._stream.wait_event(after)
        else:  # memory of the buffers may be in use by work given earlier
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            buffer[: len(part)].copy_(part, non_blocking=True)
            buffer.record_stream(self._stream)
            event = torch.cuda.Event()
            event.record(self._stream)
        return event

    def _place(self, wanted: Placement, sizes: Mapping[str, int], extra: int) -> Placement:
        """Where the token queries go; EngineError where that cannot be."""
        room = _free(self.device) - RESERVE_BYTES
        rest = sum(n for name, n in sizes.items() if name != QUERY) + extra
        everything = rest + sizes.get(QUERY, 0)
        if wanted != "host" and everything <= room:
            return "device"
        if wanted != "device" and rest <= room:
            return "host"
        raise _too_small(sizes, extra, room, self.rows)

    def _joined(self, name: str, parts: Sequence[np.ndarray]) -> Tensor:
        """One array of all segments, (N, ...), on the device or in pinned memory."""
        on_host = name == QUERY and self.placement == "host"
        dtype = torch.from_numpy(np.array(parts[0][:1])).dtype
        shape = (self.rows, *parts[0].shape[1:])
        pinned = on_host and self.device.type == "cuda"
        where = torch.device("cpu") if on_host else self.device
        out = torch.empty(shape, dtype=dtype, device=where, pin_memory=pinned)
        start = 0
        for part in parts:
            step = max(1, _COPY_BYTES // max(1, part[:1].nbytes))
            for first_row in range(0, len(part), step):
                block = np.array(part[first_row : first_row + step])  # a map of a file is read-only
                out[start : start + len(block)].copy_(torch.from_numpy(block))
                start += len(block)
        return out

    def _by_token(self, codes: Sequence[Codes]) -> Tensor:
        """Codes of all segments, token by token, (L, N)."""
        filled = [c for c in codes if len(c)]
        dtype = torch.from_numpy(np.array(filled[0][:1])).dtype
        out = torch.empty((filled[0].shape[1], self.rows), dtype=dtype, device=self.device)
        start = 0
        for part in filled:
            out[:, start : start + len(part)].copy_(torch.from_numpy(np.array(part.T, order="C")))
            start += len(part)
        return out


def _free(device: torch.device) -> int:
    """Bytes of device memory that are free; without limit on the CPU."""
    if device.type != "cuda":
        return 1 << 62
    return int(torch.cuda.mem_get_info(device)[0])


def _too_small(sizes: Mapping[str, int], extra: int, room: int, rows: int) -> EngineError:
    query = sizes.get(QUERY, 0)
    rest = sum(sizes.values()) - query + extra
    fits = int(rows * max(0, room) / max(1, rest))
    advice = (
        "placement 'host' keeps the token queries in host memory, and fits"
        if rest <= room
        else f"{fits:,} entities would fit with the token queries in host memory"
    )
    return EngineError(
        f"device memory: {rows:,} entities need {_gib(query)} for token queries and {_gib(rest)} "
        f"for all else, {_gib(room)} are free; {advice}"
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
