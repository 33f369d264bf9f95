"""Give constants that enter a while loop or a branch a place inside it, where weights and biases are looked for."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from quantizer_core.graph.attrs import attr_string
from quantizer_core.graph.control_flow import pivots
from quantizer_core.graph.graph import Graph, NodeDef, canonical
from quantizer_core.graph.names import as_node
from quantizer_core.rewrites.ops import CONTROL_FLOW_OPS, flag


def localize_constants(graph: Graph, inputs: Sequence[str], outputs: Sequence[str]) -> list[str]:
    """Replaces ``Enter(Const, is_constant)`` and ``Switch(Const, …)`` by Consts inside the loop or branch.

    A Const in a loop waits for the loop's first Merge, which runs in every iteration; one in a branch waits for an
    Identity of the condition behind a Switch, so it is dead where the branch is not taken. That is how TensorFlow 1
    itself writes constants there. Readers that are control flow themselves (a loop's variable, a result that a branch
    hands through) are left alone.

    Returns:
      The names of the Enter and Switch nodes that something no longer reads.
    """
    merges = pivots(graph)
    changed = []
    for node in graph:
        if node.op == "Enter" and flag(node, "is_constant"):
            ports: tuple[int, ...] = (0,)
            wait = merges.get(attr_string(node, "frame_name"), "")
        elif node.op == "Switch":
            ports, wait = (0, 1), "branch"
        else:
            continue
        source = graph.producer(node, 0)
        if source.op != "Const" or not wait or graph.control_inputs(node):
            continue
        for port in ports:
            readers = [
                edge
                for edge in graph.consumers(node.name)
                if edge.port == port and edge.consumer.op not in CONTROL_FLOW_OPS and not _is_pivot(edge.consumer)
            ]
            if readers:
                pivot = wait if node.op == "Enter" else _branch_pivot(graph, canonical(node.input[1]), port)
                _move_in(graph, node, port, source, pivot, {edge.consumer.name for edge in readers})
                changed.append(node.name)
    if changed:
        graph.prune([*inputs, *outputs])
    return list(dict.fromkeys(changed))


def _is_pivot(node: NodeDef) -> bool:
    """Whether a node may be what others wait for to be in a branch."""
    return node.op == "Identity"


def _branch_pivot(graph: Graph, condition: str, port: int) -> str:
    """Returns an Identity that is dead where a condition is not ``port`` (0 or 1); adds it if there is none."""
    switch = _switch_of(graph, condition)
    for edge in graph.consumers(switch):
        if edge.port == port and _is_pivot(edge.consumer):
            return edge.consumer.name
    return graph.add_node("Identity", f"{switch}/branch_{port}", [f"{switch}:{port}"], T=tf.bool)


def _switch_of(graph: Graph, condition: str) -> str:
    """Returns a Switch that hands a condition itself on; adds it if there is none."""
    source = condition
    while source:
        for edge in graph.consumers(source):
            if edge.consumer.op == "Switch" and {canonical(name) for name in edge.consumer.input} == {source}:
                return edge.consumer.name
        node = graph.node(source)
        source = canonical(node.input[0]) if node.op == "Identity" else ""
    return graph.add_node("Switch", f"{as_node(condition)}/branches", [condition, condition], T=tf.bool)


def _move_in(graph: Graph, node: NodeDef, port: int, source: NodeDef, pivot: str, readers: set[str]) -> None:
    const = NodeDef()
    const.CopyFrom(source)
    const.name = graph.unique_name(f"{node.name}/constant_{port}" if node.op == "Switch" else f"{node.name}/constant")
    del const.input[:]
    const.input.append(f"^{pivot}")
    name = graph.add(const)
    tensor = f"{node.name}:{port}" if port else node.name
    graph.redirect(tensor, name, where=lambda edge: edge.consumer.name in readers and edge.port == port, control=False)
