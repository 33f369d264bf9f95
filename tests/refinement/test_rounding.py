"""Second-order rounding: on the grid, never worse where it matters, plain rounding where inputs do not correlate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantizer_core.lowering.weights import PAIR
from quantizer_core.refinement.moments import BLOCK, Covariance, column_sums, patches
from quantizer_core.refinement.rounding import round_channels_second_order, round_second_order


def correlated(size: int, seed: int) -> np.ndarray:
    """A covariance of strongly correlated inputs."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(4 * size, max(size // 3, 1))) @ rng.normal(size=(max(size // 3, 1), size))
    rows += 0.1 * rng.normal(size=rows.shape)
    return rows.T @ rows / len(rows)


def loss(weights: np.ndarray, codes: np.ndarray, step: np.ndarray, moments: np.ndarray) -> float:
    error = weights - codes * step
    return float(np.einsum("io,ij,jo->", error, moments, error))


@given(st.integers(2, 90), st.integers(1, 5), st.integers(0, 999), st.sampled_from([7, 63, 127]))
@settings(max_examples=40, deadline=None)
def test_codes_are_on_the_grid_and_start_with_the_nearest(inputs, outputs, seed, top):
    weights = np.random.default_rng(seed).normal(size=(inputs, outputs))
    step = np.abs(weights).max(0) / top
    moments = correlated(inputs, seed)
    codes = round_second_order(weights, [moments], step, top)
    assert np.array_equal(codes, np.rint(codes)) and np.abs(codes).max() <= top
    # The first row in order is rounded to nearest.
    first = np.argmax(np.diag(moments))
    np.testing.assert_array_equal(codes[first], np.clip(np.rint(weights[first] / step), -top, top))


@given(st.integers(1, 7), st.integers(1, 4), st.integers(1, 4), st.integers(0, 999), st.floats(0.3, 1))
@settings(max_examples=40, deadline=None)
def test_neighbouring_channels_keep_to_their_sums(channels, taps, outputs, seed, share):
    """Also where steps are too small for the weights, errors carried on would go beyond, and blocks part neighbours."""
    inputs = channels * taps
    weights = np.random.default_rng(seed).normal(size=(inputs, outputs))
    step = np.abs(weights).max(0) / 127 * share
    moments = correlated(inputs, seed)
    cut = inputs // 2
    for blocks in ([moments], [moments[:cut, :cut], moments[cut:, cut:]] if cut else [moments]):
        codes = round_second_order(weights, blocks, step, 127, channels).reshape(taps, channels, outputs)
        last = channels - channels % 2
        for sign in (1, -1):
            sums = np.maximum(sign * codes[:, 0:last:2], 0) + np.maximum(sign * codes[:, 1:last:2], 0)
            assert sums.max(initial=0) <= PAIR
        assert np.abs(codes).max() <= 127


def test_the_gain_is_large_on_correlated_inputs():
    ratios = []
    for seed in range(10):
        weights = np.random.default_rng(seed).normal(size=(96, 16))
        step, moments = np.abs(weights).max(0) / 127, correlated(96, seed)
        codes = round_second_order(weights, [moments], step, 127)
        ratios.append(loss(weights, codes, step, moments) / loss(weights, np.rint(weights / step), step, moments))
    assert np.median(ratios) < 0.5


def test_without_correlation_it_is_plain_rounding_also_across_blocks():
    weights = np.random.default_rng(0).normal(size=(BLOCK + 70, 3))
    step = np.abs(weights).max(0) / 127
    blocks = [np.diag(np.linspace(0.5, 2.0, BLOCK)), np.diag(np.linspace(2.0, 0.5, 70))]
    np.testing.assert_array_equal(round_second_order(weights, blocks, step, 127), np.rint(weights / step))


def test_inputs_that_never_vary_do_no_harm():
    weights = np.random.default_rng(0).normal(size=(20, 4))
    step = np.abs(weights).max(0) / 127
    moments = np.zeros((20, 20))
    np.testing.assert_array_equal(round_second_order(weights, [moments], step, 127), np.rint(weights / step))


