"""Writes what an INT8 graph computes as a graph of float32 ops, which any processor runs, whatever its INT8 kernels.

It tells what a graph made for another kind of processor will be worth there, and what of a loss comes from the rounding
of weights and what from that of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import tensorflow.compat.v1 as tf
from tensorflow.core.framework import graph_pb2

from quantizer_core.graph.graph import Edge, Graph
from quantizer_core.graph.names import as_node
from quantizer_core.graph.rename import rename_nodes
from quantizer_core.lowering.kernels import Emitter
from quantizer_core.lowering.parameters import WEIGHTED_FORMS, LayerParameters, carried_filter
from quantizer_core.planning.passive import AVERAGE_OPS
from quantizer_core.planning.plan import NodePlan, QuantizationPlan
from quantizer_core.types import PreparedGraph


def simulate(
    prepared: PreparedGraph,
    plan: QuantizationPlan,
    parameters: Mapping[str, LayerParameters],
    *,
    tensors: bool = True,
) -> graph_pb2.GraphDef:
    """Returns a graph of float32 ops with weights and tensors rounded as the INT8 graph's are.

    Each kernel's result is that of the INT8 kernel, given what it reads, to within the rounding of float32: of a value
    halfway between two codes either may be taken.

    Args:
      prepared: the FP32 graph that was planned.
      plan: its plan.
      parameters: weights and bias of each kernel by node name (``Conversion.parameters``).
      tensors: round tensors too; without, weights and biases alone differ from FP32's.

    Returns:
      A new GraphDef between the same inputs and outputs.
    """
    graph = Graph(prepared.graph_def)
    emitter = Emitter(graph)
    biased: dict[str, str] = {}
    for node in plan.nodes:
        if node.form in WEIGHTED_FORMS:
            own = parameters[node.name]
            filters = carried_filter(own.weights.dequantized(), 1 / plan.tensors[node.sources[0]].scales)
            set_parameters(
                graph, node, emitter.const(f"{node.name}/simulated_filter", filters, beside=node.name),
                emitter.const(f"{node.name}/simulated_bias", own.bias, beside=node.name), biased,
            )  # fmt: skip
    rounded = round_tensors(graph, plan, biased) if tensors else {}
    coded = {node.output for node in plan.nodes if gives_codes(node)}
    ends = {name: rounded[name] for name in prepared.outputs if name in coded and name in rounded}
    ends = {**{name: biased[name] for name in prepared.outputs if name in biased}, **ends}
    graph.prune([*(ends.get(name, name) for name in prepared.outputs), *(spec.name for spec in prepared.inputs)])
    names = {name: graph.unique_name(f"{name}/unrounded") for name in ends if name in graph}
    return rename_nodes(graph.to_graph_def(), {**names, **{made: name for name, made in ends.items()}})


def set_parameters(graph: Graph, node: NodePlan, filters: str, bias: str, biased: dict[str, str]) -> None:
    """Makes a kernel's FP32 form read these tensors as its filter, not transposed, and its bias.

    Args:
      biased: kernel without a bias of its own → the node that adds it one; takes the new ones.
    """
    anchor = graph.node(node.name)
    graph.set_input(anchor, 1, filters)
    if anchor.op == "MatMul":
        anchor.attr["transpose_b"].b = False
    own = [name for name in node.fused if graph.node(name).op == "BiasAdd"]
    if own:
        graph.set_input(own[0], 1, bias)
        return
    added = graph.add_node("BiasAdd", f"{node.name}/biased", [node.name, bias], T=tf.float32)
    graph.redirect(node.name, added)
    biased[node.name] = added


def round_tensors(graph: Graph, plan: QuantizationPlan, biased: Mapping[str, str]) -> dict[str, str]:
    """Rounds every tensor that a plan rounds, in a graph of the FP32 forms of its kernels.

    What a kernel makes as codes, all read rounded; what is made as floats, only the kernels that read codes.

    Args:
      biased: see ``set_parameters``.

    Returns:
      Tensor → the tensor that holds its rounded value.
    """
    emitter = Emitter(graph)
    planned = [node for node in plan.nodes if node.quantized]
    coded = {node.output: node for node in planned if gives_codes(node)}
    readers = {name for node in planned for name in (node.name, *node.fused)}
    entries = {tensor for node in planned for tensor in node.sources if tensor not in coded}
    computed = [tensor for tensor, node in coded.items() if node.form in WEIGHTED_FORMS or node.op in AVERAGE_OPS]
    result = {}
    for tensor in [*computed, *sorted(entries)]:
        source = biased.get(tensor, tensor)
        rounded, reader = emitter.round_as(source, f"{as_node(tensor)}/rounded", plan.tensors[tensor])
        graph.redirect(source, rounded, where=_reads(() if tensor in coded else readers, reader))
        result[tensor] = rounded
    return result


def _reads(names: Collection[str], exempt: str) -> Callable[[Edge], bool]:
    """Picks the edges to these nodes, or to all if there are none, but for one node's."""
    return lambda edge: edge.consumer.name != exempt and (not names or edge.consumer.name in names)


def gives_codes(node: NodePlan) -> bool:
    """Tells whether a planned node's result is made as codes; floats that read it get those dequantised."""
    return node.quantized and node.form != "matmul"
