"""Small FP32 networks with seeded random weights, and the way from one to its INT8 graph without the rewrites."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow.compat.v1 as tf
from tensorflow.core.framework import graph_pb2

from quantizer_core.calibration.observer import Observer
from quantizer_core.calibration.statistics import CalibrationStatistics
from quantizer_core.config import QuantizationConfig
from quantizer_core.graph.graph import Graph
from quantizer_core.graph.summarize import input_specs
from quantizer_core.planning import observed_tensors
from quantizer_core.quantize import Conversion, convert
from quantizer_core.runtime import GraphSession
from quantizer_core.types import PreparedGraph


@contextlib.contextmanager
def control_flow_v1() -> Iterator[None]:
    """Lets loops and branches be the nodes of TensorFlow 1 meanwhile."""
    tf.disable_control_flow_v2()
    try:
        yield
    finally:
        tf.enable_control_flow_v2()


class Net:
    """Layers over tf.compat.v1 with weights from one seeded generator; to be used inside ``build``."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)

    def weights(self, *shape: int) -> tf.Tensor:
        fan_in = int(np.prod(shape[:-1])) if len(shape) > 1 else 4
        return tf.constant((self.rng.normal(size=shape) / np.sqrt(fan_in)).astype(np.float32))

    def conv(self, x: tf.Tensor, channels: int, size: int = 3, stride: int = 1, *, padding: str = "SAME",
             bias: bool = True, relu: str = "", name: str | None = None) -> tf.Tensor:  # fmt: skip
        y = tf.nn.conv2d(x, self.weights(size, size, int(x.shape[3]), channels), stride, padding, name=name)
        return self._finish(y, channels, bias, relu)

    def depthwise(self, x: tf.Tensor, stride: int = 1, *, bias: bool = True, relu: str = "",
                  name: str | None = None) -> tf.Tensor:  # fmt: skip
        channels = int(x.shape[3])
        y = tf.nn.depthwise_conv2d(x, self.weights(3, 3, channels, 1), [1, stride, stride, 1], "SAME", name=name)
        return self._finish(y, channels, bias, relu)

    def dense(self, x: tf.Tensor, units: int, *, bias: bool = True, relu: str = "", name: str | None = None,
              transpose: bool = False) -> tf.Tensor:  # fmt: skip
        inputs = int(x.shape[1])
        weights = self.weights(units, inputs) if transpose else self.weights(inputs, units)
        return self._finish(tf.matmul(x, weights, transpose_b=transpose, name=name), units, bias, relu)

    def _finish(self, y: tf.Tensor, channels: int, bias: bool, relu: str) -> tf.Tensor:
        if bias:
            y = tf.nn.bias_add(y, self.weights(channels))
        return {"": lambda v: v, "relu": tf.nn.relu, "relu6": tf.nn.relu6}[relu](y)


def build(
    define: Callable[[Net, tf.Tensor], tf.Tensor | Sequence[tf.Tensor]],
    shape: Sequence[int | None] = (None, 12, 12, 8),
    seed: int = 0,
) -> tuple[graph_pb2.GraphDef, tuple[str, ...]]:
    """Returns the GraphDef of ``define(net, x)`` with input node ``x``, and the names of its output nodes."""
    with tf.Graph().as_default() as graph:
        results = define(Net(seed), tf.placeholder(tf.float32, shape, name="x"))
        results = list(results) if isinstance(results, (list, tuple)) else [results]
        names = tuple(tf.identity(result, name=f"out{index}").op.name for index, result in enumerate(results))
        # Outputs that are the layers themselves, not identities of them, are the harder case.
        names = tuple(graph.get_operation_by_name(name).inputs[0].op.name for name in names)
    graph_def = tf.graph_util.extract_sub_graph(graph.as_graph_def(), list(names))
    return graph_def, names


def prepared_of(
    graph_def: graph_pb2.GraphDef, outputs: Sequence[str], config: QuantizationConfig | None = None
) -> PreparedGraph:
    """Returns the graph prepared as it stands, no rewrite applied."""
    config = config or QuantizationConfig()
    observed = observed_tensors(Graph(graph_def), tuple(outputs), config)
    return PreparedGraph(graph_def, input_specs(graph_def, ["x"]), tuple(outputs), observed, ())


def statistics_of(prepared: PreparedGraph, data: np.ndarray) -> CalibrationStatistics:
    return Observer(prepared, len(data) if prepared.inputs[0].batch is None else 1).observe(
        [{"x": row} for row in data]
    )


def data_for(prepared: PreparedGraph, count: int = 4, seed: int = 1) -> np.ndarray:
    shape = prepared.inputs[0].shape or ()
    return np.random.default_rng(seed).normal(size=(count, *shape[1:])).astype(np.float32)


def everything(**options: object) -> QuantizationConfig:
    """Returns a config that makes INT8 of all that has a kernel, however little a small network gains by it."""
    return QuantizationConfig(**{"only_faster": False, **options})


def int8_of(
    graph_def: graph_pb2.GraphDef, outputs: Sequence[str], config: QuantizationConfig | None = None
) -> tuple[PreparedGraph, Conversion, np.ndarray]:
    """Returns the prepared graph, its conversion calibrated on random data, and that data."""
    config = config or everything()
    prepared = prepared_of(graph_def, outputs, config)
    data = data_for(prepared)
    return prepared, convert(prepared, statistics_of(prepared, data), config), data


def run_graph(graph_def: graph_pb2.GraphDef, prepared: PreparedGraph, data: np.ndarray) -> list[np.ndarray]:
    with GraphSession(graph_def, prepared.inputs, prepared.outputs) as session:
        return session.run({"x": data})


def assert_close(
    graph_def: graph_pb2.GraphDef, prepared: PreparedGraph, conversion: Conversion, data: np.ndarray, error: float
) -> None:
    """Demands that every output of the INT8 graph has the shape of the FP32 graph's and is close to it."""
    pairs = zip(run_graph(conversion.graph_def, prepared, data), run_graph(graph_def, prepared, data), strict=True)
    for int8, fp32 in pairs:
        assert int8.shape == fp32.shape
        assert relative_error(int8, fp32) <= error


def relative_error(found: np.ndarray, exact: np.ndarray) -> float:
    """‖found - exact‖ / ‖exact‖."""
    return float(np.linalg.norm(found - exact) / max(np.linalg.norm(exact), 1e-12))


def ops(graph_def: graph_pb2.GraphDef) -> dict[str, int]:
    """Returns op type → number of nodes, the INT8 kernels inside functions (fused sums) among them."""
    counts: dict[str, int] = {}
    inner = [node for function in graph_def.library.function for node in function.node_def if "Quantized" in node.op]
    nodes = [*graph_def.node, *inner]
    for node in nodes:
        counts[node.op] = counts.get(node.op, 0) + 1
    return counts
