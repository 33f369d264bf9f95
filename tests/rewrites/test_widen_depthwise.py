"""Depthwise convolutions of one channel become convolutions, and these INT8."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from quantizer_core.config import QuantizationConfig
from quantizer_core.prepare import prepare
from quantizer_core.quantize import convert
from quantizer_core.rewrites import apply_rewrites
from tests.helpers.nets import data_for, ops, prepared_of, relative_error, run_graph, statistics_of

RNG = np.random.default_rng(3)


def network(channels: int, multiplier: int, padding: str, dilation: int, nchw: bool) -> tf.compat.v1.GraphDef:
    layout, shape = ("NCHW", (None, channels, 9, 8)) if nchw else ("NHWC", (None, 9, 8, channels))
    along = [1, 1, dilation, dilation] if nchw else [1, dilation, dilation, 1]
    with tf.Graph().as_default() as graph:
        x = tf.placeholder(tf.float32, shape, name="x")
        weights = RNG.normal(size=(3, 3, channels, multiplier)).astype(np.float32)
        y = tf.nn.depthwise_conv2d_native(x, weights, [1, 1, 1, 1], padding, layout, along, name="wide")
        y = tf.nn.bias_add(y, RNG.normal(size=channels * multiplier).astype(np.float32), layout)
        tf.identity(tf.nn.relu(y), name="out")
    return graph.as_graph_def()


@pytest.mark.parametrize("nchw", [False, True])
@pytest.mark.parametrize(("padding", "dilation"), [("SAME", 1), ("VALID", 1), ("SAME", 2)])
def test_one_channel_times_many_is_a_convolution(padding: str, dilation: int, nchw: bool) -> None:
    graph_def = network(1, 6, padding, dilation, nchw)
    rewritten, reports = apply_rewrites(graph_def, ["x"], ["out"])
    assert {report.rule: report.nodes for report in reports}["widen_depthwise"] == ("wide",)
    found = ops(rewritten)
    assert found["Conv2D"] == 1 and "DepthwiseConv2dNative" not in found
    prepared = prepared_of(graph_def, ("out",))
    data = data_for(prepared)
    exact = run_graph(graph_def, prepared, data)[0]
    np.testing.assert_allclose(run_graph(rewritten, prepared, data)[0], exact, rtol=1e-5, atol=1e-5)


def test_it_runs_in_int8() -> None:
    config = QuantizationConfig(inputs=("x",), outputs=("out",), only_faster=False)
    prepared = prepare(network(1, 8, "SAME", 1, False), config)
    data = data_for(prepared, 8)
    conversion = convert(prepared, statistics_of(prepared, data), config)
    assert conversion.plan.counts() == {"Conv2D": (1, 1)}
    found, exact = (run_graph(graph, prepared, data)[0] for graph in (conversion.graph_def, prepared.graph_def))
    assert relative_error(found, exact) < 0.03


@pytest.mark.parametrize(("channels", "multiplier"), [(1, 1), (4, 1), (4, 2)])
def test_others_stay(channels: int, multiplier: int) -> None:
    rewritten, _ = apply_rewrites(network(channels, multiplier, "SAME", 1, False), ["x"], ["out"])
    assert ops(rewritten)["DepthwiseConv2dNative"] == 1
