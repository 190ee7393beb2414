"""The exported folder: complete, published at once, free of this machine's paths; the command line."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from mimic_engine.encoding.graph_names import GRAPHS
from mimic_engine.encoding.manifest import ModelManifest
from mimic_engine.encoding.onnx import OnnxGraph
from mimic_engine.errors import InvalidInputError, ModelError
from mimic_engine.export import to_onnx
from mimic_engine.export.graphs import Graph, model_graphs
from mimic_engine.export.to_onnx import ExportOptions, export_model
from mimic_engine.files import sha256_of
from mimic_engine.model.checkpoint import model_hash
from mimic_engine.model.fold import fold_constants

ROOT = Path(__file__).parents[2]


def test_manifest_describes_the_folder(bert_vit, bert_vit_folder, tiny_checkpoint):
    manifest = ModelManifest.read(bert_vit_folder)
    assert manifest.model_hash == model_hash(bert_vit)
    assert manifest.constants == fold_constants(bert_vit.matcher)
    assert (manifest.text, manifest.image) == (bert_vit.config.text, bert_vit.config.image)
    assert manifest.widths == {"text": 16, "text_tokens": 16, "length": 9, "hidden": 8, "patches": 5}
    assert (bert_vit_folder / "tokenizer.json").read_text() == (
        tiny_checkpoint / "tokenizer.json"
    ).read_text()
    listed = {"manifest.json", "tokenizer.json"}
    for name, by_precision in manifest.graphs.items():
        wanted = {"fp32", "fp16", "bf16"} | ({"int8"} if name.endswith("encoder") else set())
        assert set(by_precision) == wanted
        for entry in by_precision.values():
            assert entry.onnx.sha256 == sha256_of(bert_vit_folder / entry.onnx.file)
            listed.add(entry.onnx.file)
    there = {str(p.relative_to(bert_vit_folder)) for p in bert_vit_folder.rglob("*") if p.is_file()}
    assert there == listed
    assert list(manifest.graphs) == list(GRAPHS)


def test_graphs_name_nothing_of_this_machine(bert_vit_folder):
    for path in (bert_vit_folder / "graphs").iterdir():
        data = path.read_bytes()
        assert str(ROOT).encode() not in data and sys.prefix.encode() not in data, path.name


def test_export_refuses_a_folder_that_is_something_else(bert_vit, tiny_checkpoint, tmp_path):
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(ModelError, match="not an exported model"):
        export_model(bert_vit, tiny_checkpoint / "tokenizer.json", tmp_path)
    assert (tmp_path / "letters.txt").read_text() == "dear"


def test_export_without_a_tokenizer_is_refused(bert_vit, tmp_path):
    with pytest.raises(ModelError, match=r"none\.json: no tokenizer file"):
        export_model(bert_vit, tmp_path / "none.json", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precisions", [("fp16",), ("fp32", "fp8"), ()])
def test_unknown_precisions_are_refused(precisions):
    with pytest.raises(InvalidInputError, match="precisions"):
        ExportOptions(precisions)


class Doubler(torch.nn.Module):
    """A stand-in for a large graph: one weight that is worth a file of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.eye(32) * 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (x @ self.weight,)


def doubler() -> Graph:
    return Graph("mention_fold", Doubler().eval(), {"x": torch.zeros(2, 32)}, ("y",), {"x": "batch"})


def test_large_weights_go_to_a_file_beside_the_graph(tmp_path, bert_vit_folder):
    (tmp_path / "graphs").mkdir()
    entries = to_onnx._write_graph(doubler(), tmp_path, ExportOptions(("fp32",), external_over_bytes=1000))
    data = entries["fp32"].data
    assert data is not None and data.bytes == 32 * 32 * 4 and entries["fp32"].onnx.bytes < data.bytes
    manifest = ModelManifest.read(bert_vit_folder)
    manifest = replace(manifest, graphs={"d": entries})
    manifest.write(tmp_path)
    with pytest.raises(ModelError, match="no graphs"):
        ModelManifest.read(tmp_path)
    replace(manifest, graphs=dict.fromkeys(GRAPHS, entries)).write(tmp_path)
    assert ModelManifest.read(tmp_path).entry("scorer", "fp32") == entries["fp32"]
    x = np.arange(64, dtype=np.float32).reshape(2, 32)
    graph = OnnxGraph.open(tmp_path, manifest, "d", "fp32", threads=1, verify=True)
    np.testing.assert_array_equal(graph.run({"x": x})["y"], 2 * x)
    path = tmp_path / data.file
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(ModelError, match=r"\.data: SHA-256"):
        OnnxGraph.open(tmp_path, manifest, "d", "fp32", threads=1, verify=True)


def test_an_interrupted_export_leaves_the_old_folder_alone(bert_vit, tiny_checkpoint, tmp_path, monkeypatch):
    def one_graph(_model):
        return {"mention_fold": doubler()}

    out, tokenizer = tmp_path / "model", tiny_checkpoint / "tokenizer.json"
    monkeypatch.setattr(to_onnx, "_widths", lambda _graphs, _length: {})
    monkeypatch.setattr(to_onnx, "model_graphs", one_graph)
    export_model(bert_vit, tokenizer, out, ExportOptions(("fp32",)))
    before = (out / "manifest.json").read_bytes()

    def killed(*_args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(to_onnx, "publish_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            export_model(bert_vit, tokenizer, out, ExportOptions(("fp32",)))
    assert (out / "manifest.json").read_bytes() == before
    export_model(bert_vit, tokenizer, out, ExportOptions(("fp32",)))  # goes over what was left behind
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]
    onnx.checker.check_model(out / "graphs" / "mention_fold.fp32.onnx")


def test_example_inputs_are_tensors_of_their_own(bert_vit):
    for graph in model_graphs(bert_vit).values():
        pointers = [tensor.data_ptr() for tensor in graph.inputs.values()]
        assert len(set(pointers)) == len(pointers), graph.name


def test_command_line_names_what_is_wrong(tmp_path, capsys):
    assert to_onnx.main([str(tmp_path / "none"), str(tmp_path / "out")]) == 1
    assert "none" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_runs_as_a_script(tiny_checkpoint, tmp_path):
    command = [sys.executable, "export/to_onnx.py", tiny_checkpoint, tmp_path / "out", "--precisions", "fp32"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "scorer: fp32" in done.stdout
    assert ModelManifest.read(tmp_path / "out").graphs["scorer"].keys() == {"fp32"}
