"""What stock TensorFlow's INT8 kernels do wrong, as it is today: a version that changes one fails here, and is seen.

The product keeps from all of this; ``quantizer_core/lowering/safe.py`` says how.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from quantizer_core.errors import QuantizerError
from quantizer_core.lowering.conformance import HALF_STEP, dequantized, new_graph, random_input, run
from quantizer_core.lowering.kernels import QINT8, QUINT8, IntTensor
from quantizer_core.lowering.weights import quantize_weights
from quantizer_core.runtime import cpu_flags, has_vnni
from tests.helpers.quirk_cases import CHANNELS, FEEDS, PLAIN_SUM, identity, raw_convolution, summed


def test_a_signed_summand_stops_at_code_127():
    graph, emitter, name = summed(QINT8, QUINT8, PLAIN_SUM)
    found = run(graph, emitter.dequantize(IntTensor(name, QUINT8, 2.0), "d"), FEEDS)
    assert found.max() == pytest.approx(2.0 * 127 / 255)
    right = 2 * FEEDS["x"] < 0.95
    np.testing.assert_allclose(found[right], 2 * FEEDS["x"][right], atol=0.03)


@pytest.mark.parametrize("fused_ops", [("BiasAdd", "Sum", "Requantize"), ("BiasAdd", "Sum", "Relu6", "Requantize")])
def test_other_fusions_of_a_sum_are_refused(fused_ops):
    graph, emitter, name = summed(QUINT8, QUINT8, fused_ops)
    with pytest.raises(QuantizerError) as refusal:
        run(graph, emitter.dequantize(IntTensor(name, QUINT8, 2.0), "d"), FEEDS)
    assert "Unsupported QuantizedConv fusion" in str(refusal.value.__cause__)


@pytest.mark.parametrize("fusion", ["LeakyRelu", "Relu6", "Elu", "Tanh", "Sigmoid"])
def test_other_activations_are_refused(fusion):
    graph, emitter = new_graph(x=(2, 4, 4, CHANNELS))
    x = emitter.quantize("x", "q", QUINT8, 1.0)
    name = raw_convolution(emitter, x, identity(), ("BiasAdd", fusion, "Requantize"), QUINT8)
    with pytest.raises(QuantizerError) as refusal:
        run(graph, emitter.dequantize(IntTensor(name, QUINT8, 1.0), "d"), FEEDS)
    assert "Unsupported QuantizedConv fusion" in str(refusal.value.__cause__)


def test_qint32_results_of_scales_per_channel_are_wrong():
    """The ranges that come with the codes say one scale a channel; the codes are in units of another."""
    rng = np.random.default_rng(0)
    raw = (rng.normal(size=(1, 1, CHANNELS, CHANNELS)) * np.geomspace(1, 8, CHANNELS)).astype(np.float32)
    errors = {}
    for per_channel in (True, False):
        weights = quantize_weights(raw, per_channel=per_channel)
        graph, emitter = new_graph(x=(2, 4, 4, CHANNELS))
        x = emitter.quantize("x", "q", QUINT8, 1.0)
        name = raw_convolution(emitter, x, weights, ("BiasAdd",), "qint32")
        plain = graph.add_node("Bitcast", "plain", [name], T=tf.qint32, type=tf.int32)
        codes, limit = (run(graph, tensor, FEEDS) for tensor in (plain, f"{name}:2"))
        values = np.rint(FEEDS["x"] * 255) / 255
        exact = values.astype(np.float64) @ dequantized(weights)[0, 0]
        found = codes.astype(np.float64) * limit / 2.0**31
        errors[per_channel] = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    assert errors[False] < 0.01 < 0.2 < errors[True]


def test_concat_rounds_other_signed_ranges_up_to_two_thirds_of_a_step_off():
    rng = np.random.default_rng(0)
    values = [random_input(rng, (4, 64), QINT8, limit) for limit in (1.0, 3.0)]
    graph, emitter = new_graph(a=(4, 64), b=(4, 64))
    sources = [emitter.quantize(name, f"{name}q", QINT8, limit) for name, limit in (("a", 1.0), ("b", 3.0))]
    axis = graph.add_const("axis", np.array(1, np.int32))
    bounds = [emitter.bounds(source) for source in sources]
    inputs = [*(s.name for s in sources), axis, *(low for low, _ in bounds), *(high for _, high in bounds)]
    name = graph.add_node("QuantizedConcatV2", "concat", inputs, N=2, T=tf.qint8, Tidx=tf.int32)
    found = run(graph, emitter.dequantize(IntTensor(name, QINT8, 3.0), "d"), dict(zip("ab", values, strict=True)))
    error = np.abs(found - np.concatenate(values, 1)).max() * 127 / 3.0
    assert 0.502 < error < 0.7


def test_narrow_range_must_be_true_for_signed_codes_and_false_for_unsigned_ones():
    values = np.linspace(-2, 2, 101, dtype=np.float32)
    limits, codes = {}, {}
    for dtype in (QINT8, QUINT8):
        for narrow in (True, False):
            graph, emitter = new_graph(x=(101,))
            low, high = emitter.bounds(IntTensor("", dtype, 2.0))
            name = graph.add_node(
                "QuantizeV2", "q", ["x", low, high], T=getattr(tf, dtype), mode="SCALED", round_mode="HALF_TO_EVEN",
                narrow_range=narrow, axis=-1, ensure_minimum_range=0.0,
            )  # fmt: skip
            plain = graph.add_node("Bitcast", "p", [name], T=getattr(tf, dtype), type=getattr(tf, dtype[1:]))
            codes[dtype, narrow] = run(graph, plain, {"x": values}).astype(int)
            limits[dtype, narrow] = run(graph, f"{name}:2", {"x": values})
    assert limits[QINT8, True] == 2.0
    assert np.array_equal(codes[QINT8, True], np.rint(values / 2 * 127))
    # The range returned is the same, but the codes have another scale: one off at both ends.
    assert limits[QINT8, False] == 2.0
    assert np.abs(codes[QINT8, False] - codes[QINT8, True]).max() == 1
    assert codes[QINT8, False].min() == -128
    exact = np.clip(np.rint(values / 2 * 255), 0, 255)
    assert np.array_equal(codes[QUINT8, False], exact)
    assert np.abs(codes[QUINT8, True] - exact).max() == 1


def matmul(
    op: str, size: tuple[int, int] = (8, 8), out: str = "float32", mode: str = "SCALED", transpose: bool = False,
    low: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Runs a quantised matrix multiplication with a bias; returns what it gives, the inputs, the weights, the bias."""
    rng = np.random.default_rng(0)
    values = random_input(rng, (4, size[0]), QUINT8, 2.0) + np.float32(low)
    raw = rng.normal(size=size[::-1] if transpose else size).astype(np.float32)
    weights = quantize_weights(raw, per_channel=False, bits=8 if has_vnni() else 7)
    bias = rng.normal(size=size[1]).astype(np.float32)
    graph, emitter = new_graph(x=values.shape)
    x = emitter.quantize_shifted("x", "q", 2.0, -low) if low else emitter.quantize("x", "q", QUINT8, 2.0)
    bounds = [emitter.range_const(low), emitter.range_const(low + 2.0)]
    limits = [emitter.range_const(-weights.limits), emitter.range_const(weights.limits)]
    inputs = [x.name, graph.add_const("w", weights.codes, tf.qint8), graph.add_const("b", bias),
              *bounds, *limits, emitter.range_const(-20.0), emitter.range_const(20.0)]  # fmt: skip
    name = graph.add_node(op, "m", inputs, T1=tf.quint8, T2=tf.qint8, Tbias=tf.float32, Toutput=getattr(tf, out),
                          transpose_a=False, transpose_b=transpose, input_quant_mode=mode)  # fmt: skip
    if out != "float32":
        name = emitter.dequantize(IntTensor(name, out, 20.0), "d")
    return run(graph, name, {"x": values}), values, dequantized(weights), bias


