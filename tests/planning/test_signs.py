"""A tensor counts as unsigned only by proof."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from quantizer_core.graph.graph import Graph
from quantizer_core.planning.signs import Signs

UNARY = {
    "relu": tf.nn.relu, "relu6": tf.nn.relu6, "sigmoid": tf.sigmoid, "tanh": tf.tanh, "neg": tf.negative,
    "square": tf.square, "exp": tf.exp, "identity": tf.identity, "elu": tf.nn.elu, "leaky": tf.nn.leaky_relu,
    "pool": lambda x: tf.nn.max_pool2d(x, 2, 1, "SAME"), "average": lambda x: tf.nn.avg_pool2d(x, 2, 1, "SAME"),
    "minus": lambda x: x - 0.5, "plus": lambda x: x + 0.5, "half": lambda x: 0.5 * x, "mean": lambda x: tf.reduce_mean(
        x, [1, 2], keepdims=True), "pad": lambda x: tf.pad(x, [[0, 0], [1, 1], [0, 0], [0, 0]]),
    "pad_minus": lambda x: tf.pad(x, [[0, 0], [1, 1], [0, 0], [0, 0]], constant_values=-1.0),
    "join": lambda x: tf.concat([x, tf.nn.relu(x)], 3), "times": lambda x: x * tf.nn.relu(x),
    "resize": lambda x: tf.image.resize_nearest_neighbor(x, [4, 4]), "bicubic": lambda x: tf.image.resize_bicubic(
        x, [4, 4]), "softplus": tf.nn.softplus, "cos": tf.cos,
}  # fmt: skip


@given(st.lists(st.sampled_from(sorted(UNARY)), min_size=1, max_size=6), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_no_tensor_called_unsigned_is_ever_negative(kinds, seed):
    with tf.Graph().as_default() as graph:
        x = tf.placeholder(tf.float32, [2, 3, 3, 2], name="x")
        tensors = []
        for kind in kinds:
            tensors.append(UNARY[kind](tensors[-1] if tensors else x))
        signs = Signs(Graph(graph.as_graph_def()))
        data = np.random.default_rng(seed).normal(scale=2, size=(2, 3, 3, 2)).astype(np.float32)
        with tf.Session() as session:
            for tensor, value in zip(tensors, session.run(tensors, {x: data}), strict=True):
                if signs.nonnegative(tensor.name):
                    assert not np.any(value < 0)


@pytest.mark.parametrize(
    ("define", "expected"),
    [
        (lambda x: tf.nn.max_pool2d(tf.nn.relu(x), 2, 1, "SAME"), True),
        (lambda x: tf.concat([tf.nn.relu(x), tf.sigmoid(x)], 3), True),
        (lambda x: tf.concat([tf.nn.relu(x), x], 3), False),
        (lambda x: tf.nn.relu(x) + tf.constant(0.5), True),
        (lambda x: tf.nn.relu(x) + tf.constant(-0.5), False),
        (lambda x: tf.nn.relu(x) - tf.constant(0.5), False),
        (lambda x: tf.sigmoid(x) * x, False),
        (lambda x: tf.cast(tf.cast(x, tf.uint8), tf.float32) / 255.0, True),
        (lambda x: tf.cast(tf.cast(x, tf.int32), tf.float32), False),
        (lambda x: x, False),
    ],
)
def test_proofs(define, expected):
    with tf.Graph().as_default() as graph:
        name = define(tf.placeholder(tf.float32, [1, 4, 4, 2])).op.name
    assert Signs(Graph(graph.as_graph_def())).nonnegative(name) is expected


@pytest.mark.parametrize(
    ("narrow", "unsigned"), [("int8", False), ("int16", True), ("int32", True), ("uint16", True), ("float32", True)]
)
def test_an_unsigned_integer_that_may_wrap_around_proves_nothing(narrow, unsigned):
    with tf.Graph().as_default() as graph:
        x = tf.placeholder(tf.uint8, [2], name="x")
        tf.cast(tf.cast(x, narrow), tf.float32, name="y") if narrow != "float32" else tf.cast(x, narrow, name="y")
    assert Signs(Graph(graph.as_graph_def())).nonnegative("y") == unsigned
