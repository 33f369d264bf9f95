"""What a plan makes of small networks, and that the INT8 graph follows the FP32 one closely."""

from __future__ import annotations

import pytest
import tensorflow.compat.v1 as tf

from quantizer_core.planning import QuantizationPlan
from tests.helpers.nets import assert_close, build, everything, int8_of, ops

CONVOLUTION, DEPTHWISE = "_FusedQuantizedConv2D", "_FusedQuantizedDepthwiseConv2D"
MATMUL = "QuantizedMatMulWithBiasAndDequantize"


def check(define, expected: dict[str, int], *, error=0.05, config=None, shape=(None, 12, 12, 8)) -> QuantizationPlan:
    """Converts a network; demands counts of ops in the INT8 graph and closeness of all outputs."""
    graph_def, outputs = build(define, shape)
    prepared, conversion, data = int8_of(graph_def, outputs, config)
    found = ops(conversion.graph_def)
    assert {op: found.get(op, 0) for op in expected} == expected
    assert_close(graph_def, prepared, conversion, data, error)
    assert QuantizationPlan.from_json(conversion.plan.to_json()) == conversion.plan
    return conversion.plan


def test_a_chain_is_quantised_once_and_dequantised_once():
    def define(net, x):
        x = net.conv(x, 16, relu="relu")
        x = net.depthwise(x, 2, relu="relu6")
        return net.conv(x, 24, relu="relu")

    plan = check(define, {CONVOLUTION: 2, DEPTHWISE: 1, "QuantizeV2": 1, "Dequantize": 1, "Relu": 0, "BiasAdd": 0})
    assert plan.quantized == plan.candidates == 3
    assert {t.dtype for t in plan.tensors.values()} == {"qint8", "quint8"}
    assert plan.tensors["x"].dtype == "qint8"


def test_relu6_clips_at_six():
    def define(net, x):
        return net.conv(net.conv(x * 40.0, 16, relu="relu6"), 8)

    plan = check(define, {CONVOLUTION: 2, "Relu6": 0})
    assert [t.limit for name, t in plan.tensors.items() if name.startswith("Relu6")] == [6.0]


def test_a_convolution_without_bias_or_relu_that_is_the_output():
    check(lambda net, x: net.conv(x, 8, bias=False), {CONVOLUTION: 1, "Conv2D": 0})


def test_a_tensor_with_float_readers_is_dequantised_for_them_alone():
    def define(net, x):
        y = net.conv(x, 16, relu="relu")
        return net.conv(y, 8), tf.tanh(y), tf.sigmoid(y)

    check(define, {CONVOLUTION: 2, "Dequantize": 2, "QuantizeV2": 1})


def test_intermediate_tensors_that_are_outputs_or_read_elsewhere_are_not_swallowed():
    def define(net, x):
        y = net.conv(x, 16)
        return y, tf.nn.relu(y) + tf.tanh(y)

    check(define, {CONVOLUTION: 1, "Relu": 1})


@pytest.mark.parametrize("swap", [False, True])
def test_identity_residual_is_a_fused_sum(swap):
    def define(net, x):
        x = net.conv(x, 16, relu="relu")
        y = net.conv(net.conv(x, 16, relu="relu"), 16)
        return net.conv(tf.nn.relu(x + y if swap else y + x), 8)

    plan = check(define, {CONVOLUTION: 4, "AddV2": 0, "Dequantize": 1})
    assert sum(bool(node.summand) for node in plan.nodes) == 1


def test_projection_residual_has_an_unsigned_summand_by_an_offset():
    def define(net, x):
        x = net.conv(x, 16, relu="relu")
        y = net.conv(net.conv(x, 24, relu="relu"), 24)
        return net.conv(tf.nn.relu(net.conv(x, 24, 1) + y), 8)

    plan = check(define, {CONVOLUTION: 5, "AddV2": 0, "Dequantize": 1})
    offsets = [tensor for tensor in plan.tensors.values() if tensor.offset]
    assert len(offsets) == 1 and offsets[0].dtype == "quint8"


def test_a_shortcut_of_slice_and_pad_stays_integer_and_is_summed():
    def define(net, x):
        x = net.conv(x, 8, relu="relu")
        y = net.conv(net.conv(x, 16, 3, 2, relu="relu"), 16)
        shortcut = tf.pad(x[:, ::2, ::2, :], [[0, 0], [0, 0], [0, 0], [4, 4]])
        return net.conv(tf.nn.relu(shortcut + y), 8)

    plan = check(define, {CONVOLUTION: 4, "AddV2": 0, "QuantizeV2": 1, "Dequantize": 1})
    assert plan.candidates == 4


def test_a_float_summand_that_a_kernel_reads_too_is_summed():
    def define(net, x):
        x = tf.sigmoid(x)
        y = net.conv(net.conv(x, 16, relu="relu"), 8)
        return net.conv(tf.nn.relu(x + y), 8)

    check(define, {CONVOLUTION: 3, "AddV2": 0, "QuantizeV2": 1, "Dequantize": 1})


