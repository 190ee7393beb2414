"""The engine builder: real engines with TensorRT for RTX, which needs no GPU to build; and what it refuses."""

import shutil
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mimic_engine.encoding.graph_names import GRAPHS
from mimic_engine.encoding.manifest import ModelManifest
from mimic_engine.errors import InvalidInputError, MissingDependencyError, ModelError
from mimic_engine.export import build_trt
from mimic_engine.export.engines import BuildOptions, network_flags
from mimic_engine.export.precision import to_fp8
from mimic_engine.export.profiles import profiles
from mimic_engine.export.quantise import Outcome, ship
from mimic_engine.files import sha256_of
from mimic_engine.gpu import tensorrt_library
from mimic_engine.gpu.engine_files import EngineRecord
from mimic_engine.gpu.tensorrt import deserialize
from mimic_engine.gpu.tensorrt_library import FLAVOURS, load_library

TARGETS = ("sm_80", "sm_86", "sm_89", "sm_120")


@pytest.fixture(scope="session")
def rtx():
    try:
        return load_library("rtx")
    except MissingDependencyError as error:
        pytest.skip(str(error))


def run(*arguments):
    return build_trt.main([str(a) for a in arguments])


@pytest.mark.trt
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("model", ["bert_vit_folder", "masked_clip_folder"])
def test_every_graph_is_built_for_every_target(request, rtx, tmp_path, model, precision):
    folder = request.getfixturevalue(model)
    manifest = ModelManifest.read(folder)
    options = ("--flavor", "rtx", "--precision", precision, "--profiles", "8")
    assert run(folder, tmp_path, *options, "--target", ",".join(TARGETS)) == 0
    for name in GRAPHS:
        for target in TARGETS:
            engine = tmp_path / f"{name}.{precision}.{target}.engine"
            record = EngineRecord.read(engine)
            entry = manifest.entry(name, precision)
            record.check_graph(engine, folder, manifest.model_hash, entry)
            assert (record.flavour, record.library, record.target) == ("rtx", rtx.version, target)
            assert record.bytes == engine.stat().st_size > 100_000 and record.sha256 == sha256_of(engine)
            assert record.seconds > 0 and list(record.profiles) == profiles(
                entry, manifest.widths["length"], (8,)
            )
    assert len(list(tmp_path.iterdir())) == 2 * len(GRAPHS) * len(TARGETS)


@pytest.fixture(scope="session")
def fp8_folder(bert_vit_folder, tmp_path_factory):
    """The model with encoders in 8-bit floats, calibrated on noise."""
    folder = tmp_path_factory.mktemp("fp8") / "model"
    shutil.copytree(bert_vit_folder, folder)
    manifest, rng = ModelManifest.read(folder), np.random.default_rng(0)
    ids = {n: np.ones((4, 9), np.int64) for n in ("input_ids", "attention_mask", "token_type_ids")}
    feeds = {
        "text_encoder": ids,
        "image_encoder": {"pixels": rng.standard_normal((4, 3, 32, 32)).astype(np.float32)},
    }
    graphs = {}
    for name, feed in feeds.items():
        fp32 = folder / manifest.entry(name, "fp32").onnx.file
        inputs = {key: feed[key] for key in manifest.entry(name, "fp32").inputs}
        graphs[name, "fp8"] = tmp_path_factory.mktemp("graphs") / f"{name}.onnx"
        to_fp8(fp32, graphs[name, "fp8"], [inputs])
    ship(folder, manifest, "fp8", Outcome("fp8", "fp8", 1.0, 1.0, 1, 1), graphs)
    return folder


