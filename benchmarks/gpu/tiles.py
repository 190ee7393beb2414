"""Every candidate tile of every GPU kernel, timed on a live scan: what a kernel's default is to be chosen by.

The scan runs with the defaults that the kernels' files name; nothing here changes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks.gpu.data import World, fold_mentions
from benchmarks.gpu.run import Report, device_ms, say
from mimic_engine.gpu.index import QUERY
from mimic_engine.gpu.scan import CudaScan
from mimic_engine.kernels import coded_tglu, cone_bound, gated_units, tglu_attention
from mimic_engine.kernels.tiles import Tile
from mimic_engine.types import Mode

Launch = Callable[[Tile], None]


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel over one chunk of the index: the tiles to try, the one it has by default, and its launch."""

    candidates: Sequence[Tile]
    default: Tile
    launch: Launch


def measure_tiles(report: Report, scan: CudaScan, world: World) -> None:
    """Milliseconds of each candidate, by kernel and batch, to the report."""
    for batch in (1, max(report.options.batches)):
        for name, kernel in kernels(report, scan, world, batch).items():
            report.tiles[f"{name} b={batch}"] = times(report, name, kernel)


def times(report: Report, name: str, kernel: Kernel) -> list[dict[str, Any]]:
    """One entry a candidate; one that does not compile or run says why."""
    found = []
    for tile in kernel.candidates:
        entry: dict[str, Any] = asdict(tile) | {"default": tile == kernel.default}
        try:
            entry["ms"] = device_ms(report.device, _bound(kernel.launch, tile), report.options.seconds / 4)
        except Exception as error:  # whatever the compiler or the driver raises: the others are still timed
            entry["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
        say(f"{name} {tile}: {entry.get('ms', entry.get('error'))}")
        found.append(entry)
    return found


def kernels(report: Report, scan: CudaScan, world: World, batch: int) -> Mapping[str, Kernel]:
    """The kernels that have tiles to choose among, by the stem of their file."""
    mentions = fold_mentions(world, torch.arange(batch) % len(scan), report.options.seed + 1)
    modes: tuple[Mode, ...] = ("exact", "certified", "coded")
    exact, certified, coded = (scan.prepare(mentions, mode) for mode in modes)
    [chunk] = scan.index.chunks(len(scan), queries=True)
    arrays, out = chunk.arrays, torch.empty((batch, len(scan)), device=report.device)
    cls, bias = arrays["tglu_cls"], arrays["tglu_bias"]
    entities = gated_units.global_entities(arrays)
    text, cones, table, codes = exact.text, certified.cones, coded.table, chunk.codes
    assert text is not None and cones is not None and table is not None and codes is not None
    one = batch == 1
    return {
        "tglu_attention": Kernel(
            tuple(t for t in tglu_attention.CANDIDATES if not one or t.mentions == 1),
            tglu_attention.DENSE_ONE if one else tglu_attention.DENSE,
            lambda tile: tglu_attention.tglu_attention(
                text, arrays[QUERY], cls, bias, out, scale=arrays.get("tglu_query_scale"), tile=tile
            ),
        ),
        "gated_units": Kernel(
            gated_units.CANDIDATES,
            gated_units.TILE,
            lambda tile: gated_units.gated_units(exact.globals, entities, world.constants, out, tile=tile),
        ),
        "cone_bound": Kernel(
            cone_bound.CANDIDATES,
            cone_bound.ENTITIES,
            lambda tile: cone_bound.cone_bound(cones, cls, bias, out, tile=tile),
        ),
        "coded_tglu": Kernel(
            coded_tglu.CANDIDATES,
            coded_tglu.BAG,
            lambda tile: coded_tglu.coded_tglu(text, table, codes, cls, bias, out, tile=tile),
        ),
    }


def _bound(launch: Launch, tile: Tile) -> Callable[[], None]:
    return lambda: launch(tile)
