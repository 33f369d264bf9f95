"""Scales per channel: what gets them, that the INT8 graph stays right, and that it comes closer to FP32."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from quantizer_core.calibration.statistics import CalibrationStatistics
from quantizer_core.evaluation.layers import LayerComparer, instrument
from quantizer_core.graph.graph import Graph
from quantizer_core.planning import QuantizationPlan
from quantizer_core.preprocessing.decoder import DecodedExample
from quantizer_core.quantize import Conversion, convert
from quantizer_core.rewrites import apply_rewrites
from quantizer_core.runtime import has_vnni
from quantizer_core.types import PreparedGraph
from tests.helpers.nets import build, data_for, everything, prepared_of, relative_error, run_graph, statistics_of


def levels(channels: int) -> np.ndarray:
    return np.geomspace(0.02, 1.0, channels).astype(np.float32)


def uneven(net, x: tf.Tensor, channels: int, size: int = 3, relu: str = "relu") -> tf.Tensor:
    """A convolution whose channels differ in size by up to fifty times."""
    factors = levels(channels)
    y = tf.nn.conv2d(x, net.weights(size, size, int(x.shape[3]), channels) * factors, 1, "SAME")
    y = tf.nn.bias_add(y, net.weights(channels) * factors)
    return {"": lambda v: v, "relu": tf.nn.relu, "relu6": tf.nn.relu6}[relu](y)


def reading(net, x: tf.Tensor, sizes: np.ndarray, channels: int, size: int = 3) -> tf.Tensor:
    """A convolution to which all channels matter, though they differ in size."""
    weights = net.weights(size, size, int(x.shape[3]), channels) / np.sqrt(sizes)[:, None]
    return tf.nn.bias_add(tf.nn.conv2d(x, weights, 1, "SAME"), net.weights(channels))


def into_depthwise(net, x):
    return net.conv(net.depthwise(uneven(net, x * 4.0, 16, relu="relu6"), relu="relu"), 8)


def into_convolutions(net, x):
    y = uneven(net, x, 16)
    return tf.nn.relu(reading(net, y, levels(16), 8)), reading(net, y, levels(16), 4, 1)


def signed(net, x):
    return reading(net, uneven(net, x, 16, relu=""), levels(16), 8)


def through_a_join(net, x):
    y = net.conv(x, 16, relu="relu")
    y = tf.concat([uneven(net, y, 8, 1), uneven(net, y, 12)], 3)
    return reading(net, tf.nn.max_pool2d(y, 3, 2, "SAME"), np.concatenate([levels(8), levels(12)]), 8)


NETS = {define.__name__: define for define in (into_depthwise, into_convolutions, signed, through_a_join)}


def conversions(
    define: Callable, **options: object
) -> tuple[PreparedGraph, CalibrationStatistics, dict[bool, Conversion]]:
    """Converts a network whose constants are folded first, with and without equalisation."""
    graph_def, outputs = build(define)
    graph_def = folded(graph_def, outputs)
    prepared = prepared_of(graph_def, outputs)
    statistics = statistics_of(prepared, data_for(prepared, 16))
    return prepared, statistics, {
        on: convert(prepared, statistics, everything(equalization=on, **options)) for on in (False, True)
    }  # fmt: skip


def folded(graph_def, outputs):
    return apply_rewrites(graph_def, ("x",), tuple(outputs))[0]


def scaled(plan: QuantizationPlan) -> dict[str, tuple[float, ...]]:
    return {name: tensor.scale for name, tensor in plan.tensors.items() if tensor.scale}


@pytest.mark.parametrize("narrow", ["off", "on"] if has_vnni() else ["on"])
@pytest.mark.parametrize("name", NETS)
def test_scales_bring_the_int8_graph_closer_to_fp32(name, narrow):
    prepared, _, found = conversions(NETS[name], reduce_range=narrow)
    other = data_for(prepared, 16, seed=9)
    exact = run_graph(prepared.graph_def, prepared, other)
    errors = {
        on: [relative_error(a, b) for a, b in zip(run_graph(c.graph_def, prepared, other), exact, strict=True)]
        for on, c in found.items()
    }
    assert not scaled(found[False].plan) and scaled(found[True].plan)
    assert np.mean(errors[True]) < (0.97 if narrow == "off" else 1) * np.mean(errors[False])  # else weights dominate
    scales = list(scaled(found[True].plan).values())
    assert all(min(scale) >= 1 for scale in scales) and max(max(scale) for scale in scales) > 2
    assert QuantizationPlan.from_json(found[True].plan.to_json()) == found[True].plan


def test_a_scaled_tensor_that_is_fetched_has_the_values_of_fp32():
    prepared, _, found = conversions(into_depthwise)
    fetched = dataclasses.replace(prepared, outputs=tuple(sorted(scaled(found[True].plan))))
    assert len(fetched.outputs) >= 1
    data = data_for(prepared, 4)
    kept = convert_with_outputs(found[True], fetched.outputs)
    for exact, int8 in zip(run_graph(prepared.graph_def, fetched, data), run_graph(kept, fetched, data), strict=True):
        assert relative_error(int8, exact) < 0.02


def convert_with_outputs(conversion: Conversion, tensors: tuple[str, ...]):
    """Returns the INT8 graph with the float32 forms of these tensors, as ``compare_layers`` sees them."""
    graph_def, watched, _ = instrument(conversion.graph_def, conversion.plan)
    graph = Graph(graph_def)
    seen = {each.tensor: each.found for each in watched}
    for tensor in tensors:
        assert tensor not in graph
        graph.add_node("Identity", tensor, [seen[tensor]], T=tf.float32)
    return graph.to_graph_def()


def test_layer_reports_count_the_codes_of_scaled_tensors():
    prepared, _, found = conversions(into_depthwise)
    reports = {}
    for on, conversion in found.items():
        with LayerComparer(prepared, conversion.graph_def, conversion.plan, 4) as comparer:
            comparer.add([DecodedExample({"x": row}, None) for row in data_for(prepared, 4)])
            reports[on] = {layer.tensor: layer for layer in comparer.report().layers}
    for tensor in scaled(found[True].plan):
        before, after = reports[False][tensor], reports[True][tensor]
        assert after.sqnr_db > before.sqnr_db and after.clipped <= before.clipped + 0.001


def residual(net, x):
    y = uneven(net, x, 8)
    return tf.nn.relu(net.conv(y, 8) + y)


def read_by_floats(net, x):
    y = uneven(net, x, 16)
    return net.conv(y, 8), tf.reduce_mean(y, [1, 2])


def an_output(net, x):
    y = uneven(net, x, 16)
    return y, net.conv(y, 8)


def averaged(net, x):
    return net.conv(tf.nn.avg_pool2d(uneven(net, x, 16), 2, 2, "VALID"), 8)


def joined_in_height(net, x):
    return net.conv(tf.concat([uneven(net, x, 16), uneven(net, x, 16)], 1), 8)


@pytest.mark.parametrize("define", [residual, read_by_floats, an_output, averaged, joined_in_height])
def test_tensors_that_others_read_as_they_are_get_no_scales(define):
    assert not scaled(conversions(define)[2][True].plan)


def test_scales_need_scales_of_the_weights():
    assert not scaled(conversions(into_depthwise, per_channel=False)[2][True].plan)


def gated(net, x):
    """What goes into the gate differs by a hundred from channel to channel, but all of it matters after it."""
    sizes = np.geomspace(0.003, 1.0, 16).astype(np.float32)
    y = tf.nn.conv2d(x, net.weights(3, 3, 8, 16) * sizes * 50, 1, "SAME")
    y = tf.nn.bias_add(y, net.weights(16) * sizes)
    return reading(net, y * tf.sigmoid(y), sizes**2, 8, 1)


def test_a_result_that_floats_read_is_fitted_channel_by_channel():
    prepared, _, found = conversions(gated)
    (scale,) = scaled(found[True].plan).values()
    assert max(scale) > 20 * min(scale)
    (tensor,) = [each for each in found[True].plan.tensors.values() if each.scale]
    assert isinstance(tensor.offset, tuple) and len(tensor.offset) == 16
    assert QuantizationPlan.from_json(found[True].plan.to_json()) == found[True].plan
    other = data_for(prepared, 16, seed=9)
    exact = run_graph(prepared.graph_def, prepared, other)[0]
    errors = {on: relative_error(run_graph(c.graph_def, prepared, other)[0], exact) for on, c in found.items()}
    assert errors[True] < (0.75 if has_vnni() else 0.9) * errors[False]  # 7-bit weights leave more noise in both


def test_results_of_even_channels_stay_as_they_are():
    def define(net, x):
        y = net.conv(x, 16)
        return net.conv(y * tf.sigmoid(y), 8, 1)

    assert not scaled(conversions(define)[2][True].plan)
