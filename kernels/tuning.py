"""Which tile each GPU kernel is launched with: defaults, and measured choices kept in a small JSON file.

Nothing is tuned behind anyone's back: :func:`tuned` measures the few candidates
of each kernel when it is called (at warm-up, or by the benchmark), writes the
winners under a key of device, Triton version and shapes, and reads them back
the next time. A candidate that fails to compile or run is passed over.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

from mimic_engine.errors import InvalidInputError
from mimic_engine.files import write_atomic
from mimic_engine.kernels import coded_tglu, cone_bound_gpu, gated_units, tglu_attention
from mimic_engine.kernels.tiles import Tile

Measure = Callable[[Tile], float]  # milliseconds of one launch with a tile


@dataclass(frozen=True, slots=True)
class Tiles:
    """One tile a kernel; None leaves the choice by storage type to the kernel."""

    attention_one: Tile | None = None  # one mention
    attention_many: Tile | None = None
    gated: Tile = gated_units.TILE
    cone: Tile = cone_bound_gpu.ENTITIES
    coded: Tile = coded_tglu.BAG

    def attention(self, mentions: int) -> Tile | None:
        """The attention kernel's tile for a batch of this many mentions."""
        return self.attention_one if mentions == 1 else self.attention_many

    def to_json(self) -> dict[str, dict[str, int]]:
        """The tiles that are set, by kernel."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: tile.to_json() for name, tile in found.items() if tile is not None}

    @classmethod
    def from_json(cls, data: Mapping[str, Mapping[str, int]]) -> Self:
        """What :meth:`to_json` gave."""
        return cls(**{name: Tile(**tile) for name, tile in data.items()})


CANDIDATES: Mapping[str, Sequence[Tile]] = {
    "attention_one": tuple(t for t in tglu_attention.CANDIDATES if t.mentions == 1),
    "attention_many": tglu_attention.CANDIDATES,
    "gated": gated_units.CANDIDATES,
    "cone": cone_bound_gpu.CANDIDATES,
    "coded": coded_tglu.CANDIDATES,
}


def tuned(
    cache: Path, key: str, measures: Mapping[str, Measure], say: Callable[[str], None] = lambda _: None
) -> Tiles:
    """The tiles kept under ``key``, or the fastest candidates, which are then kept.

    Parameters
    ----------
    cache : JSON file; made if it is missing.
    key : device, versions and shapes that the choice depends on.
    measures : for each kernel to tune (names of :class:`Tiles`), how long a tile takes.
    say : told every measurement.

    Raises
    ------
    InvalidInputError
        If the file is not one of ours.
    """
    known = _read(cache)
    if key in known:
        return Tiles.from_json(known[key])
    chosen = {name: _fastest(name, measure, say) for name, measure in measures.items()}
    tiles = Tiles(**{name: tile for name, tile in chosen.items() if tile is not None})
    write_atomic(cache, json.dumps({**known, key: tiles.to_json()}, indent=2))
    return tiles


def _fastest(name: str, measure: Measure, say: Callable[[str], None]) -> Tile | None:
    times: dict[Tile, float] = {}
    for tile in CANDIDATES[name]:
        try:
            times[tile] = measure(tile)
        except Exception as error:  # whatever the compiler or the driver raises: the others are still good
            say(f"{name} {tile}: {type(error).__name__}: {error}".splitlines()[0])
        else:
            say(f"{name} {tile}: {times[tile]:.4f} ms")
    return min(times, key=times.__getitem__, default=None)


def _read(cache: Path) -> dict[str, dict[str, dict[str, int]]]:
    try:
        data = json.loads(cache.read_bytes())
        for tiles in data.values():
            Tiles.from_json(tiles)
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise InvalidInputError(f"{cache}: not a file of tuned tiles: {error}") from error
    return dict(data)
