"""Compile every shipped GPU kernel without a GPU, and report registers, spills and instructions.

For each variant (kernel, storage type, batch, tile) and each architecture:
registers a thread, bytes of stack frame, spill instructions, shared memory,
and counts of the instructions that matter (tensor-core products, wide loads,
exponentials). Published shapes: 40 tokens a side, width 96, text width 512.

    python -m benchmarks.gpu.compile_report --out benchmarks/results/kernels_aot.json
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mimic_engine.errors import EngineError
from mimic_engine.kernels import (
    coded_tglu,
    cone_bound,
    gated_units,
    stream_topk,
    tglu_attention,
)
from mimic_engine.kernels.cone_bound import Cones
from mimic_engine.kernels.gated_units import GlobalEntities, GlobalMentions
from mimic_engine.kernels.tglu_attention import TextMentions
from mimic_engine.kernels.tiles import Tile, cover
from mimic_engine.provenance import write_result
from mimic_engine.types import FoldConstants

ARCHITECTURES = (80, 90, 100)
SHARED_LIMIT = {80: 166_912, 90: 232_448, 100: 232_448}  # bytes a block can have
TOKENS, WIDTH, TEXT_WIDTH, ENTITIES, CENTROIDS = 40, 96, 512, 20_818, 1024
INSTRUCTIONS = ("HGMMA", "UTCHMMA", "HMMA", "LDGSTS", "LDG", "STG", "MUFU", "SHFL", "BAR")
_POINTER = {
    torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int8: "*i8",
    torch.uint8: "*u8", torch.uint16: "*u16", torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Variant:
    """One kernel with the arguments that decide its machine code."""

    kernel: str
    case: str  # storage type, batch, and what is switched on
    function: Any
    runtime: dict[str, Any]
    constants: dict[str, Any]

    @property
    def name(self) -> str:
        """Kernel and case."""
        return f"{self.kernel} {self.case}"


@dataclass(frozen=True, slots=True)
class Usage:
    """What one variant's machine code takes on one architecture."""

    kernel: str
    case: str
    sm: int
    registers: int
    stack_bytes: int
    spills: int  # loads and stores of local memory in the code
    shared_bytes: int
    warps: int
    stages: int
    tile: dict[str, int]
    instructions: dict[str, int]


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def text_mentions(batch: int, dtype: torch.dtype, tokens: int = TOKENS, width: int = WIDTH) -> TextMentions:
    """Shapes of B packed mentions, without data."""
    columns, padded = sum(cover(tokens)), sum(cover(width, 16))
    return TextMentions(
        _meta(batch, columns, padded, dtype=dtype), _meta(batch, columns, padded), _meta(batch, columns),
        tokens, width, columns > tokens,
    )  # fmt: skip


def attention_variant(
    dtype: torch.dtype, batch: int, *, listed: bool = False, weighted: bool = False, tile: Tile | None = None
) -> Variant:
    """The attention kernel for queries of ``dtype``."""
    work = torch.float16 if dtype == torch.int8 else dtype
    runtime, constants = tglu_attention.arguments(
        text_mentions(batch, work),
        _meta(ENTITIES, TOKENS, WIDTH, dtype=dtype),
        _meta(ENTITIES, WIDTH, dtype=torch.float32 if dtype == torch.float32 else torch.float16),
        _meta(ENTITIES),
        _meta(batch, ENTITIES),
        scale=_meta(ENTITIES, TOKENS) if dtype == torch.int8 else None,
        weight=_meta(ENTITIES, TOKENS) if weighted else None,
        base=_meta(batch, ENTITIES),
        rows=_meta(batch, ENTITIES, dtype=torch.int32) if listed else None,
        counts=_meta(batch, dtype=torch.int32) if listed else None,
        eps=1e-5,
        factor=1.0,
        tile=tile,
    )
    case = f"{_name(dtype)} b={batch}{' listed' * listed}{' weighted' * weighted}"
    return Variant("tglu_attention", case, tglu_attention.tglu_attention_kernel, runtime, constants)


