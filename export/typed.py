"""Typed graphs: a float32 graph rewritten in fp16 or bf16, with norms, softmax and sums left in float32.

The type of every value is written into the graph (strong typing), so a
builder needs no precision flags and every runtime computes the same thing.
Inputs and outputs stay float32; casts stand where the type changes. Which
nodes stay float32 is a rule over nodes (:func:`kept_in_float32`), which a
search can widen (:mod:`mimic_engine.export.mixed`).
:func:`emulate` gives a twin that float32 kernels can run, rounding where the
typed graph rounds, for machines whose kernels lack the type.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ml_dtypes
import numpy as np
import onnx
import onnx.version_converter
from onnx import NodeProto, TensorProto, helper, numpy_helper

from mimic_engine.encoding.graph_names import ENCODERS
from mimic_engine.errors import ModelError

FLOAT = int(TensorProto.FLOAT)
TYPES = {"fp16": int(TensorProto.FLOAT16), "bf16": int(TensorProto.BFLOAT16)}
_NUMPY = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
_LARGEST = {"fp16": 65504.0, "bf16": (2 - 2.0**-7) * 2.0**127}

# What sums over many values, or divides: norms, softmax, poolings.
SUMS = frozenset(
    (
        *("LayerNormalization", "Softmax", "ReduceMean", "ReduceSum", "ReduceL2", "GlobalAveragePool"),
        *("Pow", "Sqrt", "Reciprocal", "Div", "IsNaN"),
    )
)
PRODUCTS = frozenset(("MatMul", "Gemm", "Conv"))
# Their output type is an attribute, or a shape: left as they are, consumers cast.
_OWN_TYPE = frozenset(("Cast", "Constant", "ConstantOfShape", "Range", "EyeLike", "Shape", "Size"))
_BEFORE_SOFTMAX = frozenset(("Add", "Mul", "Where"))
_OPSET = {"bf16": 22}  # the first whose convolutions take bf16

Keep = Callable[[NodeProto], bool]


def kept_in_float32(name: str, graph: onnx.GraphProto) -> Keep:
    """The rule for one of the model's graphs.

    In the encoders everything is narrow but :data:`SUMS` and what is added to
    a softmax's input (masks). In the folds and the scorer only matrix products
    are narrow: their closed forms subtract squared norms, which would not survive.
    """
    if name not in ENCODERS:
        return lambda node: node.op_type not in PRODUCTS
    masked = _feeding_softmax(graph)
    return lambda node: node.op_type in SUMS or any(output in masked for output in node.output)


def _feeding_softmax(graph: onnx.GraphProto) -> set[str]:
    """Values that reach a softmax through additions and scalings alone."""
    maker = {output: node for node in graph.node for output in node.output}
    found: set[str] = set()
    todo = [node.input[0] for node in graph.node if node.op_type == "Softmax"]
    while todo:
        value = todo.pop()
        node = maker.get(value)
        if value in found or node is None or node.op_type not in _BEFORE_SOFTMAX:
            continue
        found.add(value)
        todo.extend(node.input)
    return found


def to_typed(name: str, fp32: onnx.ModelProto, precision: str, keep: Keep | None = None) -> onnx.ModelProto:
    """Twin of a float32 graph in ``precision`` ("fp16" or "bf16"), float32 at inputs and outputs.

    Parameters
    ----------
    name : of the graph; decides the rule where ``keep`` is not given.
    fp32 : under 2 GB; not changed.
    keep : says of a node whether it computes in float32.

    Raises
    ------
    ModelError
        If the graph has control flow, which this rewriting does not enter.
    """
    if precision in _OPSET:
        fp32 = onnx.version_converter.convert_version(fp32, _OPSET[precision])
    inferred = onnx.shape_inference.infer_shapes(fp32, strict_mode=True)
    return _Rewriting(inferred, precision, keep or kept_in_float32(name, fp32.graph)).result()


class _Rewriting:
    """One pass over the nodes in their order; ``_type`` and ``_now`` follow every float value."""

    def __init__(self, model: onnx.ModelProto, precision: str, keep: Keep) -> None:
        self._model = model
        self._precision = precision
        self._narrow = TYPES[precision]
        self._keep = keep
        graph = model.graph
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._outputs = {value.name for value in graph.output}
        typed = (*graph.input, *graph.value_info, *graph.output)
        floats = {v.name for v in typed if v.type.tensor_type.elem_type == FLOAT}
        floats |= {t.name for t in graph.initializer if t.data_type == FLOAT}
        self._type = dict.fromkeys(floats, FLOAT)  # of what lies under the name now
        self._floats = floats
        self._name: dict[str, str] = {}  # a graph output that is computed under another name
        self._cast: dict[tuple[str, int], str] = {}
        self._nodes: list[NodeProto] = []
        self._used: dict[str, TensorProto] = {}

    def result(self) -> onnx.ModelProto:
        """The rewritten model, checked."""
        for node in self._model.graph.node:
            self._rewrite(node)
        out = onnx.ModelProto()
        out.CopyFrom(self._model)
        graph = out.graph
        for part, values in ((graph.node, self._nodes), (graph.initializer, list(self._used.values()))):
            del part[:]
            part.extend(values)
        del graph.value_info[:]
        return onnx.shape_inference.infer_shapes(out, strict_mode=True)

    def _rewrite(self, old: NodeProto) -> None:
        if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in old.attribute):
            raise ModelError(
                f"{old.op_type} {old.name!r}: control flow cannot be written in {self._precision}"
            )
        node = NodeProto()
        node.CopyFrom(old)
        wide = old.op_type in _OWN_TYPE or self._keep(old)
        wanted = FLOAT if wide else self._narrow
        node.input[:] = [self._as(name, wanted) for name in old.input]
        made = [i for i, name in enumerate(old.output) if name in self._floats]
        self._nodes.append(node)
        for i in made:
            self._made(node, i, wanted)

    def _made(self, node: NodeProto, i: int, kind: int) -> None:
        """Note an output's type; a graph output is computed under another name and cast to float32."""
        name = node.output[i]
        self._type[name] = kind
        if name in self._outputs and kind != FLOAT:
            node.output[i] = self._name[name] = f"{name}_{self._precision}"
            self._nodes.append(helper.make_node("Cast", [node.output[i]], [name], f"{name}_cast", to=FLOAT))

    def _as(self, name: str, wanted: int) -> str:
        """Name under which a value has the wanted type; makes the cast or the weight on first use."""
        if name not in self._floats:
            if name in self._weights:
                self._used[name] = self._weights[name]
            return name
        if name in self._weights:
            return self._weight(name, wanted)
        here = self._name.get(name, name)
        if self._type[name] == wanted:
            return here
        key = (name, wanted)
        if key not in self._cast:
            new = self._cast[key] = f"{name}_to_{'fp32' if wanted == FLOAT else self._precision}"
            self._nodes.append(helper.make_node("Cast", [here], [new], f"{new}_cast", to=wanted))
        return self._cast[key]

    def _weight(self, name: str, wanted: int) -> str:
        new = name if wanted == FLOAT else f"{name}_{self._precision}"
        if new not in self._used:
            tensor = self._weights[name]
            self._used[new] = tensor if wanted == FLOAT else narrow(tensor, self._precision, new)
        return new


