"""Channels-first networks become channels-last ones inside, and run in INT8."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from tensorflow.core.framework import graph_pb2

from quantizer_core.config import QuantizationConfig
from quantizer_core.prepare import prepare
from quantizer_core.quantize import convert
from quantizer_core.rewrites import apply_rewrites
from tests.helpers.nets import data_for, ops, relative_error, run_graph, statistics_of

RNG = np.random.default_rng(5)


def weights(*shape: int) -> tf.Tensor:
    fan_in = np.prod(shape[:-1]) if len(shape) > 1 else 4
    return tf.constant((RNG.normal(size=shape) / np.sqrt(fan_in)).astype(np.float32))


def conv(x: tf.Tensor, channels: int, stride: int = 1, padding: object = "SAME") -> tf.Tensor:
    y = tf.nn.conv2d(x, weights(3, 3, x.shape[1], channels), [1, 1, stride, stride], padding, data_format="NCHW")
    return tf.nn.bias_add(y, weights(channels), data_format="NCHW")


def network(define, shape=(None, 4, 12, 10)) -> graph_pb2.GraphDef:
    with tf.Graph().as_default() as graph:
        tf.identity(define(tf.placeholder(tf.float32, shape, name="x")), name="out")
    return graph.as_graph_def()


def residual(x):
    x = tf.nn.relu(conv(x, 8))
    y = tf.pad(x, [[0, 0], [0, 0], [1, 0], [0, 2]])
    y = conv(y, 8, 2, "VALID")
    y = tf.nn.max_pool2d(y, [1, 1, 2, 2], [1, 1, 1, 1], "SAME", data_format="NCHW")
    z = conv(tf.nn.relu(y), 8)
    y = tf.nn.relu(y + z) * RNG.normal(size=(8, 1, 1)).astype(np.float32)
    y = tf.concat([y, conv(y, 6)], 1)
    depthwise = tf.nn.depthwise_conv2d_native(y, weights(3, 3, 14, 1), [1, 1, 2, 2], "SAME", data_format="NCHW")
    return tf.nn.avg_pool2d(tf.nn.relu(depthwise), [1, 1, 2, 2], [1, 1, 2, 2], "SAME", data_format="NCHW")


def classifier(x):
    x = conv(x, 8)
    scale, offset, mean, variance = weights(8), weights(8), weights(8), tf.constant(np.full(8, 0.7, np.float32))
    x, *_ = tf.raw_ops.FusedBatchNormV3(
        x=x, scale=scale, offset=offset, mean=mean, variance=variance, is_training=False, data_format="NCHW"
    )
    x = tf.nn.relu(x)
    pooled = tf.reduce_mean(x, [2, 3])
    flat = tf.reshape(tf.nn.max_pool2d(x, 2, 2, "SAME", data_format="NCHW"), [-1, 8 * 6 * 5])
    return tf.matmul(tf.concat([pooled, flat], 1), weights(248, 5))


def explicit(x):
    return conv(tf.sigmoid(conv(x, 6)), 5, 1, [[0, 0], [0, 0], [2, 1], [0, 1]])


@pytest.mark.parametrize("define", [residual, classifier, explicit])
def test_nothing_of_a_network_stays_channels_first(define):
    graph_def = network(define)
    result, reports = apply_rewrites(graph_def, ["x"], ["out"])
    assert any(report.rule == "nchw_to_nhwc" and report.nodes for report in reports)
    formats = {node.attr["data_format"].s for node in result.node if "data_format" in node.attr}
    assert formats == {b"NHWC"}
    config = QuantizationConfig(outputs=("out",), only_faster=False)
    prepared = prepare(graph_def, config)
    data = data_for(prepared)
    np.testing.assert_allclose(
        run_graph(prepared.graph_def, prepared, data)[0], run_graph(graph_def, prepared, data)[0], atol=1e-4
    )
    conversion = convert(prepared, statistics_of(prepared, data), config)
    counts = conversion.plan.counts()
    present = {"Conv2D", "DepthwiseConv2dNative", "MatMul", "MaxPool"}.intersection(ops(prepared.graph_def))
    assert "Conv2D" in present and all(counts[op][0] == counts[op][1] for op in present)
    error = relative_error(
        run_graph(conversion.graph_def, prepared, data)[0], run_graph(graph_def, prepared, data)[0]
    )  # fmt: skip
    assert error < 0.06


def test_transposes_are_left_at_the_ends_only():
    result, _ = apply_rewrites(network(residual), ["x"], ["out"])
    assert ops(result)["Transpose"] == 2


def test_excluded_nodes_keep_their_names_and_stay_fp32():
    with tf.Graph().as_default() as graph:
        x = tf.placeholder(tf.float32, [None, 4, 8, 8], name="x")
        y = tf.nn.conv2d(x, weights(3, 3, 4, 6), 1, "SAME", data_format="NCHW", name="first")
        tf.nn.conv2d(y, weights(3, 3, 6, 6), 1, "SAME", data_format="NCHW", name="last")
    config = QuantizationConfig(outputs=("last",), excluded_nodes=("last",), only_faster=False)
    prepared = prepare(graph.as_graph_def(), config)
    data = data_for(prepared)
    plan = convert(prepared, statistics_of(prepared, data), config).plan
    assert {node.name.split("/")[0]: node.quantized for node in plan.nodes} == {"first": True, "last": False}


def test_channels_last_networks_and_their_own_transposes_are_left_alone():
    with tf.Graph().as_default() as graph:
        x = tf.placeholder(tf.float32, [None, 4, 8, 8], name="x")
        y = tf.nn.relu(tf.nn.conv2d(tf.transpose(x, [0, 2, 3, 1]), weights(3, 3, 4, 6), 1, "SAME"))
        tf.nn.relu(tf.transpose(y, [0, 3, 1, 2]), name="out")
    before = graph.as_graph_def()
    result, _ = apply_rewrites(before, ["x"], ["out"])
    assert ops(result)["Transpose"] == ops(before)["Transpose"]
