"""A batch norm before a linear layer is folded into it, and where padding forbids that for the shift, it stays."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from quantizer_core.rewrites import apply_rewrites
from tests.helpers.random_graphs import (
    BATCH_NORMS,
    LayerCase,
    Values,
    batch_norm,
    bias_add,
    feed,
    layer_cases,
    linear,
    node_named,
    ops_of,
    placeholder,
    relative_error,
    run,
    sample_of,
    weights,
)

pytestmark = pytest.mark.usefixtures("layouts_kept")


@contextlib.contextmanager
def any_scales() -> Iterator[None]:
    """Folds norms of an input too whose scales are far apart, as it does those of what kernels make."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["quantizer_core.rewrites.fold_old_batch_norms"], "_ALIKE", np.inf)
        yield


@settings(max_examples=40)
@given(
    case=layer_cases(),
    spelling=st.sampled_from(BATCH_NORMS),
    after=st.sampled_from(["nothing", "bias", "relu"]),
    readers=st.integers(1, 2),
)
def test_batch_norm_before_a_layer_is_folded(case: LayerCase, spelling: str, after: str, readers: int) -> None:
    if (case.kind == "MatMul" or case.nchw) and spelling == "BatchNormWithGlobalNormalization":
        spelling = "keras3"
    if case.kind == "MatMul" and spelling.startswith("Fused"):
        spelling = "mul_add"

    def build() -> None:
        values = Values(case.seed)
        x = batch_norm(case, placeholder(case), case.channels[0], spelling, values, "norm")
        for number in range(readers):
            y = linear(case, x, weights(case, values, f"weights{number}"), f"layer{number}")
            if after == "bias":
                y = bias_add(case, y, values.normal(case.out_channels), f"bias{number}")
            if after == "relu":
                tf.nn.relu(y, f"relu{number}")

    names = {"nothing": "layer", "bias": "bias", "relu": "relu"}
    outputs = [f"{names[after]}{number}" for number in range(readers)]
    sample = sample_of(build, outputs, {"input": feed(case)})
    with any_scales():
        result, reports = apply_rewrites(sample.graph_def, sample.inputs, sample.outputs)
    assert next(report.nodes for report in reports if report.rule == "fold_old_batch_norms")
    pads = case.kind != "MatMul" and case.padding == "SAME" and case.kernel > 1
    ops = ops_of(result)
    assert not {"Mul", "Rsqrt", *BATCH_NORMS} & set(ops)
    assert ops["AddV2"] == pads
    assert ops["BiasAdd"] == (readers if after == "bias" or not pads else 0)
    for a, b in zip(run(sample.graph_def, sample.feeds, outputs), run(result, sample.feeds, outputs), strict=True):
        assert relative_error(a, b) <= 1e-5


def test_normalisation_of_the_input_goes_into_the_first_layer() -> None:
    case = LayerCase(channels=(3, 8), padding="VALID")

    def build() -> None:
        x = tf.raw_ops.RealDiv(x=placeholder(case) - tf.constant([123.0, 116.0, 103.0]), y=tf.constant(58.0))
        tf.nn.relu6(linear(case, x, weights(case, Values(0))), name="out")

    sample = sample_of(build, ["out"], {"input": feed(case) * 255})
    result, _ = apply_rewrites(sample.graph_def, ["input"], ["out"])
    assert ops_of(result) == {"Placeholder": 1, "Const": 2, "Conv2D": 1, "BiasAdd": 1, "Relu6": 1}
    (a,), (b,) = run(sample.graph_def, sample.feeds, ["out"]), run(result, sample.feeds, ["out"])
    assert relative_error(a, b) <= 1e-5


def test_a_scalar_is_folded_whatever_the_shape() -> None:
    def build() -> None:
        x = tf.compat.v1.placeholder(tf.float32, None, "input")
        hard_swish = x * tf.nn.relu6(x + 3.0) * tf.constant(1 / 6)
        tf.nn.conv2d(hard_swish, Values(5).normal(3, 3, 4, 6), 2, "SAME", name="out")

    sample = sample_of(build, ["out"], {"input": feed(LayerCase(channels=(4, 6)))})
    result, _ = apply_rewrites(sample.graph_def, ["input"], ["out"])
    assert ops_of(result)["Mul"] == 1
    (a,), (b,) = run(sample.graph_def, sample.feeds, ["out"]), run(result, sample.feeds, ["out"])
    assert relative_error(a, b) <= 1e-5


@pytest.mark.parametrize("reader", ["relu", "output", "filter"])
def test_a_batch_norm_with_another_reader_stays(reader: str) -> None:
    case = LayerCase(kind="MatMul", channels=(4, 4))

    def build() -> None:
        values = Values(1)
        x = batch_norm(case, placeholder(case), 4, "mul_add", values, "norm")
        linear(case, x, weights(case, values), "layer")
        tf.nn.relu(x, "relu")
        tf.linalg.matmul(values.normal(3, 2), x, transpose_a=True, name="filter", transpose_b=False)

    outputs = ["layer", {"relu": "relu", "output": "norm", "filter": "filter"}[reader]]
    sample = sample_of(build, outputs, {"input": feed(case, batch=3)})
    result, reports = apply_rewrites(sample.graph_def, ["input"], outputs)
    assert ops_of(result)["Mul"] == 1
    assert not next(report.nodes for report in reports if report.rule == "fold_old_batch_norms")


