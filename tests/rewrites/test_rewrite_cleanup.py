"""Only what the outputs need from the inputs remains, without training leftovers, and names keep their meaning."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from quantizer_core.errors import GraphError, UnknownNodeError
from quantizer_core.rewrites import apply_rewrites
from tests.helpers.random_graphs import Sample, Values, node_named, ops_of, run, sample_of

v1 = tf.compat.v1
X = np.array([[1.0, -2.0, 3.0]], np.float32)


def names_of(graph_def: v1.GraphDef) -> set[str]:
    return {node.name for node in graph_def.node}


def placeholder(name: str = "x") -> tf.Tensor:
    return v1.placeholder(tf.float32, [None, 3], name)


def rewritten(sample: Sample) -> v1.GraphDef:
    """Rewrites; the outputs must be bit-equal, as nothing here rounds."""
    result, _ = apply_rewrites(sample.graph_def, sample.inputs, sample.outputs)
    before = run(sample.graph_def, sample.feeds, sample.outputs)
    after = run(result, sample.feeds, sample.outputs)
    for expected, actual in zip(before, after, strict=True):
        np.testing.assert_array_equal(expected, actual)
    return result


# --- strip_unused -------------------------------------------------------------------------------------------------


def test_what_no_output_needs_is_removed_and_inputs_stay() -> None:
    def build() -> None:
        tf.nn.relu(placeholder(), name="out")
        tf.sigmoid(placeholder("labels"), name="loss")
        placeholder("idle")

    sample = sample_of(build, ["out"], {"x": X, "idle": X})
    result = rewritten(sample)
    assert names_of(result) == {"x", "idle", "out"}


def test_an_input_that_is_no_placeholder_becomes_one_and_nothing_folds_through_it() -> None:
    def build() -> None:
        pixels = tf.io.decode_raw(v1.placeholder(tf.string, [], "bytes"), tf.float32)
        image = tf.reshape(pixels, [-1, 3], name="image")
        factor = tf.identity(tf.constant([2.0, 2.0, 2.0]), name="factor")
        tf.multiply(image, factor, name="out")

    sample = sample_of(build, ["out"], {"image": X, "factor": np.array([1, 2, 3], np.float32)})
    result = rewritten(sample)
    assert names_of(result) == {"image", "factor", "out"}
    image = node_named(result, "image")
    assert image.op == "Placeholder" and image.attr["dtype"].type == tf.float32.as_datatype_enum
    assert [dim.size for dim in image.attr["shape"].shape.dim] == [-1, 3]


def test_a_fed_filter_is_never_folded() -> None:
    def build() -> None:
        filters = Values(0).normal(3, 2)
        tf.multiply(tf.linalg.matmul(placeholder(), tf.identity(filters, "filters")), 3.0, name="out")

    sample = sample_of(build, ["out"], {"x": X, "filters": np.ones((3, 2), np.float32)})
    assert ops_of(rewritten(sample))["Mul"] == 1


def test_the_second_output_of_a_fed_node_is_refused_where_it_is_needed() -> None:
    def build() -> None:
        first, second = tf.raw_ops.Unpack(value=v1.placeholder(tf.float32, [2, 3], "both"), num=2, name="next")
        tf.nn.relu(first, name="features")
        tf.nn.relu(second, name="labels")

    graph_def = sample_of(build, [], {}).graph_def
    result, _ = apply_rewrites(graph_def, ["next"], ["features"])
    assert names_of(result) == {"next", "features"}
    with pytest.raises(GraphError, match=r"'next' is fed, but 'labels' reads its output 1"):
        apply_rewrites(graph_def, ["next"], ["features", "labels"])


def test_control_edges_with_an_effect_are_needs() -> None:
    def build() -> None:
        x = placeholder()
        with tf.control_dependencies([tf.raw_ops.Assert(condition=tf.reduce_all(x < 5.0), data=[x])]):
            tf.identity(x, name="out")

    sample = sample_of(build, ["out"], {"x": X})
    result = rewritten(sample)
    assert "Assert" in ops_of(result)
    with pytest.raises(tf.errors.InvalidArgumentError):
        run(result, {"x": X + 5}, ["out"])


def test_waits_for_nodes_without_effect_are_dropped() -> None:
    def build() -> None:
        read = tf.identity(tf.constant(1.0), name="read")
        with tf.control_dependencies([read, tf.no_op("nothing")]):
            tf.identity(placeholder(), name="inner")
        tf.nn.relu(v1.get_default_graph().get_tensor_by_name("inner:0"), name="out")

    assert names_of(rewritten(sample_of(build, ["out"], {"x": X}))) == {"x", "out"}


@pytest.mark.parametrize("as_output", [True, False])
def test_a_default_stands_in_for_a_placeholder_that_is_not_fed(as_output: bool) -> None:
    def build() -> None:
        factor = v1.placeholder_with_default(tf.constant(2.0), [], "factor")
        tf.multiply(placeholder(), factor, name="out")

    sample = sample_of(build, ["out", "factor"] if as_output else ["out"], {"x": X})
    assert "PlaceholderWithDefault" not in ops_of(rewritten(sample))
    fed = Sample(sample.graph_def, sample.outputs, {"x": X, "factor": np.float32(3)})
    assert node_named(rewritten(fed), "factor").op == "Placeholder"


def test_a_placeholder_that_is_needed_but_no_input_is_named() -> None:
    graph_def = sample_of(lambda: tf.add(placeholder(), placeholder("y"), name="out"), [], {}).graph_def
    with pytest.raises(GraphError, match="'out' needs placeholder 'y'"):
        apply_rewrites(graph_def, ["x"], ["out"])
    with pytest.raises(UnknownNodeError, match="did you mean 'out'"):
        apply_rewrites(graph_def, ["x", "y"], ["ouf"])
    with pytest.raises(UnknownNodeError, match="xx"):
        apply_rewrites(graph_def, ["xx"], ["out"])


def test_devices_and_colocations_are_dropped() -> None:
    def build() -> None:
        with tf.device("/device:GPU:0"):
            read = tf.identity(tf.constant([1.0, 2.0, 3.0]), name="read")
            with v1.get_default_graph().colocate_with(read.op):
                tf.add(placeholder(), read, name="out")

    sample = sample_of(build, ["out"], {"x": X})
    result = rewritten(sample)
    assert all(not node.device and "_class" not in node.attr for node in result.node)


# --- remove_training_nodes ----------------------------------------------------------------------------------------


def test_identities_and_checks_are_removed_but_outputs_keep_their_names() -> None:
    def build() -> None:
        x = tf.stop_gradient(tf.identity(placeholder()))
        x = tf.raw_ops.PreventGradient(input=tf.raw_ops.Snapshot(input=x))
        x = tf.raw_ops.CheckNumerics(tensor=x, message="nan", name="checked")
        tf.nn.relu(tf.identity(tf.nn.relu(x), name="middle"), name="out")

    result = rewritten(sample_of(build, ["out", "middle", "checked"], {"x": X}))
    assert ops_of(result) == {"Placeholder": 1, "Relu": 2, "Identity": 2}
    assert node_named(result, "out").input[0] == "Relu"


def test_identities_of_other_outputs_keep_their_port() -> None:
    def build() -> None:
        parts = tf.split(placeholder(), 3, axis=1)
        tf.subtract(tf.identity(parts[2]), tf.identity(parts[1]), name="out")

    result = rewritten(sample_of(build, ["out"], {"x": X}))
    assert list(node_named(result, "out").input) == ["split:2", "split:1"]


def test_loops_and_branches_stay_whole() -> None:
    v1.disable_control_flow_v2()
    try:

        def build() -> None:
            x = placeholder()
            total = v1.while_loop(lambda i, _: i < 3, lambda i, a: (i + 1, tf.identity(a) * 2.0 + 1.0), [0, x])[1]
            bigger = v1.cond(
                tf.reduce_sum(x) > 0.0, lambda: tf.identity(tf.constant(1.0)) + total, lambda: tf.identity(x)
            )
            tf.identity(bigger, name="out")

        sample = sample_of(build, ["out"], {"x": X})
        result = rewritten(sample)
        kinds = ("Switch", "Merge", "Enter", "NextIteration", "LoopCond")
        assert {op: ops_of(result)[op] for op in kinds} == {op: ops_of(sample.graph_def)[op] for op in kinds}
        assert ops_of(result)["Exit"] == 1  # that of the counter is read by no one
        for sign in (1, -1):
            np.testing.assert_array_equal(
                run(result, {"x": sign * X}, ["out"])[0], run(sample.graph_def, {"x": sign * X}, ["out"])[0]
            )
    finally:
        v1.enable_control_flow_v2()


# --- remove_dropout -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["floor", "floor_range", "cast", "select"])
@pytest.mark.parametrize("is_output", [True, False])
def test_dropout_that_drops_nothing_is_removed(spelling: str, is_output: bool) -> None:
    def build() -> None:
        x = tf.nn.relu(placeholder())
        noise = tf.random.uniform(tf.shape(x)) if spelling == "floor_range" else tf.raw_ops.RandomUniform(
            shape=tf.shape(x), dtype=tf.float32
        )  # fmt: skip
        if spelling.startswith("floor"):
            keep = tf.constant(1.0)
            y = tf.multiply(tf.math.divide(x, keep), tf.floor(tf.raw_ops.Add(x=keep, y=noise)), name="drop")
        elif spelling == "cast":
            y = tf.multiply(x * 1.0, tf.cast(noise >= 0.0, tf.float32), name="drop")
        else:
            y = tf.raw_ops.SelectV2(condition=noise >= 0.0, t=x * 1.0, e=tf.constant(0.0), name="drop")
        tf.negative(y, name="out")

    sample = sample_of(build, ["out", "drop"] if is_output else ["out"], {"x": X})
    result = rewritten(sample)
    assert ops_of(result) == {"Placeholder": 1, "Relu": 1, "Neg": 1, **({"Identity": 1} if is_output else {})}


def test_dropout_that_drops_stays() -> None:
    def build() -> None:
        x = placeholder()
        keep = tf.constant(0.5)
        noise = tf.floor(tf.raw_ops.Add(x=keep, y=tf.random.uniform(tf.shape(x))))
        tf.multiply(tf.math.divide(x, keep), noise, name="out")

    result, _ = apply_rewrites(sample_of(build, [], {}).graph_def, ["x"], ["out"])
    assert "RandomUniform" in ops_of(result)


# --- remove_idle_reshapes -----------------------------------------------------------------------------------------


def layer_and_reshape(shape: object, batch: int | None = None, name: str = "reshape") -> tf.Tensor:
    """A convolution with bias, [batch, 4, 4, 2], and a reshape of it; ``shape`` may be a function of it."""
    x = v1.placeholder(tf.float32, [batch, 4, 4, 3], "x")
    conv = tf.nn.conv2d(x, tf.ones([3, 3, 3, 2]), 1, "SAME", name="conv")
    biased = tf.nn.bias_add(conv, [1.0, -9.0], name="biased")
    return tf.reshape(biased, shape(conv) if callable(shape) else shape, name=name)


def images(batch: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(batch, 4, 4, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "batch"),
    [
        ([2, 4, 4, 2], 2),
        ([-1, 4, 4, 2], None),
        ([2, 4, -1, 2], 2),
        (tf.shape, None),
    ],
)
def test_a_reshape_to_the_shape_that_is_there_goes(shape: object, batch: int | None) -> None:
    sample = sample_of(lambda: tf.nn.relu(layer_and_reshape(shape, batch), name="out"), ["out"], {"x": images(2)})
    result = rewritten(sample)
    assert "Reshape" not in ops_of(result)
    assert node_named(result, "out").input[:] == ["biased"]


@pytest.mark.parametrize(
    ("shape", "batch"),
    [
        ([2, 2, 8, 2], 2),  # another shape of as many values
        ([2, 4, 4, 2], None),  # says what the batch has to be
        ([-1, 8, 2, 2], None),
        ([-1, 32], None),
        (lambda conv: tf.shape(tf.reshape(conv, [-1, 8, 2, 2])), None),
    ],
)
def test_a_reshape_that_does_or_checks_something_stays(shape: object, batch: int | None) -> None:
    sample = sample_of(lambda: tf.nn.relu(layer_and_reshape(shape, batch), name="out"), ["out"], {"x": images(2)})
    assert "Reshape" in ops_of(rewritten(sample))


def test_a_reshape_that_is_an_output_or_waits_stays() -> None:
    sample = sample_of(
        lambda: tf.nn.relu(layer_and_reshape([-1, 4, 4, 2]), name="out"), ["reshape", "out"], {"x": images(2)}
    )
    assert "reshape" in names_of(rewritten(sample))

    def waiting() -> None:
        layer = layer_and_reshape([-1, 4, 4, 2], name="idle")
        with tf.control_dependencies([tf.debugging.assert_less(v1.placeholder(tf.float32, [], "level"), 9.0)]):
            tf.nn.relu(tf.reshape(layer, [-1, 4, 4, 2], name="reshape"), name="out")

    sample = sample_of(waiting, ["out"], {"x": images(2), "level": np.float32(1)})
    names = names_of(rewritten(sample))
    assert "reshape" in names and "idle" not in names


def test_a_reshape_behind_a_matrix_product_goes() -> None:
    def build() -> None:
        x = v1.placeholder(tf.float32, [None, 3], "x")
        tf.nn.relu(tf.reshape(tf.matmul(x, tf.ones([3, 2])), [-1, 2], name="reshape"), name="out")

    assert "reshape" not in names_of(rewritten(sample_of(build, ["out"], {"x": X})))


# --- replace_add_n ------------------------------------------------------------------------------------------------


def test_sums_of_two_become_add_v2() -> None:
    def build() -> None:
        x, y = placeholder(), placeholder("y")
        pair = tf.raw_ops.AddN(inputs=[x, y], name="pair")
        tf.raw_ops.AddN(inputs=[x, y, pair], name="out")

    result = rewritten(sample_of(build, ["pair", "out"], {"x": X, "y": 2 * X}))
    assert node_named(result, "pair").op == "AddV2" and node_named(result, "out").op == "AddN"
