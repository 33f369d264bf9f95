"""The kernels that lowering emits are exact: half a step of the output's codes from the float64 result, no more."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from quantizer_core.lowering.conformance import (
    HALF_STEP,
    average_error,
    concat_error,
    convolution_error,
    matmul_as_convolution_error,
    new_graph,
    pool_error,
    product_error,
    quick_check,
    random_input,
    run,
)
from quantizer_core.lowering.kernels import QINT8, QUINT8, IntTensor
from quantizer_core.lowering.safe import weight_bits
from quantizer_core.lowering.weights import quantize_weights
from quantizer_core.runtime import has_vnni
from tests.helpers.kernel_cases import convolution_cases

BITS = 8 if has_vnni() else 7


@pytest.mark.parametrize("case", convolution_cases(), ids=lambda case: case.name)
def test_convolution_is_exact(case):
    assert convolution_error(case, BITS) <= HALF_STEP


def errors_under(isa: str, bits: int) -> dict[str, float]:
    """Returns the errors of the whole table, by name, in a process whose oneDNN may use no more than ``isa``."""
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.kernel_cases", str(bits)],
        cwd=root,
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": isa},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.rsplit(" ", 1) for line in done.stdout.splitlines() if "->" in line]
    errors = {name: float(error) for name, error in lines}
    assert len(errors) == len(convolution_cases()) + OTHERS
    return errors


#: Lines of ``kernel_cases.other_errors``.
OTHERS = 18


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE"])
def test_kernels_are_exact_without_vnni_with_seven_bits(isa):
    assert {name: error for name, error in errors_under(isa, 7).items() if error > HALF_STEP} == {}


@pytest.mark.slow
def test_without_vnni_eight_bits_are_wrong_just_where_the_safe_table_asks_for_seven():
    """But for sums of few products: filters of 3×3 over one channel, which stay within 16 bits by the codes drawn."""
    for name, error in errors_under("AVX2", 8).items():
        op, _, rest = name.partition("|")
        source = rest.partition("->")[0]
        form = {"MatMul": "matmul", "MaxPool": "pool", "AvgPool": "pool", "Mean": "average", "ConcatV2": "concat"}
        form = form.get(op, "convolution")
        narrow = weight_bits(op, form, source, narrow=True) == 7
        if narrow and "|c1-" in name:
            continue
        assert (error > HALF_STEP) == narrow, name


@pytest.mark.parametrize("op", ["MatMul", "Conv2D"])
@pytest.mark.parametrize("source", [QUINT8, QINT8])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("rows", [1, 5])
def test_products_with_float_results_are_exact(op, source, per_channel, rows):
    assert product_error(op, source, rows, per_channel, BITS) <= 1e-5 * 255


@pytest.mark.parametrize("source", [QUINT8, QINT8])
@pytest.mark.parametrize("result", [QUINT8, QINT8])
@pytest.mark.parametrize(("rows", "inputs"), [(1, 48), (5, 17)])
def test_matmul_as_convolution_is_exact(source, result, rows, inputs):
    assert matmul_as_convolution_error(rows, source, result, BITS, inputs) <= HALF_STEP


def test_the_quick_check_passes_and_covers_every_kernel():
    results = quick_check()
    assert [result for result in results if not result.passed] == []
    ops = {result.name.partition("|")[0] for result in results}
    assert ops == {"Conv2D", "DepthwiseConv2dNative", "MatMul", "MaxPool", "AvgPool", "Mean", "ConcatV2"}


def test_shifted_quantisation_rounds_to_the_nearest_code():
    values = np.random.default_rng(1).uniform(-1.3, 2.7, (4, 50)).astype(np.float32)
    graph, emitter = new_graph(x=values.shape)
    shifted = emitter.quantize_shifted("x", "q", limit=4.0, offset=1.3)
    found = run(graph, emitter.dequantize(shifted, "d", offset=1.3), {"x": values})
    assert np.abs(found - values).max() <= 4.0 / 255 * 0.502


@pytest.mark.parametrize("dtype", [QUINT8, QINT8])
def test_quantize_and_dequantize_are_exact_on_codes_and_clip_beyond(dtype):
    low = 0.0 if dtype == QUINT8 else -2.0
    values = random_input(np.random.default_rng(0), (3, 7), dtype, 2.0)
    values = np.concatenate([values, np.float32([[low - 5.0, 9.0, 2.0, low, 0.0, 0.0, 0.0]])])
    graph, emitter = new_graph(x=values.shape)
    found = run(graph, emitter.dequantize(emitter.quantize("x", "q", dtype, 2.0), "d"), {"x": values})
    np.testing.assert_allclose(found, np.clip(values, low, 2.0), atol=1e-6)


@pytest.mark.parametrize("dtype", [QUINT8, QINT8])
@pytest.mark.parametrize("op", ["MaxPool", "AvgPool"])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("size", "stride"), [(2, 2), (3, 2), (3, 1)])
def test_pools(dtype, op, padding, size, stride):
    assert pool_error(op, dtype, padding, size, stride) <= (1e-3 if op == "MaxPool" else HALF_STEP)


@pytest.mark.parametrize("source", [QUINT8, QINT8])
@pytest.mark.parametrize("result", [QUINT8, QINT8])
@pytest.mark.parametrize(
    ("window", "channels", "stride"), [((7, 7), 24, 1), ((11, 11), 72, 1), ((3, 5), 17, 2), ((1, 1), 3, 1)]
)
def test_means_are_exact(source, result, window, channels, stride):
    assert average_error(source, result, window, channels, stride) <= HALF_STEP


@pytest.mark.parametrize("dtype", [QUINT8, QINT8])
@pytest.mark.parametrize("axis", [1, 3, -1])
def test_concat_hands_the_codes_on(dtype, axis):
    assert concat_error(dtype, axis) <= 1e-4


@pytest.mark.parametrize("dtype", [QUINT8, QINT8])
@pytest.mark.parametrize(
    "op", ["Transpose", "Tile", "GatherV2", "SpaceToBatchND", "SpaceToDepth", "DepthToSpace", "ResizeNearestNeighbor"]
)
def test_moves_through_bitcasts_keep_the_codes(dtype, op):
    values = random_input(np.random.default_rng(6), (2, 4, 6, 4), dtype, 2.0)
    graph, emitter = new_graph(x=values.shape)
    source = emitter.quantize("x", "q", dtype, 2.0)
    plain = {"T" if op != "GatherV2" else "Tparams": tf.uint8 if dtype == QUINT8 else tf.int8}
    operands, types, exact = {
        "Transpose": ([[0, 2, 1, 3]], {"Tperm": tf.int32}, values.transpose(0, 2, 1, 3)),
        "Tile": ([[1, 2, 1, 1]], {"Tmultiples": tf.int32}, np.tile(values, (1, 2, 1, 1))),
        "GatherV2": (
            [[1, 0, 1], 2], {"Tindices": tf.int32, "Taxis": tf.int32, "batch_dims": 0}, values[:, :, [1, 0, 1]],
        ),
        "SpaceToBatchND": (
            [[2, 2], [[0, 0], [0, 0]]], {"Tblock_shape": tf.int32, "Tpaddings": tf.int32},
            tf.space_to_batch(values, [2, 2], [[0, 0], [0, 0]]).numpy(),
        ),
        "SpaceToDepth": ([], {"block_size": 2}, tf.nn.space_to_depth(values, 2).numpy()),
        "DepthToSpace": ([], {"block_size": 2}, tf.nn.depth_to_space(values, 2).numpy()),
        "ResizeNearestNeighbor": (
            [[8, 9]], {"half_pixel_centers": True},
            tf.raw_ops.ResizeNearestNeighbor(images=values, size=[8, 9], half_pixel_centers=True).numpy(),
        ),
    }[op]  # fmt: skip
    constants = [graph.add_const(f"c{i}", np.asarray(value, np.int32)) for i, value in enumerate(operands)]
    moved = graph.add_node(op, "moved", [emitter.as_plain(source, "codes"), *constants], **plain, **types)
    back = emitter.from_plain(moved, source, "back")
    np.testing.assert_allclose(run(graph, emitter.dequantize(back, "d"), {"x": values}), exact, atol=1e-6)


def test_concat_of_different_ranges_is_refused():
    _graph, emitter = new_graph(a=(1, 4))
    source = emitter.quantize("a", "q", QINT8, 1.0)
    with pytest.raises(ValueError, match="differ"):
        emitter.concat("concat", [source, emitter.quantize("a", "r", QINT8, 2.0)], 1)


@pytest.mark.parametrize("dtype", [QUINT8, QINT8])
def test_a_relu_is_in_the_kernel_only_where_codes_go_below_zero(dtype):
    values = np.float32([-1e30, -300, -1, -1e-3, 0, 0.3, 1, 1e30])
    graph, emitter = new_graph(x=(1, 1, 1, 1))
    weights = quantize_weights(np.zeros((1, 1, 1, values.size), np.float32))
    result = emitter.convolution(
        "Conv2D", "c", emitter.quantize("x", "q", QUINT8, 1.0), weights, values, dtype=dtype, limit=1.0, relu=True
    )
    fused = [bytes(name) for name in graph.node("c").attr["fused_ops"].list.s]
    assert fused == [b"BiasAdd", *([b"Relu"] if dtype == QINT8 else []), b"Requantize"]
    found = run(graph, emitter.dequantize(result, "d"), {"x": np.zeros((1, 1, 1, 1), np.float32)})
    np.testing.assert_allclose(found.ravel(), np.clip(values, 0, 1), atol=result.limit / 250)


def test_a_sum_that_the_kernel_gets_wrong_is_refused():
    _graph, emitter = new_graph(x=(1, 4, 4, 8))
    weights = quantize_weights(np.ones((1, 1, 8, 8), np.float32))
    source = emitter.quantize("x", "q", QUINT8, 1.0)
    signed = IntTensor(source.name, QINT8, 1.0)
    for summand, dtype, relu in ((signed, QUINT8, True), (source, QINT8, True), (source, QUINT8, False)):
        with pytest.raises(ValueError, match="fused sum needs"):
            emitter.convolution(
                "Conv2D", "c", source, weights, np.zeros(8), dtype=dtype, limit=1.0, relu=relu, summand=summand
            )
