"""The graphs of an exported model in ONNX Runtime's binding, on the CPU's memory."""

from mimic_engine.encoding.manifest import ModelManifest
from mimic_engine.gpu.graphs import GRAPHS, BoundGraphs
from mimic_engine.gpu.onnx_cuda import BoundGraph


def cpu_graphs(folder):
    manifest = ModelManifest.read(folder)
    entries = {name: manifest.entry(name, "fp32") for name in GRAPHS}
    graphs = {
        name: BoundGraph(folder / entry.onnx.file, entry, device="cpu") for name, entry in entries.items()
    }
    return BoundGraphs(manifest, graphs)
