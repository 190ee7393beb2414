"""Typed graphs: which types stand where, what is emulated, and how close they are."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from mimic_engine.encoding.graph_names import GRAPHS
from mimic_engine.encoding.manifest import ModelManifest
from mimic_engine.errors import ModelError
from mimic_engine.export.emulated import EmulatedGraph
from mimic_engine.export.graphs import BATCH, model_graphs
from mimic_engine.export.typed import PRODUCTS, SUMS, TYPES, emulate, narrow, to_typed

FLOAT = TensorProto.FLOAT
DTYPES = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}


def kinds_of(model):
    graph = model.graph
    kinds = {t.name: t.data_type for t in graph.initializer}
    values = (*graph.input, *graph.value_info, *graph.output)
    return kinds | {v.name: v.type.tensor_type.elem_type for v in values}


@pytest.fixture(params=["bert_vit", "masked_clip"])
def exported(request):
    return request.getfixturevalue(request.param), request.getfixturevalue(f"{request.param}_folder")


@pytest.mark.parametrize("precision", TYPES)
@pytest.mark.parametrize("name", GRAPHS)
def test_sums_are_float32_and_products_narrow(bert_vit_folder, name, precision):
    model = onnx.load(bert_vit_folder / "graphs" / f"{name}.{precision}.onnx")
    kinds, seen = kinds_of(model), set()
    for node in model.graph.node:
        floats = {kinds[v] for v in (*node.input, *node.output) if kinds.get(v) in (FLOAT, *TYPES.values())}
        if node.op_type in SUMS:
            assert floats <= {FLOAT}, node.name
            seen.add("sum")
        if node.op_type in PRODUCTS:
            assert floats == {TYPES[precision]}, node.name
            seen.add("product")
        assert len(floats) <= 1 or node.op_type == "Cast", node.name
    assert "product" in seen and ("sum" in seen or not name.endswith("encoder"))
    outer = {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}
    assert outer <= {FLOAT, TensorProto.INT64}


def test_masks_are_added_in_float32(bert_vit_folder):
    model = onnx.load(bert_vit_folder / "graphs" / "text_encoder.fp16.onnx")
    kinds = kinds_of(model)
    maker = {o: n for n in model.graph.node for o in n.output}
    added = [maker[n.input[0]] for n in model.graph.node if n.op_type == "Softmax"]
    assert added and all(n.op_type == "Add" and kinds[n.output[0]] == FLOAT for n in added)


def test_nodes_are_named_by_their_place_in_the_model(bert_vit_folder):
    model = onnx.load(bert_vit_folder / "graphs" / "text_encoder.fp32.onnx")
    names = [n.name for n in model.graph.node if n.op_type == "MatMul"]
    assert any("layer.0." in n for n in names) and any("layer.1." in n for n in names)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("precision", TYPES)
def test_emulation_is_as_far_off_as_the_type(exported, precision):
    """Errors of the type's size: zero would mean that nothing was rounded."""
    model, folder = exported
    manifest = ModelManifest.read(folder)
    eps = float(ml_dtypes.finfo(DTYPES[precision]).eps)
    for name, graph in model_graphs(model).items():
        emulated = EmulatedGraph.open(folder, manifest, name, precision)
        expected = graph.run(graph.inputs)
        found = emulated.run({k: v.numpy() for k, v in graph.inputs.items()})
        errors = [np.abs(found[k] - v.numpy()).max() / float(v.abs().max()) for k, v in expected.items()]
        assert eps / 16 < max(errors) < 16 * eps, (name, errors)


def product(dtype=np.float32):
    """x (batch, 3) @ w -> y, exact in float32."""
    x = helper.make_tensor_value_info("x", FLOAT, [BATCH, 3])
    y = helper.make_tensor_value_info("y", FLOAT, [BATCH, 2])
    w = numpy_helper.from_array(np.array([[1, 2], [3, 4], [5, 6]], np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "product")
    graph = helper.make_graph([node], "g", [x], [y], [w])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("precision", TYPES)
@given(values=st.lists(st.floats(-1000, 1000, width=32), min_size=3, max_size=9))
@settings(max_examples=25, deadline=None)
def test_emulation_rounds_inputs_and_result(precision, values):
    import onnxruntime

    x = np.resize(np.array(values, np.float32), (max(1, len(values) // 3), 3))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    twin = emulate(to_typed("scorer", product(), precision))
    session = onnxruntime.InferenceSession(
        twin.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    [found] = session.run(None, {"x": x})
    dtype = DTYPES[precision]
    w = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    exact = x.astype(dtype).astype(np.float64) @ w
    with np.errstate(over="ignore"):
        lower, upper = (np.nextafter(exact.astype(np.float32), s * np.inf, dtype=np.float32) for s in (-1, 1))
        allowed = [a.astype(dtype).astype(np.float32) for a in (lower, upper)]
    assert ((found == allowed[0]) | (found == allowed[1])).all()


def test_kept_nodes_stay_float32():
    typed = to_typed("scorer", product(), "fp16", keep=lambda node: node.name == "product")
    assert [n.op_type for n in typed.graph.node] == ["MatMul"]
    assert kinds_of(typed)["w"] == FLOAT


def test_an_infinite_weight_stays_and_a_large_one_becomes_the_largest():
    tensor = numpy_helper.from_array(np.array([1e6, -1e6, np.inf, -np.inf, 1.0], np.float32), "w")
    found = numpy_helper.to_array(narrow(tensor, "fp16", "w"))
    np.testing.assert_array_equal(found, np.array([65504, -65504, np.inf, -np.inf, 1], np.float16))


def test_control_flow_is_refused_by_name():
    model = product()
    body = helper.make_graph([], "body", [], [helper.make_tensor_value_info("z", FLOAT, [1])])
    model.graph.node.add().CopyFrom(
        helper.make_node("If", ["c"], ["z"], "branch", then_branch=body, else_branch=body)
    )
    from mimic_engine.export.typed import _Rewriting

    with pytest.raises(ModelError, match="If 'branch'"):
        _Rewriting(model, "fp16", lambda node: False).result()