def gated_variant(
    dtype: torch.dtype, batch: int, *, listed: bool = False, tile: Tile = gated_units.TILE
) -> Variant:
    """The gated-units kernel for vectors of ``dtype``."""
    terms = gated_units.TERMS[dtype]
    mentions = GlobalMentions(
        batch, _meta(terms, batch, TEXT_WIDTH, dtype=dtype), _meta(terms, batch, 3, WIDTH, dtype=dtype),
        _meta(batch, 7), _meta(terms, batch, 3, WIDTH, dtype=dtype), _meta(batch, 7), None,
        _meta(terms, batch, WIDTH, dtype=dtype),
    )  # fmt: skip
    entities = GlobalEntities(
        _meta(ENTITIES, TEXT_WIDTH, dtype=dtype), _meta(ENTITIES, 3, WIDTH, dtype=dtype), _meta(ENTITIES, 7),
        _meta(ENTITIES, 3, WIDTH, dtype=dtype), _meta(ENTITIES, 7), None, _meta(ENTITIES, WIDTH, dtype=dtype),
    )  # fmt: skip
    runtime, constants = gated_units.arguments(
        mentions, entities, FoldConstants(WIDTH, ("tglu", "vdlu", "cmfu")), _meta(batch, ENTITIES),
        rows=_meta(batch, ENTITIES, dtype=torch.int32) if listed else None,
        counts=_meta(batch, dtype=torch.int32) if listed else None, units=False, tile=tile,
    )  # fmt: skip
    case = f"{_name(dtype)} b={batch}{' listed' * listed}"
    return Variant("gated_units", case, gated_units.gated_units_kernel, runtime, constants)


def coded_variants(
    dtype: torch.dtype, codes: torch.dtype, *, tile: Tile = coded_tglu.BAG
) -> Iterator[Variant]:
    """The table kernel and the coded kernel for global vectors of ``dtype`` and codes of ``codes``."""
    batch, mentions = 8, text_mentions(8, dtype)
    table = _meta(*coded_tglu.table_shape(mentions, CENTROIDS), dtype=torch.float16)
    runtime, constants = coded_tglu.table_arguments(
        mentions, _meta(CENTROIDS, WIDTH), table, tile=coded_tglu.TABLE
    )
    yield Variant("coded_table", _name(dtype), coded_tglu.coded_table_kernel, runtime, constants)
    runtime, constants = coded_tglu.arguments(
        mentions, table, _meta(TOKENS, ENTITIES, dtype=codes), _meta(ENTITIES, WIDTH, dtype=dtype),
        _meta(ENTITIES), _meta(batch, ENTITIES), weight=None, base=_meta(batch, ENTITIES),
        eps=1e-5, factor=1.0, tile=tile,
    )  # fmt: skip
    yield Variant(
        "coded_tglu", f"{_name(dtype)} {_name(codes)}", coded_tglu.coded_tglu_kernel, runtime, constants
    )


def cone_variants(dtype: torch.dtype, *, tile: Tile = cone_bound.ENTITIES) -> Iterator[Variant]:
    """The axes kernel and the bound kernel for global vectors of ``dtype``."""
    batch, mentions = 8, text_mentions(8, dtype)
    side = coded_tglu.table_shape(mentions, 1)[2]
    cones = Cones(
        _meta(gated_units.TERMS[dtype], batch, side, mentions.value.shape[2], dtype=dtype),
        _meta(2, batch, side, side, dtype=torch.float16), _meta(batch, side), _meta(batch, 2),
    )  # fmt: skip
    runtime, constants = cone_bound.axes_arguments(mentions, cones)
    yield Variant("cone_axes", _name(dtype), cone_bound.cone_axes_kernel, runtime, constants)
    runtime, constants = cone_bound.arguments(
        cones, _meta(ENTITIES, WIDTH, dtype=dtype), _meta(ENTITIES), _meta(batch, ENTITIES),
        base=_meta(batch, ENTITIES), factor=1.0, steps=cone_bound.STEPS, tile=tile,
    )  # fmt: skip
    yield Variant("cone_bound", _name(dtype), cone_bound.cone_bound_kernel, runtime, constants)


def top_variants(k: int) -> Iterator[Variant]:
    """The top-k kernels for K = ``k``."""
    scores, best = _meta(8, ENTITIES), _meta(8, k, dtype=torch.int64)
    room = _meta(8, stream_topk.key_room(ENTITIES, k), dtype=torch.int64)
    allowed, counts = _meta(ENTITIES, dtype=torch.uint8), _meta(8, dtype=torch.int32)
    rows = _meta(8, ENTITIES, dtype=torch.int32)
    case = f"k={k}"
    for listed in (False, True):
        runtime, constants = stream_topk.top_arguments(
            scores, best, room, offset=0, allowed=None if listed else allowed,
            rows=rows if listed else None, counts=counts if listed else None, finite=True,
        )  # fmt: skip
        yield Variant(
            "top_keys", f"{case}{' listed' * listed}", stream_topk.top_keys_kernel, runtime, constants
        )
    runtime, constants = stream_topk.merge_arguments(room, best, room.shape[1], k)
    yield Variant("merge_keys", case, stream_topk.merge_keys_kernel, runtime, constants)
    runtime, constants = stream_topk.unpack_arguments(best, rows, scores, counts, offset=0)
    yield Variant("unpack_keys", case, stream_topk.unpack_keys_kernel, runtime, constants)
    runtime, constants = stream_topk.survivor_arguments(
        scores, best, k, best, rows, counts, offset=0, rounding=0.0, allowed=allowed
    )
    yield Variant("survivors", case, stream_topk.survivors_kernel, runtime, constants)


