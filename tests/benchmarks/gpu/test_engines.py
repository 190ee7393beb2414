"""The engine benchmark on a tiny model: rows of what was really built."""

import pytest

from benchmarks.gpu import engines
from mimic_engine.encoding.graph_names import GRAPHS
from mimic_engine.errors import MissingDependencyError
from mimic_engine.export.to_onnx import ExportOptions, export_model
from mimic_engine.gpu.tensorrt_library import load_library
from mimic_engine.model.checkpoint import load_checkpoint


@pytest.mark.trt
def test_a_row_for_every_graph_and_precision(tiny_checkpoint, tmp_path):
    try:
        library = load_library("rtx")
    except MissingDependencyError as error:
        pytest.skip(str(error))
    loaded = load_checkpoint(tiny_checkpoint)
    export_model(loaded.model, loaded.tokenizer_json, tmp_path / "model", ExportOptions(engines.PRECISIONS))
    lines = []
    rows = engines.rows_of(library, "tiny", tmp_path / "model", ["sm_86"], tmp_path / "out", lines.append)
    assert [(r["graph"], r["precision"]) for r in rows] == [
        (g, p) for p in engines.PRECISIONS for g in GRAPHS
    ]
    assert all(
        r["bytes"] > 100_000 and r["seconds"] > 0 and r["cpu_seconds"] > 0 and r["target"] == "sm_86"
        for r in rows
    )
    assert len(lines) == len(rows)


def test_without_the_library_it_says_how_to_install_it(monkeypatch, capsys):
    def missing(flavour):
        raise MissingDependencyError(
            "TensorRT for RTX is not installed: pip install 'mimic-engine[tensorrt-rtx]'"
        )

    monkeypatch.setattr(engines, "load_library", missing)
    assert engines.main(["--models", "clip"]) == 2
    assert "pip install" in capsys.readouterr().err
