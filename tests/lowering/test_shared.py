"""Equal small constants become one, where nothing tells them apart."""

from __future__ import annotations

import numpy as np
import tensorflow.compat.v1 as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from quantizer_core.graph.graph import Graph
from quantizer_core.lowering.shared import SMALL, share_constants


def run(graph_def, fetches, feeds):
    with tf.Graph().as_default() as graph, tf.Session(graph=graph) as session:
        tf.import_graph_def(graph_def, name="")
        return session.run([f"{name}:0" for name in fetches], feeds)


@given(
    st.lists(st.tuples(st.sampled_from([-1.0, 0.0, 2.5]), st.integers(1, 3), st.booleans()), min_size=1, max_size=8),
    st.integers(0, 7),
)
@settings(max_examples=30, deadline=None)
def test_the_graph_computes_the_same_with_a_constant_for_each_value(terms, kept) -> None:
    with tf.Graph().as_default() as graph:
        y = tf.placeholder(tf.float32, [None, 1], name="x")
        wait = tf.no_op("wait")
        for number, (value, size, waits) in enumerate(terms):
            with tf.control_dependencies([wait] if waits else []):
                constant = tf.constant(np.full(size, value, np.float32), name=f"constant_{number}")
            y = tf.concat([y, y[:, :1] + constant], 1, name=f"joined_{number}")
        graph_def = graph.as_graph_def()
    outputs = [y.op.name, f"constant_{min(kept, len(terms) - 1)}"]
    edited = Graph(graph_def)
    share_constants(edited, [*outputs, "x"])
    shared = edited.to_graph_def()
    feeds = {"x:0": np.arange(4, dtype=np.float32)[:, None]}
    for before, after in zip(run(graph_def, outputs, feeds), run(shared, outputs, feeds), strict=True):
        np.testing.assert_array_equal(before, after)
    left = [node for node in shared.node if node.op == "Const" and node.name not in outputs]
    values = [(node.attr["value"].tensor.SerializeToString(deterministic=True), *node.input) for node in left]
    assert len(set(values)) == len(values)
    before, after = ({node.name for node in each.node} for each in (graph_def, shared))
    named = {f"constant_{number}": term for number, term in enumerate(terms) if f"constant_{number}" not in outputs}
    twice = [name for name, term in named.items() if list(named.values()).count(term) > 1]
    assert before - after >= set(twice) and after >= set(named) - set(twice)


def test_large_constants_and_those_of_another_device_or_dtype_stay() -> None:
    with tf.Graph().as_default() as graph:
        x = tf.placeholder(tf.float32, [], name="x")
        for number in range(2):
            tf.constant(np.zeros(SMALL, np.float32) + 1 + np.arange(SMALL), name=f"large_{number}")
            with tf.device(f"/cpu:{number}"):
                tf.constant(1.0, name=f"device_{number}")
            tf.constant(0, tf.int32 if number else tf.float32, name=f"dtype_{number}")
            tf.add(x, 7.0, name=f"sum_{number}")
        edited = Graph(graph.as_graph_def())
    before = set(edited.names())
    share_constants(edited, ["x"])
    assert before - set(edited.names()) == {"sum_0/y", "sum_1/y"}
    assert edited.node("sum_0").input[1] == edited.node("sum_1").input[1] == "shared/0"
