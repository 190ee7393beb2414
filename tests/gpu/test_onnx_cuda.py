"""ONNX Runtime's binding to fixed addresses, on a fake device: numbers, buckets, and its own CUDA graphs."""

from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

from mimic_engine.encoding.manifest import ModelManifest
from mimic_engine.encoding.onnx import OnnxGraph
from mimic_engine.gpu.layout import Placed
from tests.gpu.bound import CpuGraph
from tests.gpu.fakes import FakeDevice


@pytest.mark.parametrize("name", ["text_encoder", "image_encoder", "mention_fold", "entity_fold"])
def test_bound_inputs_and_outputs_give_the_same(tiny_model, name):
    """The binding of the CUDA session, on a fake device: batches of every bucket, each more than once."""
    manifest = ModelManifest.read(tiny_model)
    entry = manifest.entry(name, "fp32")
    plain = OnnxGraph.open(tiny_model, manifest, name, "fp32", threads=1, verify=True)
    bound = CpuGraph(tiny_model, manifest, name, FakeDevice())
    rng = np.random.default_rng(0)
    for rows in (1, 3, 2, 5, 9, 17, 32, 3):
        feeds = {}
        for key, (_, *rest) in entry.inputs.items():
            floats = rng.standard_normal((rows, *rest)).astype(np.float32)
            ids = name == "text_encoder"
            feeds[key] = np.ones((rows, *rest), np.int64) if ids else floats
        found, expected = bound.run(feeds), plain.run(feeds)
        for key, value in expected.items():
            assert found[key].flags.owndata
            np.testing.assert_allclose(found[key], value, rtol=0, atol=1e-5 * max(1, np.abs(value).max()))
    assert bound._launchers == 5


class Options:
    """Run options that can be read."""

    def __init__(self):
        self.entries = {}

    def add_run_config_entry(self, key, value):
        self.entries[key] = value


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_each_launcher_has_a_cuda_graph_of_its_own_or_none(tiny_model, monkeypatch, cuda_graphs):
    """ONNX Runtime replays a graph by its number: two bindings with one would run on each other's arrays."""
    graph = CpuGraph(tiny_model, ModelManifest.read(tiny_model), "image_encoder", FakeDevice())
    graph._cuda_graphs, seen = cuda_graphs, []
    shapes = {"pixels": (1, 3, 32, 32), "cls": (1, 8), "tokens": (1, 5, 8)}
    memory = np.zeros(1 << 16, np.uint8)
    arrays = {n: Placed(memory.ctypes.data, shape, np.dtype(np.float32)) for n, shape in shapes.items()}
    monkeypatch.setattr(onnxruntime, "RunOptions", Options)
    launchers = [graph.launcher(arrays) for _ in range(3)]
    binding = SimpleNamespace(run_with_iobinding=lambda _, options: seen.append(options.entries))
    monkeypatch.setattr(graph, "_session", binding)
    for launch in launchers:
        launch()
    graph.device.synchronize()
    if cuda_graphs:
        assert [entries["gpu_graph_id"] for entries in seen] == ["1", "2", "3"]
        assert graph.runs_until_steady == 2
    else:
        assert seen == [{"disable_synchronize_execution_providers": "1"}] * 3
        assert graph.runs_until_steady == 1