def test_a_pad_before_a_depthwise_convolution_is_taken_over():
    def define(net, x):
        y = tf.pad(net.conv(x, 16, relu="relu6"), [[0, 0], [0, 1], [2, 1], [0, 0]])
        y = tf.nn.depthwise_conv2d(y, net.weights(3, 3, 16, 1), [1, 2, 2, 1], "VALID")
        return net.conv(tf.nn.relu(y), 8)

    check(define, {CONVOLUTION: 2, DEPTHWISE: 1, "Pad": 0, "QuantizeV2": 1, "Dequantize": 1})


def test_a_sum_whose_summand_is_the_convolutions_own_input_is_fused():
    def define(net, x):
        x = net.conv(x, 16, relu="relu")
        return net.conv(tf.nn.relu(x + net.conv(x, 16)), 8)

    plan = check(define, {CONVOLUTION: 3, "AddV2": 0, "Dequantize": 1})
    assert sum(bool(node.summand) for node in plan.nodes) == 1


def test_a_sum_whose_summand_is_read_later_or_fetched_is_fused():
    def later(net, x):
        x = net.conv(x, 16, relu="relu")
        y = tf.nn.relu(net.conv(net.conv(x, 16, relu="relu"), 16) + x)
        return net.conv(y, 8), net.conv(x, 8)

    check(later, {CONVOLUTION: 5, "AddV2": 0, "Dequantize": 2})

    def fetched(net, x):
        x = net.conv(x, 16, relu="relu")
        y = tf.nn.relu(net.conv(net.conv(x, 16, relu="relu"), 16) + x)
        return net.conv(y, 8), x

    check(fetched, {CONVOLUTION: 4, "AddV2": 0, "Dequantize": 2})


def test_two_sums_may_share_a_summand():
    def define(net, x):
        x = net.conv(x, 16, relu="relu")
        return tuple(net.conv(tf.nn.relu(net.conv(net.conv(x, 8, relu="relu"), 16) + x), 8) for _ in range(2))

    check(define, {CONVOLUTION: 7, "AddV2": 0})


def test_a_sum_that_broadcasts_is_not_fused():
    def define(net, x):
        gate = net.conv(tf.nn.avg_pool2d(x, 12, 12, "VALID"), 16, 1, relu="relu")
        return net.conv(tf.nn.relu(net.conv(x, 16) + gate), 8)

    plan = check(define, {"AddV2": 1})
    assert any("shapes" in node.reason for node in plan.nodes)


def test_pools_and_concats_share_one_range():
    def define(net, x):
        x = net.conv(x, 16, relu="relu")
        a, b = net.conv(x, 8, 1, relu="relu"), net.conv(x * 1.0, 8, 3, relu="relu")
        y = tf.concat([a, tf.nn.max_pool2d(b, 3, 1, "SAME")], 3)
        return net.conv(tf.nn.avg_pool2d(y, 2, 1, "SAME"), 8)

    plan = check(define, {"QuantizedMaxPool": 1, "ConcatV2": 1, "QuantizedAvgPool": 1, "Dequantize": 2})
    ranges = {t.limit for name, t in plan.tensors.items() if "concat" in name or "Pool" in name}
    assert len(ranges) == 1
    assert all(node.quantized for node in plan.nodes if node.op == "ConcatV2")


def test_a_signed_branch_makes_the_whole_concat_signed():
    def define(net, x):
        a, b = net.conv(x, 8, relu="relu"), net.conv(x, 8)
        return net.conv(tf.concat([a, b], 3), 8)

    plan = check(define, {"ConcatV2": 1, "Dequantize": 1})
    assert {(n.quantized, plan.tensors[n.output].dtype) for n in plan.nodes if n.op == "ConcatV2"} == {(True, "qint8")}


def test_relu6_and_larger_values_are_not_joined():
    def define(net, x):
        a, b = net.conv(x * 9.0, 8, relu="relu6"), net.conv(x * 9.0, 8, relu="relu")
        return net.conv(tf.concat([a, b], 3), 8)

    plan = check(define, {"ConcatV2": 1})
    (concat,) = [node for node in plan.nodes if node.op == "ConcatV2"]
    assert not concat.quantized and "Relu6" in concat.reason


def test_moves_carry_integers_between_kernels_only():
    def define(net, x):
        y = net.conv(x, 16, relu="relu")
        y = tf.transpose(tf.pad(y[:, 1:, :, :], [[0, 0], [1, 1], [2, 0], [0, 0]]), [0, 2, 1, 3])
        y = net.conv(tf.tile(y, [1, 2, 1, 1]), 8, relu="relu")
        flat = tf.reshape(tf.nn.max_pool2d(y, 2, 2, "VALID"), [-1, 14 * 6 * 8])
        return net.dense(flat, 10), tf.squeeze(tf.reduce_max(y, [1, 2], keepdims=True), [1, 2])

    check(define, {"QuantizeV2": 1, "Dequantize": 1, MATMUL: 1, CONVOLUTION: 2})


