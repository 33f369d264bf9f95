"""Makes a frozen graph ready for calibration: checks names, rewrites FP32 to FP32, chooses what to watch."""

from __future__ import annotations

import dataclasses
import json

import tensorflow as tf
from tensorflow.core.framework import function_pb2, graph_pb2

from quantizer_core.config import QuantizationConfig
from quantizer_core.errors import ConfigError, GraphError, UnknownNodeError, nearest
from quantizer_core.graph.attrs import add_default_attrs
from quantizer_core.graph.files import check_frozen, load_graph, save_graph
from quantizer_core.graph.graph import Graph
from quantizer_core.graph.summarize import find_inputs, find_outputs, input_specs
from quantizer_core.planning.make import observed_tensors
from quantizer_core.rewrites import apply_rewrites
from quantizer_core.types import ObservedTensor, PreparedGraph, RewriteReport, TensorSpec
from quantizer_core.whole_file import write_text

GRAPH_FILE, META_FILE = "graph.pb", "prepared.json"


def prepare(graph_def: graph_pb2.GraphDef, config: QuantizationConfig) -> PreparedGraph:
    """Returns the FP32 graph to calibrate and convert; the argument is not changed.

    Its nodes spell out every attribute: TensorFlow would add the defaults in place when it first runs the graph, and a
    conversion would depend on whether it has.

    Args:
      graph_def: a frozen graph.
      config: its inputs and outputs (detected where empty) and exclusions.

    Raises:
      GraphError: if the graph is not frozen, or no input or output can be found.
      UnknownNodeError: if an input, output or excluded node is not in the graph; the nearest name is given.
      ConfigError: if an excluded op is no op of this TensorFlow.
    """
    names = {node.name for node in graph_def.node}
    for option in ("inputs", "outputs", "excluded_nodes"):
        for name in getattr(config, option):
            if name not in names:
                raise UnknownNodeError(f"{option}: the graph holds no node {name!r}{nearest(name, names)}")
    _check_ops(graph_def, config.excluded_ops)
    inputs = config.inputs or find_inputs(graph_def)
    outputs = config.outputs or find_outputs(graph_def)
    if not inputs:
        raise GraphError("the graph has no Placeholder; name its inputs")
    if not outputs:
        raise GraphError("the graph has no node that no one reads; name its outputs")
    check_frozen(graph_def, inputs, outputs)
    specs = input_specs(graph_def, inputs)
    rewritten, reports = apply_rewrites(graph_def, inputs, outputs, config.excluded_ops, config.excluded_nodes)
    for node in rewritten.node:
        add_default_attrs(node)
    observed = observed_tensors(Graph(rewritten, copy=False), tuple(outputs), config)
    if not observed:
        calls = [function.signature.name for function in rewritten.library.function if _has_kernels(function)]
        raise GraphError(
            f"nothing between {', '.join(inputs)} and {', '.join(outputs)} can run in INT8: "
            "there is no Conv2D, DepthwiseConv2dNative or MatMul with constant weights that is not excluded"
            + (f" but in functions ({calls[0]}), which are not converted: inline them on freezing" if calls else "")
        )
    return PreparedGraph(rewritten, specs, tuple(outputs), observed, reports)


def _has_kernels(function: function_pb2.FunctionDef) -> bool:
    return any(node.op in ("Conv2D", "DepthwiseConv2dNative", "MatMul") for node in function.node_def)


def _check_ops(graph_def: graph_pb2.GraphDef, ops: tuple[str, ...]) -> None:
    from tensorflow.python.framework import op_def_registry

    present = {node.op for node in graph_def.node}
    for op in ops:
        if op not in present and op_def_registry.get(op) is None:
            raise ConfigError(f"excluded_ops: TensorFlow knows no op {op!r}{nearest(op, present)}")


def save_prepared(prepared: PreparedGraph, directory: str) -> None:
    """Writes a prepared graph into a directory, made if need be; files of an earlier one are replaced."""
    tf.io.gfile.makedirs(directory)
    save_graph(prepared.graph_def, f"{directory}/{GRAPH_FILE}", overwrite=True)
    meta = {
        "inputs": [dataclasses.asdict(spec) for spec in prepared.inputs],
        "outputs": prepared.outputs,
        "observed": [dataclasses.asdict(tensor) for tensor in prepared.observed],
        "rewrites": [dataclasses.asdict(report) for report in prepared.rewrites],
    }
    write_text(f"{directory}/{META_FILE}", json.dumps(meta, indent=1, sort_keys=True))


def load_prepared(directory: str) -> PreparedGraph:
    """Reads what ``save_prepared`` wrote.

    Raises:
      GraphError: if the directory holds no prepared graph.
    """
    graph_def = load_graph(f"{directory}/{GRAPH_FILE}", binary=True)
    try:
        with tf.io.gfile.GFile(f"{directory}/{META_FILE}") as file:
            meta = json.loads(file.read())
        specs = [TensorSpec.from_dict(values) for values in meta["inputs"]]
        return PreparedGraph(
            graph_def,
            tuple(specs),
            tuple(meta["outputs"]),
            tuple(ObservedTensor(**tensor) for tensor in meta["observed"]),
            tuple(RewriteReport(report["rule"], tuple(report["nodes"])) for report in meta["rewrites"]),
        )
    except (tf.errors.OpError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise GraphError(f"{directory} holds no prepared graph: {error}") from None
