"""How far two calibrations lie apart, tensor by tensor: the ranges that each gives, largest change first."""

from __future__ import annotations

import dataclasses

import numpy as np

from quantizer_core.calibration.methods import select_range
from quantizer_core.calibration.statistics import CalibrationStatistics, TensorStatistics
from quantizer_core.types import Range


@dataclasses.dataclass(frozen=True)
class RangeChange:
    """One tensor in two calibrations, A and B.

    Attributes:
      tensor: its name.
      a, b: the range that each gives; None where it did not watch the tensor, or saw no finite value of it.
      examples_a, examples_b: number of examples with finite values behind each.
      change: how far the further of the two bounds moves, over the longer range; infinite if one has no range.
      outside: share of B's values that lie outside A's range by more than a histogram bin, and so would be clipped by
        it; NaN if one has no range.
      identical: whether the statistics are equal to the bit.
    """

    tensor: str
    a: Range | None
    b: Range | None
    examples_a: int
    examples_b: int
    change: float
    outside: float
    identical: bool


def diff_statistics(
    a: CalibrationStatistics, b: CalibrationStatistics, method: str = "mse", percentile: float = 99.99
) -> tuple[RangeChange, ...]:
    """Compares what two calibrations saw.

    Args:
      a, b: the statistics.
      method, percentile: how a range is chosen (see ``select_range``); a tensor that was never negative is taken for
        unsigned.

    Returns:
      One entry a tensor of either, by falling change, then by name: those that one of them lacks come first.

    Raises:
      ConfigError: if the method is not known.
    """
    names = sorted(a.tensors.keys() | b.tensors.keys())
    changes = [_compare(name, a.tensors.get(name), b.tensors.get(name), method, percentile) for name in names]
    return tuple(sorted(changes, key=lambda change: (-change.change, change.tensor)))


def _compare(
    tensor: str, a: TensorStatistics | None, b: TensorStatistics | None, method: str, percentile: float
) -> RangeChange:
    signed = any(found is not None and found.finite and found.minimum < 0 for found in (a, b))
    first, second = (
        select_range(found, method, signed=signed, percentile=percentile)
        if found is not None and found.finite
        else None
        for found in (a, b)
    )
    change, outside = float("inf"), float("nan")
    if first is None and second is None:
        change = 0.0
    elif b is not None and first is not None and second is not None:
        length = max(first.max - first.min, second.max - second.min)
        change = max(abs(second.min - first.min), abs(second.max - first.max)) / length
        outside = _share_outside(b, first)
    return RangeChange(
        tensor,
        first,
        second,
        a.finite if a is not None else 0,
        b.finite if b is not None else 0,
        change,
        outside,
        a is not None and b is not None and a == b,
    )


def _share_outside(found: TensorStatistics, limits: Range) -> float:
    """Returns the share of the counted values that surely lie outside: those whose bin does so whole."""
    inner = (found.keys.astype(np.uint32) << 16).view(np.float32)  # of each bin the end that is nearer to zero
    beyond = (inner > limits.max) | (inner < limits.min)
    return float(found.counts[beyond].sum()) / found.count if found.count else 0.0
