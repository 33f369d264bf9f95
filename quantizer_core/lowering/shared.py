"""Makes readers of equal small constants read one: the file is shorter, and TensorFlow has less to run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

from quantizer_core.graph.graph import Graph, NodeDef

#: Constants of more bytes, as written in the graph, keep to themselves: filters, biases and scales.
SMALL = 256


def share_constants(graph: Graph, kept: Collection[str]) -> None:
    """Gives equal constants one node, under a short name of its own.

    A constant lies in a loop or a branch by what it waits for: those that wait for the same are shared.

    Args:
      graph: is changed.
      kept: names of nodes that stay: inputs and outputs.
    """
    equal: dict[tuple[object, ...], list[NodeDef]] = defaultdict(list)
    for node in graph:
        if node.op == "Const" and node.name not in kept:
            tensor = node.attr["value"].tensor
            if tensor.ByteSize() <= SMALL:
                value = tensor.SerializeToString(deterministic=True)
                equal[node.device, node.attr["dtype"].type, value, tuple(node.input)].append(node)
    number = 0
    for nodes in equal.values():
        if len(nodes) < 2:
            continue
        one = NodeDef()
        one.CopyFrom(nodes[0])
        one.name = graph.unique_name(f"shared/{number}")
        number += 1
        graph.add(one)
        for node in nodes:
            graph.redirect(node.name, one.name)
            graph.remove(node.name)
