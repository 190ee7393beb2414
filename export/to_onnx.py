"""Export a checkpoint to the folder that the runtime needs: ONNX graphs, tokenizer, manifest.

    python export/to_onnx.py MODEL OUT [--precisions fp32,fp16,bf16]

The folder appears under its name when it is complete, by a rename. Its layout
is described in :mod:`mimic_engine.encoding.manifest`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from mimic_engine.encoding.graph_names import CLS, ENCODERS, TOKENS
from mimic_engine.encoding.manifest import GraphEntry, ModelManifest, Shape, StoredFile
from mimic_engine.errors import InvalidInputError, MimicError, ModelError
from mimic_engine.export.graphs import Graph, export_fp32, model_graphs
from mimic_engine.export.precision import to_int8
from mimic_engine.export.typed import TYPES, to_typed
from mimic_engine.files import publish_folder
from mimic_engine.model.checkpoint import load_checkpoint, model_hash
from mimic_engine.model.fold import fold_constants
from mimic_engine.model.units import Mimic

DEFAULT = ("fp32", "fp16", "bf16")  # int8 and fp8 come from export/quantise.py, which measures what they cost
EXPORTED = (*DEFAULT, "int8")  # fp8 needs inputs to calibrate on
EXTERNAL_OVER_BYTES = 1_900_000_000  # a protobuf file ends at 2 GiB


@dataclass(frozen=True)
class ExportOptions:
    """Precisions to write, and the size above which weights go to a file beside the graph."""

    precisions: tuple[str, ...] = DEFAULT
    external_over_bytes: int = EXTERNAL_OVER_BYTES

    def __post_init__(self) -> None:
        unknown = [p for p in self.precisions if p not in EXPORTED]
        if unknown or "fp32" not in self.precisions:
            raise InvalidInputError(
                f"precisions: {','.join(self.precisions)!r} must hold fp32 and otherwise only "
                f"{', '.join(EXPORTED[1:])}"
            )


def export_model(
    model: Mimic, tokenizer_json: str | Path, out: str | Path, options: ExportOptions | None = None
) -> ModelManifest:
    """Write the exported folder of a model.

    Parameters
    ----------
    model : float32, on the CPU; left in eval mode.
    tokenizer_json : the tokenizer file to take along.
    out : folder to write; an exported model that is already there is replaced.

    Raises
    ------
    ModelError
        If ``out`` is something else than an exported model, or the tokenizer is missing.
    """
    options = options or ExportOptions()
    out, tokenizer_json = Path(out), Path(tokenizer_json)
    if out.exists() and not (out / "manifest.json").is_file():
        raise ModelError(f"{out}: exists and is not an exported model; choose another folder")
    if not tokenizer_json.is_file():
        raise ModelError(f"{tokenizer_json}: no tokenizer file there")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "graphs").mkdir(parents=True)
    shutil.copyfile(tokenizer_json, partial / "tokenizer.json")
    graphs = {name: _write_graph(graph, partial, options) for name, graph in model_graphs(model).items()}
    manifest = ModelManifest(
        model_hash(model),
        model.config.text,
        model.config.image,
        fold_constants(model.matcher),
        _widths(graphs, model.config.text.max_length),
        StoredFile.of(partial, "tokenizer.json"),
        graphs,
    )
    manifest.write(partial)
    publish_folder(partial, out)
    return manifest


def _write_graph(graph: Graph, folder: Path, options: ExportOptions) -> dict[str, GraphEntry]:
    """Write one graph in every precision that it is exported in."""
    fp32 = export_fp32(graph)
    entries = {"fp32": _save(fp32, folder, f"graphs/{graph.name}.fp32.onnx", options)}
    for precision in [p for p in TYPES if p in options.precisions]:
        typed = to_typed(graph.name, fp32, precision)
        entries[precision] = _save(typed, folder, f"graphs/{graph.name}.{precision}.onnx", options)
    if "int8" in options.precisions and graph.name in ENCODERS:
        file = f"graphs/{graph.name}.int8.onnx"
        to_int8(folder / entries["fp32"].onnx.file, folder / file)
        entries["int8"] = _save(onnx.load(folder / file), folder, file, options)
    return entries


def _save(proto: onnx.ModelProto, folder: Path, file: str, options: ExportOptions) -> GraphEntry:
    path, data = folder / file, f"{file}.data"
    external = proto.ByteSize() > options.external_over_bytes
    inputs, outputs = (
        {v.name: _shape(v) for v in values} for values in (proto.graph.input, proto.graph.output)
    )
    onnx.save_model(proto, path, save_as_external_data=external, location=Path(data).name)
    onnx.checker.check_model(path, full_check=True)
    stored = StoredFile.of(folder, data) if (folder / data).exists() else None
    return GraphEntry.of(StoredFile.of(folder, file), inputs, outputs, stored)


def _shape(value: onnx.ValueInfoProto) -> Shape:
    return tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)


def _widths(graphs: dict[str, dict[str, GraphEntry]], length: int) -> dict[str, int]:
    """Widths T, token width, D, and the length P, read off the graphs; and the text length L."""
    text, image = (graphs[name]["fp32"].outputs for name in ENCODERS)
    values = {
        "text": text[CLS][1],
        "text_tokens": text[TOKENS][2],
        "length": length,
        "hidden": image[CLS][1],
        "patches": image[TOKENS][1],
    }
    return {name: int(value) for name, value in values.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="to_onnx.py", description="Export a checkpoint to ONNX graphs.")
    parser.add_argument("model", type=Path, help="checkpoint folder")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument(
        "--precisions", default=",".join(DEFAULT), help=f"of {', '.join(EXPORTED)} (%(default)s)"
    )
    parser.add_argument("--text-source", help="text encoder of a checkpoint that holds none")
    parser.add_argument("--image-source", help="image encoder of a checkpoint that holds none")
    args = parser.parse_args(argv)
    try:
        options = ExportOptions(tuple(args.precisions.split(",")))
        checkpoint = load_checkpoint(args.model, text_source=args.text_source, image_source=args.image_source)
        manifest = export_model(checkpoint.model, checkpoint.tokenizer_json, args.out, options)
    except MimicError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{args.out}: model {manifest.model_hash[:12]}")
    for name, by_precision in manifest.graphs.items():
        sizes = ", ".join(f"{p} {entry.onnx.bytes / 1e6:.1f} MB" for p, entry in by_precision.items())
        print(f"  {name}: {sizes}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
