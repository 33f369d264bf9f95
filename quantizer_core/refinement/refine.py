"""Goes through the kernels in order and chooses each one's weights and bias on what the kernels before it really make.

For each kernel, with the rounded input that the kernels before it give on a sample of examples:

1. its weights are rounded by second order (``rounding.py``) with the covariance of that input;
2. its bias is set so that in each output channel the mean before the Relu is that of the FP32 graph (sequential,
   empirical bias correction: Nagel et al., ICCV 2019, appendix D; Finkelstein et al., "Fighting Quantization Bias with
   Bias", 2019).

The result depends on the sample alone. Time and memory grow with its size, not with that of the calibration data.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow.compat.v1 as tf

from quantizer_core.config import QuantizationConfig
from quantizer_core.graph.graph import NodeDef
from quantizer_core.lowering.parameters import LayerParameters, bias_of, carried_filter, even_codes, filter_of
from quantizer_core.lowering.weights import QuantizedWeights, grid
from quantizer_core.planning.plan import NodePlan, QuantizationPlan
from quantizer_core.refinement.moments import DEPTHWISE_POSITIONS, POSITIONS, Covariance, patches
from quantizer_core.refinement.rounding import round_channels_second_order, round_second_order
from quantizer_core.refinement.simulation import Simulation
from quantizer_core.runtime import GraphSession, imported
from quantizer_core.types import PreparedGraph


def refine(
    prepared: PreparedGraph,
    plan: QuantizationPlan,
    examples: Sequence[Mapping[str, np.ndarray]],
    config: QuantizationConfig,
    on_kernel: Callable[[int, int], None] | None = None,
) -> dict[str, LayerParameters]:
    """Returns weights and bias of every kernel of a plan, by node name, but for those in loops and branches.

    Kernels of which the sample shows nothing, as what they read is empty in all its examples, are left out too.

    Args:
      prepared: the FP32 graph.
      plan: its plan.
      examples: the sample: input name → array without batch dimension; not empty.
      config: ``rounding`` and ``bias_correction`` say what is chosen on the sample.
      on_kernel: called with the number of kernels done, and of all.

    Raises:
      GraphError: naming a node that cannot be computed on an example.
    """
    with contextlib.closing(Simulation(prepared, plan, examples)) as simulation:
        return _refined(prepared, plan, simulation, config, on_kernel) if simulation.steps else {}


def _refined(
    prepared: PreparedGraph,
    plan: QuantizationPlan,
    simulation: Simulation,
    config: QuantizationConfig,
    on_kernel: Callable[[int, int], None] | None,
) -> dict[str, LayerParameters]:
    graph = prepared.graph
    wanted = _fp32_means(prepared, simulation) if config.bias_correction else {}
    result = {}
    for done, node in enumerate(simulation.steps, 1):
        scales = plan.tensors[node.sources[0]].scales
        filters = carried_filter(filter_of(graph, node), scales)
        sources = simulation.source(node)
        if any(values.size for values in sources):
            weights = _weights(graph.node(node.name), node, filters, even_codes(node, plan), sources, scales, config)
            means = simulation.compute(node, carried_filter(weights.dequantized(), 1 / scales))
            bias = bias_of(graph, node, filters)
            if config.bias_correction:
                bias = wanted[node.name] - means
                if node.summand:
                    bias -= simulation.summand_means(node)
            result[node.name] = LayerParameters(weights, bias.astype(np.float32))
        else:  # a later stage that none of the sample's examples reaches
            simulation.compute(node, filters)
            bias = bias_of(graph, node, filters)
        simulation.finish(node, bias.astype(np.float32))
        if on_kernel is not None:
            on_kernel(done, len(simulation.steps))
    return result


def _weights(
    anchor: NodeDef,
    node: NodePlan,
    filters: np.ndarray,
    even: bool,
    sources: Sequence[np.ndarray],
    scales: np.ndarray,
    config: QuantizationConfig,
) -> QuantizedWeights:
    """Returns a kernel's rounded weights; ``filters`` carry the ``scales`` of the channels that they read."""
    depthwise = node.op == "DepthwiseConv2dNative"
    codes = grid(
        filters, depthwise=depthwise, per_channel=node.per_channel, bits=node.weight_bits, even=even,
        clipping=config.weight_clipping,
    )  # fmt: skip
    if config.rounding == "nearest":
        return codes.nearest(filters)
    covariance = Covariance(depthwise)
    wanted = DEPTHWISE_POSITIONS if depthwise else POSITIONS
    positions = max(wanted // len(sources), 1)
    size = (filters.shape[0], filters.shape[1])
    waiting: list[np.ndarray] = []
    for values in sources:
        if node.op == "MatMul":
            rows = values.reshape(-1, 1, values.shape[-1])
            waiting.append(rows[:: max(-(-len(rows) // positions), 1)])
        else:
            waiting.append(_patches(anchor, node, values, size, positions))
        # A product of many rows costs little more than one of few.
        if values is sources[-1] or sum(map(len, waiting)) >= wanted // 4:
            rows = np.concatenate(waiting)
            rows *= scales.astype(np.float32)
            covariance.add(rows)
            waiting = []
    moments = covariance.result()
    if depthwise:
        taps = filters[..., 0].reshape(-1, filters.shape[2]).T
        rounded = round_channels_second_order(taps, moments[0], codes.step, codes.top).T
    else:
        rows = filters.reshape(-1, filters.shape[-1])
        channels = filters.shape[-2] if codes.paired else 0
        rounded = round_second_order(rows, moments, codes.step, codes.top, channels)
    return codes.pack(rounded.reshape(filters.shape))


def _patches(anchor: NodeDef, node: NodePlan, values: np.ndarray, size: tuple[int, int], positions: int) -> np.ndarray:
    strides, dilations = anchor.attr["strides"].list.i, anchor.attr["dilations"].list.i or (1, 1, 1, 1)
    padding = "EXPLICIT" if node.padding else anchor.attr["padding"].s.decode()
    explicit = node.padding or anchor.attr["explicit_paddings"].list.i
    return patches(values, size, strides, dilations, padding, explicit, positions)


def _fp32_means(prepared: PreparedGraph, simulation: Simulation) -> dict[str, np.ndarray]:
    """Returns for each kernel the mean in each output channel of what its Relu reads in the FP32 graph."""
    steps = simulation.steps
    before = {node.name: _before_relu(prepared, node) for node in steps}
    inputs = [spec.name for spec in prepared.inputs]
    graph = imported(prepared.graph.part([*before.values(), *inputs]))
    with graph.as_default():
        sums = []
        for node in steps:
            tensor = graph.get_tensor_by_name(f"{before[node.name]}:0")
            channels = tf.shape(tensor)[-1]
            sums.append(tf.reduce_sum(tf.reshape(tensor, [-1, channels]), 0).name)
            sums.append((tf.size(tensor) // channels).name)
    totals: list[np.ndarray] = []
    # Of few steps the optimiser would take longer than all of them: the graph has been rewritten already.
    with GraphSession(graph, prepared.inputs, sums, optimize=False) as session:
        for feeds in simulation.feeds:
            found = [np.asarray(value, np.float64) for value in session.run(feeds)]
            totals = [a + b for a, b in zip(totals, found, strict=True)] if totals else found
    return {node.name: totals[2 * i] / np.maximum(totals[2 * i + 1], 1) for i, node in enumerate(steps)}


def _before_relu(prepared: PreparedGraph, node: NodePlan) -> str:
    passed = ("Relu", "Relu6", "Pad", "PadV2")
    return [node.name, *(name for name in node.fused if prepared.graph.node(name).op not in passed)][-1]
