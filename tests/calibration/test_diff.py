"""Two calibrations side by side: what moved, how far, and what only one of them saw."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quantizer_core.calibration.diff import RangeChange, diff_statistics
from quantizer_core.calibration.statistics import CalibrationStatistics, TensorStatistics
from quantizer_core.errors import ConfigError


def _tensor(values: list[float], examples: int = 1) -> TensorStatistics:
    array = np.array(values, np.float32)
    keys, counts = np.unique((array.view(np.uint32) >> 16).astype(np.uint16), return_counts=True)
    return TensorStatistics(
        examples=examples,
        minimum=float(array.min()),
        maximum=float(array.max()),
        finite=examples,
        keys=keys,
        counts=counts.astype(np.int64),
    )


def _statistics(**tensors: TensorStatistics) -> CalibrationStatistics:
    return CalibrationStatistics(tensors, max((each.examples for each in tensors.values()), default=0))


A = _statistics(same=_tensor([0.0, 1.0]), wider=_tensor([0.0, 2.0]), lower=_tensor([-1.0, 1.0], 3), gone=_tensor([1.0]))
B = _statistics(
    same=_tensor([0.0, 1.0]), wider=_tensor([0.0, 1.0, 1.0, 4.0]), lower=_tensor([-3.0, 1.0], 5), new=_tensor([2.0])
)


def test_largest_change_comes_first_and_what_one_lacks_before_all() -> None:
    changes = diff_statistics(A, B, "minmax")
    assert [change.tensor for change in changes] == ["gone", "new", "lower", "wider", "same"]
    assert [change.change for change in changes] == [math.inf, math.inf, 0.5, 0.5, 0.0]
    gone, new, lower, wider, same = changes
    assert gone.b is None and gone.a is not None and gone.examples_b == 0 and math.isnan(gone.outside)
    assert new.a is None and new.b == (0.0, 2.0)
    assert (lower.a, lower.b) == ((-1.0, 1.0), (-3.0, 1.0)) and (lower.examples_a, lower.examples_b) == (3, 5)
    assert wider.outside == 0.25  # of four values one lies beyond A's 2
    assert same == RangeChange("same", (0.0, 1.0), (0.0, 1.0), 1, 1, 0.0, 0.0, True)
    assert not any(change.identical for change in changes[:4])


def test_ranges_are_those_of_the_method() -> None:
    outlier = _statistics(t=_tensor([0.01 * i for i in range(1, 101)] * 100 + [50.0]))
    plain = _statistics(t=_tensor([0.01 * i for i in range(1, 101)] * 100))
    (by_extremes,) = diff_statistics(plain, outlier, "minmax")
    (by_percentile,) = diff_statistics(plain, outlier, "percentile", 99.9)
    assert by_extremes.change > 0.9 and by_percentile.change < 0.05
    with pytest.raises(ConfigError, match="'minmix' is not known; did you mean 'minmax'"):
        diff_statistics(plain, outlier, "minmix")


def test_tensors_that_no_example_reached_have_no_range_and_no_change() -> None:
    never = _statistics(t=TensorStatistics(examples=0))
    (change,) = diff_statistics(never, never)
    assert (change.a, change.b, change.change, change.identical) == (None, None, 0.0, True)
    (change,) = diff_statistics(never, _statistics(t=_tensor([1.0])))
    assert change.a is None and change.change == math.inf


def test_a_calibration_is_identical_to_itself() -> None:
    assert all(change.identical and change.change == 0 and change.outside == 0 for change in diff_statistics(A, A))
