"""The float32 graph that computes what an INT8 graph does."""

from __future__ import annotations

import numpy as np
import pytest

from quantizer_core.graph.graph import Graph
from quantizer_core.lowering.simulate import simulate
from tests.helpers import plan_checks
from tests.helpers.nets import build, everything, int8_of, ops, relative_error, run_graph


def simulated(conversion, **options):
    return simulate(conversion.prepared, conversion.plan, conversion.parameters, **options)


@pytest.mark.parametrize("seed", range(12))
def test_it_computes_what_the_int8_graph_computes(seed):
    """Random graphs: residuals, concatenations, pools, pads, shared weights, both layouts."""
    prepared, conversion, _, data = plan_checks.converted(seed)
    graph_def = simulated(conversion)
    assert not [op for op in ops(graph_def) if op.startswith("Quantized") or op.startswith("_FusedQuantized")]
    for found, expected in zip(
        run_graph(graph_def, prepared, data), run_graph(conversion.graph_def, prepared, data), strict=True
    ):
        assert found.shape == expected.shape
        # A value near the middle of two codes may fall to either side, and what follows moves with it.
        assert relative_error(found, expected) < 0.01


def layers(net, x):
    """A kernel without a bias, a depthwise one, an average, and a matrix product of floats."""
    y = net.depthwise(net.conv(x, 8, bias=False, relu="relu6"), relu="relu")
    return net.dense(net.conv(y, 4, relu="relu")[:, 0, 0], 3)


@pytest.mark.parametrize("reduce_range", ["on", "off"])
def test_weights_alone_may_be_rounded_for_any_processor(reduce_range):
    graph_def, outputs = build(layers)
    prepared, conversion, data = int8_of(graph_def, outputs, everything(reduce_range=reduce_range))
    weights, both = simulated(conversion, tensors=False), simulated(conversion)
    assert "QuantizeV2" not in ops(weights) and "QuantizeV2" in ops(both)
    exact, one, two = (run_graph(each, prepared, data)[0] for each in (graph_def, weights, both))
    assert 0 < relative_error(one, exact) < relative_error(two, exact) < 0.1
    # By hand: the first kernel's result with the weights that its codes stand for.
    first = conversion.plan.nodes[0]
    own = conversion.parameters[first.name]
    graph = Graph(weights)
    assert np.array_equal(graph.constant(graph.node(first.name).input[1]), own.weights.dequantized())
    (bias,) = [edge.consumer for edge in graph.consumers(first.name)]
    assert bias.op == "BiasAdd" and np.array_equal(graph.constant(bias.input[1]), own.bias)


@pytest.mark.parametrize("tensors", [True, False])
def test_a_product_without_a_bias_that_is_an_output_gets_its_corrected_one(tensors):
    graph_def, outputs = build(lambda net, x: net.dense(net.conv(x, 8, relu="relu")[:, 3, 3], 4, bias=False))
    prepared, conversion, data = int8_of(graph_def, outputs)
    (name,) = outputs
    conversion.parameters[name].bias[:] = [5.0, -5.0, 0.0, 1.0]  # as correction would, and easily seen
    found, plain = (run_graph(each, prepared, data)[0] for each in (simulated(conversion, tensors=tensors), graph_def))
    assert relative_error(found - conversion.parameters[name].bias, plain) < 0.1


def test_the_given_graph_stays_as_it_is():
    prepared, conversion, _ = int8_of(*build(layers))
    before = conversion.prepared.graph_def.SerializeToString(deterministic=True)
    simulated(conversion)
    assert conversion.prepared.graph_def.SerializeToString(deterministic=True) == before
    assert prepared.outputs == conversion.prepared.outputs
