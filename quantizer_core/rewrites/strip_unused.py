"""Keep only what the outputs need from the inputs, and turn every input into a Placeholder."""

from __future__ import annotations

from collections.abc import Sequence

from quantizer_core.errors import GraphError
from quantizer_core.graph.graph import Graph, NodeDef, set_attr
from quantizer_core.graph.summarize import input_specs

_PLACEHOLDERS = frozenset({"Placeholder", "PlaceholderV2"})

#: Where and with whom a node ran when it was trained. The INT8 kernels exist on the CPU alone, and a colocation with
#: a node that a rewrite removes would keep the graph from being imported.
_PLACEMENT = ("_class", "_output_shapes")


def strip_unused(graph: Graph, inputs: Sequence[str], outputs: Sequence[str]) -> list[str]:
    """Cuts the graph at its inputs and removes the rest; control edges count as needs.

    A PlaceholderWithDefault that is no input becomes its default. Devices and colocations are dropped.

    Returns:
      The names of the nodes removed or replaced.

    Raises:
      UnknownNodeError: if the graph holds no node of a given name.
      GraphError: if the outputs need a Placeholder that is not among the inputs, or another than the first output of
        an input node.
    """
    for name in (*inputs, *outputs):
        graph.node(name)
    changed = _cut(graph, inputs, outputs)
    changed += _use_defaults(graph, set(inputs))
    changed += graph.prune([*outputs, *inputs])
    fed = set(inputs)
    for node in graph:
        if node.op in _PLACEHOLDERS and node.name not in fed:
            raise GraphError(
                f"output {_reader(graph, node, outputs)!r} needs placeholder {node.name!r}, which is not among the "
                f"inputs {sorted(fed)}; name it as an input, or freeze the graph without it"
            )
        node.device = ""
        for key in _PLACEMENT:
            if key in node.attr:
                del node.attr[key]
    for function in graph.library.function:
        for node in function.node_def:
            node.device = ""
    return changed


def _cut(graph: Graph, inputs: Sequence[str], outputs: Sequence[str]) -> list[str]:
    names = [name for name in inputs if graph.node(name).op not in _PLACEHOLDERS]
    if not names:
        return []
    from tensorflow.python.framework import dtypes, tensor_shape

    needed = graph.ancestors(outputs, stop=inputs)
    for spec in input_specs(graph.to_graph_def(), names):
        node = NodeDef(op="Placeholder", name=spec.name)
        set_attr(node, "dtype", dtypes.as_dtype(spec.dtype))
        shape = None if spec.shape is None else [None if size < 0 else size for size in spec.shape]
        node.attr["shape"].shape.CopyFrom(tensor_shape.TensorShape(shape).as_proto())
        for edge in graph.consumers(spec.name):
            if edge.port > 0 and edge.consumer.name in needed:
                raise GraphError(
                    f"input {spec.name!r} is fed, but {edge.consumer.name!r} reads its output {edge.port}; "
                    f"name a node with a single output as the input"
                )
        graph.replace_node(node)
    return names


def _use_defaults(graph: Graph, inputs: set[str]) -> list[str]:
    """Makes an Identity of the default out of each; remove_training_nodes does the rest."""
    changed = []
    for node in graph:
        if node.op != "PlaceholderWithDefault" or node.name in inputs:
            continue
        dtype = node.attr["dtype"].type
        node.op = "Identity"
        node.attr.clear()
        node.attr["T"].type = dtype
        changed.append(node.name)
    return changed


def _reader(graph: Graph, node: NodeDef, outputs: Sequence[str]) -> str:
    return next((name for name in outputs if node.name in graph.ancestors([name])), outputs[0])
