"""Dynamically quantised int8 twins of the encoders, for CPUs.

Inputs and outputs stay float32. fp16 and bf16 are
:mod:`mimic_engine.export.typed`'s matter.
"""

from __future__ import annotations

from pathlib import Path

from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process


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
    prepared = int8.with_suffix(".prepared")
    quant_pre_process(str(fp32), str(prepared), skip_symbolic_shape=True)
    quantize_dynamic(
        prepared,
        int8,
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        reduce_range=True,
        weight_type=QuantType.QInt8,
    )
    prepared.unlink()
