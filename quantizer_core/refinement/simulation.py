"""Runs a planned graph in float32 with every planned tensor rounded, one kernel after the other.

What a kernel makes is kept until the last kernel that needs it has run, so each step costs one kernel, not the whole
graph before it. No INT8 kernel runs here: their results are proved equal to what this computes, half a code apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow.compat.v1 as tf

from quantizer_core.errors import GraphError
from quantizer_core.graph.control_flow import sporadic_nodes
from quantizer_core.graph.graph import Graph, node_of
from quantizer_core.graph.names import with_port
from quantizer_core.lowering.parameters import WEIGHTED_FORMS, filter_of
from quantizer_core.lowering.simulate import gives_codes, round_tensors, set_parameters
from quantizer_core.planning.plan import NodePlan, QuantizationPlan
from quantizer_core.refinement.moments import column_sums
from quantizer_core.runtime import batch_size_for, compiled, imported, in_whole_batches, stack_batch
from quantizer_core.types import PreparedGraph

#: Examples a step.
BATCH = 8


class Simulation:
    """A planned graph with fed filters and biases.

    Args:
      prepared: the FP32 graph.
      plan: its plan.
      examples: input name → array without batch dimension; all are run at every step, but for those beyond the last
        whole batch: kernels round otherwise, and some not the same each time, for a batch of another size. Where the
        graph fixes a larger batch they are repeated.

    Attributes:
      steps: the kernels with weights, in the order in which they are run.
      feeds: the examples in batches: input name → array.
    """

    def __init__(self, prepared: PreparedGraph, plan: QuantizationPlan, examples: Sequence[Mapping[str, np.ndarray]]):
        sporadic = prepared.graph.remembered(sporadic_nodes)  # cannot be fetched
        self.steps = [node for node in plan.nodes if node.form in WEIGHTED_FORMS and node.name not in sporadic]
        wanted = [node.output for node in self.steps]
        size = batch_size_for(prepared.graph_def, prepared.inputs, wanted, BATCH, examples)
        examples = in_whole_batches(examples, prepared.inputs)
        examples = examples[: max(len(examples) // size * size, min(size, len(examples)))]
        chunks = [examples[start : start + size] for start in range(0, len(examples), size)]
        self.feeds = [stack_batch(chunk, prepared.inputs, len(chunk)) for chunk in chunks]
        self._build(prepared, plan)
        self._kept: list[dict[str, np.ndarray]] = [{} for _ in chunks]

    def _build(self, prepared: PreparedGraph, plan: QuantizationPlan) -> None:
        graph = Graph(prepared.graph_def)
        self._biases: dict[str, str] = {}  # kernel → the placeholder of its bias
        biased: dict[str, str] = {}
        for node in self.steps:
            self._biases[node.name] = self._feed_parameters(graph, node, biased)
        # Tensor of the FP32 graph → the tensor here that holds its rounded value.
        self._value = round_tensors(graph, plan, biased)
        made = {**biased, **{node.output: self._value[node.output] for node in self.steps if gives_codes(node)}}
        self._cuts = {node.name: made.get(node.output, node.output) for node in self.steps}
        self._last_use(graph)
        # What TensorFlow does anew for every step takes time for every node: those behind the kernels are left out.
        inputs = [spec.name for spec in prepared.inputs]  # fed at every step, whether a kernel needs them or not
        graph.prune([*self._cuts.values(), *self._value.values(), *(node.name for node in self.steps), *inputs])
        # Every step feeds and fetches other tensors: optimising the graph anew each time costs more than it gains.
        config = tf.ConfigProto()
        config.graph_options.rewrite_options.disable_meta_optimizer = True
        self._session = tf.Session(graph=imported(graph.to_graph_def()), config=config)

    def _feed_parameters(self, graph: Graph, node: NodePlan, biased: dict[str, str]) -> str:
        """Makes a node read placeholders for its filter and bias; returns the name of the bias's."""
        shape = filter_of(graph, node).shape
        names = []
        for kind, dims in (("filter", shape), ("bias", (shape[2] if node.op.startswith("Depthwise") else shape[-1],))):
            name = f"{node.name}/refined_{kind}"
            names.append(graph.add_node("Placeholder", name, dtype=tf.float32, shape=tf.TensorShape(dims)))
        set_parameters(graph, node, names[0], names[1], biased)
        return names[1]

    def _last_use(self, graph: Graph) -> None:
        """Finds for each kept tensor the last step that needs it."""
        kept = {node_of(cut): name for name, cut in self._cuts.items()}
        self._needs: dict[str, set[str]] = {}
        self._last: dict[str, int] = {}
        for index, node in enumerate(self.steps):
            own = node_of(self._cuts[node.name])
            found: set[str] = set()
            seen = {own}
            stack = [own]
            while stack:
                for tensor in graph.node(stack.pop()).input:
                    name = node_of(tensor)
                    if name in kept:
                        found.add(kept[name])
                    elif name not in seen:
                        seen.add(name)
                        stack.append(name)
            self._needs[node.name] = found
            for name in found:
                self._last[name] = index

    # --- running --------------------------------------------------------------------------------------------------

    def source(self, node: NodePlan) -> list[np.ndarray]:
        """Returns the rounded input of a kernel, an array a batch."""
        tensor = node.sources[0]
        return self._run(node, self._value.get(tensor, tensor))

    def compute(self, node: NodePlan, filters: np.ndarray) -> np.ndarray:
        """Computes a kernel's convolution or matrix product; returns its mean in each output channel, no bias added."""
        operation = self._session.graph.get_operation_by_name(node.name)
        inputs = self._run(node, operation.inputs[0].name)
        self._products = _computed(operation.node_def, inputs, filters)
        return mean_over_positions(self._products)

    def summand_means(self, node: NodePlan) -> np.ndarray:
        """Returns the mean of a fused sum's rounded summand in each channel."""
        return mean_over_positions(self._run(node, self._value.get(node.summand, node.summand)))

    def finish(self, node: NodePlan, bias: np.ndarray) -> None:
        """Makes the rounded result of the kernel computed last, and keeps it for the kernels that follow."""
        results = self._run(node, self._cuts[node.name], {self._biases[node.name]: bias}, self._products)
        index = self.steps.index(node)
        for kept, result in zip(self._kept, results, strict=True):
            kept[node.name] = result
            for name in [name for name in kept if self._last.get(name, -1) <= index and name != node.name]:
                del kept[name]

    def _run(
        self,
        node: NodePlan,
        tensor: str,
        more: Mapping[str, np.ndarray] | None = None,
        products: Sequence[np.ndarray] | None = None,
    ) -> list[np.ndarray]:
        results = []
        fetch, step = with_port(tensor), None
        for index, (feeds, kept) in enumerate(zip(self.feeds, self._kept, strict=True)):
            fed = {**feeds, **(more or {}), **{self._cuts[name]: kept[name] for name in self._needs[node.name]}}
            if products is not None:
                fed[node.name] = products[index]
            fed = {with_port(name): value for name, value in fed.items()}
            if fetch in fed:
                results.append(fed[fetch])
                continue
            step = step or compiled(self._session, list(fed), [fetch])
            try:
                results += step(*fed.values())
            except tf.errors.InvalidArgumentError as error:  # most likely it gets no rows, which few kernels bear
                raise GraphError(
                    f"node {node.name!r} cannot run in INT8 on every example: {error.message.splitlines()[0]}; keep it "
                    "FP32 by excluded_nodes"
                ) from None
        return results

    def close(self) -> None:
        """Frees the session."""
        self._session.close()


