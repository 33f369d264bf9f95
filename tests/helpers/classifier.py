"""A tiny classifier, a noisy twin of it and serialized examples, for calibration and evaluation in tests."""

from __future__ import annotations

import numpy as np
import tensorflow.compat.v1 as tf
from tensorflow.core.framework import graph_pb2

from quantizer_core.config import PreprocessConfig, QuantizationConfig
from quantizer_core.data import tensor_example
from quantizer_core.types import ObservedTensor, PreparedGraph, TensorSpec

CLASSES = 7
INPUTS = (TensorSpec("x", "float32", (-1, 6, 6, 2)),)
OUTPUTS = ("scores",)
CONFIG = QuantizationConfig(batch_size=4, preprocess=PreprocessConfig(label_key="label"), only_faster=False)


def classifier(noise: float = 0.0, batch: int | None = None) -> graph_pb2.GraphDef:
    """Returns a convolution, a mean and a dense layer with fixed weights; ``noise`` disturbs the weights."""
    rng = np.random.default_rng(0)
    disturb = np.random.default_rng(1)

    def weights(*shape: int) -> tf.Tensor:
        return tf.constant((rng.normal(size=shape) + noise * disturb.normal(size=shape)).astype(np.float32))

    with tf.Graph().as_default() as graph:
        x = tf.placeholder(tf.float32, [batch, 6, 6, 2], name="x")
        y = tf.nn.relu(tf.nn.conv2d(x, weights(3, 3, 2, 8), 1, "SAME"), name="relu")
        pooled = tf.reduce_mean(y, [1, 2], name="pooled")
        tf.matmul(pooled, weights(8, CLASSES), name="scores")
    return graph.as_graph_def()


def prepared_classifier() -> PreparedGraph:
    observed = (ObservedTensor("pooled", -1), ObservedTensor("relu", -1), ObservedTensor("scores"))
    return PreparedGraph(classifier(), INPUTS, OUTPUTS, observed, ())


def records(count: int, *, bad: int = 0, labels: bool = True, seed: int = 0) -> list[bytes]:
    """Returns serialized examples, the last ``bad`` of which hold too few values."""
    rng = np.random.default_rng(seed)
    found = []
    for index in range(count):
        shape = (6, 6, 2) if index < count - bad else (3,)
        values = rng.normal(size=shape).astype(np.float32)
        found.append(tensor_example({"x": values}, int(rng.integers(CLASSES)) if labels else None))
    return found
