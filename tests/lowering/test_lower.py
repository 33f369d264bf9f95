"""What lowering adds beside kernels: corrected biases, kept control edges, kept names, errors."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from quantizer_core.errors import DataError, GraphError
from quantizer_core.lowering import lower
from quantizer_core.quantize import convert
from tests.helpers.nets import (
    build,
    data_for,
    everything,
    int8_of,
    prepared_of,
    relative_error,
    run_graph,
    statistics_of,
)


def test_bias_correction_takes_the_mean_error_away():
    """Inputs far from zero and coarse weights: the mean of each channel shifts without correction."""
    graph_def, outputs = build(lambda net, x: net.conv(tf.nn.relu(x * 0.2 + 2.0), 16, 1))
    config = everything(per_channel=False, reduce_range="on")
    prepared = prepared_of(graph_def, outputs, config)
    data = data_for(prepared, 16)
    statistics = statistics_of(prepared, data)
    exact = run_graph(graph_def, prepared, data)[0]
    shift = {}
    for corrected in (True, False):
        conversion = convert(prepared, statistics, dataclasses.replace(config, bias_correction=corrected))
        found = run_graph(conversion.graph_def, prepared, data)[0]
        shift[corrected] = np.abs((found - exact).mean(axis=(0, 1, 2))).max()
    assert shift[True] < 0.25 * shift[False]


@pytest.mark.parametrize("guarded", ["constants", "convolution"])
def test_control_edges_of_fused_nodes_stay(guarded):
    def define(net, x):
        weights = net.weights(3, 3, 8, 8)
        with tf.control_dependencies([tf.debugging.assert_less(tf.reduce_max(x), 100.0, name="check")]):
            if guarded == "constants":
                return net.conv(x, 8)
            return tf.nn.conv2d(x, weights, 1, "SAME")

    graph_def, outputs = build(define)
    prepared, conversion, data = int8_of(graph_def, outputs)
    run_graph(conversion.graph_def, prepared, data)
    with pytest.raises(DataError, match="assertion"):
        run_graph(conversion.graph_def, prepared, data + 1000)


def test_remaining_tensors_keep_their_names_and_the_input_graph_its_bytes():
    def define(net, x):
        y = net.conv(x, 8, relu="relu")
        return tf.tanh(y, name="float_reader"), net.conv(y, 8)

    graph_def, outputs = build(define)
    before = graph_def.SerializeToString(deterministic=True)
    prepared, conversion, _ = int8_of(graph_def, outputs)
    assert graph_def.SerializeToString(deterministic=True) == before
    names = {node.name: node for node in conversion.graph_def.node}
    assert names["float_reader"].input[0] in {node.name for node in graph_def.node}
    assert set(outputs) <= set(names) and prepared.inputs[0].name in names


def test_without_statistics_biases_stay_and_the_graph_still_follows():
    graph_def, outputs = build(lambda net, x: net.conv(net.conv(x, 8, relu="relu"), 8))
    prepared, conversion, data = int8_of(graph_def, outputs)
    found = run_graph(lower(prepared, conversion.plan), prepared, data)[0]
    assert relative_error(found, run_graph(graph_def, prepared, data)[0]) < 0.05


def test_a_plan_of_another_graph_is_refused():
    prepared, _, _ = int8_of(*build(lambda net, x: net.conv(x, 8, name="one")))
    _, other, _ = int8_of(*build(lambda net, x: net.conv(x, 8, name="two")))
    with pytest.raises(GraphError, match="two"):
        lower(prepared, other.plan)
