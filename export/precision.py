"""Quantised int8 twins of the encoders: of the weights alone, or calibrated on real inputs.

Inputs and outputs stay float32. fp16 and bf16 are
:mod:`mimic_engine.export.typed`'s matter; whether a quantised encoder is good
enough to ship is measured by :mod:`mimic_engine.export.quantise`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

PRODUCTS = ("MatMul", "Gemm")


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
