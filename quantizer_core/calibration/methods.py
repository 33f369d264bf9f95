"""How statistics become a range: one function a method, one line in ``METHODS``.

A method gets the statistics of a tensor and returns the bounds to clip it at. For a signed tensor the quantiser is
symmetric, so ``percentile``, ``kl`` and ``mse`` look at magnitudes and return the part of [-clip, clip] that the values
reach; for an unsigned one they look at the positive values and zero.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from quantizer_core.calibration.fixed_point import GREATEST, LEAST
from quantizer_core.calibration.statistics import TensorStatistics
from quantizer_core.errors import ConfigError, DataError, nearest
from quantizer_core.types import Range

#: The range given to a tensor that is zero everywhere: scales must not vanish.
TINY = 1e-6
#: Magnitudes up to this count as zero: scales made of them would leave float32's normal numbers.
NOTHING = 1e-30
#: Levels above zero of the unsigned (0…255) and of the symmetric signed (-127…127) quantiser.
UNSIGNED_LEVELS, SIGNED_LEVELS = 255, 127
_KL_BINS = 2048
_KL_STEP = 16

Method = Callable[[TensorStatistics, bool, float], tuple[float, float]]


def select_range(stats: TensorStatistics, method: str, *, signed: bool, percentile: float = 99.99) -> Range:
    """Chooses the range that a tensor is quantised for.

    Args:
      stats: what was observed of the tensor.
      method: a key of ``METHODS``.
      signed: False promises that the tensor has no negative values; the minimum is then 0.
      percentile: share of the values, in percent, that ``percentile`` covers.

    Returns:
      Finite bounds with min ≤ 0 ≤ max and max - min > ``NOTHING``. They are the exact extremes where the method finds
      no other value than zero: those that it looks at are a sample.

    Raises:
      ConfigError: if the method is not known.
      DataError: if the statistics hold no finite values.
    """
    if method not in METHODS:
        raise ConfigError(f"calibration method {method!r} is not known{nearest(method, METHODS)}")
    if not stats.finite:
        raise DataError("no finite values were observed, so no range can be chosen")
    for chosen in (METHODS[method], minmax):
        low, high = chosen(stats, signed, percentile)
        low, high = (min(low, 0.0) if signed else 0.0), max(high, 0.0)
        if max(-low, high) > NOTHING:
            return Range(float(low), float(high))
    return Range(-TINY if signed else 0.0, TINY)


def minmax(stats: TensorStatistics, signed: bool, percentile: float) -> tuple[float, float]:
    """The exact extremes of all values seen: never clips, widened by any outlier."""
    return stats.minimum, stats.maximum


def moving_average(stats: TensorStatistics, signed: bool, percentile: float) -> tuple[float, float]:
    """The mean over the examples of each one's extremes.

    A usual moving average (Jacob et al. 2017, arXiv:1712.05877, section 3.1) weighs by order of arrival; this is the
    limit of it in which all examples weigh the same, so order cannot matter. Of values outside 6e-8…4e9, of which no
    exact sums are kept, it is ``minmax``.
    """
    if not LEAST <= max(-stats.minimum, stats.maximum) <= GREATEST:
        return stats.minimum, stats.maximum
    return stats.mean_extremes()


def percentile_clip(stats: TensorStatistics, signed: bool, percentile: float) -> tuple[float, float]:
    """The smallest magnitude that ``percentile`` percent of the values do not exceed (zeros count), linear in a bin.

    Wu et al. 2020, arXiv:2004.09602, section 3.2.
    """
    edges, counts, zeros = magnitudes(stats, signed)
    total = counts.sum() + zeros
    below = zeros + np.concatenate([[0], np.cumsum(counts)])
    return _clip(stats, float(np.interp(percentile / 100 * total, below, edges)) if len(counts) else 0.0)


def mse(stats: TensorStatistics, signed: bool, percentile: float) -> tuple[float, float]:
    """The clip c with the least expected squared error of quantising to steps of Δ = c / levels.

    E(c) = Σ_{x ≤ c} n(x) · e(x) + Σ_{x > c} n(x) · (x - c)², with e(x) = Δ²/12 (uniform rounding noise), or x² where
    x < Δ/2 rounds to zero (Banner et al. 2018, arXiv:1810.05723, section 2, evaluated on the histogram instead of a
    fitted density). Every bin edge within the upper 8 octaves is tried, and the exact maximum.
    """
    edges, counts, _ = magnitudes(stats, signed)
    if not len(counts):
        return _clip(stats, 0.0)
    centres = (edges[:-1] + edges[1:]) / 2
    sums = [np.concatenate([[0.0], np.cumsum(counts * centres**power)]) for power in range(3)]
    clips = edges[edges >= edges[-1] / 256]
    step = clips / _levels(signed)
    upto = np.searchsorted(centres, clips, side="right")
    small = np.searchsorted(centres, step / 2, side="left")
    rounding = (sums[0][upto] - sums[0][small]) * step**2 / 12 + sums[2][small]
    above = [total[-1] - total[upto] for total in sums]
    clipping = above[2] - 2 * clips * above[1] + clips**2 * above[0]
    error = rounding + clipping
    # The largest of equals: clip as little as the error allows.
    return _clip(stats, float(clips[len(error) - 1 - int(np.argmin(error[::-1]))]))


def kl(stats: TensorStatistics, signed: bool, percentile: float) -> tuple[float, float]:
    """The clip whose quantised histogram diverges least (Kullback–Leibler) from the observed one.

    The search of TensorRT (Migacz 2017, "8-bit inference with TensorRT", slides 38–39): 2,048 equal bins of magnitude;
    for every clip at bin i, P is the histogram up to i with all that lies above added to its last bin, Q the
    unclipped part summed into ``levels`` groups and spread evenly over each group's non-empty bins. Zeros, which every
    clip represents exactly, are left out. Clips are tried at every 16th bin.
    """
    edges, counts, _ = magnitudes(stats, signed)
    if not len(counts):
        return _clip(stats, 0.0)
    levels = _levels(signed) + 1
    grid = np.linspace(0.0, edges[-1], _KL_BINS + 1)
    cumulative = np.interp(grid, edges, np.concatenate([[0], np.cumsum(counts)]))
    histogram = np.diff(cumulative)
    histogram[histogram < 1e-9 * histogram.sum()] = 0
    best, clip = np.inf, float(edges[-1])
    for size in range(_KL_BINS, levels - 1, -_KL_STEP):
        divergence = _divergence(histogram, size, levels)
        if divergence < best:
            best, clip = divergence, float(grid[size])
    return _clip(stats, clip)


def _divergence(histogram: np.ndarray, size: int, levels: int) -> float:
    inside = histogram[:size]
    observed = inside.copy()
    observed[-1] += histogram[size:].sum()
    group = np.arange(size) * levels // size
    filled = (inside > 0).astype(np.float64)
    share = np.bincount(group, inside, levels) / np.maximum(np.bincount(group, filled, levels), 1)
    quantized = share[group] * filled
    if not quantized.sum():
        return np.inf
    p, q = observed / observed.sum(), quantized / quantized.sum()
    # A bin of P that Q leaves empty (only the last, by outliers alone) would make the divergence infinite: floor it.
    used = p > 0
    return float(np.sum(p[used] * np.log(p[used] / np.maximum(q[used], 1e-12))))


#: Every calibration method by name.
METHODS: dict[str, Method] = {
    "minmax": minmax,
    "moving_average": moving_average,
    "percentile": percentile_clip,
    "kl": kl,
    "mse": mse,
}


def magnitudes(stats: TensorStatistics, signed: bool) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns the histogram of the magnitudes of the values that are not zero.

    Negative values are left out if ``signed`` is False.

    Returns:
      Ascending edges, float64 [n + 1], from 0 to the exact largest magnitude; the counts between them, float64 [n]
      (n = 0 if all is zero); and the number of zeros.
    """
    positive = np.zeros(1 << 15)
    negative = stats.keys >= 1 << 15
    positive[stats.keys[~negative]] = stats.counts[~negative]
    if signed:
        positive[stats.keys[negative] - (1 << 15)] += stats.counts[negative]
    zeros = float(positive[0])
    largest = max(stats.maximum, -stats.minimum if signed else 0.0, 0.0)
    used = np.flatnonzero(positive[1:]) + 1
    if largest <= 0 or not len(used):
        return np.zeros(1), np.zeros(0), zeros
    first, last = used[0], used[-1]
    edges = np.arange(first, last + 2, dtype=np.uint32)
    edges = (edges << 16).view(np.float32).astype(np.float64)
    inside = positive[first : last + 1]
    if largest > edges[-1]:  # the sample missed the largest value: an empty bin reaches up to it
        return np.append(edges, largest), np.append(inside, 0.0), zeros
    edges[-1] = max(largest, np.nextafter(edges[-2], np.inf))
    return edges, inside, zeros


def _levels(signed: bool) -> int:
    return SIGNED_LEVELS if signed else UNSIGNED_LEVELS


def _clip(stats: TensorStatistics, clip: float) -> tuple[float, float]:
    return max(stats.minimum, -clip), min(stats.maximum, clip)
