"""Graphs that TensorFlow runs in FP32 and conversion has to get through, whatever in them stays FP32."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from tensorflow.core.framework import graph_pb2

from quantizer_core.batch_memory import FEWEST_EXAMPLES, examples_within
from quantizer_core.calibration.run import calibrate
from quantizer_core.data import tensor_example
from quantizer_core.errors import GraphError
from quantizer_core.planning.sensitivity import sensitivity
from quantizer_core.prepare import prepare
from quantizer_core.quantize import convert, quantize
from quantizer_core.rewrites import apply_rewrites
from quantizer_core.runtime import GraphSession
from tests.helpers.conversions import SHAPE, converted, graph_of
from tests.helpers.nets import Net, control_flow_v1, everything, ops, relative_error


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

    with control_flow_v1():
        converted(define)


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


@pytest.mark.parametrize("needed", [True, False])
def test_an_input_that_no_kernel_needs(needed: bool) -> None:
    with tf.Graph().as_default() as graph:
        net, x = Net(3), tf.placeholder(tf.float32, [None, *SHAPE], name="x")
        wide = tf.placeholder(tf.float32, [None, 4], name="wide")
        logits = net.dense(tf.reduce_mean(net.conv(x, 16, relu="relu"), [1, 2]), 4)
        tf.identity(logits * wide if needed else logits, name="out")
    graph_def = graph.as_graph_def()
    rng = np.random.default_rng(1)
    data = {"x": rng.normal(size=(16, *SHAPE)).astype(np.float32), "wide": rng.normal(size=(16, 4)).astype(np.float32)}
    records = [tensor_example({name: values[i] for name, values in data.items()}) for i in range(16)]
    config = everything()
    conversion = quantize(graph_def, records, config)
    assert {spec.name for spec in conversion.prepared.inputs} == {"x", "wide"} and conversion.plan.quantized == 2
    found = []
    for each in (graph_def, conversion.graph_def):
        with GraphSession(each, conversion.prepared.inputs, ["out"]) as session:
            found.append(session.run(data)[0])
    assert relative_error(found[1], found[0]) < 0.05


def test_a_graph_frozen_for_a_gpu() -> None:
    def define(net: Net, x: tf.Tensor) -> tf.Tensor:
        return net.conv(net.conv(x, 16, relu="relu"), 8)

    def onto_gpu(graph_def: graph_pb2.GraphDef) -> None:
        for node in graph_def.node:
            node.device = "/job:localhost/replica:0/task:0/device:GPU:0"

    assert converted(define, changed=onto_gpu).plan.quantized == 2


@pytest.mark.parametrize("unit", [1e-13, 1e13])
@pytest.mark.parametrize("method", ["mse", "minmax", "percentile", "kl"])
def test_values_in_small_and_large_units(unit: float, method: str) -> None:
    """Magnetic fields of a brain in tesla, for instance; a bias as large as the rest is scaled with it."""

    def define(net: Net, x: tf.Tensor) -> tf.Tensor:
        x = tf.nn.bias_add(net.conv(x, 16, bias=False), net.weights(16) * np.float32(unit))
        x = net.conv(tf.nn.relu(x), 8, bias=False)
        return net.dense((x / np.float32(unit))[:, 5, 6], 4)

    assert converted(define, unit=unit, error=0.1, calibration_method=method).plan.quantized == 3


def test_a_bias_far_above_what_small_values_make() -> None:
    def define(net: Net, x: tf.Tensor) -> tf.Tensor:
        return net.conv(tf.nn.relu(net.conv(x, 16)), 8)  # whose biases are near 1

    converted(define, unit=1e-13)


def test_a_shape_is_told_by_the_codes() -> None:
    def define(net: Net, x: tf.Tensor) -> tf.Tensor:
        x = net.conv(x, 16, relu="relu")
        shape, size, rank = tf.shape(x, out_type=tf.int64), tf.size(x), tf.rank(x)
        x = tf.nn.max_pool2d(net.conv(x, 8, relu="relu"), 2, 2, "SAME")
        flat = tf.reshape(x, tf.stack([tf.shape(x)[0], 6 * 6 * 8]))
        told = tf.stack([tf.cast(shape[2], tf.float32), tf.cast(size, tf.float32) / 1e3, tf.cast(rank, tf.float32)])
        return tf.concat([net.dense(flat, 8), tf.tile(told[None], [tf.shape(flat)[0], 1])], 1)

    found = ops(converted(define).graph_def)
    assert "Dequantize" not in found and found["Shape"] >= 1


@pytest.mark.parametrize("batch", [24, 40])
def test_a_batch_larger_than_the_sample(batch: int) -> None:
    """Copies that fill it up count nothing: the graph is about that of a free batch."""

    def define(net: Net, x: tf.Tensor) -> tf.Tensor:
        x = tf.reshape(x, [-1, *SHAPE])
        return net.dense(tf.reduce_mean(net.conv(net.conv(x, 16, relu="relu"), 8, relu="relu"), [1, 2]), 4)

    graphs = [graph_of(define), graph_of(define)]
    for node in graphs[1].node:
        if node.op == "Placeholder":
            node.attr["shape"].shape.dim[0].size = batch
    data = np.random.default_rng(1).normal(size=(16, *SHAPE)).astype(np.float32)
    data[-1] *= 20  # which would have been copied
    records = [tensor_example({"x": row}) for row in data]
    free, fixed = (quantize(each, records, everything(inputs=("x",), outputs=("out",))) for each in graphs)
    for name, parameters in free.parameters.items():
        np.testing.assert_allclose(fixed.parameters[name].bias, parameters.bias, atol=0.2 * np.ptp(parameters.bias))
    foreseen = [sensitivity(each.prepared, each.plan, [{"x": row} for row in data[:8]]) for each in (free, fixed)]
    assert foreseen[0] and foreseen[1]
    for name, cost in foreseen[0].divergence.items():
        assert foreseen[1].divergence[name] == pytest.approx(cost, rel=1.0)
    assert foreseen[1].products == pytest.approx(foreseen[0].products)


def test_kernels_that_are_all_in_functions() -> None:
    @tf.function
    def inner(x: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        return tf.matmul(x, weights)

    graph_def = graph_of(lambda net, x: inner(x, net.weights(8, 4)), (8,))
    with pytest.raises(GraphError, match=r"but in functions \(__inference_inner_\d+\).*inline"):
        prepare(graph_def, everything(inputs=("x",), outputs=("out",)))


def test_a_shape_that_waits_for_a_kernel_is_left_to_wait() -> None:
    def define(net: Net, x: tf.Tensor) -> tf.Tensor:
        y = net.conv(x, 8, relu="relu")
        with tf.control_dependencies([tf.debugging.assert_less(y, 1e9), y.op]):
            rows = tf.shape(x)[0]
        return tf.reshape(net.conv(y, 4), tf.stack([rows, 12 * 12 * 4]))

    assert converted(define).plan.quantized == 2


def test_sums_behind_shuffled_pixels_are_not_copied() -> None:
    def define(net: Net, x: tf.Tensor) -> tf.Tensor:
        x = net.conv(tf.nn.space_to_depth(net.conv(x, 8, relu="relu"), 2), 16, relu="relu")
        return net.conv(tf.nn.relu(net.conv(x, 16) + x), 4)

    graph_def = converted(define).graph_def
    (function,) = graph_def.library.function
    assert not function.attr["_noinline"].b


def test_channels_before_a_shuffle_of_floats_are_fitted_as_before_floats() -> None:
    """What a kernel makes that no kernel reads has the extremes of its channels seen."""

    def define(net: Net, x: tf.Tensor) -> tf.Tensor:
        return tf.nn.depth_to_space(net.conv(net.conv(x, 8, relu="relu"), 16, name="last"), 2)

    observed = prepare(graph_of(define), everything(inputs=("x",), outputs=("out",))).observed
    assert {each.name: each.channel_axis for each in observed}["BiasAdd_1"] == -1


def test_a_constant_whose_reader_is_not_folded_keeps_what_it_reads() -> None:
    """A tensor grown beyond what is worth a constant reads the one half, a sum the other."""

    def define(net: Net, x: tf.Tensor) -> tf.Tensor:
        one, two = tf.split(tf.constant(net.rng.normal(size=(2, 1024)).astype(np.float32)), 2)
        grown = tf.broadcast_to(one, [3000, 1024], name="grown")
        y = net.dense(net.dense(x, 1024) + two, 1024)
        return tf.matmul(y, grown, transpose_b=True) / 32.0

    graph_def = graph_of(define, (8,))
    prepared = prepare(graph_def, everything(inputs=("x",), outputs=("out",)))
    data = {"x": np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)}
    found = []
    for each in (graph_def, prepared.graph_def):
        with GraphSession(each, prepared.inputs, ["out"]) as session:
            found.append(session.run(data)[0])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["features", "image"])
def test_normalised_features_are_quantised_as_normalised(kind: str) -> None:
    """In one range with incomes, ages would have one code."""
    units = np.array([1e6, 100, 1, 1e-3, 1e4, 10, 50, 0.1], np.float32)

    def define(net: Net, x: tf.Tensor) -> tf.Tensor:
        x = (x - 0.5 * units) / units
        x = net.dense(x, 32, relu="relu") if kind == "features" else net.conv(x, 16, relu="relu")
        return net.dense(x, 4) if kind == "features" else net.conv(x, 4)

    conversion = converted(define, error=0.05, shape=(8,) if kind == "features" else SHAPE, unit=units)
    assert conversion.plan.quantized == 2


def test_defaults_that_a_graph_leaves_out_are_known_to_the_rules() -> None:
    def define(net: Net, x: tf.Tensor) -> tf.Tensor:
        x = tf.nn.conv2d(x, net.weights(3, 3, 8, 8), 1, "SAME", data_format="NCHW")
        x = tf.nn.max_pool2d(tf.nn.leaky_relu(x), 2, 2, "SAME", data_format="NCHW")
        return tf.nn.conv2d(x, net.weights(3, 3, 8, 4), 1, "SAME", data_format="NCHW")

    def stripped(graph_def: graph_pb2.GraphDef) -> None:
        for node in graph_def.node:
            if node.op in ("MaxPool", "LeakyRelu"):
                del node.attr["T"]

    whole, bare = (converted(define, shape=(8, 12, 12), changed=each) for each in (lambda graph_def: None, stripped))
    assert bare.graph_def == whole.graph_def


def test_a_signed_summand_that_cannot_be_shifted_says_so() -> None:
    def define(net: Net, x: tf.Tensor) -> tf.Tensor:
        pooled = tf.nn.max_pool2d(net.conv(x, 8), 3, 1, "SAME")
        return net.conv(tf.nn.relu(net.conv(x, 8) + pooled), 4)

    reasons = [node.reason for node in converted(define).plan.nodes if "summand" in node.reason]
    assert reasons and all("no convolution makes it that could shift it up" in reason for reason in reasons)


def test_moves_of_six_axes_between_kernels_carry_codes() -> None:
    """Pixels that are shuffled by hand."""

    def define(net: Net, x: tf.Tensor) -> tf.Tensor:
        x = tf.reshape(net.conv(x, 16, relu="relu"), [-1, 6, 2, 6, 2, 16])
        return net.conv(tf.reshape(tf.transpose(x, [0, 1, 3, 2, 4, 5]), [-1, 6, 6, 64]), 4)

    conversion = converted(define)
    assert conversion.plan.quantized == 2 and ops(conversion.graph_def)["QuantizeV2"] == 1


@pytest.mark.parametrize("first", ["floats", "moves"])
def test_moves_of_six_axes_that_floats_read_stay_floats(first: str) -> None:
    def define(net: Net, x: tf.Tensor) -> tf.Tensor:
        x = tf.reshape(net.conv(x, 16, relu="relu"), [-1, 6, 2, 6, 2, 16])
        x = tf.transpose(x, [0, 1, 3, 2, 4, 5])
        if first == "floats":
            most, all_of_them = tf.reduce_max(x, [3, 4]), tf.reshape(x, [-1, 6, 6, 64])
        else:
            all_of_them, most = tf.reshape(x, [-1, 6, 6, 64]), tf.reduce_max(x, [3, 4])
        return net.conv(all_of_them, 4) + net.conv(most, 4)

    assert converted(define).plan.quantized == 3
