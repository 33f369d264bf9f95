"""No INT8 graph can end the process: random networks, each in a child process, every tensor fetched and fed."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from quantizer_core.graph.graph import Graph
from quantizer_core.lowering.sums import result_shape_terms, varies
from tests.helpers.nets import build, int8_of, ops, relative_error, run_graph

ROOT = pathlib.Path(__file__).parents[2]


def survives(*arguments: str) -> str:
    """Runs a script that attacks its own process; returns its last line."""
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-2000:]}"
    return done.stdout.splitlines()[-1]


SLOW, LONG = pytest.mark.slow, (pytest.mark.slow, pytest.mark.long)


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=SLOW if seed < 3 else LONG) for seed in range(2, 14))])
def test_every_tensor_may_be_fetched_and_fed(seed):
    words = survives("-m", "tests.helpers.sum_graphs", str(seed)).split()
    assert words[0] == "survived" and int(words[1]) >= 1 and int(words[3]) > 100


MISMATCH = """
import numpy as np, tensorflow.compat.v1 as tf
from tests.helpers.nets import build, int8_of
def define(net, x):
    x = net.conv(x, 16, relu="relu")
    y = {last}
    return net.conv(tf.nn.relu(x + y), 8)
graph_def, outputs = build(define)
_, conversion, data = int8_of(graph_def, outputs)
with tf.Graph().as_default() as graph, tf.Session(graph=graph) as session:
    tf.import_graph_def(conversion.graph_def, name="")
    summand = next(n for n in conversion.plan.nodes if n.summand).summand + "/int8:0"
    small = session.run(summand, {{"x:0": data[:1]}})
    source = next(o for o in graph.get_operations() if o.type == "PartitionedCall").inputs[0].name
    large = session.run(source, {{"x:0": data}})
    for _ in range(20):
        try:
            session.run(outputs[0] + ":0", {{summand: small, source: large}})
        except tf.errors.InvalidArgumentError:
            pass
        else:
            raise SystemExit("no error")
print("refused")
"""


@pytest.mark.parametrize(
    "last",
    [
        'net.conv(net.conv(x, 16, relu="relu"), 16)',
        'net.conv(net.conv(x, 32, relu="relu"), 16, 1)',
        'net.conv(tf.pad(net.conv(x, 9, padding="VALID"), [[0, 0], [2, 2], [2, 2], [0, 0]]), 16, padding="VALID")',
    ],
)
def test_a_summand_of_another_shape_is_an_error_of_the_step(last):
    """Of another batch than the source's; the three sums compute the shape that is demanded in different ways."""
    assert survives("-c", MISMATCH.format(last=last)) == "refused"


def test_models_with_the_same_names_run_in_one_graph():
    """oneDNN keeps the filter of a kernel's first step: two models' functions must not share a kernel."""

    def define(net, x):
        fixed = tf.nn.relu(x) * 0.0 + 1.0  # not proved to vary: the function is never inlined
        x = net.conv(net.conv(fixed, 8, relu="relu"), 8)
        return tf.nn.relu(x + fixed) + net.conv(fixed, 8, 1)

    shape = (4, 6, 6, 8)
    both = [int8_of(*build(define, shape, seed)) for seed in (1, 2)]
    assert all(any(node.summand for node in conversion.plan.nodes) for _, conversion, _ in both)
    with tf.Graph().as_default() as graph, tf.Session(graph=graph) as session:
        for index, (_, conversion, _) in enumerate(both):
            tf.import_graph_def(conversion.graph_def, name=f"model{index}")
        for _ in range(2):
            for index, (prepared, conversion, data) in enumerate(both):
                found = session.run(f"model{index}/{prepared.outputs[0]}:0", {f"model{index}/x:0": data})
                np.testing.assert_array_equal(found, run_graph(conversion.graph_def, prepared, data)[0])


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("padding", ["SAME", "VALID", "EXPLICIT"])
def test_the_shape_that_the_guard_demands_is_the_convolutions(stride, size, dilation, padding):
    for height, width in ((9, 12), (10, 11)):
        strides, dilations = [1, stride, stride + 1, 1], [1, dilation, 1, 1]
        pads = [0, 0, 1, 2, 0, 1, 0, 0] if padding == "EXPLICIT" else []
        result = tf.nn.conv2d(
            tf.zeros([2, height, width, 3]), tf.zeros([size, 2, 3, 5]), strides,
            np.reshape(pads, (4, 2)).tolist() if pads else padding, dilations=dilations,
        )  # fmt: skip
        scaled, added, divisor = result_shape_terms(
            (size, 2), 5, strides=strides, padding=padding, explicit_paddings=pads, dilations=dilations
        )
        wanted = (np.array([2, height, width, 3]) * scaled + added) // divisor
        assert list(wanted) == result.shape.as_list()


def test_a_tensor_varies_only_if_nothing_before_the_step_can_know_it():
    with tf.Graph().as_default() as graph:
        x = tf.placeholder(tf.float32, [2, 4, 4, 3], name="x")
        known = tf.constant(np.ones((2, 4, 4, 3), np.float32))
        tf.nn.relu(tf.nn.conv2d(x, tf.ones([1, 1, 3, 3]), 1, "SAME") + known, name="yes")
        tf.multiply(x, 0.5, name="scaled")
        tf.multiply(x, 0.0, name="zeros")
        tf.zeros_like(x, name="like")
        tf.subtract(x, x, name="difference")
        tf.add(x, -x, name="negated")
        tf.nn.relu(known, name="constant")
    found = Graph(graph.as_graph_def())
    assert [name for name in ("yes", "scaled") if not varies(found, name)] == []
    for name in ("zeros", "like", "difference", "negated", "constant"):
        assert not varies(found, name), name


def test_a_guard_is_inlined_where_the_summand_varies():
    def define(net, x):
        x = net.conv(x, 16, relu="relu")
        return net.conv(tf.nn.relu(net.conv(net.conv(x, 8, relu="relu6"), 16) + x), 8)

    prepared, conversion, data = int8_of(*build(define))
    functions = conversion.graph_def.library.function
    assert len(functions) == 1 and "_noinline" not in functions[0].attr
    assert ops(conversion.graph_def)["_FusedQuantizedConv2D"] == 4
    assert relative_error(run_graph(conversion.graph_def, prepared, data)[0],
                          run_graph(prepared.graph_def, prepared, data)[0]) < 0.05  # fmt: skip
