"""How many examples go into a batch within a memory limit, told from a graph's static shapes.

The answer depends on the graph and the config alone, so that every worker makes batches of one size.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import graph_pb2

from quantizer_core.config import PreprocessConfig, QuantizationConfig
from quantizer_core.errors import GraphError
from quantizer_core.graph.graph import Graph
from quantizer_core.graph.infer import tensor_info
from quantizer_core.graph.names import canonical, node_of
from quantizer_core.preprocessing.image import image_layout
from quantizer_core.runtime import PROBE_BATCH, batch_limit
from quantizer_core.types import PreparedGraph, TensorSpec

# Ops whose result is their first input's memory.
_VIEWS = frozenset({"Identity", "Reshape", "Squeeze", "ExpandDims", "StopGradient", "Snapshot", "PreventGradient"})
#: Of fewer, weights could not be chosen well.
FEWEST_EXAMPLES = 4
_UNSIZED = frozenset({"string", "resource", "variant"})


def batch_size_within(
    graph_def: graph_pb2.GraphDef,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[str],
    config: QuantizationConfig,
    held: int = 0,
) -> int:
    """Returns ``config.batch_size``, or the largest batch of less memory than ``config.max_batch_bytes``; 1 at least.

    A batch that the graph fixes is not for us to choose: then it is ``config.batch_size``. Images that keep their size
    run one by one.

    Args:
      graph_def: the graph.
      inputs: its inputs.
      outputs: what is fetched: nothing that they do not need is counted.
      config: the wanted batch size, the limit and the size of images.
      held: bytes an example that are kept besides until a step ends.
    """
    if config.batch_size == 1 or batch_limit(inputs) is not None:
        return config.batch_size
    if config.preprocess.kind == "image" and config.preprocess.resize == "none":
        return 1  # images of any size do not stack
    needed = held + bytes_per_example(graph_def, inputs, outputs, config.preprocess)
    return max(1, min(config.batch_size, config.max_batch_bytes // max(1, needed)))


def examples_within(prepared: PreparedGraph, examples: Sequence[Mapping[str, np.ndarray]], limit: int) -> int:
    """Returns how many examples can be alive at a time within about ``limit`` bytes; ``FEWEST_EXAMPLES`` at least.

    Args:
      prepared: the graph that they are put through, node after node.
      examples: input name → array without batch dimension; the first tells the sizes.
      limit: bytes.
    """
    if not examples:
        return 0
    shapes = {name: np.shape(value) for name, value in examples[0].items()}
    inputs = [
        dataclasses.replace(spec, shape=(-1, *shapes[spec.name])) if spec.has_batch else spec
        for spec in prepared.inputs
    ]
    needed = bytes_per_example(prepared.graph_def, inputs, [*prepared.outputs])
    return max(min(FEWEST_EXAMPLES, len(examples)), min(len(examples), limit // max(1, needed)))


def bytes_per_example(
    graph_def: graph_pb2.GraphDef,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[str],
    preprocess: PreprocessConfig = PreprocessConfig(),
) -> int:
    """Estimates how much memory a step takes for each example of its batch, in bytes.

    It is the most that is alive at a time if one node runs after the other in the graph's order, each result being
    freed behind its last reader, and the decoded examples besides. What kernels take for themselves is not in it, nor
    a tensor whose size static shapes do not tell.
    """
    graph = Graph(graph_def)
    sizes = _sizes(graph_def, inputs, preprocess)
    needed = graph.ancestors(outputs, [spec.name for spec in inputs])
    order = [node for node in graph.topological() or () if node.name in needed]
    ports: dict[str, list[str]] = {}
    for name in sizes:
        ports.setdefault(node_of(name), []).append(name)
    owners: dict[str, str] = {}  # a view → the tensor whose memory it is
    born: dict[str, int] = {}
    last: dict[str, int] = {}
    for position, node in enumerate(order):
        read = [canonical(tensor) for tensor in graph.data_inputs(node)]
        for name in read:
            last[owners.get(name, name)] = position
        for name in ports.get(node.name, ()):
            if node.op in _VIEWS and read and read[0] in sizes:
                owners[name] = owners.get(read[0], read[0])
            else:
                born[name] = last[name] = position
    for name in map(canonical, outputs):
        last[owners.get(name, name)] = len(order)
    change = [0] * (len(order) + 2)
    for name, position in born.items():
        change[position] += sizes[name]
        change[last[name] + 1] -= sizes[name]
    decoded = sum(sizes.get(spec.name, 0) for spec in inputs)
    return decoded + max(itertools.accumulate(change))


def _sizes(graph_def: graph_pb2.GraphDef, inputs: Sequence[TensorSpec], preprocess: PreprocessConfig) -> dict[str, int]:
    """Returns the bytes an example of each tensor that holds the batch and has a known size."""
    feeds = {spec.name: _fed_shape(spec, inputs, preprocess) for spec in inputs}
    try:
        infos = tensor_info(graph_def, feeds)
    except GraphError:  # a constant shape contradicts the batch: such a graph is run with batch 1
        return {}
    sizes = {}
    for name, (dtype, shape) in infos.items():
        if shape is None or -1 in shape or dtype in _UNSIZED:
            continue
        values, rest = divmod(math.prod(shape), PROBE_BATCH)
        if values and not rest:
            sizes[name] = values * tf.as_dtype(dtype).size
    return sizes


def _fed_shape(spec: TensorSpec, inputs: Sequence[TensorSpec], preprocess: PreprocessConfig) -> tuple[int, ...] | None:
    """Returns the shape of a batch of examples; the config tells the size of images where the graph leaves it open."""
    if spec.shape is None or not spec.has_batch:
        return spec.shape
    shape = spec.shape[1:]
    if preprocess.kind == "image" and len(shape) == 3:
        layout = image_layout(preprocess, inputs)
        if layout.size is None:
            return spec.shape
        shape = (layout.channels, *layout.size) if layout.channels_first else (*layout.size, layout.channels)
    return (PROBE_BATCH, *shape)
