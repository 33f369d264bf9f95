"""Evaluate every subgraph of constants once and keep the result."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import op_def_registry, tensor_util

from quantizer_core.graph.attrs import make_const
from quantizer_core.graph.graph import Graph, GraphDef, NodeDef, canonical, node_of, port_of
from quantizer_core.rewrites.ops import is_pure

#: A result is kept if it is small, or not much larger than what it was made from (a Tile or Fill may not swell the
#: file; weights behind Dequantize grow fourfold).
_SMALL_BYTES = 10 << 20
_LARGEST_GROWTH = 10

_LOG = logging.getLogger(__name__)


def fold_constants(graph: Graph, inputs: Sequence[str], outputs: Sequence[str]) -> list[str]:
    """Replaces each constant tensor that something else reads (or that is an output) by a Const.

    Never evaluated: ops with state, random ops, control flow, function calls, anything that waits for a node that is
    not constant. The evaluation is TensorFlow's own, on one private thread: unlike a session it does not decide the
    size of the process's thread pool. A tensor that cannot be evaluated, or is no number, stays as it is.

    Returns:
      The names of the nodes whose results became Consts.
    """
    kept = set(outputs)
    rejected: set[str] = set()
    folded: list[str] = []
    while frontier := _frontier(graph, kept, rejected):
        values = _evaluate(graph, [tensor for tensors in frontier.values() for tensor in tensors])
        stay = [name for name, tensors in frontier.items() if any(tensor not in values for tensor in tensors)]
        if stay:  # what they read is then to be kept too: look again before anything is replaced
            _LOG.debug("constant nodes that are not folded: %s", ", ".join(stay))
            rejected.update(stay)
            continue
        for name, tensors in frontier.items():
            _replace(graph, name, {tensor: values[tensor] for tensor in tensors})
            folded.append(name)
        break
    if folded:
        graph.prune([*inputs, *outputs])
    return folded


def _frontier(graph: Graph, outputs: set[str], rejected: set[str]) -> dict[str, list[str]]:
    """Returns the computed constant nodes that are outputs or have a reader that is not constant, and what is read."""
    missing = {node.name: len({node_of(tensor) for tensor in node.input}) for node in graph}
    ready = [node.name for node in graph if node.op == "Const" and not node.input]
    constant = set(ready)
    while ready:
        for user in dict.fromkeys(edge.consumer.name for edge in graph.consumers(ready.pop())):
            missing[user] -= 1
            if missing[user] == 0 and user not in rejected and _is_foldable(graph.node(user)):
                constant.add(user)
                ready.append(user)
    frontier = {}
    for node in graph:
        if node.name not in constant or node.op == "Const":
            continue
        ports = {edge.port for edge in graph.consumers(node.name) if edge.consumer.name not in constant}
        if node.name in outputs or -1 in ports:
            ports.add(0)
        if ports:
            frontier[node.name] = [canonical(f"{node.name}:{port}") for port in sorted(ports) if port >= 0]
    return frontier


def _is_foldable(node: NodeDef) -> bool:
    return is_pure(node) and "Random" not in node.op and bool(op_def_registry.get(node.op).output_arg)


def _evaluate(graph: Graph, tensors: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns the values of those constant tensors that can be evaluated and are worth keeping."""
    # The private evaluator behind tf.get_static_value; a session would be ten times slower for a typical graph.
    with tf.Graph().as_default() as scratch:
        try:
            tf.import_graph_def(_subgraph(graph, graph.ancestors(tensors), scratch), name="")
        except (ValueError, tf.errors.OpError):
            return {}
        values = {}
        for tensor in tensors:
            handle = scratch.get_tensor_by_name(tensor if port_of(tensor) else f"{tensor}:0")
            if handle.shape.is_fully_defined() and not _is_worth_it(
                graph, tensor, handle.shape.num_elements() * handle.dtype.size
            ):
                continue
            value = _try(handle)
            if value is not None and _is_worth_it(graph, tensor, value.nbytes):
                values[tensor] = value
    return values


def _subgraph(graph: Graph, names: set[str], scratch: tf.Graph) -> GraphDef:
    graph_def = GraphDef(versions=scratch.as_graph_def().versions)
    graph_def.node.extend(node for node in graph if node.name in names)
    return graph_def


def _try(tensor: tf.Tensor) -> np.ndarray | None:
    kind = tensor.dtype
    if kind.is_quantized or not (kind.is_floating or kind.is_integer or kind.is_complex or kind.is_bool):
        return None
    try:
        value = tensor_util.try_evaluate_constant(tensor)  # None where it fails, a NumPy scalar for rank 0
    except (ValueError, RuntimeError, tf.errors.OpError):
        return None
    return None if value is None else np.asarray(value)


def _is_worth_it(graph: Graph, tensor: str, size: int) -> bool:
    if size <= _SMALL_BYTES:
        return True
    sources = graph.ancestors([tensor])
    return size <= _LARGEST_GROWTH * sum(graph.node(name).ByteSize() for name in sources)


def _replace(graph: Graph, name: str, values: dict[str, np.ndarray]) -> None:
    for tensor, value in values.items():
        if tensor != name:
            graph.redirect(tensor, graph.add_const(f"{name}/output_{port_of(tensor)}", value), control=False)
    # A node of which only later outputs are read still keeps its name for those that wait for it; pruning decides.
    first = values.get(name, np.zeros((), np.float32))
    graph.replace_node(make_const(name, first))
