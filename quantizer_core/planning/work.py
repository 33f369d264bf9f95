"""How much a kernel has to do: its products, and the values that they are made of and make."""

from __future__ import annotations

import math
from typing import NamedTuple

from quantizer_core.graph.graph import Graph, NodeDef


def products_a_value(graph: Graph, anchor: NodeDef) -> int:
    """Returns how many products make one value of the result of a Conv2D, DepthwiseConv2dNative or MatMul."""
    shape = graph.constant_shape(anchor.input[1]) or ()
    if anchor.op == "MatMul":
        return shape[1 if anchor.attr["transpose_b"].b else 0]
    return math.prod(shape[:2] if anchor.op == "DepthwiseConv2dNative" else shape[:3])


def image_size(shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """Returns height and width of a static shape [batch, height, width, channels], or () if they are not known."""
    return shape[1:3] if shape is not None and len(shape) == 4 and min(shape[1:3]) > 0 else ()


class Work(NamedTuple):
    """What one position of a node's result takes (one row, of a MatMul): products, values read, values made."""

    products: int
    read: int
    made: int


def work_of(graph: Graph, anchor: NodeDef) -> Work:
    """Returns what a position of the result of a Conv2D, DepthwiseConv2dNative or MatMul takes."""
    shape = graph.constant_shape(anchor.input[1]) or ()
    each = products_a_value(graph, anchor)
    if anchor.op == "MatMul":
        made = math.prod(shape) // max(each, 1)
        return Work(each * made, each, made)
    made = math.prod(shape[2:]) if anchor.op == "DepthwiseConv2dNative" else shape[3]
    return Work(each * made, shape[2] * math.prod(anchor.attr["strides"].list.i[1:3]), made)
