"""Sums of floats that come out the same, bit for bit, in whatever order and grouping they are added.

A float is written as ``(hi · 2^32 + lo) / 2^40`` with integers ``hi`` and ``0 ≤ lo ≤ 2^32``; sums add the two limbs as
int64, which is associative and commutative. The resolution is 2^-40 (9e-13). Values are clipped to ±2^32 (4.3e9), and
the sum is exact for 2^23 (8 million) values of that size, or any 2^31 values below 2^24.
"""

from __future__ import annotations

import math

import numpy as np

_LIMIT = 2.0**32
#: Magnitudes of which sums are good to 2^-16 of the largest: smaller ones vanish in the resolution, larger are clipped.
LEAST, GREATEST = 2.0**-24, _LIMIT
_FRACTION_BITS = 40
# Values whose limbs are made at once: temporaries of so many stay in a processor's cache.
_BLOCK = 1 << 14


def to_limbs(values: np.ndarray) -> np.ndarray:
    """Returns int64 limbs of shape [2, …] for finite floats of shape […]."""
    scaled = np.clip(values.astype(np.float64), -_LIMIT, _LIMIT) * 2.0 ** (_FRACTION_BITS - 32)
    high = np.floor(scaled)
    low = np.rint((scaled - high) * 2.0**32)
    return np.stack([high.astype(np.int64), low.astype(np.int64)])


def limb_sums(values: np.ndarray, axis: int) -> np.ndarray:
    """Returns int64 limbs, [2, …], of the sums over one axis of finite floats."""
    rows = np.moveaxis(values, axis, 0)
    flat = rows.reshape(len(rows), math.prod(rows.shape[1:]))
    total = np.zeros((2, flat.shape[1]), np.int64)
    step = max(1, _BLOCK // max(1, flat.shape[1]))
    for start in range(0, len(flat), step):
        total += to_limbs(flat[start : start + step]).sum(1)
    return total.reshape(2, *rows.shape[1:])


def mean_of_limbs(limbs: np.ndarray, count: int) -> np.ndarray:
    """Returns float64 means of shape […] of ``count`` values whose limbs, [2, …], were summed."""
    high, low = limbs.reshape(2, -1)
    divisor = count << _FRACTION_BITS
    # Python integers: the joined sum may take more than 64 bits, and int / int is rounded correctly.
    means = [((int(hi) << 32) + int(lo)) / divisor for hi, lo in zip(high, low, strict=True)]
    return np.array(means, np.float64).reshape(limbs.shape[1:])
