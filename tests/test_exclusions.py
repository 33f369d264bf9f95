"""What is excluded stays what it is through every rewrite, by op type and by name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from quantizer_core.rewrites import apply_rewrites
from tests.helpers.conversions import converted
from tests.helpers.nets import Net, control_flow_v1, ops


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


def _norm(net: Net, x: tf.Tensor, name: str) -> tf.Tensor:
    return tf.raw_ops.FusedBatchNormV3(
        x=x, scale=net.weights(8) + 2, offset=net.weights(8), mean=net.weights(8), variance=net.weights(8) ** 2 + 1,
        is_training=False, name=name,
    ).y  # fmt: skip


@pytest.mark.parametrize(
    ("op", "define"),
    [
        ("AddV2", lambda net, x: tf.raw_ops.AddV2(x=net.conv(x, 8, bias=False), y=net.weights(8), name="kept")),
        ("Sub", lambda net, x: tf.raw_ops.Sub(x=net.conv(x, 8, bias=False), y=net.weights(8), name="kept")),
        ("Mul", lambda net, x: tf.raw_ops.Mul(x=net.conv(x, 8, bias=False), y=net.weights(8), name="kept") + 1.5),
        ("FusedBatchNormV3", lambda net, x: _norm(net, net.conv(x, 8, bias=False), "kept")),
        ("FusedBatchNormV3", lambda net, x: net.conv(_norm(net, net.conv(x, 8), "kept"), 8, padding="VALID")),
        ("BiasAdd", lambda net, x: tf.nn.bias_add(net.conv(x, 8, bias=False), net.weights(8), name="kept")),
        (
            "Pad",
            lambda net, x: net.conv(
                tf.pad(net.conv(x, 8, relu="relu"), [[0, 0], [1, 1], [2, 1], [0, 0]], name="kept"), 8, padding="VALID"
            ),
        ),
        (
            "Pad",
            lambda net, x: tf.nn.depthwise_conv2d(
                tf.pad(net.conv(x, 8, relu="relu"), [[0, 0], [1, 1], [2, 1], [0, 0]], name="kept"),
                net.weights(3, 3, 8, 1), [1, 1, 1, 1], "VALID",
            ),
        ),
        ("BatchToSpaceND", lambda net, x: _dilated(net, net.conv(x, 8, relu="relu"), "kept", "other")),
        ("SpaceToBatchND", lambda net, x: _dilated(net, net.conv(x, 8, relu="relu"), "other", "kept")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("by", ["op", "name"])
def test_what_is_excluded_is_not_folded_into_a_kernel(
    op: str, define: Callable[[Net, tf.Tensor], tf.Tensor], by: str
) -> None:
    def more(net: Net, x: tf.Tensor) -> tf.Tensor:
        return net.conv(tf.nn.relu(define(net, x)), 4, bias=False)

    assert op not in ops(converted(more).graph_def)
    conversion = converted(more, **({"excluded_ops": (op,)} if by == "op" else {"excluded_nodes": ("kept",)}))
    (node,) = [node for node in conversion.graph_def.node if node.op == op]
    assert node.name == "kept" and node.attr["T"].type == tf.float32.as_datatype_enum
    assert not [each for each in conversion.plan.nodes if "kept" in each.fused]


@pytest.mark.parametrize(
    ("op", "define"),
    [
        (
            "FusedBatchNormV3",
            lambda net, x: tf.raw_ops.FusedBatchNormV3(
                x=tf.nn.conv2d(x, net.weights(3, 3, 8, 8), 1, "SAME", data_format="NCHW"), scale=net.weights(8) + 2,
                offset=net.weights(8), mean=net.weights(8), variance=net.weights(8) ** 2 + 1, is_training=False,
                data_format="NCHW", name="out",
            ).y,
        ),
        (
            "DepthwiseConv2dNative",
            lambda net, x: tf.nn.depthwise_conv2d(
                x[:, :1] * 3.0 + net.weights(1), net.weights(3, 3, 1, 4), [1, 1, 1, 1], "VALID", data_format="NCHW",
                name="out",
            ),
        ),
        (
            "DepthwiseConv2dNative",
            lambda net, x: tf.nn.depthwise_conv2d(
                x[..., :1] * 3.0 + net.weights(1), net.weights(3, 3, 1, 4), [1, 1, 1, 1], "VALID", name="out"
            ),
        ),
    ],
)  # fmt: skip
def test_what_is_excluded_is_so_under_the_name_that_its_output_leaves_it(
    op: str, define: Callable[[Net, tf.Tensor], tf.Tensor]
) -> None:
    with tf.Graph().as_default() as graph:
        define(Net(3), tf.placeholder(tf.float32, [None, 8, 8, 8], name="x"))
    for excluded in ({"excluded_ops": (op,)}, {"excluded_nodes": ("out",)}):
        rewritten, _ = apply_rewrites(graph.as_graph_def(), ["x"], ["out"], **excluded)
        assert ops(rewritten)[op] == 1
    assert op not in ops(apply_rewrites(graph.as_graph_def(), ["x"], ["out"])[0])


def _dilated(net: Net, x: tf.Tensor, back: str, there: str) -> tf.Tensor:
    x = tf.raw_ops.SpaceToBatchND(input=x, block_shape=[2, 2], paddings=[[2, 2], [2, 2]], name=there)
    x = net.conv(x, 8, padding="VALID", bias=False)
    return tf.raw_ops.BatchToSpaceND(input=x, block_shape=[2, 2], crops=[[0, 0], [0, 0]], name=back)


def test_an_excluded_matrix_product_that_is_split_stays_fp32() -> None:
    def define(net: Net, x: tf.Tensor) -> tf.Tensor:
        weights = tf.constant(net.rng.normal(size=(16, 8)).astype(np.float32) / 4)

        def body(index: tf.Tensor, state: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return index + 1, tf.tanh(tf.matmul(tf.concat([x, state], 1), weights, name="cell"))

        start = (tf.constant(0), tf.zeros([tf.shape(x)[0], 8]))
        shapes = (tf.TensorShape([]), tf.TensorShape([None, 8]))
        state = tf.while_loop(lambda index, _: index < 3, body, start, shapes)[1]
        return tf.matmul(state, net.weights(8, 4))

    with control_flow_v1():
        assert converted(define, shape=(8,)).plan.counts()["MatMul"] == (3, 3)
        plan = converted(define, shape=(8,), excluded_nodes=("while/cell",)).plan
    assert plan.counts()["MatMul"] == (1, 3)
    assert {node.name for node in plan.nodes if "excluded" in node.reason} == {"while/cell/part_0", "while/cell/part_1"}
