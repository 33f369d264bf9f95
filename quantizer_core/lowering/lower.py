"""Turns a planned FP32 graph into one of INT8 kernels; float readers of an integer tensor get it dequantised."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import graph_pb2

from quantizer_core.errors import GraphError
from quantizer_core.graph.control_flow import innermost_frames
from quantizer_core.graph.graph import Graph, NodeDef, set_attr
from quantizer_core.graph.names import as_node
from quantizer_core.lowering.kernels import QINT8, Emitter, IntTensor
from quantizer_core.lowering.parameters import LayerParameters, nominal_parameters
from quantizer_core.lowering.shared import share_constants
from quantizer_core.planning.passive import PLAIN_MOVES
from quantizer_core.planning.plan import NodePlan, QuantizationPlan, TensorPlan
from quantizer_core.types import PreparedGraph

#: Ops to which the values that they read do not matter.
_SHAPE_OPS = frozenset({"Shape", "Size", "Rank"})


def lower(
    prepared: PreparedGraph,
    plan: QuantizationPlan,
    parameters: Mapping[str, LayerParameters] | None = None,
) -> graph_pb2.GraphDef:
    """Writes the INT8 graph of a plan.

    Every FP32 tensor that remains keeps its name, the inputs and outputs among them, but for equal small constants,
    which become one; the integer form of tensor ``a`` is made by node ``a/int8``.

    Args:
      prepared: the graph that was planned.
      plan: what becomes of its nodes.
      parameters: weights and bias of each kernel by node name; None: those of the FP32 graph, rounded to nearest.

    Returns:
      A new GraphDef between the same inputs and outputs.

    Raises:
      GraphError: if the plan does not belong to this graph.
    """
    return _Lowering(prepared, plan, parameters).run()


class _Lowering:
    def __init__(
        self, prepared: PreparedGraph, plan: QuantizationPlan, parameters: Mapping[str, LayerParameters] | None
    ):
        self.prepared, self.plan = prepared, plan
        self.graph = Graph(prepared.graph_def)
        for node in plan.nodes:
            if node.quantized and (node.name not in self.graph or node.output not in self.graph):
                raise GraphError(f"the plan names node {node.name!r}, which the graph does not hold")
        self.parameters = parameters if parameters is not None else nominal_parameters(self.graph, plan, None)
        self.emitter = Emitter(self.graph, prepared.graph.remembered(innermost_frames))
        self.integers: dict[str, IntTensor] = {}
        self.produced: list[str] = []

    def run(self) -> graph_pb2.GraphDef:
        forms = {
            "convolution": self._convolution,
            "matmul": self._matmul,
            "matmul_as_convolution": self._matmul_as_convolution,
            "pool": self._pool,
            "average": self._average,
            "concat": self._concat,
            "move": self._move,
        }
        for node in self.plan.nodes:
            if node.quantized:
                forms[node.form](node)
        for tensor in self.produced:
            self._tell_shape(tensor)
            self._dequantize(tensor)
        ends = [*self.prepared.outputs, *(spec.name for spec in self.prepared.inputs)]
        self.graph.prune(ends)
        share_constants(self.graph, ends)
        return self.graph.to_graph_def()

    # --- tensors --------------------------------------------------------------------------------------------------

    def _source(self, tensor: str) -> IntTensor:
        """Returns the integer form of a tensor; a float one is quantised where it is first needed."""
        if tensor not in self.integers:
            name = f"{as_node(tensor)}/quantize"
            self.integers[tensor], _ = self.emitter.quantize_as(tensor, name, self.plan.tensors[tensor])
        return self.integers[tensor]

    def _produce(self, tensor: str, result: IntTensor) -> None:
        self.integers[tensor] = result
        self.produced.append(tensor)

    def _dequantize(self, tensor: str) -> None:
        """Puts a Dequantize in the place of the FP32 node; pruning takes it away again where no one reads it."""
        name = self.emitter.dequantize_as(self.integers[tensor], f"{tensor}/dequantize", self.plan.tensors[tensor])
        self._take_place(name, tensor)

    def _tell_shape(self, tensor: str) -> None:
        """Lets who asks for a tensor's shape alone ask its codes: its values need not be dequantised for that."""
        codes = self.integers[tensor]
        for edge in list(self.graph.consumers(tensor)):
            if edge.consumer.op in _SHAPE_OPS and edge.index == 0:
                self.graph.set_input(edge.consumer, edge.index, codes.name)
                set_attr(edge.consumer, "T", getattr(tf, codes.dtype))

    def _take_place(self, of: str, name: str) -> None:
        """Gives node ``of``'s definition the name ``name``, whose node it replaces."""
        node = NodeDef()
        node.CopyFrom(self.graph.node(of))
        node.name = name
        self.graph.replace_node(node)

    # --- nodes ----------------------------------------------------------------------------------------------------

    def _bias(self, node: NodePlan) -> np.ndarray:
        """Returns the kernel's bias, float32 [output channels], with the offsets of what it reads and makes in it."""
        parameters = self.parameters[node.name]
        bias = parameters.bias.astype(np.float64)
        source: TensorPlan = self.plan.tensors[node.sources[0]]
        if source.offset:
            weights = parameters.weights.dequantized().astype(np.float64)
            taps = weights.reshape(-1, *weights.shape[-2:]).sum(axis=0)  # [channels read, outputs]
            bias -= float(source.offsets[0]) * (taps[:, 0] if node.op == "DepthwiseConv2dNative" else taps.sum(axis=0))
        if node.summand:
            bias -= self.plan.tensors[node.summand].offsets
        if node.output in self.plan.tensors:
            planned = self.plan.tensors[node.output]
            bias = (bias + planned.offsets) * planned.scales
        return bias.astype(np.float32)

    def _relu(self, node: NodePlan) -> bool:
        return any(self.graph.node(name).op in ("Relu", "Relu6") for name in node.fused)

    def _keep_control(self, node: NodePlan, name: str) -> None:
        """Makes the kernel wait for what the nodes that it stands for, and the constants they read, waited for."""
        replaced = [self.graph.node(member) for member in (node.name, *node.fused)]
        constants = [self.graph.node(t) for member in replaced for t in self.graph.data_inputs(member)]
        waits = [t for member in [*replaced, *(c for c in constants if c.op == "Const")] for t in
                 self.graph.control_inputs(member)]  # fmt: skip
        if waits:
            self.graph.set_inputs(name, [*self.graph.node(name).input, *dict.fromkeys(waits)])

    def _convolution(self, node: NodePlan) -> None:
        anchor = self.graph.node(node.name)
        planned = self.plan.tensors[node.output]
        weights = self.parameters[node.name].weights
        if planned.scale:
            weights = dataclasses.replace(weights, limits=np.asarray(weights.limits * planned.scales, np.float32))
        result = self.emitter.convolution(
            anchor.op, f"{node.output}/int8", self._source(node.sources[0]), weights, self._bias(node),
            dtype=planned.dtype, limit=planned.limit, relu=self._relu(node),
            summand=self.integers[node.summand] if node.summand else None,
            strides=anchor.attr["strides"].list.i,
            padding="EXPLICIT" if node.padding else anchor.attr["padding"].s.decode(),
            explicit_paddings=node.padding or anchor.attr["explicit_paddings"].list.i,
            dilations=anchor.attr["dilations"].list.i or (1, 1, 1, 1), device=anchor.device,
        )  # fmt: skip
        self._keep_control(node, result.name)
        self._produce(node.output, result)

    def _matmul(self, node: NodePlan) -> None:
        anchor = self.graph.node(node.name)
        weights = self.parameters[node.name].weights
        source = self._source(node.sources[0])
        given = (f"{node.output}/int8", source, weights, self._bias(node))
        if anchor.op == "MatMul":
            name = self.emitter.matmul(*given, device=anchor.device)
        else:
            name = self.emitter.pointwise(*given, places=node.places, device=anchor.device)
        self._keep_control(node, name)
        self._take_place(name, node.output)

    def _matmul_as_convolution(self, node: NodePlan) -> None:
        """Rows become the height of one image: a 1×1 convolution takes scales per channel and signed codes."""
        anchor = self.graph.node(node.name)
        weights = self.parameters[node.name].weights
        inputs, outputs = weights.codes.shape
        planned = self.plan.tensors[node.output]
        weights = dataclasses.replace(weights, codes=weights.codes[None, None])
        base = f"{node.output}/int8"
        image = self.emitter.reshape(self._source(node.sources[0]), (1, -1, 1, inputs), f"{base}/rows")
        result = self.emitter.convolution(
            "Conv2D", f"{base}/convolution", image, weights, self._bias(node), dtype=planned.dtype, limit=planned.limit,
            relu=self._relu(node), device=anchor.device,
        )  # fmt: skip
        self._keep_control(node, result.name)
        self._produce(node.output, self.emitter.reshape(result, (-1, outputs), base))

    def _pool(self, node: NodePlan) -> None:
        anchor = self.graph.node(node.name)
        result = self.emitter.pool(
            anchor.op, f"{node.output}/int8", self._source(node.sources[0]), ksize=anchor.attr["ksize"].list.i,
            strides=anchor.attr["strides"].list.i, padding=anchor.attr["padding"].s.decode(), device=anchor.device,
        )  # fmt: skip
        self._keep_control(node, result.name)
        self._produce(node.output, result)

    def _average(self, node: NodePlan) -> None:
        anchor = self.graph.node(node.name)
        planned = self.plan.tensors[node.output]
        base = f"{node.output}/int8"
        squeezed = node.op == "Mean" and not anchor.attr["keep_dims"].b
        result = self.emitter.average(
            f"{base}/kept" if squeezed else base, self._source(node.sources[0]), node.window,
            scales=planned.scales / self.plan.tensors[node.sources[0]].scales, dtype=planned.dtype, limit=planned.limit,
            strides=(1, 1, 1, 1) if node.op == "Mean" else anchor.attr["strides"].list.i, device=anchor.device,
        )  # fmt: skip
        self._keep_control(node, result.name)
        self._produce(node.output, self.emitter.squeeze(result, (1, 2), base) if squeezed else result)

    def _concat(self, node: NodePlan) -> None:
        anchor = self.graph.node(node.name)
        axis = self.graph.constant(self.graph.data_inputs(anchor)[-1])
        if axis is None:
            raise GraphError(f"the axis of {node.name!r} is not a constant; the plan is of another graph")
        sources = [self._source(tensor) for tensor in node.sources]
        result = self.emitter.concat(f"{node.output}/int8", sources, int(axis), anchor.device)
        self._keep_control(node, result.name)
        self._produce(node.output, result)

    def _move(self, node: NodePlan) -> None:
        """Copies the node with another dtype; control inputs come along."""
        source = self._source(node.sources[0])
        moved = NodeDef()
        moved.CopyFrom(self.graph.node(node.name))
        moved.name = self.graph.unique_name(f"{node.output}/int8")
        key = "Tparams" if "Tparams" in moved.attr else "T"
        if node.op not in PLAIN_MOVES:
            moved.input[0] = source.name
            set_attr(moved, key, getattr(tf, source.dtype))
            self._produce(node.output, dataclasses.replace(source, name=self.graph.add(moved)))
            return
        moved.name = self.graph.unique_name(f"{node.output}/plain")
        moved.input[0] = self.emitter.as_plain(source, f"{node.output}/codes")
        set_attr(moved, key, tf.int8 if source.dtype == QINT8 else tf.uint8)
        self._produce(node.output, self.emitter.from_plain(self.graph.add(moved), source, f"{node.output}/int8"))