def shipped() -> Iterator[Variant]:
    """Every kernel in every default configuration that an index can call for."""
    for dtype in (torch.float16, torch.bfloat16, torch.int8, torch.float32):
        for batch in (1, 64):
            yield attention_variant(dtype, batch)
        yield attention_variant(dtype, 8, listed=True)
    yield attention_variant(torch.float16, 64, weighted=True)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for batch in (1, 64):
            yield gated_variant(dtype, batch)
        yield gated_variant(dtype, 8, listed=True)
        yield from coded_variants(dtype, torch.uint16)
        yield from cone_variants(dtype)
    for k in (16, 1024):
        yield from top_variants(k)


def compile_variant(variant: Variant, sm: int) -> Usage:
    """Machine code of one variant for compute capability ``sm`` / 10, and what it takes.

    Raises
    ------
    EngineError
        If the disassembler's output cannot be read.
    """
    options = {name: variant.constants[name] for name in ("num_warps", "num_stages")}
    fixed = {name: value for name, value in variant.constants.items() if name not in options}
    source = ASTSource(variant.function, *_signature(variant, fixed))
    compiled = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)
    resources, code = _disassemble(compiled.asm["cubin"])
    counts = _instructions(code)
    return Usage(
        variant.kernel,
        variant.case,
        sm,
        registers=resources["REG"],
        stack_bytes=resources["STACK"],
        spills=counts["LDL"] + counts["STL"],
        shared_bytes=compiled.metadata.shared,
        warps=options["num_warps"],
        stages=options["num_stages"],
        tile={name: fixed[name] for name in ("ROWS", "MENTIONS", "BLOCK", "K") if name in fixed},
        instructions={name: counts[name] for name in INSTRUCTIONS if counts[name]},
    )


def _signature(
    variant: Variant, fixed: dict[str, Any]
) -> tuple[dict[str, str], dict[str, Any], dict[Any, Any]]:
    """Types by argument name, constants, and the alignment of pointers, as the launcher would find them."""
    signature: dict[str, str] = {}
    aligned: dict[Any, Any] = {}
    for place, name in enumerate(variant.function.arg_names):
        value = variant.runtime.get(name)
        if name in fixed:
            signature[name] = "constexpr"
        elif isinstance(value, Tensor):
            signature[name] = _POINTER[value.dtype]
            aligned[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "i32" if isinstance(value, int) else "fp32"
    return signature, fixed, aligned


def _disassemble(cubin: bytes) -> tuple[dict[str, int], str]:
    """Resources and SASS of a cubin, by the cuobjdump that comes with Triton."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, code = (
            subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("--dump-resource-usage", "--dump-sass")
        )
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", usage)}
    if found.keys() != {"REG", "STACK"}:
        raise EngineError(f"cuobjdump: no register count in {usage[-200:]!r}")
    return found, code


def _instructions(code: str) -> Counter[str]:
    """How often each instruction stands in SASS, by its name without modifiers."""
    return Counter(re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9]*)", code))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; exit status 1 if a shipped configuration spills or does not fit."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.compile_report", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--out", type=Path, help="result file to write")
    parser.add_argument("--sm", type=int, nargs="+", default=ARCHITECTURES, help="architectures %(default)s")
    parser.add_argument("--only", default="", help="kernels and cases that contain this")
    args = parser.parse_args(argv)
    found, faults = [], 0
    for variant in (v for v in shipped() if args.only in v.name):
        for sm in args.sm:
            usage = compile_variant(variant, sm)
            bad = bool(usage.spills or usage.stack_bytes) or usage.shared_bytes > SHARED_LIMIT[sm]
            faults += bad
            found.append(usage)
            print(
                f"sm_{sm} {variant.name}: {usage.registers} registers, {usage.spills} spills, "
                f"{usage.shared_bytes:,} bytes shared {usage.instructions}{' <-- FAULT' * bad}",
                flush=True,
            )
    if args.out is not None:
        shapes = {"tokens": TOKENS, "width": WIDTH, "text_width": TEXT_WIDTH, "centroids": CENTROIDS}
        payload = {"triton": triton.__version__, "shapes": shapes, "rows": [asdict(u) for u in found]}
        print(write_result(args.out, payload))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
