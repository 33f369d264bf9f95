"""Write depthwise convolutions of one channel as convolutions, which have an INT8 kernel for any number of outputs."""

from __future__ import annotations

from collections.abc import Sequence

from quantizer_core.graph.graph import Graph, NodeDef
from quantizer_core.rewrites.ops import is_float32


def widen_depthwise(graph: Graph, inputs: Sequence[str], outputs: Sequence[str]) -> list[str]:
    """Turns ``DepthwiseConv2dNative(x, W)`` with a filter [h, w, 1, multiplier > 1] into ``Conv2D(x, W)``.

    With one channel read the two are the same sum over the same filter.

    Returns:
      The names of the convolutions.
    """
    changed = []
    for node in list(graph):
        shape = graph.constant_shape(node.input[1]) if node.op == "DepthwiseConv2dNative" else None
        if shape is None or shape[2] != 1 or shape[3] == 1 or not is_float32(node) or node.name in graph.protected:
            continue
        convolution = NodeDef()
        convolution.CopyFrom(node)
        convolution.op = "Conv2D"
        graph.replace_node(convolution)
        changed.append(node.name)
    return changed