@pytest.mark.trt
def test_floats_of_eight_bits_are_built_where_there_are_any(rtx, fp8_folder, tmp_path):
    options = ("--flavor", "rtx", "--precision", "fp8", "--profiles", "8", "--target", "sm_89,sm_120")
    assert run(fp8_folder, tmp_path, *options) == 0
    names = sorted(p.name for p in tmp_path.glob("*.sm_89.engine"))
    assert names == [
        "entity_fold.fp32.sm_89.engine", "image_encoder.fp8.sm_89.engine", "mention_fold.fp32.sm_89.engine",
        "scorer.fp32.sm_89.engine", "text_encoder.fp8.sm_89.engine",
    ]  # fmt: skip


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_floats_of_eight_bits_are_refused_where_there_are_none(fp8_folder, tmp_path, capsys, more):
    options = ("--flavor", "rtx", "--precision", "fp8", "--target", "sm_89,sm_86")
    assert run(fp8_folder, tmp_path, *options, *more) == 2
    assert "target: 'sm_86' has no 8-bit floats; fp8 needs sm_89 or later" in capsys.readouterr().err


@pytest.mark.trt
def test_one_profile_a_bucket(rtx, bert_vit_folder, tmp_path):
    one, all_buckets = tmp_path / "one", tmp_path / "all"
    options = ("--flavor", "rtx", "--precision", "fp16", "--target", "sm_89", "--graphs", "mention_fold")
    assert run(bert_vit_folder, one, *options, "--profiles", "4") == 0
    assert run(bert_vit_folder, all_buckets, *options) == 0
    sizes = [next(f.glob("*.engine")).stat().st_size for f in (one, all_buckets)]
    assert sizes[1] > 2 * sizes[0]  # an engine holds kernels of its own for each profile
    assert len(EngineRecord.read(next(all_buckets.glob("*.engine"))).profiles) == 5


@pytest.mark.trt
def test_an_operator_that_is_rejected_is_named_with_its_layer(rtx, bert_vit_folder, tmp_path, capsys):
    assert run(bert_vit_folder, tmp_path, "--flavor", "rtx", "--precision", "int8", "--target", "sm_89") == 1
    error = capsys.readouterr().err
    assert "operator DynamicQuantizeLinear in layer" in error and "layer.0.attention" in error
    assert " more\n" in error and not list(tmp_path.iterdir())


@pytest.mark.trt
def test_a_graph_that_is_no_onnx_file_is_an_error(rtx, bert_vit_folder, tmp_path):
    from mimic_engine.export.engines import build_engine

    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\x08\x07 no graph")
    with pytest.raises(ModelError, match="broken"):
        build_engine(rtx, broken, "sm_89", [], BuildOptions())


@pytest.mark.trt
def test_a_bad_shape_is_an_error_with_a_reason(rtx, tmp_path):
    """Inner sizes that do not fit: found by the parser or the builder, never a crash or an empty engine."""
    from mimic_engine.export.engines import build_engine

    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "y"], ["z"], "product")], "g", [x, y], [
        helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    ])  # fmt: skip
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10),
        tmp_path / "g.onnx",
    )
    spans = {"x": ((1, 3), (1, 3), (2, 3)), "y": ((1, 4), (1, 4), (2, 4))}
    with pytest.raises(ModelError, match=r"g\.onnx: TensorRT for RTX"):
        build_engine(rtx, tmp_path / "g.onnx", "sm_89", [spans], BuildOptions())


@pytest.mark.trt
def test_an_engine_is_not_read_where_there_is_no_device(rtx, bert_vit_folder, tmp_path):
    """Without a driver, and with damaged bytes anywhere, the library gives nothing back: an error that says so."""
    record = EngineRecord(
        *("", "scorer", "fp32", "", "rtx", rtx.version, "sm_89", (), 0.0, 4, "", False, False, None),
    )
    path = tmp_path / record.file
    path.write_bytes(b"none")
    with pytest.raises(ModelError, match="cannot read it"):
        deserialize(rtx, path, record)