def _computed(node: tf.NodeDef, inputs: Sequence[np.ndarray], filters: np.ndarray) -> list[np.ndarray]:
    """Runs a convolution or matrix product on arrays with a batch dimension, its filters being a constant.

    Were the filters fed, oneDNN might choose another kernel for a batch of 1; and TensorFlow, whose store of kernels of
    each thread does not tell the two apart, would go on with it in every FP32 graph of this process that has a
    convolution of the same shapes, or not, as threads happen to be.
    """
    with tf.Graph().as_default() as graph:
        copy = tf.NodeDef(name="node", op=node.op, input=["fed", "filters"], attr=node.attr)
        stand_ins = [tf.NodeDef(name=name, op="Placeholder", attr={"dtype": node.attr["T"]}) for name in copy.input]
        fed = tf.placeholder(tf.float32, [*[None] * (inputs[0].ndim - 1), inputs[0].shape[-1]])
        result = tf.import_graph_def(
            tf.GraphDef(node=[*stand_ins, copy]),
            input_map={"fed": fed, "filters": tf.constant(filters)},
            return_elements=["node:0"],
        )[0]
    with tf.Session(graph=graph) as session:
        step = compiled(session, [fed.name], [result.name])
        return [step(each)[0] for each in inputs]


def mean_over_positions(batches: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the mean over all axes but the last, float64 [channels]; 0 of nothing."""
    return np.asarray(sum(map(column_sums, batches)) / max(sum(batch[..., 0].size for batch in batches), 1))
