"""Rounds filters to 8-bit codes, per tensor or per output channel."""

from __future__ import annotations

import dataclasses

import numpy as np

#: The largest sum of two neighbouring codes of one sign whose products with 255 fit 16 bits: 128 · 255 < 2¹⁵.
PAIR = 128
#: Weights with steps below this count as zeros: a bias over one of them would be infinite.
LEAST_STEP = np.float32(1e-30)
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


@dataclasses.dataclass(frozen=True)
class Grid:
    """The codes that a filter's weights are rounded to.

    Attributes:
      step: what one code stands for, float32 [output channels] or scalar.
      top: the largest code.
      paired: two neighbouring codes of one sign may not sum to more than ``PAIR``. Neighbours are the input channels
        2i and 2i + 1 of one tap and output: CPUs without VNNI add their products with a quint8 tensor in 16 bits
        (vpmaddubsw), which saturates (oneDNN developer guide, "Nuances of int8 computations"). Of a single input
        channel, oneDNN's kernels for AVX-512 without VNNI pair the taps: such filters have no codes over 63 instead.
      even: twice the codes are written, and half the step. On CPUs without VNNI oneDNN halves the weights of
        convolutions over s8 tensors; even codes survive that exactly.
    """

    step: np.ndarray
    top: int
    paired: bool = False
    even: bool = False

    def clip(self, codes: np.ndarray) -> np.ndarray:
        """Returns codes [..., in, out] with those that the grid does not have moved to ones that it has."""
        codes = np.clip(codes, -self.top, self.top)
        if self.paired:
            last = codes.shape[-2] - codes.shape[-2] % 2
            one, other = codes[..., 0:last:2, :], codes[..., 1:last:2, :]
            for sign in (1, -1):
                excess = np.maximum(np.maximum(sign * one, 0) + np.maximum(sign * other, 0) - PAIR, 0)
                if not excess.any():
                    continue
                one -= sign * np.ceil(excess / 2)
                other -= sign * np.floor(excess / 2)
        return codes

    def nearest(self, weights: np.ndarray) -> QuantizedWeights:
        """Returns weights rounded half to even."""
        return self.pack(self.clip(np.rint(weights / spread(self.step, weights.shape))))

    def pack(self, codes: np.ndarray) -> QuantizedWeights:
        """Returns codes of the grid as weights."""
        step = self.step / 2 if self.even else self.step
        codes = codes * 2 if self.even else codes
        return QuantizedWeights(codes.astype(np.int8), np.asarray(step * np.float32(127), np.float32))


def quantize_weights(
    weights: np.ndarray, *, depthwise: bool = False, per_channel: bool = True, bits: int = 8, even: bool = False,
    clipping: str = "none",
) -> QuantizedWeights:  # fmt: skip
    """Rounds a filter half to even on the grid that ``grid`` returns for the same arguments."""
    found = grid(weights, depthwise=depthwise, per_channel=per_channel, bits=bits, even=even, clipping=clipping)
    return found.nearest(weights)


def grid(
    weights: np.ndarray, *, depthwise: bool = False, per_channel: bool = True, bits: int = 8, even: bool = False,
    clipping: str = "none",
) -> Grid:  # fmt: skip
    """Returns the finest grid, symmetric around zero, that holds a filter; weights next to nothing become zeros.

    Args:
      weights: float32, [h, w, in, out], [h, w, in, multiplier] (depthwise) or [in, out].
      depthwise: the filter is that of a depthwise convolution.
      per_channel: one scale for each output channel instead of one for the tensor.
      bits: 8 uses the codes -127…127; 7 those with which the 16-bit sums of CPUs without VNNI cannot overflow: where
        all are between -63 and 63 they never do, but it is enough that neighbours' sums keep to ``PAIR``. So filters
        over quint8 tensors of two channels or more use codes up to 127 as far as their neighbours allow, and have 7
        to 8 bits.
      even: with 7 bits: the filter is over a qint8 tensor; see ``Grid``.
      clipping: ``none``, or ``mse``: the largest code stands for the limit, of those in ``CLIPPED`` times the one that
        holds all weights, that gives the least squared error of the weights rounded to nearest (Banner et al., "Post
        training 4-bit quantization of convolutional networks for rapid-deployment", NeurIPS 2019, section 2, with a
        search instead of an assumed distribution).
    """
    narrow = bits == 7
    paired = narrow and not even and not depthwise and weights.shape[-2] > 1
    top = 63 if narrow and not paired else 127
    least = channel_maxima(weights, depthwise) / np.float32(top)
    if paired:
        least = np.maximum(least, _neighbour_maxima(weights) / np.float32(PAIR))
    steps = least if per_channel else np.max(least)
    best = Grid(
        np.where(steps > LEAST_STEP, steps, np.float32(1 / top)).astype(np.float32), top, paired, narrow and even
    )
    if clipping == "none":
        return best
    whole, step, error = best.step, best.step, _squared_errors(weights, best, depthwise)
    for share in CLIPPED:
        tried = dataclasses.replace(best, step=whole * np.float32(share))
        found = _squared_errors(weights, tried, depthwise)
        step, error = np.where(found < error, tried.step, step), np.minimum(found, error)
    return dataclasses.replace(best, step=step)


def _neighbour_maxima(weights: np.ndarray) -> np.ndarray:
    """Returns the largest sum of neighbours of one sign (see ``Grid``) in each output channel, float32 [outputs]."""
    last = weights.shape[-2] - weights.shape[-2] % 2
    one, other = weights[..., 0:last:2, :], weights[..., 1:last:2, :]
    sums = [np.maximum(sign * one, 0) + np.maximum(sign * other, 0) for sign in (1, -1)]
    return np.max(np.maximum(*sums), axis=tuple(range(weights.ndim - 1)), initial=0.0).astype(np.float32)


def _squared_errors(weights: np.ndarray, tried: Grid, depthwise: bool) -> np.ndarray:
    """Returns the squared error of rounding to a grid, float64, of its step's shape."""
    steps = spread(tried.step, weights.shape)
    errors = np.square(weights - tried.clip(np.rint(weights / steps)) * steps, dtype=np.float64)
    if np.ndim(tried.step) == 0:
        return np.asarray(errors.sum())
    return errors.sum(axis=(0, 1) if depthwise else tuple(range(weights.ndim - 1))).reshape(-1)
