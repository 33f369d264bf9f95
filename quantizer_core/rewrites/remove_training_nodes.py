"""Remove what only matters in training: identities, gradient stoppers, numeric checks, and waits for pure nodes."""

from __future__ import annotations

from collections.abc import Sequence

from quantizer_core.graph.graph import IDENTITY_OPS, Graph, node_of
from quantizer_core.rewrites.ops import is_pure, near_control_flow

_REMOVED = IDENTITY_OPS | {"CheckNumerics"}


def remove_training_nodes(graph: Graph, inputs: Sequence[str], outputs: Sequence[str]) -> list[str]:
    """Makes the readers of an Identity (StopGradient, PreventGradient, Snapshot, CheckNumerics) read its source.

    Left alone are identities that wait for something, and those next to TensorFlow 1 control flow, whose place decides
    which branch or loop they belong to. One that is an output stays as an Identity, but nothing else reads it.

    Returns:
      The names of the nodes removed, and of the nodes that no longer wait for a pure node.
    """
    changed = _drop_idle_waits(graph)
    kept = set(outputs)
    for node in graph:
        if node.op not in _REMOVED or graph.control_inputs(node) or near_control_flow(graph, node):
            continue
        if node.name in kept:
            if node.op != "Identity":
                dtype = node.attr["T"].type
                node.op = "Identity"
                node.attr.clear()
                node.attr["T"].type = dtype
                changed.append(node.name)
            if graph.redirect(node.name, node.input[0]):
                changed.append(node.name)
        else:
            graph.redirect(node.name, node.input[0])
            graph.remove(node.name)
            changed.append(node.name)
    graph.prune([*inputs, *outputs])
    return changed


def _drop_idle_waits(graph: Graph) -> list[str]:
    """Drops control edges from nodes that, with all they need, are free of effects: waiting for them does nothing.

    Keras leaves such edges from an output to NoOps over the reads of its variables.
    """
    waiting = [node for node in graph if graph.control_inputs(node)]
    idle: dict[str, bool] = {}
    changed = []
    for node in waiting:
        waits = graph.control_inputs(node)
        useful = [wait for wait in waits if not _is_idle(graph, node_of(wait), idle)]
        if len(useful) < len(waits):
            graph.set_inputs(node, [*graph.data_inputs(node), *useful])
            changed.append(node.name)
    return changed


def _is_idle(graph: Graph, name: str, known: dict[str, bool]) -> bool:
    """Whether a node and all its ancestors are pure (a numeric check counts as pure: it is removed as well)."""
    stack = [name]
    entered: set[str] = set()
    while stack:
        current = stack[-1]
        node = graph.node(current)
        needs = [node_of(tensor) for tensor in node.input]
        if current in known:
            stack.pop()
        elif not (is_pure(node) or node.op in ("CheckNumerics", "Placeholder")):
            known[current] = False
        elif current not in entered:
            entered.add(current)
            stack.extend(need for need in needs if need not in known)
        else:
            known[current] = all(known.get(need, False) for need in needs)
    return known[name]
