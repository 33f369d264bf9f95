"""Convolutions between SpaceToBatchND and BatchToSpaceND become dilated ones, and run in INT8."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from quantizer_core.config import QuantizationConfig
from quantizer_core.prepare import prepare
from quantizer_core.quantize import convert
from quantizer_core.rewrites import apply_rewrites
from tests.helpers.nets import Net, build, data_for, ops, relative_error, run_graph, statistics_of


def stacked(net: Net, x: tf.Tensor, rate: int, paddings: list, crops: list, *, depthwise: bool = False) -> tf.Tensor:
    channels = int(x.shape[3])
    x = tf.space_to_batch_nd(x, [rate, rate], paddings)
    if depthwise:
        y = tf.nn.depthwise_conv2d_native(x, net.weights(3, 3, channels, 1), [1, 1, 1, 1], "VALID")
    else:
        y = tf.nn.conv2d(x, net.weights(3, 3, channels, 8), 1, "VALID")
        y = tf.nn.relu(tf.nn.bias_add(y, net.weights(8)))
    return tf.batch_to_space_nd(y, [rate, rate], crops)


def network(rate: int, depthwise: bool, top: int = 0):
    def define(net, x):
        x = net.conv(x, 8, relu="relu")
        total = -(12 + 2 * rate) % rate
        x = stacked(net, x, rate, [[rate, rate + total], [rate + top, rate + total]], [[0, total], [top, total]],
                    depthwise=depthwise)  # fmt: skip
        return net.conv(tf.nn.relu(x), 6)

    return define


@pytest.mark.parametrize("rate", [2, 5])
@pytest.mark.parametrize("depthwise", [False, True])
def test_a_stacked_convolution_becomes_a_dilated_one_in_int8(rate, depthwise):
    graph_def, outputs = build(network(rate, depthwise))
    config = QuantizationConfig(outputs=outputs, only_faster=False)
    prepared = prepare(graph_def, config)
    assert not {"SpaceToBatchND", "BatchToSpaceND"} & set(ops(prepared.graph_def))
    data = data_for(prepared)
    exact = run_graph(graph_def, prepared, data)[0]
    np.testing.assert_allclose(run_graph(prepared.graph_def, prepared, data)[0], exact, atol=1e-4)
    conversion = convert(prepared, statistics_of(prepared, data), config)
    assert conversion.plan.quantized == conversion.plan.candidates == 3
    assert not {"Pad", "SpaceToBatchND"} & set(ops(conversion.graph_def))
    assert relative_error(run_graph(conversion.graph_def, prepared, data)[0], exact) < 0.05


def test_padding_that_is_cropped_again_is_not_made():
    graph_def, outputs = build(network(2, False, top=2))
    result, _ = apply_rewrites(graph_def, ["x"], outputs)
    padded = [list(n.attr["explicit_paddings"].list.i) for n in result.node if n.attr["padding"].s == b"EXPLICIT"]
    assert padded == [[0, 0, 2, 2, 2, 2, 0, 0]]


def test_a_convolution_that_something_else_reads_stays_stacked():
    def define(net, x):
        y = tf.space_to_batch_nd(x, [2, 2], [[0, 0], [0, 0]])
        y = tf.nn.conv2d(y, net.weights(1, 1, 8, 8), 1, "VALID")
        return tf.batch_to_space_nd(y, [2, 2], [[0, 0], [0, 0]]), tf.tanh(y)

    graph_def, outputs = build(define)
    result, _ = apply_rewrites(graph_def, ["x"], outputs)
    assert ops(result)["SpaceToBatchND"] == 1


def test_a_dilated_output_keeps_its_name():
    graph_def, outputs = build(lambda net, x: stacked(net, x, 2, [[2, 2], [2, 2]], [[0, 0], [0, 0]]))
    result, _ = apply_rewrites(graph_def, ["x"], outputs)
    assert outputs[0] in {node.name for node in result.node}
    assert "BatchToSpaceND" not in ops(result)