@pytest.mark.parametrize("signed", [True, False])
def test_enlarging_and_shuffling_pixels_carries_integers(signed):
    """As the decoders of segmentation, detection and super-resolution do it; one size is found as the graph runs."""

    def define(net, x):
        y = net.conv(x, 16, relu="" if signed else "relu")
        y = net.conv(tf.image.resize_nearest_neighbor(y, 2 * tf.shape(y)[1:3], half_pixel_centers=True), 8, relu="relu")
        y = net.conv(tf.nn.space_to_depth(tf.reshape(y, [-1, 24, 24, 8]), 3), 16, relu="" if signed else "relu")
        return net.conv(tf.nn.depth_to_space(y, 2), 4)

    check(define, {"QuantizeV2": 1, "Dequantize": 1, CONVOLUTION: 4, "ResizeNearestNeighbor": 1, "DepthToSpace": 1})


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("size_known", [True, False])
def test_a_pointwise_convolution_that_floats_read_is_not_rounded(size_known, per_channel):
    def define(net, x):
        if not size_known:
            x = tf.reshape(x, tf.concat([tf.maximum(tf.shape(x)[:3], 1), [8]], 0))
        signed = net.conv(tf.tanh(x), 12)
        logits = net.conv(net.conv(x, 16, relu="relu"), 24, 1, relu="relu6", bias=False)
        return tf.reduce_mean(logits, [1, 2]), tf.sigmoid(net.conv(signed, 4, 1)), net.conv(signed, 4, 1, stride=2)

    config = everything(per_channel=per_channel)
    plan = check(define, {CONVOLUTION: 3, MATMUL: 2, "Conv2D": 0, "Dequantize": 1}, config=config)
    products = [node for node in plan.computing() if node.form == "matmul"]
    assert [node.op for node in products] == ["Conv2D", "Conv2D"]
    assert {plan.tensors[node.sources[0]].dtype for node in products} == {"quint8", "qint8"}
    assert not {node.output for node in products} & set(plan.tensors)
    assert {node.places for node in products} == {(12, 12) if size_known else ()}


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("transpose", [True, False])
def test_dense_layers_over_signed_and_unsigned_tensors(per_channel, transpose):
    def define(net, x):
        x = net.dense(x, 48, relu="relu", transpose=transpose)
        x = net.dense(x, 32, bias=False)
        return net.dense(tf.tanh(net.dense(x, 24)), 10, transpose=transpose)

    plan = check(
        define, {MATMUL: 2, CONVOLUTION: 2, "MatMul": 0}, shape=(None, 40), error=0.08,
        config=everything(per_channel=per_channel),
    )  # fmt: skip
    assert plan.quantized == plan.candidates == 4


def test_excluded_nodes_and_ops_stay_as_they_are():
    def define(net, x):
        x = net.conv(x, 8, relu="relu", name="first")
        x = tf.nn.max_pool2d(net.conv(x, 8, relu="relu", name="second"), 2, 2, "SAME", name="pool")
        return net.conv(x, 8, name="third")

    config = everything(excluded_nodes=["first", "pool"])
    plan = check(define, {"Conv2D": 1, "MaxPool": 1, CONVOLUTION: 2}, config=config)
    assert {n.name: n.reason for n in plan.nodes if not n.quantized} == dict.fromkeys(
        ("first", "pool"), "excluded by the configuration"
    )
    config = everything(excluded_ops=["MaxPool", "Relu"])
    check(define, {"MaxPool": 1, "Relu": 2, CONVOLUTION: 3}, config=config)


def test_what_has_no_kernel_says_why():
    def define(net, x):
        y = tf.nn.depthwise_conv2d(x, net.weights(3, 3, 8, 2), [1, 1, 1, 1], "SAME")
        z = tf.nn.conv2d(x, tf.tanh(tf.nn.relu(net.weights(1, 1, 8, 8)) + tf.reduce_mean(x)), 1, "SAME")
        return y, z, net.conv(x, 8)

    plan = check(define, {CONVOLUTION: 1})
    reasons = {n.op: n.reason for n in plan.nodes if not n.quantized}
    assert "multiplier" in reasons["DepthwiseConv2dNative"] and "constant" in reasons["Conv2D"]


def test_shared_weights_are_quantised_for_each_reader():
    def define(net, x):
        weights = net.weights(3, 3, 8, 8)
        y = tf.nn.relu(tf.nn.conv2d(x, weights, 1, "SAME"))
        return tf.nn.conv2d(y, weights, 1, "SAME"), tf.reduce_sum(weights)

    check(define, {CONVOLUTION: 2})
