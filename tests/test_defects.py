"""One test for each defect of the tool of 2020 that must not come back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from tensorflow.core.framework import graph_pb2

from quantizer_core.calibration.methods import METHODS, select_range
from quantizer_core.calibration.observer import Observer
from quantizer_core.calibration.statistics import NUM_BINS
from quantizer_core.errors import ConfigError
from quantizer_core.lowering.weights import quantize_weights
from quantizer_core.planning import QuantizationPlan
from quantizer_core.prepare import prepare
from quantizer_core.quantize import convert
from tests.helpers.nets import (
    Net,
    build,
    data_for,
    everything,
    ops,
    prepared_of,
    relative_error,
    run_graph,
    statistics_of,
)

Define = Callable[[Net, tf.Tensor], "tf.Tensor | list[tf.Tensor]"]


def int8_of(
    define: Define, shape: tuple[int | None, ...] = (None, 12, 12, 8), error: float = 0.05, **options: object
) -> tuple[graph_pb2.GraphDef, QuantizationPlan]:
    """Converts a network with all rewrites, demands that its outputs follow FP32, and returns graph and plan."""
    graph_def, outputs = build(define, shape)
    config = everything(outputs=outputs, **options)
    prepared = prepare(graph_def, config)
    data = data_for(prepared)
    conversion = convert(prepared, statistics_of(prepared, data), config)
    found = run_graph(conversion.graph_def, prepared, data)
    for int8, fp32 in zip(found, run_graph(graph_def, prepared, data), strict=True):
        assert relative_error(int8, fp32) < error
    return conversion.graph_def, conversion.plan


def test_matmul_is_quantised():
    graph_def, plan = int8_of(lambda net, x: net.dense(net.dense(x, 32, relu="relu"), 10), (None, 40))
    assert plan.counts()["MatMul"] == (2, 2)
    assert "MatMul" not in ops(graph_def)


@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_may_be_the_graphs_output(bias):
    graph_def, _ = int8_of(lambda net, x: net.conv(x, 8, bias=bias))
    assert "Conv2D" not in ops(graph_def)


def test_a_pad_that_pads_is_folded():
    def define(net, x):
        x = tf.pad(net.conv(x, 8, relu="relu"), [[0, 0], [1, 2], [0, 1], [0, 0]])
        x = tf.pad(net.conv(x, 8, padding="VALID", relu="relu"), [[0, 0], [1, 1], [1, 1], [0, 0]])
        return tf.nn.depthwise_conv2d(x, net.weights(3, 3, 8, 1), [1, 1, 1, 1], "VALID")

    graph_def, plan = int8_of(define)
    assert plan.quantized == 3 and "Pad" not in ops(graph_def) and ops(graph_def)["QuantizeV2"] == 1


def test_excluded_nodes_holds_for_pools():
    def define(net, x):
        x = tf.nn.max_pool2d(net.conv(x, 8, relu="relu"), 2, 2, "SAME", name="largest")
        return net.conv(tf.nn.avg_pool2d(x, 2, 1, "SAME", name="average"), 8)

    graph_def, plan = int8_of(define, excluded_nodes=("largest", "average"))
    assert ops(graph_def)["MaxPool"] == ops(graph_def)["AvgPool"] == 1
    assert {n.name for n in plan.nodes if "excluded" in n.reason} == {"largest", "average"}


def test_an_unknown_excluded_op_is_an_error_that_says_so():
    graph_def, outputs = build(lambda net, x: net.conv(x, 8))
    with pytest.raises(ConfigError, match="knows no op 'Conv2d'"):
        prepare(graph_def, everything(outputs=outputs, excluded_ops=("Conv2d",)))


@pytest.mark.parametrize("add", [tf.add, tf.raw_ops.AddV2, lambda x, y: tf.add_n([x, y])])
@pytest.mark.parametrize("swapped", [False, True])
def test_every_spelling_of_a_residual_is_fused(add, swapped):
    def define(net, x):
        x = net.conv(x, 8, relu="relu")
        y = net.conv(net.conv(x, 8, relu="relu"), 8)
        pair = (y, x) if swapped else (x, y)
        total = add(x=pair[0], y=pair[1]) if add is tf.raw_ops.AddV2 else add(*pair)
        return net.conv(tf.nn.relu(total), 8)

    graph_def, plan = int8_of(define)
    assert sum(bool(node.summand) for node in plan.nodes) == 1
    assert not {"Add", "AddV2", "AddN"} & {node.op for node in graph_def.node}


def test_depthwise_with_bias_and_relu_is_one_kernel():
    graph_def, _ = int8_of(lambda net, x: net.conv(net.depthwise(x, relu="relu"), 8))
    found = ops(graph_def)
    assert found["_FusedQuantizedDepthwiseConv2D"] == 1
    assert not {"DepthwiseConv2dNative", "BiasAdd", "Relu"} & set(found)


def test_the_bias_of_a_signed_input_has_the_right_scale():
    """A bias as large as the products: on a scale of 255 steps instead of 127 it would halve."""

    def define(net, x):
        y = tf.nn.conv2d(tf.tanh(x), net.weights(3, 3, 8, 8), 1, "SAME")
        return tf.nn.bias_add(y, tf.constant(np.linspace(-4, 4, 8).astype(np.float32)))

    _, plan = int8_of(define, error=0.02)
    (node,) = plan.computing()
    assert plan.tensors[node.sources[0]].dtype == "qint8"


def test_a_residual_over_the_convolutions_own_input_runs():
    def define(net, x):
        x = net.conv(x, 8, relu="relu")
        return net.conv(tf.nn.relu(x + net.conv(x, 8)), 8)

    _, plan = int8_of(define)
    assert plan.counts()["Conv2D"] == (3, 3)


def test_a_tensor_that_may_be_negative_is_signed():
    """Calibration saw no negative value, but the graph proves nothing: half the range must not be cut away."""
    graph_def, outputs = build(lambda net, x: net.conv(x, 8, bias=False))
    prepared = prepared_of(graph_def, outputs)
    data = np.abs(data_for(prepared))
    conversion = convert(prepared, statistics_of(prepared, data), everything())
    assert conversion.plan.tensors["x"].dtype == "qint8"
    found, exact = (run_graph(graph, prepared, -0.9 * data)[0] for graph in (conversion.graph_def, graph_def))
    assert relative_error(found, exact) < 0.05


def test_a_signed_branch_of_a_concat_keeps_its_sign():
    def define(net, x):
        return net.conv(tf.concat([net.conv(x, 8, relu="relu"), net.conv(x, 8)], 3), 8)

    _, plan = int8_of(define)
    (concat,) = [node for node in plan.nodes if node.op == "ConcatV2"]
    assert concat.quantized and {plan.tensors[t].dtype for t in (*concat.sources, concat.output)} == {"qint8"}


def test_shared_weights_and_biases_are_used_once_for_each_reader():
    def define(net, x):
        weights, bias = net.weights(3, 3, 8, 8), net.weights(8)
        scale, offset, mean = net.weights(8), net.weights(8), net.weights(8)
        for _ in range(3):
            x = tf.nn.bias_add(tf.nn.conv2d(x, weights, 1, "SAME"), bias)
            x, *_ = tf.raw_ops.FusedBatchNormV3(
                x=x, scale=scale, offset=offset, mean=mean, variance=tf.ones([8]), is_training=False
            )
            x = tf.nn.relu(x)
        return x

    _, plan = int8_of(define)
    assert plan.counts()["Conv2D"] == (3, 3)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_minimum_is_taken_from_the_low_end(method):
    graph_def, outputs = build(lambda net, x: net.conv(x, 8))
    prepared = prepared_of(graph_def, outputs)
    data = np.random.default_rng(2).uniform(-8, 1, (4, 12, 12, 8)).astype(np.float32)
    found = select_range(statistics_of(prepared, data).tensors["x"], method, signed=True)
    assert -8.1 < found.min < -6 and 0 < found.max < 1.1


def test_the_last_example_counts():
    """What the very last, half-filled batch shows is in the range; that a log is read to its end, test_log.py shows."""
    graph_def, outputs = build(lambda net, x: net.conv(x, 8))
    prepared = prepared_of(graph_def, outputs)
    data = data_for(prepared, 7)
    data[-1, -1, -1, -1] = 99.0
    with Observer(prepared, 3) as observer:
        statistics = observer.observe([{"x": row} for row in data])
    assert statistics.num_examples == 7 and statistics.tensors["x"].maximum == 99.0


def test_kl_works_on_a_histogram_of_bounded_size():
    """Of twenty times the values it takes no twentieth more steps: the histogram has hardly more bins."""
    graph_def, outputs = build(lambda net, x: net.conv(x, 8), (None, 40, 40, 8))
    prepared = prepared_of(graph_def, outputs)
    few, many = (statistics_of(prepared, data_for(prepared, count)) for count in (2, 40))
    assert len(many.tensors["x"].keys) < 2 * len(few.tensors["x"].keys) < NUM_BINS
    assert len(many.to_bytes()) < 3 * len(few.to_bytes())
    found, widest = select_range(many.tensors["x"], "kl", signed=True), many.tensors["x"].maximum
    assert 0.5 * widest < found.max <= widest


def test_weights_are_rounded_not_truncated():
    weights = np.random.default_rng(0).normal(size=(3, 3, 16, 24)).astype(np.float32)
    rounded = quantize_weights(weights, per_channel=True)
    step = rounded.limits / 127
    error = (rounded.dequantized() - weights) / step
    assert np.abs(error).max() < 0.501 and abs(error.mean()) < 0.01


def test_channels_first_graphs_are_transposed():
    def define(net, x):
        x = tf.transpose(x, [0, 3, 1, 2])
        x = tf.nn.conv2d(x, net.weights(3, 3, 8, 6), 1, "SAME", data_format="NCHW")
        x = tf.nn.relu(tf.nn.bias_add(x, net.weights(6), data_format="NCHW"))
        return tf.nn.conv2d(x, net.weights(3, 3, 6, 5), [1, 1, 2, 2], "SAME", data_format="NCHW")

    graph_def, plan = int8_of(define)
    assert plan.counts()["Conv2D"] == (2, 2)
    assert {node.attr["data_format"].s for node in graph_def.node if "data_format" in node.attr} == {b"NHWC"}
