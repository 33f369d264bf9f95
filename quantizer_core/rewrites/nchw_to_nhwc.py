"""Turn channels-first networks into channels-last ones inside, which is what the INT8 kernels take."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tensorflow.core.framework import types_pb2

from quantizer_core.graph.attrs import attr_ints, attr_string, make_const
from quantizer_core.graph.control_flow import innermost_frames
from quantizer_core.graph.graph import Graph, NodeDef, canonical, port_of, set_attr
from quantizer_core.rewrites.ops import flag, is_float32

_ANCHORS = frozenset({"Conv2D", "DepthwiseConv2dNative"})
_BATCH_NORMS = frozenset({"FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"})
_FORMATTED = _ANCHORS | _BATCH_NORMS | {"MaxPool", "AvgPool"}
_UNARY = frozenset(
    {
        "Relu", "Relu6", "LeakyRelu", "Elu", "Selu", "Sigmoid", "Tanh", "Softplus", "Softsign", "Exp", "Log", "Abs",
        "Neg", "Square", "Sqrt", "Rsqrt", "Erf", "Identity", "StopGradient",
    }
)  # fmt: skip
_NARY = frozenset({"Add", "AddV2", "AddN", "Sub", "Mul", "RealDiv", "Maximum", "Minimum", "SquaredDifference"})
_REDUCTIONS = frozenset({"Mean", "Max", "Min", "Sum"})
_PADS = frozenset({"Pad", "PadV2", "MirrorPad"})
#: Place of each axis of a channels-last tensor in a channels-first one, and the way back.
_TO_NHWC, _TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)
_MARK = "/to_nchw"


def nchw_to_nhwc(graph: Graph, inputs: Sequence[str], outputs: Sequence[str]) -> list[str]:
    """Computes convolutions, pools and batch norms of data_format NCHW in NHWC, between two Transposes.

    The Transposes back are moved behind biases, elementwise ops, pads, concatenations and reductions until they meet
    the next one forth and both disappear; what is left stands where the order of values matters (a flattening, an
    output).
    A graph without such a convolution, and nodes inside while loops, are left alone.

    Returns:
      The names of the nodes that changed.
    """
    found = [node for node in graph if _is_channels_first(graph, node)]
    if found:
        framed = graph.remembered(innermost_frames)
        found = [node for node in found if node.name not in framed]
    if any(node.op in _ANCHORS for node in found):
        changed = [_convert(graph, node, outputs) for node in found]
    else:
        changed = []
    progress = True
    while progress:
        progress = False
        for node in graph:
            if node.name in graph and _sink(graph, node, outputs):
                changed.append(node.name)
                progress = True
    if changed:
        graph.prune([*inputs, *outputs])
    return list(dict.fromkeys(changed))


def _is_channels_first(graph: Graph, node: NodeDef) -> bool:
    if node.op not in _FORMATTED or attr_string(node, "data_format") != "NCHW":
        return False
    if node.op in _BATCH_NORMS and flag(node, "is_training", True):
        return False
    return is_float32(node) and all(edge.port <= 0 for edge in graph.consumers(node.name))


def _convert(graph: Graph, node: NodeDef, outputs: Sequence[str]) -> str:
    for key in ("strides", "ksize", "dilations"):
        if attr_ints(node, key):
            values = attr_ints(node, key)
            set_attr(node, key, [values[axis] for axis in _TO_NHWC])
    pads = attr_ints(node, "explicit_paddings")
    if pads:
        set_attr(node, "explicit_paddings", [width for axis in _TO_NHWC for width in pads[2 * axis : 2 * axis + 2]])
    set_attr(node, "data_format", "NHWC")
    graph.set_input(node, 0, _transpose(graph, f"{node.name}/to_nhwc", node.input[0], _TO_NHWC))
    _turn_back(graph, node, outputs)
    return node.name


def _transpose(graph: Graph, name: str, source: str, order: Sequence[int]) -> str:
    wanted = graph.add(make_const(graph.unique_name(f"{name}/order"), np.array(order, np.int32)))
    kind = types_pb2.DT_FLOAT
    node = NodeDef(op="Transpose", name=graph.unique_name(name), input=[source, wanted])
    node.attr["T"].type, node.attr["Tperm"].type = kind, types_pb2.DT_INT32
    return graph.add(node)


def _turn_back(graph: Graph, node: NodeDef, outputs: Sequence[str]) -> None:
    """Gives the readers of a node that now computes in NHWC what they read before."""
    if node.name not in outputs:
        added = _transpose(graph, f"{node.name}{_MARK}", node.name, _TO_NCHW)
        graph.redirect(node.name, added, where=lambda edge: edge.consumer.name != added, control=False)
        return
    inner = NodeDef()
    inner.CopyFrom(node)
    inner.name = graph.unique_name(f"{node.name}/nhwc")
    graph.protect_as(node.name, inner.name)
    added = _transpose(graph, f"{node.name}{_MARK}", graph.add(inner), _TO_NCHW)
    graph.redirect(node.name, added, control=False)
    result = NodeDef(op="Identity", name=node.name, input=[added])
    result.attr["T"].type = types_pb2.DT_FLOAT
    graph.replace_node(result)


def _sink(graph: Graph, node: NodeDef, outputs: Sequence[str]) -> bool:
    """Moves the Transposes before a node behind it, or cancels them; returns whether it did."""
    data = graph.data_inputs(node)
    sources = [_behind(graph, tensor) for tensor in data]
    if not any(sources) or (node.op == "Identity" and node.name in outputs):
        return False
    if node.op == "Transpose":
        order = graph.constant(data[1])
        if order is None or tuple(order) != _TO_NHWC or node.name in outputs:
            return False
        return not graph.control_inputs(node) and bool(graph.redirect(node.name, sources[0]))
    if not is_float32(node) or any(edge.port > 0 for edge in graph.consumers(node.name)):
        return False
    if node.op in _UNARY:
        graph.set_input(node, 0, sources[0])
    elif node.op == "BiasAdd":  # of any rank, elsewhere
        if attr_string(node, "data_format") != "NCHW" or not sources[0]:
            return False
        set_attr(node, "data_format", "NHWC")
        graph.set_input(node, 0, sources[0])
    elif node.op in _NARY:
        moved = [source or _permuted_constant(graph, node, t) for source, t in zip(sources, data, strict=True)]
        if not all(moved):
            return False
        for index, source in enumerate(moved):
            graph.set_input(node, index, source)
    elif node.op in _PADS:
        return _sink_pad(graph, node, sources[0], outputs)
    elif node.op == "ConcatV2":
        axis = graph.constant(data[-1])
        if axis is None or not all(sources[:-1]):
            return False
        for index, source in enumerate(sources[:-1]):
            graph.set_input(node, index, source)
        place = _TO_NHWC.index(int(axis) % 4)
        node.attr["Tidx"].type = types_pb2.DT_INT32
        graph.set_input(node, len(data) - 1, _const(graph, f"{node.name}/axis_nhwc", np.array(place, np.int32)))
    elif node.op in _REDUCTIONS or node.op == "Squeeze":
        return _sink_reduction(graph, node, sources[0], outputs)
    else:
        return False
    _turn_back(graph, node, outputs)
    return True


def _behind(graph: Graph, tensor: str) -> str:
    """Returns what one of our Transposes to NCHW reads, or "" for any other tensor."""
    node = graph.node(tensor)
    if node.op != "Transpose" or _MARK not in node.name or port_of(tensor):
        return ""
    order = graph.constant(node.input[1])
    return canonical(node.input[0]) if order is not None and tuple(order) == _TO_NCHW else ""


def _permuted_constant(graph: Graph, node: NodeDef, tensor: str) -> str:
    value = graph.constant(tensor)
    if value is None or value.ndim > 4 or graph.control_inputs(graph.node(tensor)):
        return ""
    if value.size == 1 and value.ndim == 0:
        return tensor
    full = value.reshape((1,) * (4 - value.ndim) + value.shape).transpose(_TO_NHWC)
    return _const(graph, f"{node.name}/constant_nhwc", np.ascontiguousarray(full))


def _sink_pad(graph: Graph, node: NodeDef, source: str, outputs: Sequence[str]) -> bool:
    widths = graph.constant(node.input[1])
    if not source or widths is None or widths.shape != (4, 2):
        return False
    graph.set_input(node, 0, source)
    graph.set_input(node, 1, _const(graph, f"{node.name}/paddings_nhwc", np.ascontiguousarray(widths[list(_TO_NHWC)])))
    _turn_back(graph, node, outputs)
    return True


def _sink_reduction(graph: Graph, node: NodeDef, source: str, outputs: Sequence[str]) -> bool:
    if node.op == "Squeeze":
        given, keeps = np.array(attr_ints(node, "squeeze_dims"), np.int32), False
    else:
        axes = graph.constant(node.input[1])
        if axes is None:
            return False
        given, keeps = axes.reshape(-1), flag(node, "keep_dims")
    if not source or not len(given):
        return False
    gone = {int(axis) % 4 for axis in given}
    left = [_TO_NHWC.index(axis) for axis in range(4) if axis not in gone]
    if not keeps and left != sorted(left):
        return False
    places = np.array(sorted(_TO_NHWC.index(axis) for axis in gone), np.int32)
    graph.set_input(node, 0, source)
    if node.op == "Squeeze":
        set_attr(node, "squeeze_dims", [int(place) for place in places])
    else:
        node.attr["Tidx"].type = types_pb2.DT_INT32
        graph.set_input(node, 1, _const(graph, f"{node.name}/axes_nhwc", places))
    if keeps:
        _turn_back(graph, node, outputs)
    return True


def _const(graph: Graph, name: str, value: np.ndarray) -> str:
    return graph.add(make_const(graph.unique_name(name), value))
