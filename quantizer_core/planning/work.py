"""How much a kernel has to do: its products, and the values that they are made of and make."""

from __future__ import annotations

import math

from quantizer_core.graph.graph import Graph, NodeDef


def products_a_value(graph: Graph, anchor: NodeDef) -> int:
    """Returns how many products make one value of the result of a Conv2D, DepthwiseConv2dNative or MatMul."""
    shape = graph.constant_shape(anchor.input[1]) or ()
    if anchor.op == "MatMul":
        return shape[1 if anchor.attr["transpose_b"].b else 0]
    return math.prod(shape[:2] if anchor.op == "DepthwiseConv2dNative" else shape[:3])


def work(graph: Graph, anchor: NodeDef) -> tuple[int, int]:
    """Returns the products that make one position of such a node's result, and the values read and made for it."""
    shape = graph.constant_shape(anchor.input[1]) or ()
    each = products_a_value(graph, anchor)
    if anchor.op == "MatMul":
        made = math.prod(shape) // max(each, 1)
        return each * made, each + made
    made = math.prod(shape[2:]) if anchor.op == "DepthwiseConv2dNative" else shape[3]
    return each * made, made + shape[2] * math.prod(anchor.attr["strides"].list.i[1:3])
