"""The laws of merging: exact, associative, commutative, with a neutral element; and one form in bytes."""

from __future__ import annotations

import functools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantizer_core.calibration.fixed_point import limb_sums, mean_of_limbs, to_limbs
from quantizer_core.calibration.statistics import CalibrationStatistics, TensorStatistics, check_finite
from quantizer_core.errors import DataError

FLOATS = st.floats(-1e6, 1e6, width=32)


def of_example(values: list[float]) -> TensorStatistics:
    """Returns the statistics of one example of a tensor with two channels, made without the code under test."""
    array = np.array(values, np.float32)
    bins = array.view(np.uint32) >> 16
    keys, counts = np.unique(bins.astype(np.uint16), return_counts=True)
    low, high = float(array.min()), float(array.max())
    return TensorStatistics(
        examples=1,
        minimum=low,
        maximum=high,
        finite=1,
        extreme_sums=to_limbs(np.array([low, high])),
        keys=keys,
        counts=counts.astype(np.int64),
        channel_sums=to_limbs(np.array([array.mean(), low], np.float32)),
        channel_extremes=np.array([[low, array[0]], [array[-1], high]], np.float32) + np.float32(0),
    )


EXAMPLES = st.lists(FLOATS, min_size=1, max_size=6).map(of_example)
STATISTICS = st.one_of(
    st.just(CalibrationStatistics()),
    st.dictionaries(st.sampled_from(["a", "b:1", "é"]), EXAMPLES).map(lambda t: CalibrationStatistics(t, 1)),
)


@given(STATISTICS, STATISTICS, STATISTICS)
@settings(max_examples=60)
def test_merge_is_associative_and_commutative_to_the_byte(
    a: CalibrationStatistics, b: CalibrationStatistics, c: CalibrationStatistics
) -> None:
    assert a.merge(b).merge(c).to_bytes() == a.merge(b.merge(c)).to_bytes()
    assert a.merge(b).to_bytes() == b.merge(a).to_bytes()


@given(STATISTICS)
@settings(max_examples=30)
def test_the_empty_statistics_are_neutral(a: CalibrationStatistics) -> None:
    assert a.merge(CalibrationStatistics()).to_bytes() == a.to_bytes() == CalibrationStatistics().merge(a).to_bytes()


@given(st.lists(EXAMPLES, min_size=1, max_size=8), st.randoms(use_true_random=False), st.integers(1, 4))
@settings(max_examples=60)
def test_any_sharding_and_order_gives_the_same_bytes(examples: list, random: object, shards: int) -> None:
    runs = [CalibrationStatistics({"t": example}, 1) for example in examples]
    whole = functools.reduce(CalibrationStatistics.merge, runs)
    random.shuffle(runs)  # type: ignore[attr-defined]
    parts = [
        functools.reduce(CalibrationStatistics.merge, runs[i::shards], CalibrationStatistics()) for i in range(shards)
    ]
    assert functools.reduce(CalibrationStatistics.merge, parts).to_bytes() == whole.to_bytes()


@given(STATISTICS)
@settings(max_examples=40)
def test_bytes_round_trip(a: CalibrationStatistics) -> None:
    back = CalibrationStatistics.from_bytes(a.to_bytes())
    assert back == a and back.to_bytes() == a.to_bytes()
    for stats in a.tensors.values():
        assert TensorStatistics.from_bytes(stats.to_bytes()) == stats


def test_merge_adds_what_the_examples_held() -> None:
    merged = of_example([1.0, -2.0, 1.0]).merge(of_example([5.0, 0.0]))
    assert (merged.minimum, merged.maximum, merged.count) == (-2.0, 5.0, 5)
    assert merged.mean_extremes() == (-1.0, 3.0)
    ones = merged.counts[merged.keys == np.float32(1).view(np.uint32) >> 16]
    assert ones.tolist() == [2]
    np.testing.assert_allclose(merged.channel_means(), [1.25, -1.0], rtol=1e-7)


def test_minus_zero_is_zero_whatever_comes_first() -> None:
    zero, minus = (TensorStatistics(examples=1, minimum=value, maximum=value) for value in (0.0, -0.0))
    assert zero.merge(minus).to_bytes() == minus.merge(zero).to_bytes()
    assert minus.to_bytes() == zero.to_bytes()


def test_counts_beyond_32_bits_survive() -> None:
    many = TensorStatistics(examples=1, keys=np.array([7], np.uint16), counts=np.array([1 << 40]))
    assert TensorStatistics.from_bytes(many.to_bytes()).count == 1 << 40