def narrow(tensor: TensorProto, precision: str, name: str) -> TensorProto:
    """A float32 weight in a narrow type; finite values out of range become the largest one, not infinity."""
    dtype = _NUMPY[precision]
    values = numpy_helper.to_array(tensor)
    limit = _LARGEST[precision]
    clipped = np.where(np.isfinite(values), np.clip(values, -limit, limit), values)
    return numpy_helper.from_array(np.asarray(clipped, values.dtype).astype(dtype), name)


def emulate(typed: onnx.ModelProto) -> onnx.ModelProto:
    """Twin of a typed graph that computes in float32 and rounds every narrow value to its type.

    It needs no kernels of that type, only casts. Products are summed in
    float32 before they are rounded, as tensor cores do. Run it without graph
    optimisations, which would remove the rounding.
    """
    out = onnx.ModelProto()
    out.CopyFrom(typed)
    narrow_types = set(TYPES.values())
    values = (*typed.graph.value_info, *typed.graph.input, *typed.graph.output)
    kinds = {v.name: v.type.tensor_type.elem_type for v in values}
    nodes: list[NodeProto] = []
    for tensor in typed.graph.initializer:
        if tensor.data_type in narrow_types:
            kinds[tensor.name] = tensor.data_type
            nodes.append(_cast(tensor.name, f"{tensor.name}_wide", FLOAT))
    for old in typed.graph.node:
        nodes.extend(_emulated(old, kinds, narrow_types))
    del out.graph.node[:]
    out.graph.node.extend(nodes)
    del out.graph.value_info[:]
    return out


def _emulated(old: NodeProto, kinds: dict[str, int], narrow_types: set[int]) -> Sequence[NodeProto]:
    """A node on wide inputs, each narrow output rounded: ``x`` is the rounded value, ``x_wide`` its twin."""
    node = NodeProto()
    node.CopyFrom(old)
    made = [i for i, name in enumerate(old.output) if kinds.get(name) in narrow_types]
    after = [_cast(old.output[i], f"{old.output[i]}_wide", FLOAT) for i in made]
    if old.op_type == "Cast":  # already a rounding, or its end
        return [node, *after]
    node.input[:] = [f"{n}_wide" if kinds.get(n) in narrow_types else n for n in old.input]
    rounding = []
    for i in made:
        node.output[i] = f"{old.output[i]}_exact"
        rounding.append(_cast(node.output[i], old.output[i], kinds[old.output[i]]))
    return [node, *rounding, *after]


def _cast(source: str, target: str, kind: int) -> NodeProto:
    return helper.make_node("Cast", [source], [target], f"{target}_cast", to=kind)
