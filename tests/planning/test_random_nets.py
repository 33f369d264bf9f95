"""Property: whatever the network, its INT8 graph runs, follows the FP32 graph, and has no needless round trips."""

from __future__ import annotations

import tensorflow.compat.v1 as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from quantizer_core.graph.graph import Graph
from quantizer_core.quantize import convert
from tests.helpers.nets import Net, build, everything, int8_of, relative_error, run_graph, statistics_of

LAYERS = ("conv", "conv_relu", "conv_relu6", "strided", "depthwise", "pointwise", "pool", "average", "concat",
          "residual", "projection", "float", "pad", "slice", "transpose", "twice")  # fmt: skip


def layer(net: Net, kind: str, x: tf.Tensor) -> tf.Tensor:
    channels = int(x.shape[3])
    if kind == "conv":
        return net.conv(x, 12)
    if kind in ("conv_relu", "conv_relu6"):
        return net.conv(x, 16, relu=kind[5:])
    if kind == "strided":
        return net.conv(x, 16, 3, 2, bias=False, relu="relu")
    if kind == "depthwise":
        return net.depthwise(x, relu="relu6")
    if kind == "pointwise":
        return net.conv(x, 24, 1, padding="VALID", relu="relu")
    if kind == "pool":
        return tf.nn.max_pool2d(x, 3, 1, "SAME")
    if kind == "average":
        return tf.nn.avg_pool2d(x, 2, 1, "SAME")
    if kind == "concat":
        return tf.concat([net.conv(x, 8, 1, relu="relu"), x, net.conv(x, 8)], 3)
    if kind == "residual":
        return tf.nn.relu(net.conv(net.conv(x, channels, relu="relu"), channels) + x)
    if kind == "projection":
        return tf.nn.relu(net.conv(x, 16, 1) + net.conv(net.conv(x, 16, relu="relu"), 16))
    if kind == "float":
        return tf.nn.elu(x)
    if kind == "pad":
        return tf.pad(x, [[0, 0], [1, 0], [0, 1], [0, 0]])
    if kind == "slice":
        return x[:, 1:, :, :]
    if kind == "transpose":
        return tf.transpose(x, [0, 2, 1, 3])
    return net.conv(x, channels, relu="relu") + x  # the tensor is read twice and the sum has no Relu


def needless(graph_def) -> list[str]:
    """Returns the QuantizeV2 nodes that read a Dequantize straight, or through moves alone."""
    graph = Graph(graph_def)
    found = []
    for node in graph:
        before = node
        if node.op == "QuantizeV2":
            while before.op in ("QuantizeV2", "Reshape", "Identity", "Pad", "StridedSlice", "Transpose", "MaxPool"):
                before = graph.producer(before, 0)
            if before.op == "Dequantize":
                found.append(node.name)
    return found


@given(st.lists(st.sampled_from(LAYERS), min_size=1, max_size=7), st.integers(0, 2**16), st.booleans())
@settings(max_examples=40, deadline=None)
def test_random_networks(kinds, seed, fetch_middle):
    def define(net, x):
        middle = None
        for index, kind in enumerate(kinds):
            x = layer(net, kind, x)
            if index == len(kinds) // 2:
                middle = x
        result = net.conv(x, 8, 1)
        return (result, middle) if fetch_middle else (result,)

    graph_def, outputs = build(define, (None, 10, 10, 8), seed)
    prepared, conversion, data = int8_of(graph_def, outputs)
    int8 = run_graph(conversion.graph_def, prepared, data)
    for found, exact in zip(int8, run_graph(graph_def, prepared, data), strict=True):
        assert relative_error(found, exact) <= 0.12
    assert needless(conversion.graph_def) == []
    assert all(node.quantized for node in conversion.plan.nodes if node.op in ("Conv2D", "DepthwiseConv2dNative"))


def test_the_same_bytes_come_out_every_time():
    def define(net, x):
        for kind in ("conv_relu", "projection", "concat", "pool", "residual"):
            x = layer(net, kind, x)
        return net.conv(x, 8)

    graph_def, outputs = build(define)
    prepared, first, data = int8_of(graph_def, outputs)
    again = convert(prepared, statistics_of(prepared, data), everything())
    assert first.graph_def.SerializeToString(deterministic=True) == again.graph_def.SerializeToString(
        deterministic=True
    )
    assert first.plan.to_json() == again.plan.to_json()
