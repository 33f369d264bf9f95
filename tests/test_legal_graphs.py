"""Graphs that TensorFlow runs in FP32 and conversion has to get through, whatever in them stays FP32."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from tensorflow.core.framework import graph_pb2

from quantizer_core.batch_memory import FEWEST_EXAMPLES, examples_within
from quantizer_core.calibration.run import calibrate
from quantizer_core.data import tensor_example
from quantizer_core.errors import GraphError
from quantizer_core.prepare import prepare
from quantizer_core.quantize import Conversion, convert, quantize
from quantizer_core.rewrites import apply_rewrites
from quantizer_core.runtime import GraphSession
from tests.helpers.nets import Net, everything, ops, relative_error

SHAPE = (12, 12, 8)


def graph_of(define: Callable[[Net, tf.Tensor], tf.Tensor], shape: tuple[int, ...] = SHAPE) -> graph_pb2.GraphDef:
    """Returns a graph from ``x`` to ``out``."""
    with tf.Graph().as_default() as graph:
        tf.identity(define(Net(3), tf.placeholder(tf.float32, [None, *shape], name="x")), name="out")
    return graph.as_graph_def()


def converted(
    define: Callable[[Net, tf.Tensor], tf.Tensor],
    error: float = 0.05,
    shape: tuple[int, ...] = SHAPE,
    **options: object,
) -> Conversion:
    """Converts with all that there is by default, and demands that the output follows FP32's."""
    graph_def = graph_of(define, shape)
    config = everything(inputs=("x",), outputs=("out",), **options)
    data = np.random.default_rng(1).normal(size=(16, *shape)).astype(np.float32)
    conversion = quantize(graph_def, [tensor_example({"x": row}) for row in data], config)
    found = []
    for each in (graph_def, conversion.graph_def):
        with GraphSession(each, prepare(graph_def, config).inputs, ["out"]) as session:
            found.append(session.run({"x": data})[0])
    assert np.isfinite(found[1]).all() and relative_error(found[1], found[0]) < error
    return conversion


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("behind", ["kernel", "input"])
@pytest.mark.parametrize("refine_examples", [32, 0])
def test_grouped_convolutions_stay_fp32(size: int, behind: str, refine_examples: int) -> None:
    def define(net: Net, x: tf.Tensor) -> tf.Tensor:
        x = net.conv(x, 16, 1, relu="relu") if behind == "kernel" else x
        x = tf.nn.conv2d(x, net.weights(size, size, x.shape[3] // 4, 24), 1, "SAME", name="grouped")
        return net.conv(tf.nn.relu(x), 8)

    conversion = converted(define, refine_examples=refine_examples)
    (node,) = [node for node in conversion.plan.nodes if node.name == "grouped"]
    assert not node.quantized and "a grouped convolution" in node.reason
    assert conversion.plan.quantized == conversion.plan.candidates - 1


def test_explicit_padding_of_a_depthwise_convolution_before_a_batch_norm() -> None:
    """TensorFlow aborts on such a convolution with a bias, which folding would make."""

    def define(net: Net, x: tf.Tensor) -> tf.Tensor:
        x = tf.nn.depthwise_conv2d(x, net.weights(3, 3, 8, 1), [1, 1, 1, 1], [[0, 0], [1, 2], [0, 1], [0, 0]])
        return net.conv(tf.nn.relu6(x * net.weights(8) + net.weights(8)), 8)

    conversion = converted(define)
    assert conversion.plan.quantized == 2 and "Pad" not in ops(conversion.graph_def)
    rewritten, _ = apply_rewrites(graph_of(define), ["x"], ["out"])
    (node,) = [node for node in rewritten.node if node.op == "DepthwiseConv2dNative"]
    assert node.attr["padding"].s == b"VALID" and not node.attr["explicit_paddings"].list.i
    converted(define, excluded_ops=("DepthwiseConv2dNative",))


def test_a_shift_is_left_of_a_normalisation_inside_a_loop() -> None:
    """It reads a constant, which has to be the loop's."""

    def define(net: Net, x: tf.Tensor) -> tf.Tensor:
        filters = net.rng.normal(size=(3, 3, 8, 4)).astype(np.float32) / 8

        def body(index: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return index + 1, total + tf.nn.conv2d(
                x * (index_scale(index) / 127.5) - 1.0, tf.constant(filters), 1, "SAME"
            )

        def index_scale(index: tf.Tensor) -> float:
            return 63.75

        start = (tf.constant(0), tf.zeros([tf.shape(x)[0], 12, 12, 4]))
        shapes = (tf.TensorShape([]), tf.TensorShape([None, 12, 12, 4]))
        return tf.while_loop(lambda index, _: index < 2, body, start, shapes)[1]

    tf.disable_control_flow_v2()
    converted(define)


@pytest.mark.parametrize(
    ("define", "op"),
    [
        (lambda net, x: tf.nn.relu(tf.add_n([net.conv(x, 8), x], name="sum")), "AddN"),
        (
            lambda net, x: tf.nn.depthwise_conv2d(x[..., :1], net.weights(3, 3, 1, 4), [1, 1, 1, 1], "SAME"),
            "DepthwiseConv2dNative",
        ),
    ],
)
def test_an_excluded_op_is_not_written_as_another(define: Callable[[Net, tf.Tensor], tf.Tensor], op: str) -> None:
    def more(net: Net, x: tf.Tensor) -> tf.Tensor:
        return net.conv(define(net, x), 4)

    assert op not in ops(converted(more).graph_def)
    assert ops(converted(more, excluded_ops=(op,)).graph_def)[op] == 1


def test_an_excluded_matrix_product_that_is_split_stays_fp32() -> None:
    def define(net: Net, x: tf.Tensor) -> tf.Tensor:
        weights = tf.constant(net.rng.normal(size=(16, 8)).astype(np.float32) / 4)

        def body(index: tf.Tensor, state: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return index + 1, tf.tanh(tf.matmul(tf.concat([x, state], 1), weights, name="cell"))

        start = (tf.constant(0), tf.zeros([tf.shape(x)[0], 8]))
        shapes = (tf.TensorShape([]), tf.TensorShape([None, 8]))
        state = tf.while_loop(lambda index, _: index < 3, body, start, shapes)[1]
        return tf.matmul(state, net.weights(8, 4))

    tf.disable_control_flow_v2()
    assert converted(define, shape=(8,)).plan.counts()["MatMul"] == (3, 3)
    plan = converted(define, shape=(8,), excluded_nodes=("while/cell",)).plan
    assert plan.counts()["MatMul"] == (1, 3)
    assert {node.name for node in plan.nodes if "excluded" in node.reason} == {"while/cell/part_0", "while/cell/part_1"}


@pytest.mark.parametrize("kind", ["half", "bfloat16", "float64"])
def test_pools_and_means_of_other_types_are_left_as_they_are(kind: str) -> None:
    def define(net: Net, x: tf.Tensor) -> tf.Tensor:
        pooled = tf.nn.avg_pool2d(tf.cast(x, kind), 2, 1, "SAME") if kind != "float64" else tf.cast(x, kind)
        mean = tf.reduce_mean(tf.cast(x, kind), [1, 2], keepdims=True)
        return net.conv(tf.cast(pooled + mean, tf.float32), 4)

    assert converted(define).plan.quantized == 1


def test_biases_of_other_ranks_in_a_channels_first_graph() -> None:
    def define(net: Net, x: tf.Tensor) -> tf.Tensor:
        x = tf.nn.conv2d(x, net.weights(3, 3, 4, 8), 1, "SAME", data_format="NCHW")
        x = tf.nn.relu(tf.nn.bias_add(x, net.weights(8), data_format="NCHW"))
        x = tf.raw_ops.ConcatV2(values=[x, -x], axis=tf.constant(1, tf.int64))
        y = tf.nn.bias_add(tf.reshape(x, [-1, 16, 120]), net.weights(16), data_format="NCHW")
        z = tf.matmul(tf.reshape(tf.nn.relu(y), [-1, 16 * 120]), net.weights(16 * 120, 6))
        return tf.nn.bias_add(tf.reshape(z, [-1, 3, 1, 2, 1]), net.weights(3), data_format="NCHW")

    assert converted(define, shape=(4, 12, 10)).plan.counts()["Conv2D"] == (1, 1)


@pytest.mark.parametrize("layer", ["dense", "conv1", "conv3", "depthwise"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_next_to_nothing_leave_the_bias(layer: str, per_channel: bool) -> None:
    """A dead unit's: over a scale of 1e-42 a bias would be infinite."""

    def define(net: Net, x: tf.Tensor) -> tf.Tensor:
        size = {"dense": (), "conv1": (1, 1), "conv3": (3, 3), "depthwise": (3, 3)}[layer]
        outputs = 1 if layer == "depthwise" else 4
        filters = net.rng.normal(size=(*size, 8, outputs)).astype(np.float32) / 8
        filters[..., 2 if layer == "depthwise" else slice(None), 0 if layer == "depthwise" else 2] *= np.float32(1e-40)
        if not per_channel:
            filters *= np.float32(1e-40)
        if layer == "dense":
            return tf.nn.bias_add(tf.matmul(x, tf.constant(filters)), [0.1, -0.2, 0.3, 0.4])
        if layer == "depthwise":
            x = tf.nn.depthwise_conv2d(x, tf.constant(filters), [1, 1, 1, 1], "SAME")
            return tf.nn.bias_add(x, np.linspace(-0.4, 0.5, 8).astype(np.float32))
        return tf.nn.bias_add(tf.nn.conv2d(x, tf.constant(filters), 1, "SAME"), [0.1, -0.2, 0.3, 0.4])

    converted(define, shape=(8,) if layer == "dense" else SHAPE, per_channel=per_channel)


def test_a_concatenation_padded_with_a_given_zero_before_a_depthwise_convolution() -> None:
    def define(net: Net, x: tf.Tensor) -> tf.Tensor:
        x = tf.concat([net.conv(x, 8, relu="relu"), tf.image.resize_bilinear(x[:, ::2, ::2], [12, 12])], 3)
        x = tf.raw_ops.PadV2(input=x, paddings=[[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=0.0)
        return tf.nn.depthwise_conv2d(x, net.weights(3, 3, 16, 1), [1, 1, 1, 1], "VALID")

    assert converted(define).plan.counts()["DepthwiseConv2dNative"] == (1, 1)


@pytest.mark.parametrize("layer", ["dense", "depthwise"])
def test_a_stage_that_no_example_of_the_sample_reaches(layer: str) -> None:
    def define(net: Net, x: tf.Tensor) -> tf.Tensor:
        x = net.dense(x, 8, relu="relu")
        rare = tf.boolean_mask(x, tf.reduce_sum(x, 1) > 1e9, name="rare")
        if layer == "depthwise":
            rare = tf.reshape(net.depthwise(tf.reshape(rare, [-1, 1, 2, 4]), relu="relu"), [-1, 8])
        return tf.concat([tf.identity(x[:, :4]), net.dense(rare, 4)], 0)

    # The rows are of an example of the calibration, which the sample leaves out; without any it could not be planned.
    graph_def = graph_of(define, (8,))
    config = everything(inputs=("x",), outputs=("out",), batch_size=1, refine_examples=4)
    data = np.random.default_rng(1).normal(size=(24, 8)).astype(np.float32)
    records = [tensor_example({"x": row}) for row in data]
    prepared = prepare(graph_def, config)
    run = calibrate(prepared, [*records, tensor_example({"x": data[0] * np.float32(1e12)})], config)
    sample = [record for record in run.sample if record in records[:8]]
    if layer == "depthwise":
        with pytest.raises(GraphError, match=r"node 'depthwise' cannot run in INT8 on every example: .*excluded_nodes"):
            convert(prepared, run.statistics, config, sample)
        config = everything(**vars(config) | {"excluded_nodes": ("depthwise", "MatMul_1")})
    for rounding in ("second_order", "nearest"):
        conversion = convert(prepared, run.statistics, everything(**vars(config) | {"rounding": rounding}), sample)
        with GraphSession(conversion.graph_def, prepared.inputs, ["out"]) as session:
            for row in (data[:1], data[:1] * np.float32(1e12)):
                assert np.isfinite(session.run({"x": row})[0]).all()


def test_refinement_takes_no_more_examples_than_memory_holds() -> None:
    def define(net: Net, x: tf.Tensor) -> tf.Tensor:
        return net.conv(net.conv(x, 16, relu="relu"), 8)

    prepared = prepare(graph_of(define), everything(inputs=("x",), outputs=("out",)))
    examples = [{"x": np.zeros(SHAPE, np.float32)}] * 20
    one = 12 * 12 * 4 * (8 + 16 + 16)  # the decoded example, and what goes into a convolution's bias and comes out
    assert examples_within(prepared, examples, 20 * 100 * one) == 20
    assert 5 <= examples_within(prepared, examples, 10 * one) <= 10
    assert examples_within(prepared, examples, 1) == FEWEST_EXAMPLES
    assert examples_within(prepared, examples[:2], 1) == 2
    assert examples_within(prepared, [], 1) == 0
