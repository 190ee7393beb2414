"""Build one TensorRT engine from one exported graph: the same code for TensorRT 10, 11 and RTX.

The precision lies in the graph: networks are strongly typed and no precision
flag is ever set. Of the names that differ between versions, ``STRONGLY_TYPED``
is asked for in 10 and ignored since 11, and compute capabilities are RTX's.
Everything else used here is in all three (tested against their bindings).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimic_engine.errors import BackendError, ModelError
from mimic_engine.export.profiles import Shapes
from mimic_engine.files import write_atomic
from mimic_engine.gpu.tensorrt_library import Library

FLAGS = {"strip": "STRIP_PLAN", "refit": "REFIT", "version_compatible": "VERSION_COMPATIBLE"}
_NAMED = 5  # rejected operators that a message names


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """Settings of the builder beyond graph and target."""

    workspace_gib: float = 4.0
    timing_cache: Path | None = None  # TensorRT alone; made where missing
    strip: bool = False  # leave the weights out of the engine
    refit: bool = False  # let weights be replaced
    version_compatible: bool = False


def build_engine(
    library: Library, graph: Path, target: str, profiles: Sequence[Shapes], options: BuildOptions
) -> tuple[bytes, float]:
    """Compile a graph; the engine and the seconds that it took.

    Parameters
    ----------
    library : TensorRT or TensorRT for RTX.
    graph : the ``.onnx`` file, weights beside it where it has them outside.
    target : architecture, "sm_89"; for TensorRT that of the GPU at hand.
    profiles : least, usual and largest shape of every input, for each bucket.

    Raises
    ------
    BackendError
        If the builder does not start (no GPU, driver too old).
    ModelError
        If the parser rejects the graph, naming operators and layers, or the build fails.
    """
    trt = library.trt
    start = time.perf_counter()
    builder = _builder(library)
    network = builder.create_network(network_flags(trt))
    _parse(library, network, graph)
    config = _config(library, builder, target, options)
    for shapes in profiles:
        config.add_optimization_profile(_profile(builder, network, shapes))
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        hint = "; engines with weights to refit are built on a machine with a GPU" if options.refit else ""
        raise ModelError(f"{graph}: {library.flavour.title} cannot build it: {library.logger.take()}{hint}")
    _save_timing_cache(config, options)
    return bytes(plan), time.perf_counter() - start


def network_flags(trt: Any) -> int:
    """Strong typing where it must be asked for; where it is always on the flag may be gone."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _builder(library: Library) -> Any:
    try:
        builder = library.trt.Builder(library.logger)
    except Exception as error:
        reason = library.logger.take()
        raise BackendError(f"{library.flavour.title} does not start here: {error}; {reason}") from error
    if builder is None:
        raise BackendError(f"{library.flavour.title} does not start here: {library.logger.take()}")
    return builder


def _parse(library: Library, network: Any, graph: Path) -> None:
    parser = library.trt.OnnxParser(network, library.logger)
    if parser.parse_from_file(str(graph)):
        library.logger.take()
        return
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    rejected = dict.fromkeys(
        f"operator {e.node_operator()} in layer {e.node_name()!r}" if e.node_operator() else e.desc()
        for e in errors
    )
    logged, named = library.logger.take(), list(rejected)[:_NAMED]
    more = f"; and {len(rejected) - _NAMED} more" if len(rejected) > _NAMED else ""
    raise ModelError(
        f"{graph}: {library.flavour.title} {library.version} rejects it: {'; '.join(named) or logged}{more}"
    )


def _config(library: Library, builder: Any, target: str, options: BuildOptions) -> Any:
    trt = library.trt
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options.workspace_gib * 2**30))
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # layers keep their names
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 means float32
    for option, flag in FLAGS.items():
        if getattr(options, option):
            config.set_flag(getattr(trt.BuilderFlag, flag))
    if library.flavour.targets is not None:  # TensorRT for RTX builds for any of its targets, without a GPU
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, target.upper().replace("_", "")), 0)
    if options.timing_cache is not None:
        there = options.timing_cache.read_bytes() if options.timing_cache.exists() else b""
        config.set_timing_cache(config.create_timing_cache(there), False)
    return config


def _profile(builder: Any, network: Any, shapes: Shapes) -> Any:
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        if -1 in tuple(tensor.shape):
            profile.set_shape(tensor.name, *shapes[tensor.name])
    return profile


def _save_timing_cache(config: Any, options: BuildOptions) -> None:
    if options.timing_cache is None:
        return
    write_atomic(options.timing_cache, bytes(config.get_timing_cache().serialize()))
