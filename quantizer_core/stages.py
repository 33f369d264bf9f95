"""The graphs between the FP32 and the INT8 one, kept for whoever looks for the step at which accuracy is lost.

All of them take the same inputs, give the same outputs and run in any TensorFlow: the optimised FP32 graph; the one
that prints its ranges; and the FP32 graph with every tensor that INT8 kernels hand on rounded to 8 bits, first in the
range that each run finds (dynamic), then in the calibrated one (frozen). Weights are FP32 in them, so what a graph
loses against the one before it is due to the rounding of activations, their fixed ranges, and in the end the weights.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import graph_pb2

from quantizer_core.calibration.instrument import instrument
from quantizer_core.graph.files import save_graph
from quantizer_core.graph.graph import Graph
from quantizer_core.graph.names import as_node, path_beside
from quantizer_core.lowering.kernels import Emitter
from quantizer_core.quantize import Conversion
from quantizer_core.types import PreparedGraph

OPTIMIZED, INSTRUMENTED, DYNAMIC, FROZEN = STAGES = ("fp32_optimized", "instrumented", "dynamic_range", "frozen_range")


def stage_paths(output_graph: str) -> dict[str, str]:
    """Returns for each stage the path of its graph, beside the INT8 one."""
    return {stage: path_beside(output_graph, stage) for stage in STAGES}


def save_stages_before(prepared: PreparedGraph, output_graph: str, with_inputs: bool) -> None:
    """Writes the stages that are there before calibration; graphs of these names are replaced.

    Args:
      prepared: the graph to calibrate.
      output_graph: path of the INT8 graph to come.
      with_inputs: whether the graph that prints prints its inputs too (see ``instrument``).

    Raises:
      GraphError: if one cannot be written.
    """
    paths = stage_paths(output_graph)
    save_graph(prepared.graph_def, paths[OPTIMIZED], overwrite=True)
    save_graph(instrument(prepared, with_inputs), paths[INSTRUMENTED], overwrite=True)


def save_stages_after(conversion: Conversion, output_graph: str) -> None:
    """Writes the stages that the plan makes known; graphs of these names are replaced.

    Raises:
      GraphError: if one cannot be written.
    """
    paths = stage_paths(output_graph)
    save_graph(dynamic_range_graph(conversion), paths[DYNAMIC], overwrite=True)
    save_graph(frozen_range_graph(conversion), paths[FROZEN], overwrite=True)


def dynamic_range_graph(conversion: Conversion) -> graph_pb2.GraphDef:
    """Returns the FP32 graph with each integer tensor rounded to 8 bits in the range that it has in the run."""
    graph = Graph(conversion.prepared.graph_def)
    emitter = Emitter(graph)
    for name, planned in conversion.plan.tensors.items():
        unused = emitter.range_const(0.0, name)  # the bounds, which the op finds itself
        rounded = graph.add_node(
            "QuantizeAndDequantizeV2", f"{as_node(name)}/rounded", [name, unused, unused], T=tf.float32,
            num_bits=8, range_given=False, signed_input=planned.dtype == "qint8" or bool(np.any(planned.offsets)),
            narrow_range=True, axis=-1, round_mode="HALF_TO_EVEN",
        )  # fmt: skip
        graph.redirect(name, rounded, control=False)
    return graph.to_graph_def()


def frozen_range_graph(conversion: Conversion) -> graph_pb2.GraphDef:
    """Returns the FP32 graph with each integer tensor rounded to the codes of its plan."""
    graph = Graph(conversion.prepared.graph_def)
    emitter = Emitter(graph)
    for name, planned in conversion.plan.tensors.items():
        value, reader = emitter.round_as(name, f"{as_node(name)}/rounded", planned)
        graph.redirect(name, value, where=lambda edge, own=reader: edge.consumer.name != own, control=False)  # type: ignore[misc]
    return graph.to_graph_def()
