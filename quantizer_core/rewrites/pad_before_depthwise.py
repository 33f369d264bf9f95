"""Write the explicit padding of a depthwise convolution as a Pad before it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quantizer_core.graph.attrs import attr_ints, attr_string, make_const
from quantizer_core.graph.graph import Graph, NodeDef, set_attr
from quantizer_core.rewrites.ops import is_float32


def pad_before_depthwise(graph: Graph, inputs: Sequence[str], outputs: Sequence[str]) -> list[str]:
    """Turns ``DepthwiseConv2dNative(x, padding=EXPLICIT)`` into ``DepthwiseConv2dNative(Pad(x), padding=VALID)``.

    TensorFlow 2.16 aborts the process once it fuses the first with a BiasAdd, which it does by itself; folding a batch
    norm makes one. The INT8 kernel takes the Pad over (``mkl_fuse_pad_and_conv.padding_before``).

    Returns:
      The names of the convolutions.
    """
    changed = []
    for node in graph:
        if node.op != "DepthwiseConv2dNative" or not is_float32(node) or attr_string(node, "padding") != "EXPLICIT":
            continue
        widths = np.array(attr_ints(node, "explicit_paddings"), np.int32).reshape(4, 2)
        set_attr(node, "padding", "VALID")
        set_attr(node, "explicit_paddings", [])
        if widths.any():
            graph.set_input(node, 0, add_pad(graph, node, node.input[0], widths, node.input[1]))
        changed.append(node.name)
    return changed


def add_pad(graph: Graph, node: NodeDef, source: str, widths: np.ndarray, beside: str) -> str:
    """Adds ``<node>/pad``, which puts zeros around a tensor.

    Args:
      graph: is edited.
      node: the node that will read it.
      source: the tensor to pad.
      widths: int32 [4, 2].
      beside: a constant: inside a loop or branch the new one belongs there by what this one waits for.

    Returns:
      Its name.
    """
    const = make_const(graph.unique_name(f"{node.name}/paddings"), widths.astype(np.int32))
    const.input.extend(graph.control_inputs(graph.node(beside)))
    pad = NodeDef(op="Pad", name=graph.unique_name(f"{node.name}/pad"), device=node.device)
    pad.input.extend([source, graph.add(const)])
    pad.attr["T"].CopyFrom(node.attr["T"])
    set_attr(pad, "Tpaddings", const.attr["dtype"])
    return graph.add(pad)
