"""Covariance of what a filter sees: the patches of its input, gathered from a bounded number of positions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

#: At most this many positions of a layer are looked at, spread evenly over all examples; of a depthwise one a quarter,
#: as the covariance of a few taps is known sooner.
POSITIONS, DEPTHWISE_POSITIONS = 1 << 13, 1 << 11
#: Inputs of a layer whose covariance with each other is gathered; blocks of a layer count as independent.
BLOCK = 512
# Rows that are added up in float32; their sums in float64.
_PART = 1 << 8


def column_sums(rows: np.ndarray) -> np.ndarray:
    """Returns the sums over all axes but the last of float32 [..., columns], float64 [columns].

    As products with ones they take a fraction of the time of NumPy's sum in float64, and are as close as the float32
    values are: the error is some 1e-7 of the sum of magnitudes at the most.
    """
    flat = rows.reshape(-1, rows.shape[-1])
    ones = np.ones((1, _PART), np.float32)
    whole = len(flat) // _PART * _PART
    parts = ones @ flat[:whole].reshape(-1, _PART, flat.shape[1])
    rest = ones[:, : len(flat) - whole] @ flat[whole:]
    return np.asarray(parts.sum((0, 1), dtype=np.float64) + rest[0])


def patches(
    values: np.ndarray,
    size: tuple[int, int],
    strides: Sequence[int],
    dilations: Sequence[int],
    padding: str,
    explicit_paddings: Sequence[int],
    positions: int,
) -> np.ndarray:
    """Returns what each position of a convolution's filter sees.

    Args:
      values: float32 [batch, height, width, channels].
      size: height and width of the filter.
      strides, dilations, padding, explicit_paddings: as the attributes of Conv2D, NHWC.
      positions: how many to return at the most, evenly spread.

    Returns:
      float32 [positions, taps, channels].
    """
    batch, height, width, _ = values.shape
    taps = [np.arange(extent) * dilation for extent, dilation in zip(size, dilations[1:3], strict=True)]
    before, counts = [], []
    for axis, extent in enumerate((height, width)):
        reach, stride = int(taps[axis][-1]) + 1, strides[1 + axis]
        pads = list(explicit_paddings[2 + 2 * axis : 4 + 2 * axis]) if padding == "EXPLICIT" else [0, 0]
        if padding == "SAME":
            missing = max((-(-extent // stride) - 1) * stride + reach - extent, 0)
            pads = [missing // 2, missing - missing // 2]
        before.append(pads[0])
        counts.append((extent + sum(pads) - reach) // stride + 1)
    total = batch * counts[0] * counts[1]
    step = max(-(-total // positions), 1)
    while math.gcd(step, counts[0] * counts[1]) > 1:  # it would always meet the same rows or columns
        step += 1
    chosen = np.arange(0, total, step)
    example, row, column = np.unravel_index(chosen, (batch, *counts))
    rows = (row * strides[1] - before[0])[:, None] + np.repeat(taps[0], size[1])
    columns = (column * strides[2] - before[1])[:, None] + np.tile(taps[1], size[0])
    outside = (rows < 0) | (rows >= height) | (columns < 0) | (columns >= width)
    found = values[example[:, None], np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)]
    found[outside] = 0
    return found


class Covariance:
    """Gathers the covariance of the rows that a filter sees: diagonal blocks, or one matrix a channel (depthwise)."""

    def __init__(self, depthwise: bool):
        self._depthwise = depthwise
        self._count = 0
        self._shift: np.ndarray | None = None
        self._blocks: list[tuple[np.ndarray, np.ndarray]] = []  # sums and products

    def add(self, rows: np.ndarray) -> None:
        """Adds rows of patches, float32 [positions, taps, channels]."""
        if not len(rows):
            return
        taps = rows.shape[1:]
        flat = rows.reshape(len(rows), -1)
        if self._shift is None:
            # Near the mean the products are as small as the covariance: float32 does not lose it in the difference.
            self._shift = (column_sums(flat) / len(flat)).astype(np.float32)
        flat = flat - self._shift
        sums = column_sums(flat)[None]
        if self._depthwise:
            parts = [np.ascontiguousarray(flat.reshape(-1, *taps).transpose(2, 0, 1))]
            sums_of_parts = [sums.reshape(taps).T]
        else:
            starts = range(0, flat.shape[1], BLOCK)
            parts = [flat[None, :, start : start + BLOCK] for start in starts]
            sums_of_parts = [sums[:, start : start + BLOCK] for start in starts]
        products = [(part.transpose(0, 2, 1) @ part).astype(np.float64) for part in parts]
        found = list(zip(sums_of_parts, products, strict=True))
        known = self._blocks or [(np.zeros(()), np.zeros(()))] * len(found)
        self._blocks = [(s + more_s, p + more_p) for (s, p), (more_s, more_p) in zip(known, found, strict=True)]
        self._count += len(rows)

    def result(self) -> list[np.ndarray]:
        """Returns the blocks in order, float64 [n, n] each with n ≤ BLOCK; for depthwise one array [channels, n, n]."""
        blocks = []
        for sums, products in self._blocks:
            mean = sums / self._count
            blocks.append(products / self._count - mean[:, :, None] * mean[:, None, :])
        return blocks if self._depthwise else [block[0] for block in blocks]
