"""``python -m mimic_engine.evaluate`` on a trained checkpoint: the same ranks as the unfolded matcher."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mimic_engine.backends.encoders import open_featurizer
from mimic_engine.data.images import BrokenImages
from mimic_engine.data.source import entity_stream, open_dataset
from mimic_engine.encoding.knowledge_base import KnowledgeBaseFeaturizer
from mimic_engine.evaluate.evaluate import main
from mimic_engine.export.to_onnx import export_model
from mimic_engine.images import ImagePreprocessor
from mimic_engine.index.build import build_index
from mimic_engine.index.store import Index
from mimic_engine.metrics import ranking_metrics
from mimic_engine.model.checkpoint import load_checkpoint
from mimic_engine.scan.cpu import CpuKernels
from mimic_engine.text import TextPreprocessor
from mimic_engine.train.config import TrainConfig
from mimic_engine.train.corpus import build_corpus
from mimic_engine.train.encode import RecordEncoder
from mimic_engine.train.run import train
from mimic_engine.types import FoldConstants
from tests.index.changes import upsert
from tests.ranking import exact_scores


@pytest.fixture
def checkpoint(options: Callable[..., TrainConfig]) -> Path:
    config = options(epochs=1, train_text_encoder=True)
    train(config)
    return config.out / "best"


def _ranks_of_the_matcher(checkpoint: Path, data: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Ranks by the readable matcher on features that were never folded; and who has an image.

    No other way of computing them in float32 ranks otherwise.
    """
    loaded = load_checkpoint(checkpoint)
    dataset = open_dataset(data, splits=(split,))
    text = TextPreprocessor.open(loaded.tokenizer_json, loaded.model.config.text)
    corpus = build_corpus(dataset.entities, dataset.splits, text)
    images = ImagePreprocessor(loaded.model.config.image)
    encode = RecordEncoder(
        loaded.model, corpus, images, train_text=True, train_image=True, broken=BrokenImages("error")
    )
    part = corpus.splits[split]
    with torch.no_grad():
        mentions, entities = encode(part.records), encode(corpus.entities)
    scores = exact_scores(loaded.model.matcher, mentions, entities, part.gold)
    own = scores[np.arange(len(part.gold)), part.gold]
    return (scores >= own[:, None]).sum(1), corpus.image[part.records] > 0


def test_metrics_are_those_of_the_matcher_and_the_file_says_how(
    checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "results" / "tiny.json"
    arguments = [
        "--model",
        str(checkpoint),
        "--data",
        str(data),
        "--out",
        str(out),
        "--quiet",
        "--batch-size",
        "5",
    ]
    assert main([*arguments, "--split", "dev", "test"]) == 0
    result = json.loads(out.read_text())
    for split in ("dev", "test"):
        ranks, pictured = _ranks_of_the_matcher(checkpoint, data, split)
        for name, chosen in (("with_image", pictured), ("without_image", ~pictured)):
            part = result[split].pop(name)
            if chosen.any():
                assert part == pytest.approx(ranking_metrics(ranks[chosen], 18).to_json())
            else:
                assert part is None
        for groups in ("namesakes", "names"):
            parts = [part for part in result[split].pop(groups).values() if part is not None]
            assert sum(part["mentions"] for part in parts) == len(ranks)
            assert sum(part["mentions"] * part["mrr"] for part in parts) == pytest.approx((1 / ranks).sum())
        assert result[split] == pytest.approx(ranking_metrics(ranks, 18).to_json())
    assert "counted against the gold entity" in result["ties"]
    assert {"command", "commit", "machine", "versions", "model_hash"} <= set(result)
    assert result["checkpoint"]["train"]["lr"] == 0.003
    assert not list(out.parent.glob("*.new"))


def test_limit_and_standard_output(checkpoint: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", str(checkpoint), "--data", str(data), "--limit", "1", "--quiet"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["test"]["mentions"], result["test"]["candidates"]) == (1, 18)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--model", "nowhere"], "--model: nowhere holds neither manifest.json"),
        (["--data", "nowhere"], "nowhere"),
        (["--precision", "int8"], "--precision: 'int8' needs an exported model"),
        (["--batch-size", "0"], "--batch-size: must be at least 1, got 0"),
        (["--index", "nowhere"], "nowhere"),
    ],
)
def test_errors_are_one_line_and_status_1(
    checkpoint: Path, data: Path, capsys: pytest.CaptureFixture[str], change: list[str], message: str
) -> None:
    assert main(["--model", str(checkpoint), "--data", str(data), "--quiet", *change]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


def test_wrong_usage_is_status_2() -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--split", "all"])
    assert stop.value.code == 2


@pytest.mark.slow
def test_an_exported_model_and_its_index_give_the_checkpoints_metrics(
    checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    loaded = load_checkpoint(checkpoint)
    export_model(loaded.model, loaded.tokenizer_json, tmp_path / "model")
    knowledge_base = KnowledgeBaseFeaturizer(open_featurizer(tmp_path / "model"), BrokenImages("error"))
    build_index(knowledge_base, entity_stream(data), tmp_path / "index", dtype="float32", progress=False)
    results = []
    index = ["--index", str(tmp_path / "index")]
    for model, more in ((checkpoint, []), (tmp_path / "model", []), (tmp_path / "model", index)):
        out = tmp_path / f"{len(results)}.json"
        command = ["--model", str(model), "--data", str(data), "--out", str(out), "--threads", "1", "--quiet"]
        assert main([*command, *more]) == 0
        results.append(json.loads(out.read_text()))
    _ranks_of_the_matcher(checkpoint, data, "test")
    assert results[0]["test"] == results[1]["test"] == results[2]["test"]
    again = list(entity_stream(data)())[:1]
    changed = upsert(Index.open(tmp_path / "index"), again, knowledge_base)
    assert changed.alive is not None  # and the dead row counts in no rank
    assert main([*command, *index]) == 0
    assert json.loads(out.read_text())["test"] == results[0]["test"]
    assert len({r["model_hash"] for r in results}) == 1
    compiled = CpuKernels(FoldConstants(8, ("tglu",))).name if CpuKernels.available() else None
    assert [r["scorer"] for r in results] == [compiled or "torch", compiled or "onnx", compiled or "onnx"]
