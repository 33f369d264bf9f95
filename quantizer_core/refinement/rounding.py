"""Second-order rounding: each weight's rounding error is carried on to the weights that are not rounded yet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quantizer_core.lowering.weights import PAIR

#: Rows whose errors are carried on one by one; those of all rows before come in one matrix product.
_LAZY = 16
#: Added to the diagonal of the second moments, as a share of its mean (GPTQ's choice).
_DAMPING = 0.01


def round_second_order(
    weights: np.ndarray, moments: Sequence[np.ndarray], step: np.ndarray, top: int, channels: int = 0
) -> np.ndarray:
    """Returns codes that keep the layer's output close, not each weight.

    Minimises (W - Ŵ)ᵀ H (W - Ŵ) greedily for each output: rows are rounded in order of falling second moment, and each
    error is made good by the rows that remain, as far as they can (Hassibi & Stork 1993, "Optimal Brain Surgeon";
    Frantar et al., "GPTQ", ICLR 2023, section 3), in the form that needs no inverse of H (Chee et al., "QuIP",
    NeurIPS 2023, theorem 6).

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
    neighbours = None
    if channels:
        rows = np.arange(len(weights))
        neighbours = np.full(len(weights), len(weights))
        first = (rows % channels % 2 == 0) & (rows % channels + 1 < channels)
        second = rows % channels % 2 == 1
        neighbours[first], neighbours[second] = rows[first] + 1, rows[second] - 1
    scaled = weights.astype(np.float64) / step
    start = 0
    for block in moments:
        _round_block(scaled, block, top, codes, neighbours, start)
        start += len(block)
    return codes[:-1]


def _round_block(
    weights: np.ndarray, moments: np.ndarray, top: int, codes: np.ndarray, neighbours: np.ndarray | None, first: int
) -> None:
    """Rounds the rows from ``first`` on, in steps, into ``codes``, where rows that are not rounded yet are zero."""
    order = np.argsort(-np.diag(moments), kind="stable")
    places = order + first
    weights = weights[places]
    feedback = _feedback(moments[np.ix_(order, order)])
    errors = np.empty_like(weights)
    for start in range(0, len(weights), _LAZY):
        end = min(start + _LAZY, len(weights))
        targets = weights[start:end] - feedback[:start, start:end].T @ errors[:start]
        for row, (at, target) in enumerate(zip(places[start:end], targets, strict=True), start):
            rounded = np.rint(target, out=codes[at])
            np.minimum(rounded, top, out=rounded)
            np.maximum(rounded, -top, out=rounded)
            if neighbours is not None and (beside := codes[neighbours[at]]).any():
                np.minimum(rounded, PAIR - np.maximum(beside, 0), out=rounded)
                np.maximum(rounded, np.maximum(-beside, 0) - PAIR, out=rounded)
            np.subtract(rounded, weights[row], out=errors[row])
            targets[row + 1 - start :] -= feedback[row, row + 1 : end, None] * errors[row]


def _feedback(moments: np.ndarray) -> np.ndarray:
    """Returns what part of each row's error the rows behind it make good, [..., n, n]: row j's in row k at [j, k].

    With Cholesky's factor of the damped moments from the last row on, M = UUᵀ and U upper triangular, errors e cost
    eᵀMe = Σₖ (Σⱼ≤ₖ Uⱼₖ eⱼ)²: row k makes its term the least if it is moved by -Σⱼ<ₖ eⱼ Uⱼₖ/Uₖₖ before it is rounded.
    """
    size = moments.shape[-1]
    damping = _DAMPING * np.trace(moments, axis1=-2, axis2=-1) / size + 1e-12
    damped = moments + damping[..., None, None] * np.eye(size)
    turned = np.flip((damped + np.swapaxes(damped, -1, -2)) / 2, (-2, -1))
    factor = np.flip(np.linalg.cholesky(turned), (-2, -1))
    return factor / np.diagonal(factor, axis1=-2, axis2=-1)[..., None, :]


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
    feedback = _feedback(moments)
    codes, errors = np.empty_like(weights), np.empty_like(weights)
    for tap in range(taps):
        target = weights[:, tap] - np.einsum("cj,cj->c", feedback[:, :tap, tap], errors[:, :tap])
        codes[:, tap] = np.clip(np.rint(target / step), -top, top)
        errors[:, tap] = codes[:, tap] * step - weights[:, tap]
    return codes
