"""The graph that tells its own ranges: run by any TensorFlow script, it prints what calibration has to see.

TensorFlow's own ops print to standard error, a record a watched tensor and run, so no code of this product is needed
where the script runs. A record is one write, so that records of several threads do not mix, and says where it ends::

    #quantizer range TENSOR [MIN,MAX] EXAMPLES LENGTH PAYLOAD#
    #quantizer inputs EXAMPLES LENGTH PAYLOAD#

The range is for people. The payload, of LENGTH characters, holds all that ``Observer`` would see, to the bit: arrays as
TensorProtos in URL-safe base64, joined by dots. Of a tensor these are its extremes by example, float32 [2, examples];
its histogram, as the bins that are not empty and their counts; where means are asked for also the means of the
channels, float32 [examples, channels], and their extremes, float32 [2, channels]. Of the inputs it is their values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import tensorflow.compat.v1 as tf
from tensorflow.core.framework import graph_pb2

from quantizer_core.calibration.observer import watch
from quantizer_core.errors import GraphError
from quantizer_core.graph.control_flow import sporadic_nodes
from quantizer_core.graph.graph import Graph, canonical, node_of
from quantizer_core.graph.rename import rename_nodes
from quantizer_core.preprocessing.features import NUMERIC
from quantizer_core.runtime import batch_size_for, imported, tensor_of
from quantizer_core.types import ObservedTensor, PreparedGraph

#: What each record begins with.
MARK = "#quantizer "
_SCOPE = "quantizer_calibration"


def instrument(prepared: PreparedGraph, with_inputs: bool = True) -> graph_pb2.GraphDef:
    """Returns the graph with nodes that print; between its inputs and outputs it is as it was, and so are their names.

    The records of a run are printed before any of the outputs that depend on what they are of, whichever of these the
    script fetches. What lies in a loop or a branch is printed each time it is computed, and each counts as an example.

    Args:
      prepared: the FP32 graph and what to watch in it.
      with_inputs: print what the inputs are fed with too, for weights to be chosen on; left out where an input is of a
        dtype that no example can hold.

    Raises:
      GraphError: if a watched tensor is not float32, or the graph fixes a batch over 1 without keeping examples apart.
    """
    original = Graph(prepared.graph_def)
    sporadic = sporadic_nodes(original)
    steady = [tensor for tensor in prepared.observed if node_of(tensor.name) not in sporadic]
    names = [tensor.name for tensor in steady]
    single = len(steady) < len(prepared.observed) or batch_size_for(prepared.graph_def, prepared.inputs, names, 2) == 1
    fed = {spec.name for spec in prepared.inputs}
    moved = {name: original.unique_name(f"{name}/{_SCOPE}") for name in prepared.outputs if name not in fed}
    with imported(rename_nodes(prepared.graph_def, moved)).as_default() as graph:
        prints: dict[str, tf.Operation] = {}  # node whose values are printed → what prints them
        passed: dict[str, str] = {}  # tensor in a loop or branch → what stands for it once it is printed
        with tf.name_scope(_SCOPE):
            for observed in prepared.observed:
                source = node_of(observed.name)
                tensor = _moved(observed, moved)
                if source in sporadic:
                    passed[tensor.name] = _print_sporadic(graph, observed.name, tensor)
                else:
                    prints.setdefault(observed.name, _print_steady(graph, observed.name, tensor, single))
            inputs = _print_inputs(graph, prepared) if with_inputs else None
        for name, new in moved.items():
            before = original.ancestors([name]) | {name}
            waits = [printing for tensor, printing in prints.items() if node_of(tensor) in before]
            if inputs is not None and fed <= before:
                waits.append(inputs)
            with tf.control_dependencies(waits):
                _stand_in(graph.get_operation_by_name(new).outputs, name)
    result = Graph(graph.as_graph_def())
    for tensor_name, stand_in in passed.items():
        result.redirect(
            tensor_name, stand_in, where=lambda edge: not edge.consumer.name.startswith(f"{_SCOPE}/"), control=False
        )
    return result.to_graph_def()


def _moved(observed: ObservedTensor, moved: dict[str, str]) -> ObservedTensor:
    source = node_of(observed.name)
    if source not in moved:
        return observed
    return dataclasses.replace(observed, name=moved[source] + observed.name[len(source) :])


def _stand_in(outputs: Sequence[tf.Tensor], name: str) -> None:
    """Makes the node that bears an output's name; the slash makes TensorFlow take the name as it is."""
    if len(outputs) == 1:
        tf.identity(outputs[0], name=f"{name}/")
    else:
        tf.identity_n(outputs, name=f"{name}/")


