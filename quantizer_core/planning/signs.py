"""Proves from the graph alone which tensors can never be negative, so that they may be carried as unsigned codes."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from quantizer_core.graph.graph import Graph, NodeDef, node_of

#: Ops whose result is never negative, whatever they read.
NONNEGATIVE = frozenset({"Relu", "Relu6", "Sigmoid", "Softmax", "Softplus", "Exp", "Square", "Abs", "Sqrt", "L2Loss"})
#: Ops that keep the sign of their first input: they move, select or average values.
KEEPS_SIGN = frozenset(
    {
        "Identity", "StopGradient", "PreventGradient", "Snapshot", "CheckNumerics", "Reshape", "Squeeze", "ExpandDims",
        "MaxPool", "AvgPool", "Pad", "MirrorPad", "StridedSlice", "Slice", "Transpose", "Mean", "Sum", "Max", "Min",
        "SpaceToDepth", "DepthToSpace", "SpaceToBatchND", "BatchToSpaceND", "ResizeNearestNeighbor", "ResizeBilinear",
        "GatherV2", "Gather", "Tile", "Split", "LeakyRelu", "Elu",
    }
)  # fmt: skip
#: Ops whose result is not negative where none of their data inputs is.
ALL_INPUTS = frozenset({"Add", "AddV2", "AddN", "Mul", "Maximum", "Minimum", "ConcatV2", "Pack", "RealDiv", "BiasAdd"})
_DATA_INPUT = {"Split": 1}
_UNSIGNED = frozenset(d.as_datatype_enum for d in (tf.uint8, tf.uint16, tf.uint32, tf.uint64, tf.bool))


class Signs:
    """Answers, and remembers, whether a tensor of the graph can be negative."""

    def __init__(self, graph: Graph):
        self._graph = graph
        self._known: dict[str, bool] = {}

    def nonnegative(self, tensor: str) -> bool:
        """Returns True if every value of the tensor is proved to be ≥ 0 (or NaN) for any input of the graph."""
        stack = [node_of(tensor)]
        begun: set[str] = set()
        while stack:
            name = stack[-1]
            verdict = self._verdict(name) if name not in self._known else self._known[name]
            if verdict is None:
                needed = self._depends(self._graph.node(name))
                waiting = [n for n in needed if n not in self._known]
                if waiting and name not in begun:
                    begun.add(name)
                    stack.extend(waiting)
                    continue
                verdict = bool(needed) and all(self._known.get(n, False) for n in needed)  # a loop gives no proof
            self._known[name] = verdict
            stack.pop()
        return self._known[node_of(tensor)]

    def _verdict(self, name: str) -> bool | None:
        """Returns what the node says by itself, or None where its inputs decide."""
        node = self._graph.node(name)
        if node.op == "Const":
            value = self._graph.constant(name)
            return bool(value is not None and value.dtype.kind in "fiub" and np.all(value >= 0))
        if node.op == "Cast":
            source, target = (tf.as_dtype(node.attr[key].type) for key in ("SrcT", "DstT"))
            if target.is_integer and source != tf.bool and (not source.is_integer or target.max < source.max):
                return False  # it may wrap around
            return source.as_datatype_enum in _UNSIGNED or None
        if node.op in NONNEGATIVE:
            return True
        if node.op in KEEPS_SIGN or node.op in ALL_INPUTS:
            return None
        return False

    def _depends(self, node: NodeDef) -> list[str]:
        inputs = self._graph.data_inputs(node)
        if node.op in ALL_INPUTS:
            used = inputs[:-1] if node.op == "ConcatV2" else inputs
        elif node.op in KEEPS_SIGN or node.op == "Cast":
            index = _DATA_INPUT.get(node.op, 0)
            used = inputs[index : index + 1]
        else:
            used = []
        return [node_of(tensor) for tensor in used]
