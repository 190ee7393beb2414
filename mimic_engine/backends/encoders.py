"""Which backend runs the encoders: chosen by name, or the fastest that proves itself on this machine.

``auto`` opens every backend that can be there, compares it with ONNX Runtime
on the CPU in float32 on a warm-up input, times it, and logs why each other was
passed over. Asked for by name, a backend that does not work is an error.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Protocol

import numpy as np

from mimic_engine.encoding.cache import CachingFeaturizer, EncodingCache
from mimic_engine.encoding.featurizer import EncoderSession, Featurizer
from mimic_engine.encoding.onnx import OnnxSession
from mimic_engine.errors import BackendError, InvalidInputError, MimicError
from mimic_engine.gpu.device import import_layer, open_device
from mimic_engine.gpu.engine_files import FOLDER
from mimic_engine.gpu.onnx_cuda import CudaSession, check_provider
from mimic_engine.gpu.session import DeviceSession
from mimic_engine.gpu.tensorrt import TensorRtSession
from mimic_engine.images import ImageLimits, ImagePreprocessor
from mimic_engine.text import TextPreprocessor
from mimic_engine.types import Array, DeviceLayer, TokenBatch

BACKENDS = ("auto", "onnx", "cuda", "tensorrt", "torch")
GPU_BACKENDS = ("cuda", "tensorrt")
# Largest error on the warm-up input, relative to the largest value of the output.
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1, "int8": 5e-1, "fp8": 5e-1}
_ROWS = 3  # of the warm-up input: neither one nor a whole bucket
logger = logging.getLogger(__name__)


class OpenedSession(EncoderSession, Protocol):
    """A session with the tokenizer of its model."""

    tokenizer_json: Path


@dataclass(frozen=True, slots=True)
class BackendOptions:
    """How a session is opened.

    ``engines`` is the folder of TensorRT engines (``engines`` in the model
    folder by default), ``checkpoint`` the folder that the model was exported
    from, which the torch backend reads, ``device_layer`` what a GPU backend has
    its memory and stream from.
    """

    precision: str = "fp32"
    threads: int | None = None
    verify: bool = True
    engines: Path | None = None
    checkpoint: Path | None = None
    device_layer: DeviceLayer = "auto"


def open_backend(model: Path, backend: str, options: BackendOptions) -> OpenedSession:
    """Open the encoders and folds of an exported model on a backend.

    Raises
    ------
    InvalidInputError
        If there is no such backend, or it does not take the precision.
    BackendError, MissingDependencyError
        If the backend, or the device layer, was asked for by name and does not work here.
    ModelError
        If a file is missing, damaged, or of another model.
    """
    check_packages(_installed())
    if backend not in BACKENDS:
        raise InvalidInputError(f"backend: {backend!r} is not one of {', '.join(BACKENDS)}", field="backend")
    if options.device_layer != "auto" and backend in ("auto", *GPU_BACKENDS):
        import_layer(options.device_layer)
    if backend == "auto":
        return _fastest(model, options)
    session = _OPEN[backend](model, options)
    logger.info("encoders on backend %s, %s%s", session.backend, options.precision, _layer(session))
    return session


def _open_onnx(model: Path, options: BackendOptions) -> OpenedSession:
    return OnnxSession.open(
        model, precision=options.precision, threads=options.threads, verify=options.verify
    )


def _open_cuda(model: Path, options: BackendOptions) -> OpenedSession:
    check_provider()  # before the device is asked for
    device = open_device(options.device_layer)
    return CudaSession.open(model, precision=options.precision, verify=options.verify, device=device)


def _open_tensorrt(model: Path, options: BackendOptions) -> OpenedSession:
    return TensorRtSession.open(
        model,
        engines=options.engines,
        precision=options.precision,
        verify=options.verify,
        device=open_device(options.device_layer),
    )


def _open_torch(model: Path, options: BackendOptions) -> OpenedSession:
    from mimic_engine.encoding.torch import open_torch_session

    if options.checkpoint is None:
        raise InvalidInputError(
            "backend: 'torch' needs --checkpoint, the folder that the model was exported from",
            field="checkpoint",
        )
    if options.precision != "fp32":
        raise InvalidInputError(f"precision: {options.precision!r}; the torch backend runs fp32")
    return open_torch_session(options.checkpoint, model, threads=options.threads)


_OPEN: Mapping[str, Callable[[Path, BackendOptions], OpenedSession]] = {
    "onnx": _open_onnx,
    "cuda": _open_cuda,
    "tensorrt": _open_tensorrt,
    "torch": _open_torch,
}


def _fastest(model: Path, options: BackendOptions) -> OpenedSession:
    """The fastest backend whose answers are those of the CPU in float32; the CPU's where no other works."""
    opened, passed_over = _open_all(model, options)
    if set(opened) == {"onnx"}:
        chosen = "onnx"
    else:
        reference = OnnxSession.open(model, threads=options.threads, verify=False)
        times = {name: _prove(session, reference, options.precision) for name, session in opened.items()}
        passed_over |= {name: result for name, result in times.items() if isinstance(result, str)}
        proven = {name: result for name, result in times.items() if not isinstance(result, str)}
        if not proven:
            raise BackendError(f"backend: none works here: {_reasons(passed_over)}")
        chosen = min(proven, key=lambda name: proven[name])
        passed_over |= {n: f"slower, {1e3 * t:.2f} ms" for n, t in proven.items() if n != chosen}
    logger.info(
        "encoders on backend %s, %s%s; passed over: %s",
        *(chosen, options.precision, _layer(opened[chosen]), _reasons(passed_over)),
    )
    return opened[chosen]


