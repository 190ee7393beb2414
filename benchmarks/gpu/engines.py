"""Engines built ahead of time with TensorRT for RTX: seconds and size of every graph, precision and target.

Two models: the base model (MiniLM and EfficientNet-Lite0), and a small CLIP with
random weights. No engine is run here: one that was built is read back and
checked against its manifest. ``seconds`` are of the wall clock, on a machine
that may do other things; ``cpu_seconds`` count this process alone.

    python -m benchmarks.gpu.engines --out benchmarks/results/engines.json
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from benchmarks import RESULTS
from benchmarks.scan.published_inputs import random_weights
from benchmarks.scan.published_model import Towers, build_model
from benchmarks.scan.published_model import export as export_clip
from mimic_engine.base.fetch import default_cache
from mimic_engine.base.model import BASE, WEIGHTS, fetch_encoders
from mimic_engine.encoding.manifest import ModelManifest
from mimic_engine.errors import MimicError
from mimic_engine.export.build_trt import build, plan
from mimic_engine.export.engines import BuildOptions
from mimic_engine.export.to_onnx import ExportOptions, export_model
from mimic_engine.gpu.engine_files import EngineRecord
from mimic_engine.gpu.tensorrt_library import Library, load_library
from mimic_engine.model.checkpoint import load_checkpoint
from mimic_engine.provenance import write_result

PRECISIONS = ("fp32", "fp16", "bf16")
TARGETS = ("sm_80", "sm_86", "sm_89", "sm_120")
SMALL = Towers(layers=2, image_width=128)


def base_model(folder: Path, cache: Path) -> Path:
    """The base model, exported in every precision; its encoders are fetched where the cache lacks them."""
    files = fetch_encoders(cache, progress=False)
    with resources.as_file(resources.files("mimic_engine.base") / WEIGHTS) as weights:
        sources = {"text_source": str(files.minilm), "image_source": str(files.efficientnet)}
        checkpoint = load_checkpoint(weights, **sources)
        export_model(checkpoint.model, checkpoint.tokenizer_json, folder, ExportOptions(PRECISIONS))
    return folder


def clip_model(folder: Path) -> Path:
    """A CLIP of two layers with random weights and the published matcher's shapes."""
    built = build_model(folder / "clip", random_weights(seed=0), SMALL)
    return export_clip(built, folder, PRECISIONS)


def rows_of(
    library: Library, name: str, model: Path, targets: Sequence[str], out: Path, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Build every engine of a model and check what was written; one row each."""
    manifest = ModelManifest.read(model)
    rows = []
    for precision in PRECISIONS:
        jobs = plan(manifest, precision, targets)
        start = time.process_time()
        for record in build(library, model, out, manifest, jobs, BuildOptions()):
            cpu_seconds = time.process_time() - start
            engine = out / record.file
            written = EngineRecord.read(engine)
            written.check_graph(engine, model, manifest.model_hash, manifest.entry(record.graph, precision))
            rows.append(
                {
                    "model": name,
                    "graph": record.graph,
                    "flavour": record.flavour,
                    "target": record.target,
                    "precision": record.precision,
                    "seconds": round(record.seconds, 3),
                    "cpu_seconds": round(cpu_seconds, 3),
                    "bytes": record.bytes,
                    "profiles": len(record.profiles),
                }
            )
            engine.unlink()
            say(f"{name} {record.file}: {cpu_seconds:.2f} s of CPU, {record.bytes / 1e6:.1f} MB")
            start = time.process_time()
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.engines", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "engines.json", help="result file (%(default)s)"
    )
    parser.add_argument(
        "--cache", type=Path, default=default_cache(BASE), help="the base model's folder (%(default)s)"
    )
    parser.add_argument("--models", nargs="+", choices=(BASE, "clip"), default=(BASE, "clip"))
    parser.add_argument("--targets", nargs="+", default=TARGETS, help="default: %(default)s")
    args = parser.parse_args(argv)
    try:
        library = load_library("rtx")
        rows: list[dict[str, Any]] = []
        with tempfile.TemporaryDirectory() as work:
            for name in args.models:
                folder = Path(work) / name
                model = base_model(folder, args.cache) if name == BASE else clip_model(folder)
                rows += rows_of(
                    library, name, model, args.targets, Path(work) / "out", lambda s: print(s, flush=True)
                )
        print(write_result(args.out, {"library": f"{library.flavour.title} {library.version}", "rows": rows}))
    except MimicError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
