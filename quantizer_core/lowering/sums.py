"""Wraps a convolution with a fused sum so that it runs whoever holds its summand, and whatever is fetched or fed.

The kernel writes its result into the summand's buffer. Where that buffer has another holder (a second reader that has
not run, a fetch, a feed, a constant) or another shape than the result, it ends the process: it does not copy. So the
summand passes, in a function of its own, through

* ``Snapshot``, which hands a buffer on that no one else holds and copies any other, and
* ``Reshape`` to the shape that the convolution will have, which turns a wrong shape into an error of the step.

The tensor between these and the kernel lies inside the function: it can be neither fetched nor fed. TensorFlow's
optimiser inlines the function; then nothing is copied that need not be. It could also fold the way from a constant to
the kernel into one constant, which the graph would hold: a function whose summand is not proved to vary is marked
never to be inlined, and copies always.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.core.framework.node_def_pb2 import NodeDef

from quantizer_core.graph.attrs import set_attr
from quantizer_core.graph.graph import Graph

#: Position of source and summand among the kernel's inputs.
SOURCE, SUMMAND = 0, 3
#: Ops whose result the optimiser cannot know before the step if their first input is not known.
_PASSING = frozenset({
    "Identity", "Reshape", "Squeeze", "ExpandDims", "Pad", "PadV2", "Transpose", "StridedSlice", "Slice",
    "Tile", "ConcatV2", "Bitcast", "MaxPool", "AvgPool", "Relu", "Relu6", "LeakyRelu", "Elu", "Sigmoid", "Tanh",
    "Softmax", "Softplus", "BiasAdd", "Add", "AddV2", "Exp", "Mean", "Max", "PartitionedCall", "QuantizeV2",
    "Dequantize", "SpaceToBatchND", "BatchToSpaceND", "ResizeBilinear", "ResizeNearestNeighbor",
    "SpaceToDepth", "DepthToSpace", "GatherV2",
})  # fmt: skip
_NO_LIMIT = np.iinfo(np.int32).max
#: Ops whose result is known, zero, if their constant operand is zero.
_SCALING = frozenset({"Conv2D", "DepthwiseConv2dNative", "MatMul", "Mul"})


def varies(graph: Graph, tensor: str) -> bool:
    """Returns whether a tensor surely hangs on the values that a Placeholder of the graph is fed."""
    for _ in range(len(graph)):
        node = graph.node(tensor)
        if node.op == "Placeholder":
            return True
        inputs = graph.data_inputs(node)
        if node.op in _SCALING:
            constants = {operand: graph.constant(operand) for operand in inputs}
            loose = [operand for operand, constant in constants.items() if constant is None]
            if len(loose) != 1 or any(constant is not None and not constant.any() for constant in constants.values()):
                return False
            tensor = loose[0]
        elif node.op in _PASSING or "Quantized" in node.op:
            loose = [operand for operand in inputs if graph.node(operand).op != "Const"]
            if not loose or any(graph.node(operand).op == "Neg" for operand in loose):  # x + -x is known
                return False
            tensor = loose[0]
        else:
            return False
    return False


def result_shape_terms(
    kernel: Sequence[int], channels: int, *, strides: Sequence[int], padding: str, explicit_paddings: Sequence[int],
    dilations: Sequence[int],
) -> tuple[list[int], list[int], list[int]]:  # fmt: skip
    """Returns (m, a, d) with which an NHWC convolution's shape is (input shape · m + a) // d.

    Args:
      kernel: height and width of the filter.
      channels: output channels.
      strides, dilations: four integers, NHWC.
      padding, explicit_paddings: as the op's attributes.
    """
    added = [0, 0, 0, channels]
    for axis in (1, 2):
        width = (kernel[axis - 1] - 1) * dilations[axis] + 1
        pads = sum(explicit_paddings[2 * axis : 2 * axis + 2]) if padding == "EXPLICIT" else 0
        added[axis] = strides[axis] - (1 if padding == "SAME" else width - pads)
    return [1, 1, 1, 0], added, [1, strides[1], strides[2], 1]


def sum_function(
    node: NodeDef, terms: Sequence[Sequence[int]], channels: int, identity: bytes, opaque: bool
) -> FunctionDef:
    """Returns a function that runs a fused convolution behind its guard.

    Args:
      node: the kernel's node; its inputs become the function's arguments, its first output the result.
      terms: of ``result_shape_terms``.
      channels: of the source.
      identity: what tells this call from any other, the weights among it: oneDNN keeps the filter of the first call
        in the kernel, and calls of one function may share a kernel.
      opaque: never let the function be inlined or specialised.
    """
    types = [*node.attr["Tdevice_inputs"].list.type, *node.attr["Thost_inputs"].list.type]
    arguments = [f"a{index}" for index in range(len(types))]
    function = FunctionDef()
    for name, kind in zip(arguments, types, strict=True):
        function.signature.input_arg.add(name=name, type=kind)
    function.signature.output_arg.add(name="result", type=node.attr["out_type"].type)

    def add(op: str, name: str, inputs: Sequence[str], **attrs: object) -> None:
        inner = function.node_def.add(op=op, name=name, input=inputs)
        for key, value in attrs.items():
            set_attr(inner, key, value)

    def apply(op: str, name: str, tensor: str, values: Sequence[int]) -> str:
        add("Const", f"{name}_values", [], dtype=tf.int32, value=np.asarray(values, np.int32))
        add(op, name, [tensor, f"{name}_values:output:0"], T=tf.int32)
        return f"{name}:z:0"

    source_type, summand_type = tf.as_dtype(types[SOURCE]), tf.as_dtype(types[SUMMAND])
    add("Shape", "shape", [arguments[SOURCE]], T=source_type, out_type=tf.int32)
    kept, added, divisor = terms
    if any(added[:3]) or any(each != 1 for each in divisor):
        wanted = apply("AddV2", "moved", apply("Mul", "scaled", "shape:output:0", kept), added)
        if any(each != 1 for each in divisor):
            wanted = apply("FloorDiv", "wanted", wanted, divisor)
    elif added[3] >= channels:  # one op less where the channels alone change
        wanted = apply("Maximum", "wanted", "shape:output:0", [0, 0, 0, added[3]])
    else:
        wanted = apply("Minimum", "wanted", "shape:output:0", [_NO_LIMIT, _NO_LIMIT, _NO_LIMIT, added[3]])
    add("Bitcast", "codes", [arguments[SUMMAND]], T=summand_type, type=tf.uint8)
    # Without an attribute of its own the optimiser would share the Snapshot of two sums that read one tensor.
    call = hashlib.sha256(identity).hexdigest()[:16]
    add("Snapshot", "own", ["codes:output:0"], T=tf.uint8, _sum=call)
    add("Reshape", "shaped", ["own:output:0", wanted], T=tf.uint8, Tshape=tf.int32)
    add("Bitcast", "summand", ["shaped:output:0"], T=tf.uint8, type=summand_type)
    kernel = function.node_def.add()
    kernel.CopyFrom(node)
    kernel.name, kernel.device = "convolution", ""
    kernel.input[:] = [*arguments[:SUMMAND], "summand:output:0", *arguments[SUMMAND + 1 :]]
    function.ret["result"] = "convolution:device_outputs:0"
    if opaque:
        function.attr["_noinline"].b = True
        function.attr["_nospecialize"].b = True
    digest = hashlib.sha256(function.SerializeToString(deterministic=True)).hexdigest()[:16]
    function.signature.name = f"int8_sum_{digest}"
    return function


def call_of(node: NodeDef, function: FunctionDef) -> NodeDef:
    """Returns the node that calls ``function`` with the inputs of the kernel's node, under its name and device."""
    call = NodeDef(op="PartitionedCall", name=node.name, input=node.input, device=node.device)
    set_attr(call, "Tin", [tf.as_dtype(argument.type) for argument in function.signature.input_arg])
    set_attr(call, "Tout", [tf.as_dtype(result.type) for result in function.signature.output_arg])
    call.attr["f"].func.name = function.signature.name
    for key, value in (("config", ""), ("config_proto", ""), ("executor_type", "")):
        set_attr(call, key, value)
    return call
