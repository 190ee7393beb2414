"""Precision of an exported graph: fp32 to half and to dynamically quantised int8.

The precision lies in the graph, never in flags of a runtime. Inputs and
outputs stay float32, so the runtime handles one type; a half-precision graph
casts at its border.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

# What sums over many values, or divides: norms, softmax, poolings.
SUMS = (
    "LayerNormalization",
    "Softmax",
    "ReduceMean",
    "ReduceSum",
    "ReduceL2",
    "Pow",
    "Sqrt",
    "Reciprocal",
    "Div",
)
PRODUCTS = ("MatMul", "Gemm", "Conv")
ENCODERS = ("text_encoder", "image_encoder")


def to_fp16(name: str, fp32: onnx.ModelProto) -> onnx.ModelProto:
    """Half-precision twin of a graph, float32 at its inputs and outputs.

    In the encoders everything but :data:`SUMS` is half. In the folds and the
    scorer only matrix products are: their closed forms subtract squared norms,
    which half precision would not survive.

    Parameters
    ----------
    name : of the graph.
    fp32 : under 2 GB; not changed.
    """
    if name in ENCODERS:
        kept = {*DEFAULT_OP_BLOCK_LIST, *SUMS}
    else:
        kept = {node.op_type for node in fp32.graph.node} - set(PRODUCTS)
    copy = onnx.ModelProto()
    copy.CopyFrom(fp32)
    weights = {tensor.name for tensor in copy.graph.initializer}
    for value in [v for v in copy.graph.value_info if v.name in weights]:
        copy.graph.value_info.remove(value)  # or the converter would cast weights that it leaves in float32
    half = OnnxModel(convert_float_to_float16(copy, keep_io_types=True, op_block_list=sorted(kept)))
    half.topological_sort()  # casts were appended at the end
    return half.model


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
