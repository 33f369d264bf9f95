"""The weights and bias of each INT8 kernel: plain data that lowering writes into the graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from quantizer_core.calibration.statistics import CalibrationStatistics
from quantizer_core.errors import GraphError
from quantizer_core.graph.graph import Graph
from quantizer_core.lowering.bias import mean_rounding_error
from quantizer_core.lowering.weights import QuantizedWeights, quantize_weights
from quantizer_core.planning.plan import NodePlan, QuantizationPlan
from quantizer_core.runtime import processors

#: Forms of a node plan that have weights.
WEIGHTED_FORMS = frozenset({"convolution", "matmul", "matmul_as_convolution"})


@dataclasses.dataclass(frozen=True)
class LayerParameters:
    """Weights and bias of one kernel.

    Attributes:
      weights: the rounded filter: [h, w, in, out], [h, w, in, 1] (depthwise) or [in, out] (matrix multiplication);
        it reads the source as it is carried (the FP32 filter's rows are divided by the scale of their channel).
      bias: float32 [out], for a source and a result without offsets.
    """

    weights: QuantizedWeights
    bias: np.ndarray


def filter_of(graph: Graph, node: NodePlan) -> np.ndarray:
    """Returns the FP32 filter of a planned node, a transposed matrix put right.

    Raises:
      GraphError: if it is not a constant: the plan is of another graph.
    """
    anchor = graph.node(node.name)
    weights = graph.constant(anchor.input[1])
    if weights is None:
        raise GraphError(f"the weights of node {node.name!r} are not a constant; the plan is of another graph")
    return weights.T if anchor.op == "MatMul" and anchor.attr["transpose_b"].b else weights


def bias_of(graph: Graph, node: NodePlan, filters: np.ndarray) -> np.ndarray:
    """Returns the FP32 bias of a planned node, float64 [out]; zeros if it has none."""
    bias = np.zeros(filters.shape[2] if node.op == "DepthwiseConv2dNative" else filters.shape[-1], np.float64)
    for name in node.fused:
        if graph.node(name).op == "BiasAdd":
            bias += np.asarray(graph.constant(graph.node(name).input[1]))
    return bias


def even_codes(node: NodePlan, plan: QuantizationPlan) -> bool:
    """Tells whether a kernel's codes have to be even (see ``quantize_weights``).

    Kernels for matrix products with float results read signed codes shifted up to quint8, so nothing is halved there;
    codes twice as large would overflow 16-bit sums.
    """
    return node.weight_bits == 7 and node.form != "matmul" and plan.tensors[node.sources[0]].dtype == "qint8"


def carried_filter(filters: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Returns the float32 filter that makes of (value · scale) what ``filters`` makes of the value.

    Its second to last axis holds the channels read.
    """
    if np.all(scales == 1):
        return np.asarray(filters, np.float32)
    return np.asarray(filters / scales[:, None], np.float32)


def nominal_parameters(
    graph: Graph,
    plan: QuantizationPlan,
    statistics: CalibrationStatistics | None,
    clipping: str = "none",
    known: Collection[str] = (),
) -> dict[str, LayerParameters]:
    """Returns for each kernel, by node name, weights rounded to nearest and the bias.

    Args:
      graph: the FP32 graph.
      plan: its plan.
      statistics: if given, each bias is shifted by the mean error that rounding the weights makes on the channel means
        seen in calibration (Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction",
        ICCV 2019, section 4.2); without, biases stay as they are.
      clipping: of the weights' range: see ``quantizer_core.lowering.weights.grid``.
      known: kernels to leave out, whose parameters have been chosen otherwise.
    """

    def parameters(node: NodePlan) -> LayerParameters:
        scales = plan.tensors[node.sources[0]].scales
        filters = carried_filter(filter_of(graph, node), scales)
        depthwise = node.op == "DepthwiseConv2dNative"
        weights = quantize_weights(
            filters, depthwise=depthwise, per_channel=node.per_channel, bits=node.weight_bits,
            even=even_codes(node, plan), clipping=clipping,
        )  # fmt: skip
        bias = bias_of(graph, node, filters)
        found = statistics.tensors.get(node.sources[0]) if statistics is not None else None
        means = found.channel_means() if found is not None else None
        if means is not None:
            bias -= mean_rounding_error(filters, weights, means * scales, depthwise)
        return LayerParameters(weights, bias.astype(np.float32))

    wanted = [node for node in plan.nodes if node.form in WEIGHTED_FORMS and node.name not in known]
    with ThreadPoolExecutor(processors()) as threads:  # NumPy works on large arrays without holding Python's lock
        return dict(zip([node.name for node in wanted], threads.map(parameters, wanted), strict=True))
