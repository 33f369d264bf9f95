"""Write the sum of two tensors as AddV2, the form that residual fusions look for."""

from __future__ import annotations

from collections.abc import Sequence

from tensorflow.core.framework import types_pb2

from quantizer_core.graph.graph import Graph, NodeDef
from quantizer_core.rewrites.ops import is_float32


def replace_add_n(graph: Graph, inputs: Sequence[str], outputs: Sequence[str]) -> list[str]:
    """Turns each float32 AddN of two tensors into AddV2; returns the names of those nodes."""
    changed = []
    for node in graph:
        if node.op == "AddN" and node.attr["N"].i == 2 and is_float32(node) and node.name not in graph.protected:
            added = NodeDef(op="AddV2", name=node.name, input=node.input)
            added.attr["T"].type = types_pb2.DT_FLOAT
            graph.replace_node(added)
            changed.append(node.name)
    return changed