DEQUANTIZING = "QuantizedMatMulWithBiasAndDequantize"


def test_min_first_with_a_float_bias_is_garbage():
    found, values, weights, bias = matmul(DEQUANTIZING, mode="MIN_FIRST", low=-0.75)
    assert np.abs(found - (values @ weights + bias)).max() > 1.0
    found, values, weights, bias = matmul(DEQUANTIZING)
    assert np.abs(found - (values @ weights + bias)).max() < 1e-4


def test_transpose_b_is_refused_or_ignored():
    with pytest.raises(QuantizerError):
        matmul(DEQUANTIZING, (8, 5), transpose=True)
    try:
        found, values, weights, bias = matmul(DEQUANTIZING, transpose=True)
    except QuantizerError:
        return
    assert np.abs(found - (values @ weights.T + bias)).max() > 1.0


def test_requantising_a_matrix_product_to_signed_codes_is_an_error():
    with pytest.raises(QuantizerError):
        matmul("QuantizedMatMulWithBiasAndRequantize", out=QINT8)


def test_the_dedicated_depthwise_kernel_has_no_signed_source():
    kernels = tf.raw_ops.QuantizedDepthwiseConv2DWithBiasAndReluAndRequantize
    arguments = dict(
        filter=tf.zeros([3, 3, 4, 1], tf.qint8), bias=tf.zeros([4]), min_input=-1.0, max_input=1.0, min_filter=-1.0,
        max_filter=1.0, min_freezed_output=0.0, max_freezed_output=1.0, strides=[1, 1, 1, 1], padding="SAME",
    )  # fmt: skip
    with pytest.raises(tf.errors.NotFoundError):
        kernels(input=tf.zeros([1, 4, 4, 4], tf.qint8), **arguments)
    with pytest.raises(tf.errors.InvalidArgumentError, match="filter must be a constant"):  # the kernel is there
        kernels(input=tf.zeros([1, 4, 4, 4], tf.quint8), **arguments)


