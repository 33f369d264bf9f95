"""A network converted the whole way, its INT8 output held against that of FP32."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow.compat.v1 as tf
from tensorflow.core.framework import graph_pb2

from quantizer_core.data import tensor_example
from quantizer_core.prepare import prepare
from quantizer_core.quantize import Conversion, quantize
from quantizer_core.runtime import GraphSession
from tests.helpers.nets import Net, everything, relative_error

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
    unit: float | np.ndarray = 1.0,
    changed: Callable[[graph_pb2.GraphDef], None] = lambda graph_def: None,
    **options: object,
) -> Conversion:
    """Converts with all that there is by default, and demands that the output follows FP32's."""
    graph_def = graph_of(define, shape)
    changed(graph_def)
    config = everything(inputs=("x",), outputs=("out",), **options)
    data = (np.random.default_rng(1).normal(size=(16, *shape)) * unit).astype(np.float32)
    conversion = quantize(graph_def, [tensor_example({"x": row}) for row in data], config)
    found = []
    for each in (graph_def, conversion.graph_def):
        with GraphSession(each, prepare(graph_def, config).inputs, ["out"]) as session:
            found.append(session.run({"x": data})[0])
    assert np.isfinite(found[1]).all() and relative_error(found[1], found[0]) < error
    return conversion
