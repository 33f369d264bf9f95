"""Inputs in two codes: which get them, that FP32 stays equal, and that INT8 comes closer to it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from quantizer_core.evaluation.layers import LayerComparer
from quantizer_core.planning.fine import plan_finely
from quantizer_core.preprocessing.decoder import DecodedExample
from quantizer_core.quantize import convert
from tests.helpers.nets import build, everything, ops, prepared_of, relative_error, run_graph, statistics_of

SHAPE = (None, 12, 10, 1)


def cepstra(count: int, seed: int = 0, negated: bool = False) -> np.ndarray:
    """Values as of a speech model's input: the first coefficient is large and hardly changes."""
    values = np.random.default_rng(seed).normal(size=(count, *SHAPE[1:])).astype(np.float32)
    values[:, :, 0] -= 200
    return -values if negated else values


def first_weights(times: int, *shape: int) -> np.ndarray:
    """Weights [times, …] that see changes over time alone."""
    weights = np.random.default_rng(7).normal(size=(times, *shape)).astype(np.float32)
    return weights - weights.mean(0)


def convolution(net, x):
    y = tf.nn.conv2d(x, first_weights(3, 3, 1, 8), 1, "VALID")
    return net.conv(tf.nn.relu(tf.nn.bias_add(y, net.weights(8))), 4, 1)


def padded(net, x):
    x = tf.pad(x, [[0, 0], [0, 0], [2, 2], [0, 0]])
    y = tf.nn.conv2d(x, first_weights(3, 3, 1, 8), 2, "VALID")
    return net.conv(tf.nn.relu(tf.nn.bias_add(y, net.weights(8))), 4)


def dense(net, x):
    y = tf.matmul(tf.reshape(x, [-1, 120]), first_weights(12, 10, 16).reshape(120, 16))
    return net.dense(tf.nn.relu(tf.nn.bias_add(y, net.weights(16))), 4)


def transposed(net, x):
    weights = first_weights(12, 10, 16).reshape(120, 16).T.copy()
    return tf.tanh(tf.matmul(tf.reshape(x, [-1, 120]), weights, transpose_b=True) / 20)


def shared(net, x):
    """Two kernels and floats read the input."""
    return convolution(net, x), tf.nn.conv2d(x, first_weights(2, 1, 1, 4), 1, "VALID"), tf.reduce_mean(x, [1, 2])


NETS = {define.__name__: define for define in (convolution, padded, dense, transposed, shared)}


@pytest.mark.parametrize("negated", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_two_codes_bring_int8_closer_and_leave_fp32_as_it_is(name, negated):
    graph_def, outputs = build(NETS[name], SHAPE)
    prepared = prepared_of(graph_def, outputs)
    statistics = statistics_of(prepared, cepstra(24, negated=negated))
    data = cepstra(16, seed=1, negated=negated)
    exact = run_graph(graph_def, prepared, data)
    errors = {}
    for fine in (False, True):
        conversion = convert(prepared, statistics, everything(fine_inputs=fine, rounding="nearest"))
        for found, expected in zip(run_graph(conversion.prepared.graph_def, prepared, data), exact, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3 * np.abs(expected).max())
        results = run_graph(conversion.graph_def, prepared, data)
        errors[fine] = np.mean([relative_error(a, b) for a, b in zip(results, exact, strict=True)])
        assert any(tensor.endswith("/fine") for tensor in conversion.plan.tensors) == fine
        assert conversion.plan.quantized == conversion.plan.candidates
    assert errors[True] < 0.75 * errors[False]


def test_values_beyond_the_calibrated_range_are_clipped_as_with_one_code():
    graph_def, outputs = build(dense, SHAPE)
    prepared = prepared_of(graph_def, outputs)
    conversion = convert(prepared, statistics_of(prepared, cepstra(24)), everything())
    data = cepstra(4, seed=1)
    data[:, 3, 2] = 1e4
    plain = convert(prepared, statistics_of(prepared, cepstra(24)), everything(fine_inputs=False))
    found, expected = (run_graph(each.graph_def, prepared, data)[0] for each in (conversion, plain))
    assert np.isfinite(found).all() and relative_error(found, expected) < 0.5


def test_inputs_that_eight_bits_hold_well_keep_one_code():
    graph_def, outputs = build(lambda net, x: net.conv(net.conv(x, 16, relu="relu"), 8), (None, 12, 12, 3))
    prepared = prepared_of(graph_def, outputs)
    data = np.random.default_rng(0).normal(size=(8, 12, 12, 3)).astype(np.float32)
    statistics, config = statistics_of(prepared, data), everything()
    same, known, plan = plan_finely(prepared, statistics, config)
    assert same is prepared and known is statistics and not any("/fine" in tensor for tensor in plan.tensors)
    assert "Round" not in ops(convert(prepared, statistics, config).graph_def)


def test_the_layers_of_such_a_graph_can_be_compared():
    graph_def, outputs = build(convolution, SHAPE)
    prepared = prepared_of(graph_def, outputs)
    conversion = convert(prepared, statistics_of(prepared, cepstra(24)), everything())
    with LayerComparer(conversion.prepared, conversion.graph_def, conversion.plan, 4) as comparer:
        comparer.add([DecodedExample({"x": row}, None) for row in cepstra(4, seed=1)])
        report = comparer.report()
    assert {layer.tensor for layer in report.layers} >= {"x/fine"} and report.layers[0].sqnr_db > 15
    assert dataclasses.replace(prepared, graph_def=conversion.prepared.graph_def) == conversion.prepared


def test_names_made_for_two_inputs_are_two():
    """TensorFlow calls a second split ``split_1``, which is no name for the first one's second output."""

    def define(net, x):
        first, second = tf.split(x, 2, 1, name="split")
        (third, _) = tf.split(-x, 2, 1, name="split_1")
        taken = tf.identity(first, name="split_1/fine")
        return [net.conv(tf.nn.relu(tf.nn.conv2d(each, first_weights(3, 3, 1, 8), 1, "VALID")), 4, 1)
                for each in (first, second, third)] + [taken]  # fmt: skip

    graph_def, outputs = build(define, SHAPE)
    prepared = prepared_of(graph_def, outputs)
    conversion = convert(prepared, statistics_of(prepared, cepstra(24)), everything(rounding="nearest"))
    assert sum("/fine" in tensor for tensor in conversion.plan.tensors) == 3
    assert conversion.plan.quantized == conversion.plan.candidates == 6
    data = cepstra(8, seed=1)
    pairs = zip(run_graph(conversion.graph_def, prepared, data), run_graph(graph_def, prepared, data), strict=True)
    assert all(relative_error(found, expected) < 0.25 for found, expected in pairs)
