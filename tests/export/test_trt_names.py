"""Every name of TensorRT that we use is in the bindings of 10 and 11: the real ones, over empty libraries.

The bindings are fetched by pip into a cache; the libraries under them are
stubs with the nine functions that they look for when they are imported.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = (
    "export/engines.py",
    "mimic_engine/gpu/tensorrt.py",
    "mimic_engine/gpu/tensorrt_library.py",
)
VERSIONS = {"10": "10.16.1.11", "11": "11.4.0.106"}
SYMBOLS = {
    "nvinfer": (
        *("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL"),
        *("getBuilderPluginRegistry", "getPluginRegistry"),
    ),
    "nvonnxparser": (
        *("createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getNvOnnxParserVersion"),
    ),
    "nvinfer_plugin": ("initLibNvInferPlugins",),
}
# TensorRT for RTX alone, used behind a question for the flavour (its own test builds engines with them).
RTX_ONLY = {
    *(
        "ComputeCapability",
        "IBuilderConfig.num_compute_capabilities",
        "IBuilderConfig.set_compute_capability",
    ),
}


def cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mimic_engine" / "tensorrt-bindings"


@pytest.fixture(scope="session", params=VERSIONS)
def bindings(request):
    """Folder of the unpacked bindings of one version, and its first number."""
    version = VERSIONS[request.param]
    folder = cache() / f"{version}-{sys.implementation.cache_tag}"
    if not folder.is_dir():
        partial = folder.with_name(folder.name + f".{os.getpid()}")
        download = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(partial)]
        try:
            done = subprocess.run(
                [*download, f"tensorrt-cu13-bindings=={version}"], capture_output=True, text=True, timeout=120
            )
        except subprocess.TimeoutExpired:
            pytest.skip(f"the bindings of TensorRT {version} could not be fetched in two minutes")
        if done.returncode != 0:
            pytest.skip(f"the bindings of TensorRT {version} cannot be fetched: {done.stderr.strip()[-200:]}")
        [wheel] = partial.glob("*.whl")
        zipfile.ZipFile(wheel).extractall(partial)
        wheel.unlink()
        partial.rename(folder)
    return request.param, folder


@pytest.fixture
def stubs(bindings, tmp_path):
    """Folder of empty libraries under the names that the bindings load."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for the stub libraries")
    major, _ = bindings
    for library, symbols in SYMBOLS.items():
        source = tmp_path / f"{library}.c"
        source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in symbols))
        name = f"lib{library}.so.{major}"
        subprocess.run(
            [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", tmp_path / name, source], check=True
        )
    return tmp_path


def look_up(bindings, stubs, sources):
    env = os.environ | {
        "LD_LIBRARY_PATH": str(stubs),
        "PYTHONPATH": os.pathsep.join((str(bindings[1]), str(ROOT))),
    }
    command = [sys.executable, Path(__file__).with_name("trt_names.py"), *sources]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_name_that_we_use_is_there(bindings, stubs):
    found = look_up(bindings, stubs, SOURCES)
    assert found["version"] == VERSIONS[bindings[0]]
    assert set(found["missing"]) == RTX_ONLY
    used = set(found["checked"])
    assert len(used) > 45
    assert {
        "Builder.build_serialized_network",
        "IExecutionContext.execute_async_v3",
        "BuilderFlag.STRIP_PLAN",
    } <= used
    assert {
        "OnnxParserRefitter.refit_from_file",
        "ParserError.node_operator",
        "MemoryPoolType.WORKSPACE",
    } <= used


def test_a_name_that_is_gone_is_found(bindings, stubs, tmp_path):
    source = tmp_path / "old.py"
    source.write_text("def build(builder, trt):\n    builder.max_batch_size = trt.BuilderFlag.FP64\n")
    found = look_up(bindings, stubs, [source])
    assert set(found["missing"]) == {"Builder.max_batch_size", "BuilderFlag.FP64"}
