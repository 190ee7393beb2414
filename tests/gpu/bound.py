"""ONNX Runtime's binding on the memory of a fake device, by the CPU's provider: runs when the device is waited for."""

from mimic_engine.encoding.featurizer import Featurizer
from mimic_engine.encoding.manifest import ModelManifest
from mimic_engine.encoding.onnx import CPU, cpu_options, open_session, precisions
from mimic_engine.gpu.onnx_cuda import BoundGraph
from mimic_engine.gpu.session import DeviceSession
from mimic_engine.images import ImagePreprocessor
from mimic_engine.text import TextPreprocessor
from tests.gpu.fakes import FakeDevice


class CpuGraph(BoundGraph):
    memory = "cpu"

    def __init__(self, folder, manifest, name, device):
        entry = manifest.entry(name, "fp32")
        length = manifest.widths["length"]
        super().__init__(folder / entry.onnx.file, entry, device, length, cuda_graphs=False)

    def open(self, path, stream):
        return open_session(path, cpu_options(1), [(CPU, {})])

    def launcher(self, arrays):
        launch = super().launcher(arrays)
        return lambda: self.device.queue(launch)


def bound_session(folder, device=None):
    """A session of the backend "cuda" on a fake device."""
    manifest, device = ModelManifest.read(folder), device or FakeDevice()

    def graphs():
        return {name: CpuGraph(folder, manifest, name, device) for name in precisions("fp32")}

    return DeviceSession(manifest, graphs, folder / "tokenizer.json", "cuda", device)


def featurizer(session):
    """Preprocessing around a session."""
    text = TextPreprocessor.open(session.tokenizer_json, session.text_config)
    return Featurizer(session, text, ImagePreprocessor(session.image_config))


def featurizer_on(device, folder):
    return featurizer(bound_session(folder, device))
