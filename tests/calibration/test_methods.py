"""Ranges from histograms, against the definitions worked out on the values themselves."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quantizer_core.calibration import METHODS, TensorStatistics, select_range
from quantizer_core.calibration.fixed_point import to_limbs
from quantizer_core.calibration.methods import NOTHING, TINY
from quantizer_core.config import CALIBRATION_METHODS
from quantizer_core.errors import ConfigError, DataError


def statistics(*examples: np.ndarray) -> TensorStatistics:
    total = TensorStatistics()
    for example in examples:
        array = np.asarray(example, np.float32)
        keys, counts = np.unique((array.view(np.uint32) >> 16).astype(np.uint16), return_counts=True)
        low, high = float(array.min()), float(array.max())
        sums = to_limbs(np.array([low, high]))
        one = TensorStatistics(1, 0, 0, 0, low, high, 1, sums, keys, counts.astype(np.int64))
        total = total.merge(one)
    return total


def quantization_error(values: np.ndarray, clip: float, signed: bool) -> float:
    step = clip / (127 if signed else 255)
    codes = np.clip(np.rint(values / step), -127 if signed else 0, 127 if signed else 255)
    return float(np.mean((codes * step - values) ** 2))


@pytest.fixture(scope="module")
def normal() -> np.ndarray:
    return np.random.default_rng(0).normal(size=200_000).astype(np.float32)


@pytest.fixture(scope="module")
def heavy() -> np.ndarray:
    """Half zeros, half exponential, and one far outlier: what a ReLU gives on a bad day."""
    rng = np.random.default_rng(1)
    values = np.maximum(rng.laplace(size=200_000), 0).astype(np.float32)
    values[17] = 90.0
    return values


def test_every_configured_method_is_there() -> None:
    assert set(METHODS) == set(CALIBRATION_METHODS)


def test_minmax_is_exact(normal: np.ndarray) -> None:
    assert select_range(statistics(normal), "minmax", signed=True) == (float(normal.min()), float(normal.max()))
    assert select_range(statistics(np.abs(normal)), "minmax", signed=False) == (0.0, float(np.abs(normal).max()))


def test_moving_average_is_the_mean_of_the_extremes() -> None:
    stats = statistics(np.array([-1.0, 4.0]), np.array([-3.0, 1.0]), np.array([-2.0, 10.0]))
    assert select_range(stats, "moving_average", signed=True) == (-2.0, 5.0)
    assert select_range(stats, "moving_average", signed=False) == (0.0, 5.0)


@pytest.mark.parametrize("percent", [90.0, 99.0, 99.9, 99.99])
def test_percentile_is_that_of_the_values(normal: np.ndarray, heavy: np.ndarray, percent: float) -> None:
    exact = float(np.percentile(np.abs(normal), percent))
    low, high = select_range(statistics(normal), "percentile", signed=True, percentile=percent)
    assert high == pytest.approx(exact, rel=0.005) and low == pytest.approx(-exact, rel=0.005)
    exact = float(np.percentile(heavy, percent))
    assert select_range(statistics(heavy), "percentile", signed=False, percentile=percent).max == pytest.approx(
        exact, rel=0.005
    )


def test_the_whole_percentile_is_minmax(normal: np.ndarray) -> None:
    stats = statistics(normal)
    largest = float(np.abs(normal).max())
    low, high = select_range(stats, "percentile", signed=True, percentile=100.0)
    assert max(-low, high) == pytest.approx(largest)


@pytest.mark.parametrize("signed", [True, False])
def test_mse_is_within_a_hair_of_the_best_clip(normal: np.ndarray, heavy: np.ndarray, signed: bool) -> None:
    values = normal if signed else heavy
    chosen = select_range(statistics(values), "mse", signed=signed)
    largest = float(np.abs(values).max())
    best = min(quantization_error(values, clip, signed) for clip in np.geomspace(largest / 100, largest, 200))
    error = quantization_error(values, max(-chosen.min, chosen.max), signed)
    assert error <= 1.03 * best
    assert error < quantization_error(values, largest, signed)


def test_kl_cuts_off_outliers_and_keeps_the_body(heavy: np.ndarray) -> None:
    high = select_range(statistics(heavy), "kl", signed=False).max
    assert np.percentile(heavy, 99) < high < 45.0
    body = heavy[heavy < 90]
    assert quantization_error(body, high, False) < quantization_error(body, 90.0, False) / 5


def test_kl_keeps_the_whole_of_an_even_distribution() -> None:
    values = np.random.default_rng(2).uniform(0, 6, 100_000).astype(np.float32)
    assert select_range(statistics(values), "kl", signed=False).max > 5.5


def test_relu6_saturated_at_six_keeps_six() -> None:
    values = np.minimum(np.abs(np.random.default_rng(3).normal(size=50_000)) * 5, 6).astype(np.float32)
    for method in ("minmax", "moving_average", "percentile", "mse"):
        assert select_range(statistics(values), method, signed=False).max == pytest.approx(6.0, rel=0.01), method


@pytest.mark.parametrize("method", sorted(METHODS))
def test_zeros_get_a_tiny_but_valid_range(method: str) -> None:
    stats = statistics(np.zeros(10))
    assert select_range(stats, method, signed=False) == (0.0, TINY)
    assert select_range(stats, method, signed=True) == (-TINY, TINY)
    assert select_range(statistics(np.full(10, -0.0)), method, signed=True) == (-TINY, TINY)


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("unit", [1e-25, 1e-13, 1e13])
def test_a_range_does_not_depend_on_the_unit(method: str, unit: float) -> None:
    values = np.random.default_rng(4).normal(size=20_000).astype(np.float32)
    expected = select_range(statistics(values), method, signed=True)
    found = select_range(statistics((values * np.float32(unit)).astype(np.float32)), method, signed=True)
    assert np.array(found) / unit == pytest.approx(np.array(expected), rel=0.2)


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("signed", [True, False])
def test_a_sample_of_nothing_but_zeros_leaves_the_extremes(method: str, signed: bool) -> None:
    """The click in an image of zeros, of which every 65th pixel is looked at."""
    seen = dataclasses.replace(statistics(np.zeros(100)), minimum=-3.0 if signed else 0.0, maximum=5.0)
    assert select_range(seen, method, signed=signed) == (-3.0 if signed else 0.0, 5.0)


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("signed", [True, False])
@given(
    values=hnp.arrays(
        np.float32,
        st.integers(1, 40),
        elements=st.floats(-(2.0**127), 2.0**127, width=32, allow_subnormal=False)
        | st.sampled_from([0.0, 2.0**-100, 1.0, 6.0]),
    )
)
@settings(max_examples=25)
def test_every_range_is_valid_and_within_what_was_seen(method: str, signed: bool, values: np.ndarray) -> None:
    values = values if signed else np.abs(values)
    low, high = select_range(statistics(values), method, signed=signed)
    assert np.isfinite([low, high]).all() and low <= 0 <= high and max(-low, high) > NOTHING
    assert low >= min(float(values.min()), 0.0) - TINY and high <= max(float(values.max()), 0.0) + TINY
    assert signed or low == 0


def test_a_histogram_that_missed_the_largest_value_still_reaches_it() -> None:
    """The histogram of a large tensor is a sample, the extremes are of all values."""
    seen = statistics(np.linspace(0.1, 1, 1000, dtype=np.float32))
    stats = TensorStatistics(
        examples=1, minimum=0.0, maximum=8.0, finite=1, keys=seen.keys, counts=seen.counts,
        extreme_sums=to_limbs(np.array([0.0, 8.0])),
    )  # fmt: skip
    assert select_range(stats, "minmax", signed=False).max == 8.0
    assert select_range(stats, "percentile", signed=False, percentile=99.0).max <= 1.0
    assert select_range(stats, "mse", signed=False).max < 1.2


def test_unknown_methods_and_missing_values_are_errors() -> None:
    with pytest.raises(ConfigError, match="'min_max' is not known; did you mean 'minmax'"):
        select_range(statistics(np.ones(3)), "min_max", signed=False)
    with pytest.raises(DataError, match="no finite values"):
        select_range(TensorStatistics(examples=1, nan=1), "minmax", signed=False)
