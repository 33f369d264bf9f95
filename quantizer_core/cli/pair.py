"""Loads an FP32 graph and the INT8 graph made of it, for the commands that run both."""

from __future__ import annotations

import dataclasses

import tensorflow as tf
from tensorflow.core.framework import graph_pb2

from quantizer_core.cli.load import load
from quantizer_core.cli.steps import CalibrationRequest, named
from quantizer_core.config import QuantizationConfig
from quantizer_core.errors import ConfigError, GraphError, nearest
from quantizer_core.graph.files import load_graph
from quantizer_core.graph.graph import node_of
from quantizer_core.graph.summarize import find_inputs, find_outputs, input_specs
from quantizer_core.types import TensorSpec


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two graphs with the same inputs and outputs.

    Attributes:
      fp32, int8: the graphs; ``int8`` is None if only one was named.
      inputs, outputs: of both.
      config: the choices with the names of inputs and outputs.
    """

    fp32: graph_pb2.GraphDef
    int8: graph_pb2.GraphDef | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    config: QuantizationConfig


def load_pair(request: CalibrationRequest, int8_graph: str | None, config: QuantizationConfig) -> Pair:
    """Loads the graphs; inputs and outputs are those named, else those of the FP32 graph.

    Raises:
      GraphError: if a file is no graph, there is no input or output, or the graphs do not fit together.
      ConfigError: if a signature is named for a GraphDef file, or a directory for the INT8 graph.
    """
    graph = load(request.input_graph, request.signature)
    config = named(request, config, graph)
    inputs = tuple(config.inputs) or find_inputs(graph.graph_def)
    outputs = tuple(config.outputs) or find_outputs(graph.graph_def)
    if not inputs or not outputs:
        missing = "input" if not inputs else "output"
        raise GraphError(f"{request.input_graph!r} shows no {missing}: name it with --{missing}s")
    specs = input_specs(graph.graph_def, inputs)
    config = dataclasses.replace(config, inputs=tuple(inputs), outputs=tuple(outputs))
    if int8_graph is None:
        return Pair(graph.graph_def, None, specs, tuple(outputs), config)
    if tf.io.gfile.isdir(int8_graph):
        # To freeze one inlines its functions, which fused sums do not bear.
        raise ConfigError(
            f"--int8_graph {int8_graph!r} is a directory: name the graph file that it was made with, convert's "
            "--output_graph or a pipeline's quantized_graph.pb"
        )
    int8 = load_graph(int8_graph)
    known = {node.name for node in int8.node}
    for kind, names in (("input", inputs), ("output", outputs)):
        for name in names:
            if node_of(name) not in known:
                raise GraphError(
                    f"{int8_graph!r} has no node {name!r}{nearest(name, known)}, which is an {kind} of "
                    f"{request.input_graph!r}: name inputs and outputs that both graphs have"
                )
    for spec, other in zip(specs, input_specs(int8, inputs), strict=True):
        if spec.dtype != other.dtype:
            raise GraphError(f"the input {spec.name!r} is {spec.dtype} in FP32 and {other.dtype} in INT8")
    return Pair(graph.graph_def, int8, specs, tuple(outputs), config)