def test_a_tensor_that_the_constant_widens_is_no_batch_norm() -> None:
    def build() -> None:
        x = tf.compat.v1.placeholder(tf.float32, [None, 5, 5, 1], "grey")
        y = tf.compat.v1.placeholder(tf.float32, None, "unknown")
        for name, tensor in (("a", x), ("b", y)):
            tf.nn.conv2d(tensor * tf.constant([1.0, 2.0, 3.0]), Values(2).normal(2, 2, 3, 4), 1, "VALID", name=name)

    pixels = np.random.default_rng(0).normal(size=(1, 5, 5, 1)).astype(np.float32)
    sample = sample_of(build, ["a", "b"], {"grey": pixels, "unknown": pixels})
    result, _ = apply_rewrites(sample.graph_def, sample.inputs, sample.outputs)
    assert ops_of(result)["Mul"] == 2
    for a, b in zip(
        run(sample.graph_def, sample.feeds, ["a", "b"]), run(result, sample.feeds, ["a", "b"]), strict=True
    ):
        assert relative_error(a, b) == 0


def test_a_channel_scaled_to_zero_keeps_its_shift_under_padding() -> None:
    case = LayerCase(channels=(3, 4), padding="SAME")

    def build() -> None:
        x = placeholder(case) * tf.constant([1.0, 0.0, 2.0]) + tf.constant([1.0, 2.0, 3.0])
        linear(case, x, weights(case, Values(3)))

    sample = sample_of(build, ["layer"], {"input": feed(case)})
    result, _ = apply_rewrites(sample.graph_def, ["input"], ["layer"])
    assert ops_of(result)["Mul"] == 1
    assert node_named(result, "layer").op == "Conv2D"


def test_a_pad_between_batch_norm_and_convolution() -> None:
    case = LayerCase(channels=(3, 4), padding="VALID")

    def build() -> None:
        values = Values(4)
        x = batch_norm(case, placeholder(case), 3, "FusedBatchNormV3", values, "norm")
        linear(case, tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), weights(case, values))
        y = tf.pad(placeholder(case, "second"), [[0, 0], [1, 1], [1, 1], [0, 0]]) * 3.0
        linear(case, y, weights(case, values, "other_weights"), "other")

    sample = sample_of(build, ["layer", "other"], {"input": feed(case), "second": feed(case)})
    with any_scales():
        result, _ = apply_rewrites(sample.graph_def, sample.inputs, sample.outputs)
    assert ops_of(result) == {"Placeholder": 2, "Const": 3, "AddV2": 1, "Conv2D": 2}
    for a, b in zip(
        run(sample.graph_def, sample.feeds, sample.outputs), run(result, sample.feeds, sample.outputs), strict=True
    ):
        assert relative_error(a, b) <= 1e-5


@pytest.mark.parametrize(("shift", "shape"), [([-1.0, -1.0, -1.0], ()), ([-1.0, -1.0, -2.0], (3,))])
def test_one_shift_for_all_channels_is_one_number(shift: list[float], shape: tuple[int, ...]) -> None:
    case = LayerCase(channels=(3, 4), padding="SAME")

    def build() -> None:
        linear(case, placeholder(case) * (2.0 / 255.0) + tf.constant(shift), weights(case, Values(5)))

    sample = sample_of(build, ["layer"], {"input": 100 * feed(case)})
    result, _ = apply_rewrites(sample.graph_def, ["input"], ["layer"])
    assert "Mul" not in ops_of(result)
    (added,) = [node for node in result.node if node.op == "AddV2"]
    assert tf.make_ndarray(node_named(result, added.input[1]).attr["value"].tensor).shape == shape
    before, after = (run(graph, sample.feeds, ["layer"])[0] for graph in (sample.graph_def, result))
    assert relative_error(before, after) < 1e-5


@pytest.mark.parametrize(("first", "folded"), [("layer", True), ("input", False)])
@pytest.mark.parametrize(("padding", "kept"), [("VALID", False), ("SAME", True)])
def test_scales_that_are_far_apart_are_folded_for_what_a_kernel_makes_alone(
    first: str, folded: bool, padding: str, kept: bool
) -> None:
    """Planning gives its channels scales of their own; and no shift is left before, which would be of floats."""
    case = LayerCase(channels=(3, 3), padding=padding)

    def build() -> None:
        values = Values(6)
        x = placeholder(case)
        if first == "layer":
            x = tf.nn.relu(linear(case, x, weights(case, values, "first_weights"), "first"))
        x = x * tf.constant([0.01, 1.0, 5.0]) + 0.5
        linear(case, x, weights(case, values))

    sample = sample_of(build, ["layer"], {"input": feed(case)})
    result, reports = apply_rewrites(sample.graph_def, sample.inputs, sample.outputs)
    found = next(report.nodes for report in reports if report.rule == "fold_old_batch_norms")
    assert bool(found) == (folded and not kept)
    for a, b in zip(run(sample.graph_def, sample.feeds, ["layer"]), run(result, sample.feeds, ["layer"]), strict=True):
        assert relative_error(a, b) <= 1e-5