def test_rtx_does_not_build_for_an_h100(bert_vit_folder, tmp_path, capsys):
    assert run(bert_vit_folder, tmp_path, "--flavor", "rtx", "--target", "sm_80,sm_90") == 2
    assert "'sm_90'" in (error := capsys.readouterr().err) and "--flavor tensorrt" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--timing-cache", "cache"), "--timing-cache: not with TensorRT for RTX"),
        (("--version-compatible",), "--version-compatible: not with TensorRT for RTX"),
        (("--strip",), "--strip: needs --refit"),
        (("--workspace-gib", "0"), "--workspace-gib: 0.0"),
        (("--graphs", "decoder"), "decoder"),
        (("--profiles", "8,4"), "profiles: '8,4'"),
        (("--target", "ampere"), "'ampere'"),
    ],
)
def test_wrong_options_are_named(bert_vit_folder, tmp_path, capsys, options, message):
    assert run(bert_vit_folder, tmp_path, "--flavor", "rtx", "--target", "sm_89", *options) == 2
    assert message in capsys.readouterr().err


def test_a_precision_that_was_not_exported_is_named(bert_vit_folder, tmp_path, capsys):
    assert run(bert_vit_folder, tmp_path, "--flavor", "rtx", "--target", "sm_89", "--precision", "fp8") == 1
    error = capsys.readouterr().err
    assert (
        "'fp8'; there is fp32, fp16, bf16, int8; make it: python export/quantise.py --precision fp8" in error
    )


def test_a_folder_that_is_not_ours_is_refused(tmp_path, capsys):
    (tmp_path / "manifest.json").write_text('{"format": "something"}')
    assert run(tmp_path, tmp_path / "out", "--flavor", "rtx", "--target", "sm_89") == 1
    assert "format 'something', expected 'mimic-model'" in capsys.readouterr().err


def test_a_changed_graph_is_refused_before_it_is_built(bert_vit_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(bert_vit_folder, folder)
    path = folder / "graphs" / "scorer.fp32.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    manifest = ModelManifest.read(folder)
    jobs = build_trt.plan(manifest, "fp32", ["sm_89"], ["scorer"])
    with pytest.raises(ModelError, match=r"scorer\.fp32\.onnx: SHA-256"):
        list(build_trt.build(None, folder, tmp_path / "out", manifest, jobs, BuildOptions()))


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_missing_library_is_an_error_with_the_install_line(flavour, monkeypatch):
    for name in FLAVOURS[flavour].modules:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        MissingDependencyError, match=r"is not installed: pip install 'mimic-engine\[tensorrt"
    ):
        load_library(flavour)


def test_a_library_that_lacks_its_own_files_is_not_called_missing(monkeypatch, tmp_path):
    (tmp_path / "tensorrt.py").write_text("import libnvinfer_of_nobody\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(
        MissingDependencyError, match=r"installed and cannot be imported: .*libnvinfer_of_nobody"
    ):
        load_library("tensorrt")


def test_an_unknown_flavour_is_named():
    with pytest.raises(InvalidInputError, match="'torch_tensorrt'"):
        load_library("torch_tensorrt")


def test_a_dry_run_says_what_would_be_built_and_what_is_missing(
    bert_vit_folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(tensorrt_library, "_import", lambda names: None)
    out = tmp_path / "out"
    assert run(bert_vit_folder, out, "--flavor", "rtx", "--target", "sm_89", "--dry-run") == 1
    captured = capsys.readouterr()
    assert captured.out.count(".engine: from graphs/") == 5 and "batch 17..32" in captured.out
    assert "missing: TensorRT for RTX is not installed" in captured.err
    assert not out.exists()


def test_strong_typing_is_asked_for_where_it_can_be():
    class Ten:
        class NetworkDefinitionCreationFlag:
            EXPLICIT_BATCH, STRONGLY_TYPED = 0, 1

    class Later:
        class NetworkDefinitionCreationFlag:
            pass

    assert (network_flags(Ten), network_flags(Later)) == (2, 0)


def test_int8_engines_keep_fp32_folds(bert_vit_folder):
    manifest = ModelManifest.read(bert_vit_folder)
    jobs = build_trt.plan(manifest, "int8", ["sm_89"])
    assert {j.graph: j.precision for j in jobs} == {
        **dict.fromkeys(GRAPHS, "fp32"), "text_encoder": "int8", "image_encoder": "int8",
    }  # fmt: skip
