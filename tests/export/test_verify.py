"""The check of an export: passes on a true one, fails on one whose weights were changed, says why."""

import json
import shutil

import onnx
import pytest
from onnx import numpy_helper

from mimic_engine.encoding.graph_names import GRAPHS
from mimic_engine.encoding.manifest import ModelManifest, StoredFile
from mimic_engine.export import verify


def run(folder, checkpoint, *options):
    return verify.main([str(folder), "--model", str(checkpoint), *options])


def test_a_true_export_passes(bert_vit_folder, tiny_checkpoint, tmp_path, capsys):
    file = tmp_path / "v.json"
    assert run(bert_vit_folder, tiny_checkpoint, "--precisions", "fp32,fp16,bf16", "--json", str(file)) == 0
    result = json.loads(file.read_text())
    assert result["ok"] is True
    assert {(r["graph"], r["precision"]) for r in result["rows"]} == {
        (g, p) for g in (*GRAPHS, "all graphs") for p in ("fp32", "fp16", "bf16")
    }
    assert all(
        r["size_bytes"] > 0 and (r["ms"] is None) == (r["precision"] == "bf16") for r in result["rows"]
    )
    assert "mention_fold" in capsys.readouterr().out


def test_a_changed_weight_is_noticed(bert_vit_folder, tiny_checkpoint, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(bert_vit_folder, folder)
    file = folder / "graphs" / "mention_fold.fp32.onnx"
    model = onnx.load(file)
    tensor = max(model.graph.initializer, key=lambda t: t.ByteSize())
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1.01, tensor.name))
    onnx.save(model, file)
    written = json.loads((folder / "manifest.json").read_text())
    stored = StoredFile.of(folder, "graphs/mention_fold.fp32.onnx")
    written["graphs"]["mention_fold"]["fp32"] |= {"sha256": stored.sha256, "bytes": stored.bytes}
    (folder / "manifest.json").write_text(json.dumps(written))
    assert run(folder, tiny_checkpoint, "--precisions", "fp32") == 1
    assert "mention_fold fp32" in capsys.readouterr().err


def test_another_model_is_refused(masked_clip_folder, tiny_checkpoint, capsys):
    assert run(masked_clip_folder, tiny_checkpoint) == 2
    assert ModelManifest.read(masked_clip_folder).model_hash[:12] in capsys.readouterr().err


def test_reads_records_from_files(bert_vit_folder, tiny_checkpoint, tmp_path):
    entities = [{"id": str(i), "name": n, "description": "a b"} for i, n in enumerate("abcde")]
    mentions = [{"mention": n, "sentence": f"{n} c d"} for n in "ab"]
    for name, records in (("e.jsonl", entities), ("m.jsonl", mentions)):
        (tmp_path / name).write_text("\n".join(map(json.dumps, records)))
    files = ("--mentions", str(tmp_path / "m.jsonl"), "--entities", str(tmp_path / "e.jsonl"))
    assert run(bert_vit_folder, tiny_checkpoint, "--precisions", "fp32", "--top-k", "3", *files) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--mentions", "m.jsonl"), "both or neither"),
        (("--limit", "0"), "--limit: 0"),
        (("--precisions", "fp8"), "'fp8'"),
    ],
)
def test_wrong_options_are_named(bert_vit_folder, tiny_checkpoint, capsys, options, message):
    assert run(bert_vit_folder, tiny_checkpoint, *options) == 2
    assert message in capsys.readouterr().err