def _layer(session: OpenedSession) -> str:
    """The device layer of a session on a GPU, for the log."""
    return f", device layer {session.device.layer}" if isinstance(session, DeviceSession) else ""


def _open_all(model: Path, options: BackendOptions) -> tuple[dict[str, OpenedSession], dict[str, str]]:
    """Sessions that open, and why the others do not; the error where there is none at all."""
    opened, why = {}, {"torch": "a reference, used only when asked for"}
    failure: MimicError | None = None
    for name in ("tensorrt", "cuda", "onnx"):
        if name == "tensorrt" and not (options.engines or model / FOLDER).is_dir():
            why[name] = f"no engines in {options.engines or model / FOLDER}"
            continue
        try:
            opened[name] = _OPEN[name](model, options)
        except MimicError as error:
            why[name], failure = str(error), error
    if not opened and failure is not None:
        raise failure
    return opened, why


def _reasons(passed_over: Mapping[str, str]) -> str:
    return "; ".join(f"{name} ({reason})" for name, reason in passed_over.items()) or "none"


def _prove(session: EncoderSession, reference: EncoderSession, precision: str) -> float | str:
    """Seconds of a warm run if the session gives what the reference gives, else what is wrong with it."""
    tokens, pixels = warm_up_input(reference)
    try:
        worst = max(
            _relative(found, expected)
            for found, expected in zip(
                outputs(session, tokens, pixels), outputs(reference, tokens, pixels), strict=True
            )
        )
        if not worst <= TOLERANCE[precision]:
            return f"differs from the CPU by {worst:.1e}, allowed {TOLERANCE[precision]:.0e}"
        times = []
        for _ in range(3):
            start = time.perf_counter()
            outputs(session, tokens, pixels)
            times.append(time.perf_counter() - start)
    except MimicError as error:
        return str(error)
    return min(times)


def warm_up_input(session: EncoderSession) -> tuple[TokenBatch, Array]:
    """Three texts of different lengths of low token ids, and three images of noise."""
    length, size = session.text_config.max_length, session.image_config.size
    rng = np.random.default_rng(0)
    mask = (np.arange(length) < np.array([[length], [max(2, length // 2)], [2]])).astype(np.int64)  # (3, L)
    ids = rng.integers(1, 10, mask.shape) * mask  # every vocabulary has ten tokens
    tokens = TokenBatch(ids, mask, np.zeros_like(ids), np.zeros(_ROWS, np.bool_))
    return tokens, rng.standard_normal((_ROWS, 3, size, size), np.float32)


def outputs(session: EncoderSession, tokens: TokenBatch, pixels: Array) -> list[Array]:
    """Everything that a session gives for texts and images: features and both sides folded."""
    text, image = session.encode_text(tokens), session.encode_image(pixels)
    folded = (*session.fold_mentions(text, image).items(), *session.fold_entities(text, image).items())
    return [text.cls, text.tokens, image.cls, image.tokens, *(array for _, array in folded)]


def _relative(found: Array, expected: Array) -> float:
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - expected).max()) / max(float(np.abs(expected).max()), 1e-30)


def _installed() -> dict[str, str]:
    """Versions of the two distributions of ONNX Runtime, those that are installed."""
    found = {}
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def check_packages(installed: Mapping[str, str]) -> None:
    """Raise BackendError if both distributions of ONNX Runtime are installed: they overwrite each other."""
    if len(installed) > 1:
        both = " and ".join(f"{name} {version}" for name, version in installed.items())
        raise BackendError(
            f"{both} are both installed and break each other: pip uninstall -y onnxruntime onnxruntime-gpu, "
            "then install the one you want"
        )


# Opens an exported model folder for inference: session and preprocessing, ready to featurize.


def open_featurizer(
    model: str | Path,
    *,
    backend: str = "auto",
    precision: str = "fp32",
    threads: int | None = None,
    verify: bool = True,
    image_limits: ImageLimits | None = None,
    engines: str | Path | None = None,
    checkpoint: str | Path | None = None,
    device_layer: DeviceLayer = "auto",
    cache_bytes: int = 0,
) -> Featurizer:
    """Open the encoders and folds of an exported model; arguments as in ``Linker.open``.

    Raises
    ------
    ModelError
        If the folder is missing, damaged or lacks the precision.
    BackendError, MissingDependencyError
        If the backend or the device layer that was asked for does not work here.
    """
    options = BackendOptions(
        precision,
        threads,
        verify,
        None if engines is None else Path(engines),
        None if checkpoint is None else Path(checkpoint),
        device_layer,
    )
    session = open_backend(Path(model), backend, options)
    text = TextPreprocessor.open(session.tokenizer_json, session.text_config)
    images = ImagePreprocessor(session.image_config, image_limits or ImageLimits())
    if cache_bytes:
        return CachingFeaturizer(session, text, images, EncodingCache(cache_bytes))
    return Featurizer(session, text, images)
