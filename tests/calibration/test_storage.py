"""What fewer bits change, measured on a real (tiny) model: against scores worked out by hand, and held to."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mimic_engine import Mention
from mimic_engine.backends.encoders import open_featurizer
from mimic_engine.calibration.storage import STORAGE, StorageCalibration, StorageRecall, recorded
from mimic_engine.cli.main import main
from mimic_engine.data.images import BrokenImages
from mimic_engine.data.records import read_entities
from mimic_engine.data.source import entity_stream
from mimic_engine.encoding.knowledge_base import KnowledgeBaseFeaturizer
from mimic_engine.errors import IndexFormatError, IndexMismatchError, InvalidInputError
from mimic_engine.index.build import build_index
from mimic_engine.index.manifest import read_manifest, write_manifest
from mimic_engine.index.schema import DTYPES
from mimic_engine.index.store import Index
from mimic_engine.kernels.reference import scores_ref
from mimic_engine.types import EntityArrays
from tests.index.changes import delete

MENTIONS = [Mention(a, f"{a} {b} {c}") for a, b, c in ("abc", "bcd", "gha", "jji", "cab", "fed", "aaa")]


@pytest.fixture(scope="module")
def featurizer(tiny_model):
    return open_featurizer(tiny_model, threads=1)


@pytest.fixture(scope="module")
def indexes(featurizer, tiny_model, tiny_kb, tmp_path_factory) -> dict[str, Index]:
    """The tiny knowledge base in every dtype, without a record of what that changes."""
    folder = tmp_path_factory.mktemp("indexes")
    source = KnowledgeBaseFeaturizer(featurizer, BrokenImages("error"))
    for dtype in DTYPES:
        out = folder / dtype
        build_index(source, entity_stream(tiny_kb), out, dtype=dtype, segment_rows=5, progress=False)
    return {dtype: Index.open(folder / dtype) for dtype in DTYPES}


def measured(featurizer, model, index, mentions=MENTIONS, **options) -> StorageRecall:
    return StorageCalibration(featurizer, model, mentions, threads=1, **options).measure(index)


def test_fewer_bits_mean_a_small_error(featurizer, tiny_model, indexes):
    found = {dtype: measured(featurizer, tiny_model, index) for dtype, index in indexes.items()}
    errors = [found[dtype].error_mean for dtype in ("float32", "float16", "int8")]
    assert errors[0] < 1e-6 < min(errors[1:]) and max(errors) < 1e-2
    for dtype, recall in found.items():
        assert (recall.dtype, recall.mentions, recall.entities, recall.k) == (dtype, 7, 13, 10)
        assert recall.error_mean <= recall.error_max and recall.source == "entities"
        assert recall.error_max > 1e-6 or dtype == "float32"
    assert (found["float32"].top1_identical, found["float32"].topk_contained) == (1, 1)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_errors_are_those_worked_out_by_hand(featurizer, tiny_model, tiny_kb, indexes, dtype):
    index, arrays = indexes[dtype], featurizer.mentions(MENTIONS)
    stored = np.concatenate(
        [scores_ref(arrays, widened(s), featurizer.constants).total for s in index.segments], 1
    )
    exact = scores_ref(arrays, featurizer.entities(list(read_entities(tiny_kb))), featurizer.constants).total
    errors = np.abs(stored - exact) / (1 + np.abs(exact))
    found = measured(featurizer, tiny_model, index)
    assert found.error_mean == pytest.approx(errors.mean(), rel=0.02)
    assert found.error_max == pytest.approx(errors.max(), rel=0.02)
    assert found.top1_identical == np.mean(stored.argmax(1) == exact.argmax(1))


def widened(stored: EntityArrays) -> EntityArrays:
    arrays = {n: a.astype(np.float32) for n, a in stored.items() if n != "tglu_query_scale"}
    if stored.tglu_query_scale is not None:
        arrays["tglu_query"] *= stored.tglu_query_scale[..., None]
    return EntityArrays(**arrays)


def test_only_the_best_are_folded_again(featurizer, tiny_model, indexes):
    found = measured(featurizer, tiny_model, indexes["int8"], MENTIONS[:1], source="mine.jsonl")
    assert found.mentions == 1 and found.source == "mine.jsonl"
    few = StorageCalibration(featurizer, tiny_model, MENTIONS[:1], threads=1).measure(indexes["int8"], k=2)
    assert (few.k, few.entities) == (2, 4)
    entities = StorageCalibration(featurizer, tiny_model, limit=3, threads=1).measure(indexes["int8"])
    assert (entities.mentions, entities.source) == (3, "entities")


def test_dead_rows_are_not_measured(featurizer, tiny_model, indexes, tmp_path):
    copy = Index.open(shutil.copytree(indexes["int8"].path, tmp_path / "index"))
    changed = delete(copy, ["E00", "E05", "E10"])
    assert changed.alive is not None
    assert measured(featurizer, tiny_model, changed).entities == 10


def test_pictures_that_are_gone_are_left_out(featurizer, tiny_model, tiny_kb, tmp_path):
    kb = Path(shutil.copytree(tiny_kb.parent, tmp_path / "kb")) / tiny_kb.name
    source = KnowledgeBaseFeaturizer(featurizer, BrokenImages("error"))
    build_index(source, entity_stream(kb), tmp_path / "index", dtype="int8", progress=False)
    index = Index.open(tmp_path / "index")
    whole = measured(featurizer, tiny_model, index)
    for picture in kb.parent.glob("*.png"):
        picture.unlink()
    found = measured(featurizer, tiny_model, index)
    assert (whole.entities, whole.left_out, found.entities, found.left_out) == (13, 0, 4, 9)
    assert "(9 without their pictures left out)" in str(found) and found.error_mean < 1e-2
    index = delete(index, [index.ids([row])[0] for row in range(13) if not index.entity(row).images])
    with pytest.raises(InvalidInputError, match="of its best 9 entities no picture is at hand"):
        measured(featurizer, tiny_model, index)


def test_wrong_mentions_and_models(featurizer, tiny_model, indexes, tmp_path):
    with pytest.raises(InvalidInputError, match="mentions: none"):
        measured(featurizer, tiny_model, indexes["int8"], [])
    other = shutil.copytree(indexes["int8"].path, tmp_path / "index")
    write_manifest(other, replace(read_manifest(other), model_hash="0" * 64))
    with pytest.raises(IndexMismatchError, match="0000"):
        measured(featurizer, tiny_model, Index.open(other))


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": 7},
        {"k": 1.5},
        {"mentions": -1},
        {"error_max": float("inf")},
        {"error_mean": "small"},
        {"top1_identical": None},
        {"surprise": 1},
    ],
)
def test_a_record_that_cannot_be_read_is_named(featurizer, tiny_model, indexes, change):
    written = StorageCalibration(featurizer, tiny_model, MENTIONS, threads=1)(indexes["int8"])
    manifest = replace(indexes["int8"].manifest, agreement=written)
    assert recorded(manifest) == StorageRecall(**written[STORAGE])
    with pytest.raises(
        IndexFormatError, match=f"agreement.storage of the manifest: .*{next(iter(change))}|fields"
    ):
        recorded(replace(manifest, agreement={STORAGE: written[STORAGE] | change}))
    assert recorded(replace(manifest, agreement={})) is None


def test_build_records_and_verify_holds_the_index_to_it(tiny_model, tiny_kb, tmp_path, capsys):
    out = tmp_path / "index"
    build = ["index", "build", "--model", str(tiny_model), "--kb", str(tiny_kb), "--out", str(out), "--quiet"]
    assert main([*build, "--dtype", "int8", "--centroids", "0", "--threads", "1"]) == 0
    verify = ["index", "verify", str(out), "--agreement", "--model", str(tiny_model), "--threads", "1"]
    capsys.readouterr()
    assert main(verify) == 0
    printed = capsys.readouterr().out
    [then] = [line.removeprefix("storage, recorded: ") for line in printed.splitlines() if "recorded" in line]
    [now] = [line.removeprefix("storage, measured: ") for line in printed.splitlines() if "measured" in line]
    assert then == now and then.startswith("int8 against float32, 13 mentions (entities), 13 entities")
    assert "coded: no codes" in printed

    manifest = read_manifest(out)
    better = manifest.agreement[STORAGE] | {"error_mean": 1e-6}
    write_manifest(out, replace(manifest, agreement={STORAGE: better}))
    assert main(verify) == 1
    assert "BAD storage: mean relative error" in capsys.readouterr().out
    write_manifest(out, replace(manifest, agreement={}))
    assert main(verify) == 0
    assert "recorded: nothing, the index was not calibrated" in capsys.readouterr().out
