"""Second-order rounding: each weight's rounding error is carried on to the weights that are not rounded yet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quantizer_core.lowering.weights import PAIR

#: Rows whose updates are gathered into one matrix product.
_LAZY = 64
#: Added to the diagonal of the second moments, as a share of its mean (GPTQ's choice).
_DAMPING = 0.01
#: Size of a matrix that is inverted as a whole: halving it further takes longer.
_LEAF = 64


def round_second_order(
    weights: np.ndarray, moments: Sequence[np.ndarray], step: np.ndarray, top: int, channels: int = 0
) -> np.ndarray:
    """Returns codes that keep the layer's output close, not each weight.

    Minimises (W - Ŵ)ᵀ H (W - Ŵ) greedily for each output: rows are rounded in order of falling second moment, and each
    error is spread over the rows that remain through the inverse of H (Hassibi & Stork 1993, "Optimal Brain Surgeon";
    Frantar et al., "GPTQ", ICLR 2023, section 3).

    Args:
      weights: float [inputs, outputs].
      moments: the diagonal blocks of the inputs' covariance (their second moments, if no bias takes the mean error
        back), from the first input on: float [n, n], symmetric and positive semi-definite. Errors are carried on
        within a block.
      step: float [outputs] or scalar: what a code stands for.
      top: the largest code.
      channels: if given, the inputs are taps of so many channels each, and the codes of neighbouring channels keep to
        the sums of a paired grid (see ``quantizer_core.lowering.weights.Grid``).

    Returns:
      float64 [inputs, outputs], whole numbers in -top…top.
    """
    codes = np.zeros((len(weights) + 1, weights.shape[1]))  # the last row stays zero: the neighbour of those without
    neighbours = np.full(len(weights), len(weights))
    if channels:
        rows = np.arange(len(weights))
        first = (rows % channels % 2 == 0) & (rows % channels + 1 < channels)
        second = rows % channels % 2 == 1
        neighbours[first], neighbours[second] = rows[first] + 1, rows[second] - 1
    start = 0
    for block in moments:
        _round_block(weights[start : start + len(block)].astype(np.float64), block, step, top, codes, neighbours, start)
        start += len(block)
    return codes[:-1]


def _round_block(
    weights: np.ndarray, moments: np.ndarray, step: np.ndarray, top: int, codes: np.ndarray, neighbours: np.ndarray,
    first: int,
) -> None:  # fmt: skip
    """Rounds the rows from ``first`` on into ``codes``, where rows that are not rounded yet are zero."""
    order = np.argsort(-np.diag(moments), kind="stable")
    weights = weights[order]
    spread = _inverse_factor(moments[np.ix_(order, order)])
    for start in range(0, len(weights), _LAZY):
        end = min(start + _LAZY, len(weights))
        errors = np.empty((end - start, weights.shape[1]))
        for row in range(start, end):
            at = first + order[row]
            beside = codes[neighbours[at]]
            high = np.minimum(top, PAIR - np.maximum(beside, 0))
            low = -np.minimum(top, PAIR - np.maximum(-beside, 0))
            codes[at] = np.clip(np.rint(weights[row] / step), low, high)
            error = (weights[row] - codes[at] * step) / spread[row, row]
            weights[row + 1 : end] -= np.outer(spread[row, row + 1 : end], error)
            errors[row - start] = error
        weights[end:] -= spread[start:end, end:].T @ errors


def _inverse_factor(moments: np.ndarray) -> np.ndarray:
    """Returns upper triangular U with UᵀU the inverse of the damped moments, [..., n, n].

    With M = U'U'ᵀ, U' upper triangular (Cholesky's factor of M from its last row on), U is the inverse of U'.
    """
    size = moments.shape[-1]
    damping = _DAMPING * np.trace(moments, axis1=-2, axis2=-1) / size + 1e-12
    damped = moments + damping[..., None, None] * np.eye(size)
    turned = np.flip((damped + np.swapaxes(damped, -1, -2)) / 2, (-2, -1))
    factor = np.flip(np.linalg.cholesky(turned), (-2, -1))
    return _upper_inverse(factor)


def _upper_inverse(factor: np.ndarray) -> np.ndarray:
    """Returns the inverse of upper triangular matrices [..., n, n], by halves."""
    size = factor.shape[-1]
    if size == 1:
        return np.asarray(1 / factor)
    if size <= _LEAF and factor.ndim == 2:
        return np.triu(np.linalg.inv(factor))
    half = size // 2
    first, last = _upper_inverse(factor[..., :half, :half]), _upper_inverse(factor[..., half:, half:])
    result = np.zeros_like(factor)
    result[..., :half, :half], result[..., half:, half:] = first, last
    result[..., :half, half:] = -first @ factor[..., :half, half:] @ last
    return result


def round_channels_second_order(weights: np.ndarray, moments: np.ndarray, step: np.ndarray, top: int) -> np.ndarray:
    """The same for depthwise filters: every channel has its own taps and its own moments.

    Args:
      weights: float [channels, taps].
      moments: float [channels, taps, taps].
      step: float [channels] or scalar.
      top: the largest code.

    Returns:
      float64 [channels, taps].
    """
    weights = weights.astype(np.float64)
    channels, taps = weights.shape
    step = np.broadcast_to(step, (channels,))
    spread = _inverse_factor(moments)
    codes = np.empty_like(weights)
    for tap in range(taps):
        codes[:, tap] = np.clip(np.rint(weights[:, tap] / step), -top, top)
        error = (weights[:, tap] - codes[:, tap] * step) / spread[:, tap, tap]
        weights[:, tap + 1 :] -= spread[:, tap, tap + 1 :] * error[:, None]
    return codes
