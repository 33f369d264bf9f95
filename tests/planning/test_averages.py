"""Means over places: where they run as INT8 kernels with a range of their own, and where they stay FP32."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from quantizer_core.config import QuantizationConfig
from quantizer_core.graph.graph import Graph
from quantizer_core.lowering.safe import MOST_TAPS
from quantizer_core.planning.passive import window
from tests.helpers.nets import assert_close, build, everything, int8_of, ops, relative_error, run_graph

DEPTHWISE = "_FusedQuantizedDepthwiseConv2D"
SHAPE = (None, 8, 9, 8)


def convert(define, config: QuantizationConfig | None = None, shape=SHAPE, error=0.05):
    """Returns the plan and the counts of ops of a network that stays close to FP32, with one row and with four."""
    graph_def, outputs = build(define, shape)
    prepared, conversion, data = int8_of(graph_def, outputs, config)
    for rows in (data, data[:1]):
        assert_close(graph_def, prepared, conversion, rows, error)
    return conversion.plan, ops(conversion.graph_def)


@pytest.mark.parametrize("keepdims", [True, False])
@pytest.mark.parametrize("axes", [(1, 2), (2, 1), (-3, -2), (1, -2)])
@pytest.mark.parametrize("relu", ["relu", ""])
def test_a_mean_between_kernels_is_a_kernel(keepdims, axes, relu):
    def define(net, x):
        pooled = tf.reduce_mean(net.conv(x, 24, relu=relu), axes, keepdims=keepdims)
        return net.conv(pooled, 12, 1) if keepdims else net.dense(pooled, 12)

    plan, found = convert(define)
    (node,) = [node for node in plan.nodes if node.op == "Mean"]
    assert (node.form, node.kernel, node.window) == ("average", DEPTHWISE, (8, 9, 24))
    assert found[DEPTHWISE] == 1 and "Mean" not in found and "Dequantize" not in found
    source, result = plan.tensors[node.sources[0]], plan.tensors[node.output]
    assert result.limit < source.limit / 2  # a range of its own: that of the source would leave few codes
    assert plan.candidates == 2  # a mean is none: where it stays FP32 nothing is missed


def test_what_reads_a_mean_may_come_after_a_flattening():
    def define(net, x):
        pooled = tf.reduce_mean(net.conv(x, 24, relu="relu"), [1, 2], keepdims=True)
        return net.dense(tf.reshape(pooled, [-1, 24]), 5)

    assert "Mean" not in convert(define)[1]


def test_a_mean_that_floats_read_stays_fp32():
    plan, found = convert(lambda net, x: tf.nn.softmax(tf.reduce_mean(net.conv(x, 24, relu="relu"), [1, 2])))
    assert found["Mean"] == 1 and DEPTHWISE not in found and plan.candidates == plan.quantized == 1


@pytest.mark.parametrize("excluded", [{"excluded_ops": ("Mean",)}, {"excluded_nodes": ("pooled",)}])
def test_an_excluded_mean_stays_fp32(excluded):
    def define(net, x):
        return net.dense(tf.reduce_mean(net.conv(x, 24, relu="relu"), [1, 2], name="pooled"), 12)

    assert convert(define, everything(**excluded))[1]["Mean"] == 1


@pytest.mark.parametrize("axes", [[1], [2, 3], [0, 1, 2], [1, 2, 3]])
def test_other_means_stay_fp32(axes):
    def define(net, x):
        y = tf.reduce_mean(net.conv(x, 24, relu="relu"), axes, keepdims=True)
        return net.conv(tf.tile(y, [1, 1, 1, 24 // int(y.shape[3])]), 12, 1)

    assert convert(define)[1]["Mean"] == 1


def test_a_mean_over_many_places_stays_fp32():
    def define(net, x):
        return net.dense(tf.reduce_mean(net.conv(x, 24, relu="relu"), [1, 2]), 12)

    assert convert(define, shape=(None, 11, 11, 8))[1].get("Mean", 0) == 0
    assert convert(define, shape=(None, 12, 11, 8))[1]["Mean"] == 1


@pytest.mark.parametrize("shape", [None, (-1, -1, 9, 24), (-1, 8, -1, 24), (-1, 8, 9, -1), (-1, 8, 24)])
def test_a_mean_over_an_unknown_number_of_places_has_no_window(shape):
    graph_def, (name,) = build(lambda net, x: tf.reduce_mean(net.conv(x, 24), [1, 2]), SHAPE)
    graph = Graph(graph_def)
    assert window(graph, graph.node(name), (-1, 8, 9, 24)) == (8, 9, 24)
    assert window(graph, graph.node(name), shape) == ()


def sparse(net, x: tf.Tensor) -> tf.Tensor:
    """Values of which few are not zero: their averages use little of the range."""
    y = tf.nn.conv2d(x, net.weights(3, 3, 8, 16), 1, "SAME")
    return tf.nn.relu(tf.nn.bias_add(y, tf.constant(np.full(16, -1.5, np.float32))))


def peaks(net, x: tf.Tensor, padding: str = "VALID", strides: int = 1) -> tf.Tensor:
    return tf.nn.avg_pool2d(sparse(net, x), 6, strides, padding)


@pytest.mark.parametrize("strides", [1, 2])
def test_averages_that_would_keep_few_codes_get_a_range_of_their_own(strides):
    plan, found = convert(lambda net, x: net.conv(peaks(net, x, strides=strides), 8, 1), error=0.1)
    (node,) = [node for node in plan.nodes if node.op == "AvgPool"]
    assert (node.quantized, node.form, node.window) == (True, "average", (6, 6, 16))
    assert found[DEPTHWISE] == 1 and "QuantizedAvgPool" not in found and "AvgPool" not in found


@pytest.mark.parametrize(
    "define",
    [
        lambda net, x: net.conv(peaks(net, x, "SAME"), 8, 1),  # windows are cut at the edges
        lambda net, x: tf.tanh(peaks(net, x)),  # floats read it, unrounded
    ],
)
def test_other_averages_of_few_codes_stay_fp32_and_say_why(define):
    plan, found = convert(define, error=0.1)
    (node,) = [node for node in plan.nodes if node.op == "AvgPool"]
    assert not node.quantized and "too few of its codes" in node.reason and found["AvgPool"] == 1


def test_averages_in_nchw_stay_fp32_and_say_why():
    def define(net, x):
        y = tf.transpose(sparse(net, x), [0, 3, 1, 2])
        y = tf.nn.avg_pool2d(y, 6, 1, "VALID", data_format="NCHW")
        return net.conv(tf.transpose(y, [0, 2, 3, 1]), 8, 1)

    plan, _ = convert(define)
    (node,) = [node for node in plan.nodes if node.op == "AvgPool"]
    assert not node.quantized and "NCHW" in node.reason


def test_a_small_matrix_product_behind_a_mean_is_judged_without_what_comes_before_it():
    """Rounding floats for ten units costs more than it saves; so the mean is not INT8 for their sake either."""

    def define(net, x):
        return net.dense(tf.reduce_mean(net.conv(net.conv(x, 32, relu="relu"), 32, relu="relu"), [1, 2]), 10)

    plan, found = convert(define, QuantizationConfig(), (None, 16, 18, 8))
    assert found["Mean"] == found["MatMul"] == 1 and plan.quantized == 2
    (product,) = [node for node in plan.nodes if node.op == "MatMul"]
    assert "it reads floats, floats read it" in product.reason


@pytest.mark.parametrize("reshaped", [False, True])
def test_what_a_mean_makes_is_counted_among_the_floats_that_are_rounded(reshaped):
    """Of 320 products with 32 values read and 10 made, 8 a value; with those made alone, 32."""

    def define(net, x):
        pooled = tf.reduce_mean(net.conv(net.conv(x, 32, relu="relu"), 32, relu="relu"), [1, 2])
        return net.dense(tf.reshape(pooled, [-1, 32]) if reshaped else pooled, 10)

    plan, _ = convert(define, QuantizationConfig())
    (product,) = [node for node in plan.nodes if node.op == "MatMul"]
    assert "and 8 products a value are few" in product.reason


def test_the_channels_of_what_a_mean_reads_may_have_scales():
    def define(net, x):
        sizes = np.geomspace(0.02, 1.0, 24).astype(np.float32)
        y = tf.nn.relu(tf.nn.conv2d(x, tf.constant(net.rng.normal(size=(3, 3, 8, 24)) * sizes, tf.float32), 1, "SAME"))
        weights = tf.constant(net.rng.normal(size=(24, 12)) / sizes[:, None], tf.float32)
        return tf.matmul(tf.reduce_mean(y, [1, 2]), weights)

    errors = {}
    for on in (True, False):
        graph_def, outputs = build(define, SHAPE)
        prepared, conversion, data = int8_of(graph_def, outputs, everything(equalization=on))
        (mean,) = [node for node in conversion.plan.nodes if node.op == "Mean"]
        assert bool(conversion.plan.tensors[mean.sources[0]].scale) == on
        pair = (run_graph(graph, prepared, data)[0] for graph in (conversion.graph_def, graph_def))
        errors[on] = relative_error(*pair)
    assert errors[True] < errors[False] / 2


def test_depthwise_filters_that_the_kernel_cannot_take_stay_fp32():
    def define(net, x):
        y = net.conv(x, 16, relu="relu")
        for size in (11, 13):
            y = tf.nn.relu(tf.nn.depthwise_conv2d(y, net.weights(size, size, 16, 1), [1, 1, 1, 1], "SAME"))
        return net.conv(y, 8, 1)

    plan, _ = convert(define, shape=(None, 20, 20, 8))
    fits, large = [node for node in plan.nodes if node.op == "DepthwiseConv2dNative"]
    assert fits.quantized and not large.quantized
    assert large.reason == f"a depthwise filter of 13×13: the INT8 kernel is safe up to {MOST_TAPS} taps"