def child(case: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs a case of ``quirk_cases``; a kernel that hangs is given up after five minutes."""
    return subprocess.run(
        [sys.executable, "-m", "tests.helpers.quirk_cases", case], cwd=pathlib.Path(__file__).parents[2],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", ["sum_with_signed_result", "sum_of_held_summand", "guard_that_the_optimizer_folds"])
def test_what_ends_the_process(case):
    done = child(case)
    assert done.returncode < 0, done.stdout + done.stderr  # a signal


@pytest.mark.slow
def test_without_vnni_eight_bits_saturate_but_for_depthwise():
    """The suite of ``test_kernels`` shows that 7 bits do not."""
    done = child("eight_bits", ONEDNN_MAX_CPU_ISA="AVX2")
    unsigned, signed, depthwise = (float(line) for line in done.stdout.splitlines()[:3])
    assert unsigned > 2 and signed > 0.51 and depthwise <= HALF_STEP


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="it takes two processors at once")
def test_strided_1x1_filters_mix_up_pixels_without_avx512():
    done = child("strided_1x1_filters", ONEDNN_MAX_CPU_ISA="AVX2")
    assert done.returncode == 0, done.stderr
    eight, sixteen = ([int(count) for count in line.split()] for line in done.stdout.splitlines()[:2])
    assert eight[1] == 0 and sixteen == [0, 0]
    if not eight[0]:
        pytest.skip(
            "two thousand runs of the kernel as it is were right: its threads did not run at once, or it is mended"
        )


@pytest.mark.slow
def test_the_dedicated_kernels_need_onednn():
    done = child("matmul_with_onednn_off", TF_ENABLE_ONEDNN_OPTS="0")
    assert done.returncode == 1 and "Missing 0-th output" in done.stderr


@pytest.mark.slow
def test_a_depthwise_filter_of_many_taps_ends_the_process_with_avx512_vnni_alone():
    """The product emits none of more than ``safe.MOST_TAPS``."""
    elsewhere = child("depthwise_of_many_taps", ONEDNN_MAX_CPU_ISA="AVX512_CORE")
    assert elsewhere.returncode == 0 and float(elsewhere.stdout.splitlines()[0]) <= HALF_STEP
    here = child("depthwise_of_many_taps")
    assert (here.returncode < 0) == ("avx512_vnni" in cpu_flags()), here.stdout + here.stderr


@pytest.mark.slow
def test_a_depthwise_convolution_of_one_channel():
    done = child("depthwise_of_one_channel")
    assert done.returncode == 0, done.stderr
    assert all(float(line) <= 0.502 for line in done.stdout.splitlines()[:4])
