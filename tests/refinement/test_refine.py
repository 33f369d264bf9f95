"""Refinement follows the INT8 graph it is for, makes it closer to FP32, and depends on the sample alone."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from quantizer_core.graph.graph import Graph
from quantizer_core.lowering import lower
from quantizer_core.lowering.parameters import nominal_parameters
from quantizer_core.planning import make_plan
from quantizer_core.refinement import refine
from quantizer_core.refinement.moments import POSITIONS, Covariance
from quantizer_core.refinement.simulation import Simulation
from tests.helpers.nets import build, data_for, everything, prepared_of, relative_error, run_graph, statistics_of

add = Covariance.add


def network(net, x):
    """Every form of kernel: convolution, depthwise behind a Pad, residuals with and without offset, pools, dense."""
    x = net.conv(tf.nn.relu(x * 0.5 + 1.0), 16, relu="relu6")
    y = tf.nn.depthwise_conv2d(
        tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), net.weights(3, 3, 16, 1), [1, 1, 1, 1], "VALID"
    )
    x = net.conv(tf.nn.relu(y), 24, 1, bias=False, relu="relu")
    x = tf.nn.relu(net.conv(net.conv(x, 24, relu="relu"), 24) + x)
    x = tf.nn.relu(net.conv(x, 16, 1) + net.conv(net.conv(x, 16, relu="relu"), 16))
    x = tf.concat([tf.nn.max_pool2d(x, 2, 2, "SAME"), net.conv(x, 8, 3, 2, relu="relu")], 3)
    x = tf.reshape(tf.nn.avg_pool2d(x, 2, 2, "SAME"), [-1, 9 * 24])
    x = tf.tanh(net.dense(net.dense(x, 32, relu="relu"), 20, bias=False))
    x = tf.sigmoid(net.conv(tf.reshape(x, [-1, 2, 2, 5]), 12, 1, bias=False))  # its result stays float
    return net.dense(tf.reshape(x, [-1, 48]), 10)


def setting(count: int = 24, **options):
    config = everything(**options)
    graph_def, outputs = build(network)
    prepared = prepared_of(graph_def, outputs, config)
    data = data_for(prepared, count)
    plan = make_plan(prepared, statistics_of(prepared, data), config)
    return config, graph_def, prepared, plan, data


def test_the_simulation_computes_what_the_int8_graph_computes():
    _, _, prepared, plan, data = setting(5)
    parameters = nominal_parameters(Graph(prepared.graph_def), plan, None)
    simulation = Simulation(prepared, plan, [{"x": row} for row in data])
    for node in simulation.steps:
        layer = parameters[node.name]
        simulation.compute(node, layer.weights.dequantized())
        simulation.finish(node, layer.bias)
    last = simulation.steps[-1]
    simulated = np.concatenate([kept[last.name] for kept in simulation._kept])
    found = run_graph(lower(prepared, plan, parameters), prepared, data)[0]
    # A value near the middle of two codes may fall to either side, and what follows moves with it.
    assert relative_error(simulated, found) < 0.01
    assert max(len(kept) for kept in simulation._kept) < len(simulation.steps) / 2


@pytest.mark.parametrize(
    "options", [{}, {"per_channel": False}, {"reduce_range": "on"}, {"weight_clipping": "mse"}], ids=str
)
def test_refined_graphs_are_closer_to_fp32(options):
    config, graph_def, prepared, plan, data = setting(24, **options)
    examples = [{"x": row} for row in data]
    other = data_for(prepared, 24, seed=5)
    exact = run_graph(graph_def, prepared, other)[0]

    def error(parameters):
        return relative_error(run_graph(lower(prepared, plan, parameters), prepared, other)[0], exact)

    plain = error(nominal_parameters(Graph(prepared.graph_def), plan, None))
    refined = error(refine(prepared, plan, examples, config))
    assert refined < 0.9 * plain


def test_biases_match_the_means_of_the_fp32_graph():
    config, graph_def, prepared, plan, data = setting(48, rounding="nearest", reduce_range="on", per_channel=False)
    parameters = refine(prepared, plan, [{"x": row} for row in data], config)
    exact = run_graph(graph_def, prepared, data)[0].mean(0)
    corrected = run_graph(lower(prepared, plan, parameters), prepared, data)[0].mean(0)
    plain = run_graph(lower(prepared, plan), prepared, data)[0].mean(0)
    assert np.abs(corrected - exact).max() < 0.1 * np.abs(plain - exact).max()


def test_without_bias_correction_biases_stay():
    config, _, prepared, plan, data = setting(6, bias_correction=False)
    graph = Graph(prepared.graph_def)
    refined = refine(prepared, plan, [{"x": row} for row in data], config)
    for name, layer in nominal_parameters(graph, plan, None).items():
        np.testing.assert_array_equal(refined[name].bias, layer.bias)
        np.testing.assert_array_equal(refined[name].weights.limits, layer.weights.limits)


def test_the_same_sample_gives_the_same_bytes():
    config, _, prepared, plan, data = setting(9)
    examples = [{"x": row} for row in data]
    first, second = (lower(prepared, plan, refine(prepared, plan, examples, config)) for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


_FP32_RESULT = """
import hashlib, sys
from quantizer_core.onednn import use_onednn
use_onednn()
from quantizer_core.refinement.simulation import Simulation
from quantizer_core.graph.graph import Graph
from quantizer_core.lowering.parameters import nominal_parameters
from quantizer_core.runtime import GraphSession
from tests.refinement.test_refine import setting

