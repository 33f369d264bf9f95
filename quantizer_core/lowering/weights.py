"""Rounds filters to 8-bit codes, per tensor or per output channel."""

from __future__ import annotations

import dataclasses

import numpy as np

#: Limits that clipping tries, over the largest magnitude.
CLIPPED = tuple(np.linspace(0.98, 0.4, 30).round(3))


@dataclasses.dataclass(frozen=True)
class QuantizedWeights:
    """A filter as codes.

    Attributes:
      codes: int8, the filter's shape, in -127…127.
      limits: float32, scalar or [output channels]: the magnitude that code 127 stands for.
    """

    codes: np.ndarray
    limits: np.ndarray

    def dequantized(self) -> np.ndarray:
        """Returns the float32 filter that the codes stand for (the last axis, or axes, being the channels)."""
        return self.codes.astype(np.float32) * spread(self.limits, self.codes.shape) / np.float32(127)


def spread(per_channel: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Reshapes a vector over output channels so that it multiplies a filter of this shape.

    The output channels are the last axis of a Conv2D filter [h, w, in, out] and a matrix [in, out], and the last two
    of a depthwise filter [h, w, in, multiplier]: told apart by the vector's length.
    """
    if np.ndim(per_channel) == 0 or per_channel.size == shape[-1]:
        return per_channel
    return per_channel.reshape(shape[-2], shape[-1])


def channel_maxima(weights: np.ndarray, depthwise: bool) -> np.ndarray:
    """Returns the largest magnitude in each output channel, float32 [output channels]."""
    axes = (0, 1) if depthwise else tuple(range(weights.ndim - 1))
    return np.max(np.abs(weights), axis=axes).reshape(-1).astype(np.float32)


def quantize_weights(
    weights: np.ndarray, *, depthwise: bool = False, per_channel: bool = True, bits: int = 8, even: bool = False,
    clipping: str = "none",
) -> QuantizedWeights:  # fmt: skip
    """Rounds a filter half to even on a grid that is symmetric around zero.

    Args:
      weights: float32, [h, w, in, out], [h, w, in, multiplier] (depthwise) or [in, out].
      depthwise: the filter is that of a depthwise convolution.
      per_channel: one scale for each output channel instead of one for the tensor.
      bits: 8 uses the codes -127…127; 7 only -63…63, so that the pairwise 16-bit sums of CPUs without VNNI cannot
        overflow (oneDNN developer guide, "Nuances of int8 computations").
      even: with 7 bits: write twice the codes and half the scale. On CPUs without VNNI oneDNN halves the weights of
        convolutions over s8 tensors; even codes survive that exactly.
      clipping: ``none``, or ``mse``: see ``grid``.

    Returns:
      The codes and what code 127 stands for.
    """
    step, top = grid(weights, depthwise=depthwise, per_channel=per_channel, bits=bits, clipping=clipping)
    return round_to_nearest(weights, step, top, even=even and bits == 7)


def round_to_nearest(weights: np.ndarray, step: np.ndarray, top: int, *, even: bool) -> QuantizedWeights:
    """Returns weights rounded half to even on a grid; the arguments are as ``grid`` returns and ``pack`` takes them."""
    return pack(np.clip(np.rint(weights / spread(step, weights.shape)), -top, top), step, even=even)


def grid(
    weights: np.ndarray, *, depthwise: bool, per_channel: bool, bits: int, clipping: str = "none"
) -> tuple[np.ndarray, int]:
    """Returns what one code stands for, float32 [output channels] or scalar, and the largest code.

    With ``clipping`` "mse" the largest code stands for the limit, of those in ``CLIPPED`` times the largest magnitude,
    that gives the least squared error of the weights rounded to nearest (Banner et al., "Post training 4-bit
    quantization of convolutional networks for rapid-deployment", NeurIPS 2019, section 2, with a search instead of an
    assumed distribution).
    """
    maxima = channel_maxima(weights, depthwise)
    top = {8: 127, 7: 63}[bits]
    limits = maxima if per_channel else np.max(maxima)
    whole = np.where(limits > 0, limits, np.float32(1)).astype(np.float32) / np.float32(top)
    if clipping == "none":
        return whole, top
    best, least = whole, _squared_errors(weights, whole, top, depthwise)
    for share in CLIPPED:
        step = whole * np.float32(share)
        found = _squared_errors(weights, step, top, depthwise)
        best, least = np.where(found < least, step, best), np.minimum(found, least)
    return best, top


def _squared_errors(weights: np.ndarray, step: np.ndarray, top: int, depthwise: bool) -> np.ndarray:
    """Returns the squared error of rounding to multiples of ``step``, float64, of ``step``'s shape."""
    steps = spread(step, weights.shape)
    errors = np.square(weights - np.clip(np.rint(weights / steps), -top, top) * steps, dtype=np.float64)
    if np.ndim(step) == 0:
        return np.asarray(errors.sum())
    return errors.sum(axis=(0, 1) if depthwise else tuple(range(weights.ndim - 1))).reshape(-1)


def pack(codes: np.ndarray, step: np.ndarray, *, even: bool) -> QuantizedWeights:
    """Returns codes on a grid as weights; ``even`` as in ``quantize_weights``."""
    if even:
        codes, step = codes * 2, step / 2
    return QuantizedWeights(codes.astype(np.int8), np.asarray(step * np.float32(127), np.float32))
