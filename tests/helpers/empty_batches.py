"""INT8 graphs that get no values, from outside or inside; ``python -m tests.helpers.empty_batches`` prints
``survived N errors M`` of N runs: its process might have ended.
"""

from __future__ import annotations

import sys

import numpy as np
import tensorflow.compat.v1 as tf

from quantizer_core.quantize import convert
from tests.helpers.nets import Net, build, everything, prepared_of, statistics_of


def dense(net: Net, x: tf.Tensor) -> tf.Tensor:
    x = tf.tanh(tf.reduce_mean(net.conv(x, 8, relu="relu"), [1, 2]))  # floats between two INT8 parts
    return net.dense(net.dense(x, 6, relu="relu"), 5)


def pooled(net: Net, x: tf.Tensor) -> list[tf.Tensor]:
    """Means between INT8 kernels."""
    x = net.conv(x, 8, relu="relu")
    whole = net.dense(tf.reduce_mean(x, [1, 2]), 4)
    return [whole, net.conv(net.conv(tf.reduce_mean(x, [1, 2], keepdims=True), 8, 1, relu="relu"), 4, 1)]


def layers(net: Net, x: tf.Tensor) -> list[tf.Tensor]:
    x = net.conv(x, 8, relu="relu")
    x = tf.nn.relu(x + net.conv(net.conv(x, 8, relu="relu"), 8))
    x = net.depthwise(tf.concat([x, net.conv(x, 4, relu="relu")], 3), relu="relu6")
    x = tf.nn.avg_pool2d(tf.nn.max_pool2d(x, 2, 2, "SAME"), 2, 2, "SAME")
    return [net.conv(x, 8), net.conv(x, 3, 1)]


def masked(net: Net, x: tf.Tensor) -> list[tf.Tensor]:
    """The examples whose largest value is above 1 go on: perhaps none."""
    y = net.conv(x, 8, relu="relu")
    found = tf.gather(y, tf.where(tf.reduce_max(x, [1, 2, 3]) > 1.0)[:, 0])
    found.set_shape([None, 6, 6, 8])
    return [net.conv(net.conv(found, 8, relu="relu"), 8), tf.tanh(y)]


def attack() -> tuple[int, int]:
    """Runs each graph on batches of 0, 1 and 3; returns the number of runs and of those that ended with an error."""
    runs = errors = 0
    for define in (dense, pooled, layers, masked):
        graph_def, outputs = build(define, (None, 6, 6, 8))
        prepared = prepared_of(graph_def, outputs)
        data = np.random.default_rng(0).normal(size=(4, 6, 6, 8)).astype(np.float32) + 1.0
        int8 = convert(prepared, statistics_of(prepared, data), everything()).graph_def
        batches = [data[:0], data[:1], data[:3], *([np.zeros_like(data)] if define is masked else [])]
        for optimize in (True, False):
            proto = tf.ConfigProto()
            proto.graph_options.rewrite_options.disable_meta_optimizer = not optimize
            with tf.Graph().as_default() as graph, tf.Session(graph=graph, config=proto) as session:
                tf.import_graph_def(int8, name="")
                for batch in [*batches, *batches]:
                    runs += 1
                    try:
                        found = session.run([f"{name}:0" for name in outputs], {"x:0": batch})
                        assert all(np.isfinite(value).all() for value in found)
                    except tf.errors.InvalidArgumentError as error:
                        assert not len(batch) or not batch.any(), error
                        errors += 1
    return runs, errors


if __name__ == "__main__":
    sys.stdout.write("survived {} errors {}\n".format(*attack()))
