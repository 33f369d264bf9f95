"""What the rewrites must know about op types: which have no state and no part in control flow."""

from __future__ import annotations

from tensorflow.core.framework import types_pb2
from tensorflow.python.framework import op_def_registry

from quantizer_core.graph.graph import Graph, NodeDef

#: TensorFlow 1 control flow: these decide which nodes run, and in which loop iteration.
CONTROL_FLOW_OPS = frozenset(
    prefix + op for op in ("Switch", "Merge", "Enter", "Exit", "NextIteration") for prefix in ("", "Ref")
) | {"LoopCond", "ControlTrigger", "_SwitchN"}

_SOURCES = frozenset({"Placeholder", "PlaceholderV2", "PlaceholderWithDefault"})


def is_pure(node: NodeDef) -> bool:
    """Whether a node's outputs depend on nothing but its inputs' values, and running it has no other effect.

    Unknown ops (calls of library functions by name) and ops that call functions count as impure; a Placeholder does
    not depend on inputs and is impure too.
    """
    definition = op_def_registry.get(node.op)
    return (
        definition is not None
        and not definition.is_stateful
        and node.op not in CONTROL_FLOW_OPS
        and node.op not in _SOURCES
        and not any(attr.type in ("func", "list(func)") for attr in definition.attr)
    )


def near_control_flow(graph: Graph, node: NodeDef) -> bool:
    """Whether a node stands next to TensorFlow 1 control flow: its place decides which branch or loop it belongs to."""
    if graph.producer(node, 0).op in CONTROL_FLOW_OPS:
        return True
    return any(edge.consumer.op in CONTROL_FLOW_OPS for edge in graph.consumers(node.name))


def is_float32(node: NodeDef) -> bool:
    """Whether a node's attribute ``T`` is float32 (asking for a missing attribute by index would add it)."""
    return "T" in node.attr and node.attr["T"].type == types_pb2.DT_FLOAT


def flag(node: NodeDef, key: str, default: bool = False) -> bool:
    """Returns a boolean attribute, or the default where it is missing."""
    return bool(node.attr[key].b) if key in node.attr else default
