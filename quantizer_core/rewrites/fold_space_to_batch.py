"""Write a dilated convolution as one node: old exporters spell it with the batch as a stack of sub-images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quantizer_core.graph.attrs import attr_ints, attr_string
from quantizer_core.graph.graph import Graph, NodeDef, set_attr
from quantizer_core.rewrites.ops import is_float32
from quantizer_core.rewrites.pad_before_depthwise import add_pad

_BETWEEN = frozenset({"BiasAdd", "Relu", "Relu6"})


def fold_space_to_batch(graph: Graph, inputs: Sequence[str], outputs: Sequence[str]) -> list[str]:
    """Turns ``BatchToSpaceND(Conv2D(SpaceToBatchND(x, b, pads), VALID), b, crops)`` into ``Conv2D(x, dilations=b)``.

    DepthwiseConv2dNative likewise; a BiasAdd, Relu or Relu6 may stand between. What is cropped from the result need
    not be padded before: the convolution pads by ``pads - crops``, a depthwise one by a Pad of its own. Block shape,
    pads and crops must be constant.

    Returns:
      The names of the convolutions.
    """
    changed = []
    for node in graph:
        if node.op != "BatchToSpaceND" or node.name not in graph or not is_float32(node):
            continue
        if node.name in graph.protected:
            continue
        conv = _convolution_before(graph, node, outputs)
        pads = _pads(graph, node, conv) if conv is not None else None
        if conv is None or pads is None:
            continue
        space = graph.producer(conv, 0)
        block = np.asarray(graph.constant(node.input[1]))
        source = space.input[0]
        if pads.any() and conv.op == "Conv2D":
            set_attr(conv, "padding", "EXPLICIT")
            set_attr(conv, "explicit_paddings", [int(width) for width in pads.reshape(-1)])
        elif pads.any():
            source = add_pad(graph, conv, source, pads, space.input[1])
        graph.set_input(conv, 0, source)
        set_attr(conv, "dilations", [1, int(block[0]), int(block[1]), 1])
        _remove(graph, node, outputs)
        changed.append(conv.name)
    if changed:
        graph.prune([*inputs, *outputs])
    return changed


def _convolution_before(graph: Graph, node: NodeDef, outputs: Sequence[str]) -> NodeDef | None:
    """Returns the convolution that feeds a BatchToSpaceND and nothing else, if it is one that dilation can write."""
    current = graph.producer(node, 0)
    while graph.sole_consumer(current.name) is not None and current.name not in outputs:
        if current.op not in _BETWEEN:
            break
        current = graph.producer(current, 0)
    if current.op not in ("Conv2D", "DepthwiseConv2dNative") or current.name in outputs:
        return None
    plain = all(value == 1 for key in ("strides", "dilations") for value in attr_ints(current, key))
    valid = attr_string(current, "padding") == "VALID" and attr_string(current, "data_format", "NHWC") == "NHWC"
    space = graph.producer(current, 0)
    if not plain or not valid or graph.sole_consumer(current.name) is None or space.op != "SpaceToBatchND":
        return None
    return None if graph.control_inputs(space) or space.name in graph.protected else current


def _pads(graph: Graph, node: NodeDef, conv: NodeDef) -> np.ndarray | None:
    """Returns the padding of the convolution, [4, 2], or None where constants or a crop beyond the padding forbid."""
    space = graph.producer(conv, 0)
    constants = [graph.constant(tensor) for tensor in (*space.input[1:3], *node.input[1:3])]
    if any(value is None for value in constants):
        return None
    block, paddings, same, crops = (np.asarray(value) for value in constants)
    if block.shape != (2,) or not np.array_equal(block, same) or np.any(paddings < crops):
        return None
    return np.concatenate([np.zeros((1, 2), np.int32), paddings - crops, np.zeros((1, 2), np.int32)])


def _remove(graph: Graph, node: NodeDef, outputs: Sequence[str]) -> None:
    if node.name not in outputs:
        graph.bypass(node.name)
        return
    kept = NodeDef(op="Identity", name=node.name, input=[node.input[0], *graph.control_inputs(node)])
    kept.attr["T"].CopyFrom(node.attr["T"])
    graph.replace_node(kept)
