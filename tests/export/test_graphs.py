"""Exported graphs give what the PyTorch modules give, for every number of rows."""

import numpy as np
import onnx
import pytest
import torch

from mimic_engine.encoding.graph_names import GRAPHS
from mimic_engine.encoding.manifest import ModelManifest
from mimic_engine.encoding.onnx import OnnxGraph
from mimic_engine.export.graphs import BATCH, model_graphs
from mimic_engine.kernels.reference import scores_ref
from mimic_engine.model.fold import fold_constants
from mimic_engine.types import EntityArrays, MentionArrays

SHAPES = [(1, 1), (1, 5), (2, 1), (3, 7), (7, 13)]  # mentions, entities
MODELS = ["bert_vit", "masked_clip"]


@pytest.fixture(params=MODELS)
def exported(request):
    model = request.getfixturevalue(request.param)
    folder = request.getfixturevalue(f"{request.param}_folder")
    return model, folder, ModelManifest.read(folder)


def inputs_of(graph, batch, rows, seed):
    """Random inputs; ids within the vocabulary, at least one real token a row, a full and a short row."""
    g = torch.Generator().manual_seed(seed)
    out = {}
    for name, example in graph.inputs.items():
        shape = (batch if graph.axes[name] == BATCH else rows, *example.shape[1:])
        if name == "input_ids":
            out[name] = torch.randint(2, 50, shape, generator=g)
        elif "mask" in name:
            lengths = torch.arange(shape[0])[:, None] % shape[1] + 1
            out[name] = (torch.arange(shape[1])[None] < lengths).to(example.dtype)
        elif example.dtype == torch.int64:
            out[name] = torch.zeros(shape, dtype=torch.int64)
        else:
            out[name] = torch.randn(shape, generator=g)
    return out


@pytest.mark.parametrize("name", [n for n in GRAPHS if n != "scorer"])
def test_encoders_and_folds_equal_pytorch(exported, name):
    model, folder, manifest = exported
    graph = model_graphs(model)[name]
    onnx_graph = OnnxGraph.open(folder, manifest, name, "fp32", threads=1, verify=True)
    for batch in (1, 2, 3, 7):
        inputs = inputs_of(graph, batch, batch, seed=batch)
        expected = graph.run(inputs)
        found = onnx_graph.run({k: v.numpy() for k, v in inputs.items()})
        assert list(found) == list(expected)
        for key, values in expected.items():
            assert found[key].dtype == np.float32 and found[key].shape == values.shape
            scale = max(1.0, float(values.abs().max()))
            np.testing.assert_allclose(found[key], values.numpy(), rtol=0, atol=5e-6 * scale, err_msg=key)


@pytest.mark.parametrize("shape", SHAPES)
def test_scorer_equals_the_reference(exported, shape):
    model, folder, manifest = exported
    graphs = model_graphs(model)
    mention, entity = (
        graphs[name].run(inputs_of(graphs[name], rows, rows, seed=rows))
        for name, rows in zip(("mention_fold", "entity_fold"), shape, strict=True)
    )
    feeds = {k: v.numpy() for k, v in (mention | entity).items()}
    found = OnnxGraph.open(folder, manifest, "scorer", "fp32", threads=1, verify=True).run(feeds)
    expected = scores_ref(
        MentionArrays(**{k.removeprefix("mention_"): v.numpy() for k, v in mention.items()}),
        EntityArrays(**{k.removeprefix("entity_"): v.numpy() for k, v in entity.items()}),
        fold_constants(model.matcher),
    )
    assert list(found) == ["total", *model.config.matcher.units]
    for name, scores in {"total": expected.total, **expected.units}.items():
        assert found[name].shape == shape
        scale = max(1.0, float(np.abs(scores).max()))
        np.testing.assert_allclose(found[name], scores, rtol=0, atol=1e-5 * scale, err_msg=name)


def test_a_row_does_not_depend_on_its_neighbours(exported):
    model, folder, manifest = exported
    graph = model_graphs(model)["text_encoder"]
    inputs = {k: v.numpy() for k, v in inputs_of(graph, 5, 5, seed=3).items()}
    onnx_graph = OnnxGraph.open(folder, manifest, "text_encoder", "fp32", threads=1, verify=True)
    together = onnx_graph.run(inputs)["tokens"]
    alone = [onnx_graph.run({k: v[i : i + 1] for k, v in inputs.items()})["tokens"][0] for i in range(5)]
    np.testing.assert_allclose(together, np.stack(alone), rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_smaller_encoders_stay_close(bert_vit, bert_vit_folder, precision):
    manifest = ModelManifest.read(bert_vit_folder)
    for name in ("text_encoder", "image_encoder"):
        graph = model_graphs(bert_vit)[name]
        inputs = inputs_of(graph, 3, 3, seed=1)
        expected = graph.run(inputs)
        opened = OnnxGraph.open(bert_vit_folder, manifest, name, precision, threads=1, verify=True)
        found = opened.run({k: v.numpy() for k, v in inputs.items()})
        for key, values in expected.items():
            error = np.abs(found[key] - values.numpy()).max() / float(values.abs().max())
            assert found[key].dtype == np.float32
            assert 1e-7 < error < {"fp16": 0.01, "int8": 0.3}[precision], (name, key, error)


def test_half_precision_keeps_norms_and_softmax_in_float32(bert_vit_folder):
    path = bert_vit_folder / "graphs" / "text_encoder.fp16.onnx"
    model = onnx.load(path)
    float16, float32 = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    initializers = {t.name: t.data_type for t in model.graph.initializer}
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.value_info, *model.graph.output)}
    norms = [n for n in model.graph.node if n.op_type == "LayerNormalization"]
    assert norms and all(initializers[n.input[1]] == float32 for n in norms)
    softmax = [n for n in model.graph.node if n.op_type == "Softmax"]
    assert softmax and all(kinds[n.output[0]] == float32 for n in softmax)
    weights = [n.input[1] for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in initializers]
    assert weights and all(initializers[w] == float16 for w in weights)
    outer = [*model.graph.input, *model.graph.output]
    assert {v.type.tensor_type.elem_type for v in outer} == {onnx.TensorProto.INT64, float32}