@given(st.integers(1, 130), st.integers(1, 3), st.integers(0, 999), st.floats(0.5, 1))
@settings(max_examples=30, deadline=None)
def test_the_codes_are_those_of_the_update_through_the_inverse(inputs, outputs, seed, share):
    """As Optimal Brain Surgeon and GPTQ write it: every error is spread over all rows left by the inverse's factor."""
    weights = np.random.default_rng(seed).normal(size=(inputs, outputs))
    step, moments = np.abs(weights).max(0) / 127 * share, correlated(inputs, seed)
    order = np.argsort(-np.diag(moments), kind="stable")
    damped = moments[np.ix_(order, order)] + 0.01 * np.trace(moments) / inputs * np.eye(inputs)
    inverse = np.linalg.cholesky(np.linalg.inv(damped)).T
    left, expected = weights[order], np.empty_like(weights)
    for row in range(inputs):
        expected[order[row]] = np.clip(np.rint(left[row] / step), -127, 127)
        error = (left[row] - expected[order[row]] * step) / inverse[row, row]
        left[row + 1 :] -= np.outer(inverse[row, row + 1 :], error)
    np.testing.assert_array_equal(round_second_order(weights, [moments], step, 127), expected)


@given(st.integers(1, 6), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_depthwise_is_the_same_channel_by_channel_in_the_order_of_taps(channels, seed):
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(channels, 9))
    step = np.abs(weights).max(1) / 127
    # Falling diagonals: the general routine then takes the taps in the same order.
    moments = np.stack([correlated(9, seed + c) for c in range(channels)])
    order = np.argsort(-np.einsum("ctt->ct", moments), axis=1, kind="stable")
    moments = np.stack([m[np.ix_(o, o)] for m, o in zip(moments, order, strict=True)])
    codes = round_channels_second_order(weights, moments, step, 127)
    for channel in range(channels):
        single = round_second_order(weights[channel][:, None], [moments[channel]], step[channel], 127)
        np.testing.assert_array_equal(codes[channel], single[:, 0])


def test_patches_times_filter_is_the_convolution():
    import tensorflow as tf

    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 9, 8, 5)).astype(np.float32)
    filters = rng.normal(size=(3, 3, 5, 4)).astype(np.float32)
    for padding, stride, dilation in (("SAME", 1, 1), ("VALID", 2, 1), ("EXPLICIT", 2, 1), ("SAME", 1, 2)):
        explicit = [0, 0, 1, 2, 0, 1, 0, 0] if padding == "EXPLICIT" else []
        found = patches(values, (3, 3), (1, stride, stride, 1), (1, dilation, dilation, 1), padding, explicit, 10**6)
        named = np.reshape(explicit, (4, 2)).tolist() if explicit else padding
        exact = tf.nn.conv2d(values, filters, stride, named, dilations=dilation).numpy().reshape(-1, 4)
        np.testing.assert_allclose(found.reshape(len(found), -1) @ filters.reshape(-1, 4), exact, atol=1e-4)
    assert len(patches(values, (1, 1), (1, 1, 1, 1), (1, 1, 1, 1), "SAME", [], 20)) <= 20


def test_wide_layers_have_blocks():
    rows = np.random.default_rng(0).normal(size=(30, 1, BLOCK + 9)).astype(np.float32)
    gathered = Covariance(False)
    gathered.add(rows)
    exact = np.cov(rows[:, 0].T, bias=True)
    first, second = gathered.result()
    np.testing.assert_allclose(first, exact[:BLOCK, :BLOCK], atol=1e-4)
    np.testing.assert_allclose(second, exact[BLOCK:, BLOCK:], atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 3), (1023, 5), (1024, 1), (2, 600, 7), (3000, 2)])
def test_column_sums_lose_nothing_that_float32_has(shape):
    values = np.random.default_rng(0).normal(3, 10, size=shape).astype(np.float32)
    flat = values.reshape(-1, shape[-1]).astype(np.float64)
    assert column_sums(values).dtype == np.float64
    assert np.all(np.abs(column_sums(values) - flat.sum(0)) <= 1e-7 * np.abs(flat).sum(0))


def test_covariance_in_parts_is_that_of_the_whole():
    rows = np.random.default_rng(0).normal(size=(50, 4, 3)).astype(np.float32) + 2
    for depthwise in (False, True):
        gathered = Covariance(depthwise)
        for part in np.split(rows, [10, 17, 40]):
            gathered.add(part)
        if depthwise:
            exact = np.stack([np.cov(rows[:, :, c].T, bias=True) for c in range(3)])
        else:
            exact = np.cov(rows.reshape(50, -1).T, bias=True)
        np.testing.assert_allclose(gathered.result()[0], exact, atol=1e-4)