def _print_steady(graph: tf.Graph, name: str, observed: ObservedTensor, single: bool) -> tf.Operation:
    reduced = watch(graph, observed, single)
    minima, maxima = reduced.minima, reduced.maxima
    by_channel = []
    if reduced.means is not None:
        by_channel = [reduced.means, tf.stack([tf.reduce_min(minima, 0), tf.reduce_max(maxima, 0)])]
        minima, maxima = tf.reduce_min(minima, 1), tf.reduce_max(maxima, 1)
    arrays = [tf.stack([minima, maxima]), *_histogram(reduced.sample), *by_channel]
    return _print_range(name, minima, maxima, arrays)


def _print_sporadic(graph: tf.Graph, name: str, observed: ObservedTensor) -> str:
    """Prints a tensor each time that it is computed; returns the name of the node that hands it on thereafter."""
    tensor = tensor_of(graph, canonical(observed.name))
    if tensor.dtype != tf.float32:
        raise GraphError(f"tensor {name!r} is {tensor.dtype.name}; only float32 tensors can be calibrated")
    with tf.control_dependencies([tensor.op]):  # puts the constants into the tensor's loop or branch
        flat = tf.reshape(tensor, [1, -1])
        minima, maxima = tf.reduce_min(flat, 1), tf.reduce_max(flat, 1)
        arrays = [tf.stack([minima, maxima]), *_histogram(flat)]
        if observed.channel_axis is not None and tensor.shape.rank != 0:
            arrays.append(tf.reduce_mean(tf.reshape(tensor, [-1, tf.shape(tensor)[-1]]), 0, keepdims=True))
        printing = _print_range(name, minima, maxima, arrays)
    with tf.control_dependencies([printing]):
        return str(tf.identity(tensor).op.name)


def _print_inputs(graph: tf.Graph, prepared: PreparedGraph) -> tf.Operation | None:
    if any(spec.dtype != "string" and tf.as_dtype(spec.dtype) not in NUMERIC for spec in prepared.inputs):
        return None
    tensors = [tensor_of(graph, spec.name) for spec in prepared.inputs]
    batched = [tensor for tensor, spec in zip(tensors, prepared.inputs, strict=True) if spec.has_batch]
    return _print(f"{MARK}inputs", tf.shape(batched[0])[0] if batched else tf.constant(1), tensors)


def _print_range(name: str, minima: tf.Tensor, maxima: tf.Tensor, arrays: Sequence[tf.Tensor]) -> tf.Operation:
    low, high = (
        tf.strings.as_string(value, precision=9, shortest=True)
        for value in (tf.reduce_min(minima), tf.reduce_max(maxima))
    )
    heading = tf.strings.join([f"{MARK}range {name} [", low, ",", high, "]"])
    return _print(heading, tf.size(minima), arrays)


def _print(heading: tf.Tensor | str, examples: tf.Tensor, arrays: Sequence[tf.Tensor]) -> tf.Operation:
    parts = [tf.io.encode_base64(tf.io.serialize_tensor(array)) for array in arrays]
    payload = tf.strings.join(parts, ".")
    counts = [tf.strings.as_string(count) for count in (examples, tf.strings.length(payload))]
    record = tf.strings.join([heading, " ", counts[0], " ", counts[1], " ", payload, "#"])
    return tf.raw_ops.PrintV2(input=record, output_stream="stderr", end="\n")


def _histogram(values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the bins of the values that are not empty, uint16, in no order, and their counts, int32."""
    bins = tf.bitwise.right_shift(tf.bitcast(tf.reshape(values, [-1]), tf.uint32), tf.constant(16, tf.uint32))
    keys, _, counts = tf.unique_with_counts(tf.cast(bins, tf.int32))
    return tf.cast(keys, tf.uint16), counts
