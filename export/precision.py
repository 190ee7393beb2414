"""Quantised twins of the encoders: int8, of the weights alone or calibrated on real inputs, and fp8.

Inputs and outputs stay float32. fp16 and bf16 are
:mod:`mimic_engine.export.typed`'s matter; whether a quantised encoder is good
enough to ship is measured by :mod:`mimic_engine.export.quantise`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.calibrate import create_calibrator
from onnxruntime.quantization.shape_inference import quant_pre_process

PRODUCTS = ("MatMul", "Gemm")
_LARGEST = 448.0  # of e4m3fn
_LEAST = 1e-12  # of a tensor that is all zeros


def to_int8(fp32: Path, int8: Path) -> None:
    """Quantise the weights of an encoder's matrix products to int8, activations at run time to uint8.

    Weights take 7 of the 8 bits: without VNNI instructions a CPU saturates on
    full ones. Convolutions stay float32: quantised at run time they lose more
    than they save.

    Parameters
    ----------
    fp32 : path of the graph to read.
    int8 : path to write.
    """
    prepared = _prepared(fp32, int8)
    quantize_dynamic(
        prepared,
        int8,
        op_types_to_quantize=list(PRODUCTS),
        per_channel=True,
        reduce_range=True,
        weight_type=QuantType.QInt8,
    )
    prepared.unlink()


def to_calibrated_int8(fp32: Path, int8: Path, feeds: Sequence[Mapping[str, NDArray[np.generic]]]) -> None:
    """Quantise products and convolutions with ranges of activations seen on real inputs.

    Symmetric, and written as pairs of quantise and dequantise operators, which
    ONNX Runtime and TensorRT both read. Products of two activations
    (attention) stay float32.

    Parameters
    ----------
    fp32 : path of the graph to read.
    int8 : path to write.
    feeds : inputs to calibrate on, a few rows each.
    """
    prepared = _prepared(fp32, int8)
    quantize_static(
        prepared,
        int8,
        _Reader(feeds),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=[*PRODUCTS, "Conv"],
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "MatMulConstBOnly": True,
            "CalibMovingAverage": True,  # one outlier does not set the range
        },
    )
    prepared.unlink()


def to_fp8(fp32: Path, fp8: Path, feeds: Sequence[Mapping[str, NDArray[np.generic]]]) -> None:
    """Quantise products and convolutions to 8-bit floats (e4m3fn), weights and activations alike.

    Written as pairs of quantise and dequantise operators. The largest value
    seen is mapped to the type's largest, one scale a tensor: the quantiser's
    own rule for floats goes by the standard deviation, and cuts off what lies
    beyond 4.5 of them. Products of two activations (attention) stay float32.

    Parameters
    ----------
    fp32 : path of the graph to read.
    fp8 : path to write.
    feeds : inputs to calibrate on, a few rows each.
    """
    prepared = _prepared(fp32, fp8)
    quantize_static(
        prepared,
        fp8,
        _Reader(feeds[:1]),  # every scale is given below, and it cannot stack feeds of several shapes
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=[*PRODUCTS, "Conv"],
        activation_type=QuantType.QFLOAT8E4M3FN,
        weight_type=QuantType.QFLOAT8E4M3FN,
        calibrate_method=CalibrationMethod.Distribution,  # the one that it takes for floats
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "MatMulConstBOnly": True,
            "OpTypesToExcludeOutputQuantization": [*PRODUCTS, "Conv"],  # what reads them rounds them again
            "TensorQuantOverrides": _float_scales(prepared, feeds),
        },
    )
    prepared.unlink()


def _float_scales(
    graph: Path, feeds: Sequence[Mapping[str, NDArray[np.generic]]]
) -> dict[str, list[dict[str, NDArray[np.generic]]]]:
    """Scale of every tensor that is quantised: its largest value, seen or stored, over the type's largest."""
    calibrator = create_calibrator(graph, [*PRODUCTS, "Conv"], graph.with_suffix(".ranges"))
    calibrator.collect_data(_Reader(feeds))
    largest = {
        name: float(max(np.abs(np.asarray(bound)).max() for bound in ranges.range_value))
        for name, ranges in calibrator.compute_data().items()
    }
    graph.with_suffix(".ranges").unlink()
    model = onnx.load(graph)
    weights = {
        name for node in model.graph.node if node.op_type in (*PRODUCTS, "Conv") for name in node.input[1:2]
    }
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            largest[tensor.name] = float(np.abs(onnx.numpy_helper.to_array(tensor)).max())
    zero = np.zeros((), ml_dtypes.float8_e4m3fn)
    return {
        name: [{"scale": np.array(max(value, _LEAST) / _LARGEST, np.float32), "zero_point": zero}]
        for name, value in largest.items()
    }


def _prepared(fp32: Path, int8: Path) -> Path:
    prepared = int8.with_suffix(".prepared")
    quant_pre_process(str(fp32), str(prepared), skip_symbolic_shape=True)
    return prepared


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Gives the calibration inputs one after another, as the quantiser asks for them."""

    def __init__(self, feeds: Sequence[Mapping[str, NDArray[np.generic]]]) -> None:
        self._left = iter(feeds)

    def get_next(self) -> dict[str, NDArray[np.generic]] | None:
        """The next inputs, or None at the end."""
        found = next(self._left, None)
        return None if found is None else dict(found)
