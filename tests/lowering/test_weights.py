"""Rounding filters: half a step at most, symmetric, and the mean error that bias correction takes back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantizer_core.lowering.bias import mean_rounding_error
from quantizer_core.lowering.weights import PAIR, quantize_weights

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6))


def filters_of(shape, seed):
    rng = np.random.default_rng(seed)
    scales = np.exp(rng.normal(scale=3, size=shape[-1]))  # channels of very different size
    return (rng.normal(size=shape) * scales).astype(np.float32)


@given(SHAPES, st.integers(0, 1000), st.booleans(), st.sampled_from([(8, False), (8, True), (7, True)]))
@settings(max_examples=80, deadline=None)
def test_every_weight_is_rounded_to_the_nearest_code(shape, seed, per_channel, form):
    bits, even = form
    filters = filters_of(shape, seed)
    weights = quantize_weights(filters, per_channel=per_channel, bits=bits, even=even)
    top = {8: 127, 7: 63}[bits]
    axes = (0, 1, 2) if per_channel else None
    step = np.abs(filters).max(axis=axes) / top
    assert np.all(np.abs(weights.dequantized() - filters) <= step * 0.5001 + 1e-12)
    doubled = 2 if bits == 7 else 1
    assert np.abs(weights.codes.astype(int)).max() <= top * doubled
    assert np.all(weights.codes.astype(int) % doubled == 0)


def neighbour_sums(values):
    """Returns the largest sum of input channels 2i and 2i + 1 of one sign, by output channel and plainly."""
    found = np.zeros(values.shape[-1])
    for channel in range(0, values.shape[-2] - 1, 2):
        for sign in (1, -1):
            pair = np.maximum(sign * values[..., channel : channel + 2, :].astype(np.float64), 0).sum(-2)
            found = np.maximum(found, pair.reshape(-1, values.shape[-1]).max(0))
    return found


@given(SHAPES, st.integers(0, 1000), st.booleans(), st.sampled_from(["none", "mse"]))
@settings(max_examples=80, deadline=None)
def test_neighbours_of_one_sign_fit_sums_of_16_bits(shape, seed, per_channel, clipping):
    filters = filters_of(shape, seed)
    weights = quantize_weights(filters, per_channel=per_channel, bits=7, clipping=clipping)
    assert np.all(neighbour_sums(weights.codes) <= PAIR) and PAIR * 255 < 2**15
    assert np.abs(weights.codes.astype(int)).max() <= 127
    steps = weights.limits / 127
    if clipping == "none":
        top = 127 if shape[-2] > 1 else 63
        largest = np.maximum(np.abs(filters).max(axis=(0, 1, 2)) / top, neighbour_sums(filters) / PAIR)
        np.testing.assert_allclose(steps, largest if per_channel else largest.max(), rtol=1e-6)
        # To the nearest, but where two were rounded up beyond the sum: one of these a code less.
        assert np.all(np.abs(weights.dequantized() - filters) <= steps * 1.5001 + 1e-12)
        least = 63.99 if shape[-2] > 1 else 62.99
        assert np.all(steps <= np.abs(filters).max(axis=(0, 1, 2) if per_channel else None) / least)


@pytest.mark.parametrize("even", [False, True])
def test_a_filter_over_one_channel_has_no_codes_whose_taps_could_overflow(even):
    """Whatever oneDNN pairs there: two codes of 63, or two even ones that it halves, stay within 16 bits."""
    filters = np.random.default_rng(0).normal(size=(3, 3, 1, 8)).astype(np.float32)
    codes = quantize_weights(filters, bits=7, even=even).codes.astype(int)
    assert np.abs(codes).max() == (126 if even else 63)


def test_a_lone_large_weight_has_all_eight_bits():
    filters = np.zeros((1, 1, 4, 1), np.float32)
    filters[0, 0, :, 0] = 1.0, -1.0, 0.001, 0.9
    assert quantize_weights(filters, bits=7).codes.reshape(-1).tolist() == [127, -127, 0, 114]
    filters[0, 0, 1, 0] = 1.0
    assert quantize_weights(filters, bits=7).codes.reshape(-1).tolist() == [64, 64, 0, 58]


@given(SHAPES, st.integers(0, 1000), st.booleans(), st.sampled_from([7, 8]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_clipping_never_adds_squared_error(shape, seed, per_channel, bits, depthwise):
    filters = filters_of((*shape[:3], 1) if depthwise else shape, seed)
    errors = []
    for clipping in ("none", "mse"):
        weights = quantize_weights(
            filters, depthwise=depthwise, per_channel=per_channel, bits=bits, clipping=clipping
        )  # fmt: skip
        axes = (0, 1) if depthwise else (0, 1, 2)
        errors.append(np.square(weights.dequantized() - filters, dtype=np.float64).sum(axes if per_channel else None))
    assert np.all(errors[1] <= errors[0] * (1 + 1e-5) + 1e-30)


def test_an_outlier_is_clipped():
    filters = np.random.default_rng(0).normal(size=(1, 1, 4000, 1)).astype(np.float32)
    filters[0, 0, 0, 0] = 8.0
    whole, clipped = (quantize_weights(filters, bits=7, even=True, clipping=clipping) for clipping in ("none", "mse"))
    assert clipped.limits < 0.95 * whole.limits
    errors = [np.square(weights.dequantized() - filters).sum() for weights in (whole, clipped)]
    assert errors[1] < 0.95 * errors[0]


@given(SHAPES, st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_negated_weights_have_negated_codes(shape, seed):
    filters = filters_of(shape, seed)
    np.testing.assert_array_equal(quantize_weights(filters).codes, -quantize_weights(-filters).codes)


def test_halves_go_to_the_even_code():
    filters = np.float32([0.5, 1.5, 2.5, -0.5, -1.5, 127.0]).reshape(6, 1)
    assert quantize_weights(filters).codes[:, 0].tolist() == [0, 2, 2, 0, -2, 127]


def test_a_channel_of_zeros_stays_zero_with_a_usable_scale():
    filters = np.zeros((1, 1, 4, 2), np.float32)
    filters[..., 1] = 0.25
    weights = quantize_weights(filters)
    assert np.all(weights.codes[..., 0] == 0) and np.all(weights.limits > 0)
    np.testing.assert_allclose(weights.dequantized(), filters)


@pytest.mark.parametrize("kind", ["convolution", "depthwise", "matmul"])
def test_the_mean_error_is_what_a_constant_input_shows(kind):
    rng = np.random.default_rng(4)
    shape = {"convolution": (3, 3, 5, 7), "depthwise": (3, 3, 5, 1), "matmul": (5, 7)}[kind]
    filters = rng.normal(size=shape).astype(np.float32)
    weights = quantize_weights(filters, depthwise=kind == "depthwise")
    means = rng.normal(size=5)
    error = (weights.dequantized() - filters).astype(np.float64)
    expected = {
        "convolution": lambda: np.einsum("hwio,i->o", error, means),
        "depthwise": lambda: np.einsum("hwcm,c->c", error, means),
        "matmul": lambda: means @ error,
    }[kind]()
    found = mean_rounding_error(filters, weights, means, kind == "depthwise")
    np.testing.assert_allclose(found, expected, atol=1e-6)