_, _, prepared, plan, data = setting(1)
products = [node.name for node in plan.nodes if node.op == "Conv2D"]
with GraphSession(prepared.graph_def, prepared.inputs, products, threads=1, optimize=False) as session:
    if sys.argv[1] == "after":
        simulation = Simulation(prepared, plan, [{"x": row} for row in data])
        parameters = nominal_parameters(Graph(prepared.graph_def), plan, None)
        for node in simulation.steps:
            simulation.compute(node, parameters[node.name].weights.dequantized())
            simulation.finish(node, parameters[node.name].bias)
    print(hashlib.sha256(b"".join(found.tobytes() for found in session.run({"x": data}))).hexdigest())
"""


@pytest.mark.slow
def test_fp32_graphs_give_the_same_bits_after_a_simulation_in_the_same_threads():
    """Fed filters would leave another kernel for a batch of 1 in TensorFlow's store."""
    found = [
        subprocess.run([sys.executable, "-c", _FP32_RESULT, when], capture_output=True, text=True, check=True).stdout
        for when in ("alone", "after")
    ]
    assert found[0] == found[1] != ""


def test_rounding_to_nearest_is_a_choice():
    config, _, prepared, plan, data = setting(6)
    for clipping in ("none", "mse"):
        nearest = dataclasses.replace(config, rounding="nearest", weight_clipping=clipping)
        refined = refine(prepared, plan, [{"x": row} for row in data], nearest)
        for name, layer in nominal_parameters(Graph(prepared.graph_def), plan, None, clipping).items():
            np.testing.assert_array_equal(refined[name].weights.codes, layer.weights.codes)


def test_rows_of_a_matrix_product_are_chosen_from_all(monkeypatch):
    """Time steps one below the other, say: the first ones alone would say nothing of the last."""
    seen = []
    monkeypatch.setattr(Covariance, "add", lambda self, rows: (seen.append(rows.copy()), add(self, rows))[1])
    graph_def, outputs = build(lambda net, x: net.dense(tf.reshape(x, [-1, 4]), 6), (None, POSITIONS // 2, 4))
    prepared = prepared_of(graph_def, outputs)
    data = np.random.default_rng(0).normal(size=(8, POSITIONS // 2, 4)).astype(np.float32)
    data[:, POSITIONS // 4 :, 0] = 0.5
    plan = make_plan(prepared, statistics_of(prepared, data), everything())
    refine(prepared, plan, [{"x": row} for row in data], everything())
    rows = np.concatenate(seen)
    assert POSITIONS // 4 <= len(rows) <= POSITIONS
    assert 0.4 < np.mean(np.abs(rows[..., 0] - 0.5) < 0.02) < 0.6


def test_a_last_batch_without_rows_adds_nothing():
    covariance, rows = Covariance(depthwise=False), np.random.default_rng(0).normal(size=(50, 1, 4)).astype(np.float32)
    covariance.add(rows)
    covariance.add(rows[:0])
    np.testing.assert_allclose(covariance.result()[0], np.cov(rows[:, 0].T, bias=True), rtol=1e-4, atol=1e-6)
