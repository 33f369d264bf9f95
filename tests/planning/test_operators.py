"""Whole trained graphs and rarer operators: INT8 kernels are used, and outputs follow FP32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from quantizer_core.calibration.observer import Observer
from quantizer_core.calibration.statistics import CalibrationStatistics
from quantizer_core.config import QuantizationConfig
from quantizer_core.graph.files import load_graph
from quantizer_core.planning.make import make_plan
from quantizer_core.planning.plan import SLOWER
from quantizer_core.prepare import prepare
from quantizer_core.quantize import convert
from quantizer_core.runtime import GraphSession, stack_batch
from quantizer_core.types import PreparedGraph
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


def image(path: Path, size: tuple[int, int], mode: str = "RGB") -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(path).convert(mode).resize(size, Image.Resampling.BILINEAR), np.float32)


def observed(path: Path, examples: list[dict]) -> tuple[PreparedGraph, CalibrationStatistics]:
    """Returns a graph made ready, and its statistics over examples."""
    prepared = prepare(load_graph(str(path)), everything())
    with Observer(prepared, 8) as observer:
        return prepared, observer.observe(examples)


def converted(path: Path, examples: list[dict], fresh: list[dict]) -> tuple[dict, np.ndarray, np.ndarray]:
    """Returns INT8 and candidate counts by op, and what INT8 and FP32 make of fresh examples."""
    graph_def = load_graph(str(path))
    prepared, statistics = observed(path, examples)
    conversion = convert(prepared, statistics, everything())
    found = []
    for graph in (conversion.graph_def, graph_def):
        with GraphSession(graph, prepared.inputs, prepared.outputs) as session:
            found.append(np.stack([session.run(stack_batch([e], prepared.inputs, 1))[0] for e in fresh]))
    return conversion.plan.counts(), found[0], found[1]


def test_super_resolution_with_a_dense_output(shared_data: Path):
    paths = sorted((shared_data / "images" / "coco128").rglob("*.jpg"))
    examples = [{"IteratorGetNext": image(path, (120, 90), "YCbCr")[..., :1] / 255} for path in paths[:12]]
    counts, int8, fp32 = converted(shared_data / "graphs" / "ESPCN_x2.pb", examples[:6], examples[6:])
    assert counts["Conv2D"] == (3, 3)
    assert 10 * np.log10(1 / np.mean((int8 - fp32) ** 2)) > 35  # dB, for values in 0…1


def test_weights_that_are_eight_bit_already(shared_data: Path):
    paths = sorted((shared_data / "images" / "nips2017_dev").rglob("*.png"))
    examples = [{"input": image(path, (160, 160)) / 127.5 - 1} for path in paths[:32]]
    path = shared_data / "graphs" / "mobilenet_v1_0.50_160_weights8bit.pb"
    counts, int8, fp32 = converted(path, examples[:16], examples[16:])
    assert counts["Conv2D"] == (15, 15) and counts["DepthwiseConv2dNative"] == (13, 13)
    assert relative_error(int8, fp32) < 0.35
    assert (int8.argmax(-1) == fp32.argmax(-1)).mean() >= 0.6


@pytest.mark.slow
def test_every_convolution_of_a_detector_with_gated_activations_is_int8(shared_data: Path):
    paths = sorted((shared_data / "images" / "coco128").rglob("*.jpg"))
    examples = [{"images": image(path, (416, 416))[..., ::-1]} for path in paths[:3]]
    counts, int8, fp32 = converted(shared_data / "graphs" / "yolox_nano_coco.pb", examples[:2], examples[2:])
    assert counts["Conv2D"] == (83, 83) and counts["DepthwiseConv2dNative"] == (30, 30)
    assert int8.shape == fp32.shape and np.isfinite(int8).all()


@pytest.mark.slow
def test_a_detector_of_small_kernels_between_floats_keeps_those_that_gain_nothing(shared_data: Path, monkeypatch):
    paths = sorted((shared_data / "images" / "coco128").rglob("*.jpg"))
    examples = [{"images": image(path, (416, 416))[..., ::-1]} for path in paths[:2]]
    prepared, statistics = observed(shared_data / "graphs" / "yolox_nano_coco.pb", examples)
    quantized = {}
    for has_vnni in (False, True):
        monkeypatch.setattr("quantizer_core.planning.make.has_vnni", lambda found=has_vnni: found)
        plan = make_plan(prepared, statistics, QuantizationConfig())
        kernels = [node for node in plan.nodes if node.op in ("Conv2D", "DepthwiseConv2dNative")]
        quantized[has_vnni] = sum(node.quantized for node in kernels)
        assert len(kernels) == 113 and all(SLOWER in node.reason for node in kernels if not node.quantized)
    assert quantized[False] == 18 and quantized[False] < quantized[True] < 113


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("place", ["input", "middle", "output", "sum"])
def test_depthwise_over_a_single_channel(place: str, per_channel: bool):
    def define(net, x):
        if place == "input":
            return net.conv(net.depthwise(x, relu="relu"), 8)
        if place == "output":
            return net.depthwise(net.conv(x, 1, relu="relu"))
        y = net.conv(x, 1, relu="relu")
        if place == "middle":
            return net.conv(net.depthwise(y, 2, relu="relu6"), 8)
        return net.conv(tf.nn.relu(net.depthwise(y) + net.conv(x * 1.5, 1, relu="relu")), 8)

    check(define, {"DepthwiseConv2dNative": 1}, (None, 12, 12, 1), per_channel=per_channel)


def test_a_depthwise_convolution_between_floats_stays_as_it_is():
    """Rounding its input and the way back would cost more than the kernel saves."""

    def define(net, x):
        x = net.conv(net.conv(x, 16, relu="relu"), 32)
        x = net.depthwise(x * tf.sigmoid(x), name="lone")
        y = net.conv(x * tf.sigmoid(x), 32, relu="relu", name="joined")
        return net.depthwise(y, name="kept")

    graph_def, outputs = build(define, (None, 32, 32, 8))
    prepared, conversion, data = int8_of(graph_def, outputs, QuantizationConfig())
    reasons = {node.op: node.reason for node in conversion.plan.computing() if not node.quantized}
    assert reasons == {
        "DepthwiseConv2dNative":
            "it reads floats, floats read it, and 4 products a value are few: INT8 would be slower"
    }  # fmt: skip
    assert conversion.plan.counts() == {"Conv2D": (3, 3), "DepthwiseConv2dNative": (1, 2)}
    found, exact = (run_graph(graph, prepared, data)[0] for graph in (conversion.graph_def, graph_def))
    assert relative_error(found, exact) < 0.06


@pytest.mark.parametrize(
    ("layer", "channels", "few", "plain", "vnni"),
    [
        pytest.param(lambda net, x: net.conv(x, 16), 8, "48 products a value", False, True, id="few"),
        pytest.param(lambda net, x: net.conv(x, 64, 1), 64, "32 products a value", False, False, id="1x1"),
        pytest.param(lambda net, x: net.conv(x, 64), 64, "", True, True, id="many"),
        pytest.param(lambda net, x: net.conv(x, 64, 3, 2), 64, "", True, True, id="strides read more"),
        pytest.param(
            lambda net, x: net.dense(x[:, 0, 0], 256), 256, "65,536 products", False, False, id="small matrix"
        ),
        pytest.param(lambda net, x: net.dense(x[:, 0, 0], 512), 512, "", True, True, id="large matrix"),
    ],
)
def test_kernels_between_floats_need_enough_to_do(layer, channels, few, plain, vnni, monkeypatch):
    graph_def, outputs = build(lambda net, x: tf.tanh(layer(net, tf.tanh(x))), (None, 96, 96, channels))
    for has_vnni, expected in ((False, plain), (True, vnni)):
        monkeypatch.setattr("quantizer_core.planning.make.has_vnni", lambda found=has_vnni: found)
        prepared = prepared_of(graph_def, outputs)
        statistics = statistics_of(prepared, data_for(prepared))
        (node,) = make_plan(prepared, statistics, QuantizationConfig()).computing()
        assert node.quantized == expected
        assert expected or f"and {few} are few: INT8 would be slower" in node.reason
        (node,) = make_plan(prepared, statistics, everything()).computing()
        assert node.quantized


@pytest.mark.parametrize(
    ("widths", "batch", "serving", "int8"),
    [
        pytest.param((256, 256, 256), None, 1, False, id="small"),
        pytest.param((512, 512, 512), None, 1, True, id="large"),
        pytest.param((1024, 64, 8), None, 1, True, id="one is large"),
        pytest.param((256, 256, 256), None, 16, True, id="small, many rows"),
        pytest.param((128, 128, 128), None, 16, False, id="smaller, many rows"),
        pytest.param((256, 256, 256), 16, 1, True, id="a batch that the graph fixes"),
        pytest.param((256, 256, 256), 1, 16, False, id="one row that the graph fixes"),
    ],
)
def test_matrix_products_in_a_chain_need_enough_to_do_together(widths, batch, serving, int8, monkeypatch):
    def define(net, x):
        for width in widths[:-1]:
            x = net.dense(x, width, relu="relu")
        return tf.nn.softmax(net.dense(x, widths[-1]))

    monkeypatch.setattr("quantizer_core.planning.make.has_vnni", lambda: True)
    graph_def, outputs = build(define, (batch, widths[0]))
    prepared = prepared_of(graph_def, outputs)
    statistics = statistics_of(prepared, data_for(prepared))
    nodes = make_plan(prepared, statistics, QuantizationConfig(serving_batch_size=serving)).computing()
    assert [node.quantized for node in nodes] == [int8] * 3
    few = f"floats go into 3 matrix products and come out, {3 * widths[0] ** 2:,} products in all are few"
    assert int8 or {node.reason for node in nodes} == {f"{few}: INT8 would be slower"}


@pytest.mark.parametrize(
    ("layer", "shape", "serving", "int8"),
    [
        pytest.param(lambda net, x: net.conv(x, 4), (None, 28, 28, 4), 1, False, id="few channels"),
        pytest.param(lambda net, x: net.conv(x, 64), (None, 14, 14, 64), 1, True, id="many channels"),
        pytest.param(lambda net, x: net.conv(x, 16), (None, 4, 4, 16), 1, False, id="a small image"),
        pytest.param(lambda net, x: net.conv(x, 16), (None, 4, 4, 16), 64, True, id="many small images"),
        pytest.param(lambda net, x: net.conv(x, 4), (None, None, None, 4), 1, True, id="of any size"),
        pytest.param(lambda net, x: net.depthwise(x), (None, 28, 28, 64), 64, False, id="depthwise"),
    ],
)
def test_convolutions_in_a_chain_need_enough_to_do_together(layer, shape, serving, int8, monkeypatch):
    def define(net, x):
        for _ in range(3):
            x = tf.nn.relu(layer(net, x))
        return tf.tanh(x)

    graph_def, outputs = build(define, shape)
    for has_vnni in (False, True):
        monkeypatch.setattr("quantizer_core.planning.make.has_vnni", lambda found=has_vnni: found)
        prepared = prepared_of(graph_def, outputs)
        data = np.random.default_rng(1).normal(size=(2, *(size or 8 for size in shape[1:]))).astype(np.float32)
        statistics = statistics_of(prepared, data)
        nodes = make_plan(prepared, statistics, QuantizationConfig(serving_batch_size=serving)).computing()
        assert [node.quantized for node in nodes] == [int8] * 3
        assert int8 or ("floats go into 3 kernels and come out, " in nodes[0].reason and SLOWER in nodes[0].reason)


def test_a_convolution_on_few_pixels_between_floats_stays_as_it_is():
    """It makes enough products for each value, but so few that the kernels which round and turn back take longer."""
    for side, quantized in ((1, 0), (16, 1)):
        graph_def, outputs = build(lambda net, x: tf.tanh(net.conv(tf.tanh(x), 32)), (None, side, side, 32))
        _, conversion, _ = int8_of(graph_def, outputs, QuantizationConfig())
        assert conversion.plan.quantized == quantized
        assert quantized or "9,216 products are few" in conversion.plan.nodes[0].reason


@pytest.mark.parametrize(("size", "quantized"), [(1, 0), (3, 2)])
def test_a_convolution_before_a_pool_between_floats_needs_enough_products_a_value(size, quantized):
    graph_def, outputs = build(
        lambda net, x: tf.tanh(tf.nn.max_pool2d(net.conv(tf.tanh(x), 16, size), 2, 2, "SAME")), (None, 128, 128, 16)
    )
    _, conversion, _ = int8_of(graph_def, outputs, QuantizationConfig())
    assert conversion.plan.quantized == quantized
    assert quantized or SLOWER in conversion.plan.nodes[0].reason


def test_small_kernels_stay_int8_where_integers_come_or_go():
    def define(net, x):
        x = tf.nn.avg_pool2d(net.conv(net.conv(x, 64, relu="relu"), 16, relu="relu"), 4, 4, "SAME")
        return net.dense(net.dense(tf.reshape(x, (-1, 7 * 7 * 16)), 16, relu="relu"), 8)

    graph_def, outputs = build(define, (None, 28, 28, 64))
    _, conversion, _ = int8_of(graph_def, outputs, QuantizationConfig())
    assert conversion.plan.counts() == {"Conv2D": (2, 2), "AvgPool": (1, 1), "MatMul": (2, 2)}


def test_leaky_and_gated_activations_stand_between_int8_kernels():
    def define(net, x):
        x = tf.nn.leaky_relu(net.conv(x, 16), 0.1)
        y = net.conv(x, 16)
        return net.conv(tf.sigmoid(y) * y, 8)

    check(define, {"Conv2D": 3})


def test_gated_activations_keep_twice_the_codes():
    """Neither what a gate shuts out nor a minimum of -0.28 may take half of the range."""

    def define(net, x):
        y = net.conv(x * 3.0, 16)
        z = tf.nn.conv2d(tf.sigmoid(y) * y, net.weights(3, 3, 16, 16), 1, "VALID")
        z = tf.nn.bias_add(z, tf.constant(np.full(16, 0.5, np.float32)))
        return net.conv(tf.sigmoid(z) * z, 8)

    graph_def, outputs = build(define)
    prepared, conversion, data = int8_of(graph_def, outputs)
    tensors = conversion.plan.tensors
    kinds = [(tensors[n.sources[0]].dtype, tensors[n.output].dtype) for n in conversion.plan.computing()]
    assert kinds == [("qint8", "quint8"), ("quint8", "quint8"), ("qint8", "qint8")]
    assert all(tensor.offset > 0 for tensor in tensors.values() if tensor.dtype == "quint8")
    found, exact = (run_graph(graph, prepared, data)[0] for graph in (conversion.graph_def, graph_def))
    assert relative_error(found, exact) < 0.03


def test_dilated_convolutions():
    def define(net, x):
        for rate, padding in ((2, "SAME"), (3, "VALID")):
            x = tf.nn.relu(tf.nn.conv2d(x, net.weights(3, 3, 8, 8), 1, padding, dilations=rate))
            strides, dilations = [1, 1, 1, 1], [1, rate, rate, 1]
            x = tf.nn.depthwise_conv2d_native(x, net.weights(3, 3, 8, 1), strides, "SAME", dilations=dilations)
        return x

    check(define, {"Conv2D": 2, "DepthwiseConv2dNative": 2})


def check(
    define: Callable, expected: dict[str, int], shape: tuple[int | None, ...] = (None, 12, 12, 8), **options: object
) -> None:
    """Demands so many INT8 nodes of each op, no FP32 ones of them, and outputs close to FP32."""
    graph_def, outputs = build(define, shape)
    prepared, conversion, data = int8_of(graph_def, outputs, everything(**options))
    counts = conversion.plan.counts()
    assert {op: counts[op] for op in expected} == {op: (number, number) for op, number in expected.items()}
    for int8, fp32 in zip(
        run_graph(conversion.graph_def, prepared, data), run_graph(graph_def, prepared, data), strict=True
    ):
        assert relative_error(int8, fp32) < 0.06