@pytest.mark.parametrize(
    "damage", [lambda d: d[:-1], lambda d: d + b"x", lambda d: b"PK" + d, lambda d: d[:12], lambda d: b""]
)
def test_damaged_bytes_are_a_data_error(damage: object) -> None:
    data = CalibrationStatistics({"t": of_example([1.0, 2.0])}, 1).to_bytes()
    with pytest.raises(DataError, match="no calibration statistics, or they are damaged"):
        CalibrationStatistics.from_bytes(damage(data))  # type: ignore[operator]


@given(EXAMPLES, EXAMPLES)
@settings(max_examples=30)
def test_channel_extremes_are_those_of_both(a: TensorStatistics, b: TensorStatistics) -> None:
    merged = a.merge(b).channel_extremes
    np.testing.assert_array_equal(merged[0], np.minimum(a.channel_extremes[0], b.channel_extremes[0]))
    np.testing.assert_array_equal(merged[1], np.maximum(a.channel_extremes[1], b.channel_extremes[1]))
    back = CalibrationStatistics.from_bytes(CalibrationStatistics({"a": a.merge(b)}, 2).to_bytes()).tensors["a"]
    np.testing.assert_array_equal(back.channel_extremes, merged)


def test_different_channels_cannot_be_merged() -> None:
    other = TensorStatistics(examples=1, finite=1, channel_sums=np.zeros((2, 3), np.int64))
    with pytest.raises(DataError, match="2 and 3 channels"):
        of_example([1.0]).merge(other)
    with pytest.raises(DataError, match="none and 2 channels"):
        TensorStatistics(examples=1, finite=1).merge(of_example([1.0]))


def test_a_tensor_that_was_always_empty_knows_of_no_channels() -> None:
    """As behind a boolean_mask in a loop, of which one worker's examples keep no row."""
    empty, some = TensorStatistics(examples=2), of_example([1.0])
    for joined in (empty.merge(some), some.merge(empty)):
        assert (joined.examples, joined.finite) == (3, 1)
        np.testing.assert_array_equal(joined.channel_sums, some.channel_sums)


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("nan", "NaN in 2 of 5"),
        ("positive_infinite", r"\+infinity in 2 of 5"),
        ("negative_infinite", "-infinity in 2 of 5"),
    ],
)
def test_check_finite_names_the_tensor_and_what_it_held(field: str, words: str) -> None:
    fine = of_example([1.0])
    bad = TensorStatistics(examples=5, finite=3, **{field: 2})
    with pytest.raises(DataError, match=f"'conv/Relu' held {words}"):
        check_finite(CalibrationStatistics({"a": fine, "conv/Relu": bad}, 5))
    check_finite(CalibrationStatistics({"a": fine}, 1))


def test_check_finite_names_a_tensor_that_was_always_empty() -> None:
    with pytest.raises(DataError, match="'boxes' was empty in all 3"):
        check_finite(CalibrationStatistics({"boxes": TensorStatistics(examples=3)}, 3))


@given(st.lists(FLOATS, min_size=1, max_size=20))
@settings(max_examples=60)
def test_fixed_point_means_are_exact_to_the_resolution(values: list[float]) -> None:
    limbs = sum(to_limbs(np.array([value], np.float32)) for value in values)
    exact = sum(Fraction(float(np.float32(value))) for value in values) / len(values)
    assert abs(float(mean_of_limbs(limbs, len(values))[0]) - float(exact)) <= 2.0**-40 + 1e-15 * abs(float(exact))


@pytest.mark.parametrize("shape", [(0, 3), (5, 7), (40, 3_000), (3, 20_000), (2, 4, 5)])
@pytest.mark.parametrize("axis", [0, -1])
def test_fixed_point_sums_are_those_of_each_value(shape: tuple[int, ...], axis: int) -> None:
    values = np.random.default_rng(0).normal(0, 1e4, shape).astype(np.float32)
    found = limb_sums(values, axis)
    np.testing.assert_array_equal(found, to_limbs(values).sum(axis if axis < 0 else axis + 1))
    assert found.dtype == np.int64


def test_fixed_point_clips_what_it_cannot_hold() -> None:
    assert mean_of_limbs(to_limbs(np.array([1e30, -1e30])), 1).tolist() == [2.0**32, -(2.0**32)]
