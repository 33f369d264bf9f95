"""Observer: runs a prepared graph on examples and gathers statistics of the tensors that calibration watches.

The statistics of a set of examples are the same bits whatever their order and however they are split, because

- every step runs one constant batch size (kernels may round differently for another): a batch that is not full is
  filled up with copies of its last example, whose results are dropped;
- what one example contributes (extremes, sampled values, channel means) is computed by itself, and the kernels of
  TensorFlow give an example the same bits in every slot of a batch (shown in tests/calibration on real graphs);
- contributions are added exactly (see statistics.py).

They may differ in the last bits between batch sizes, processors and numbers of threads. One more case is known: for
a convolution of a batch of 1 TensorFlow picks another kernel of oneDNN where the filter is no constant (the original
graph of a TensorFlow 1 branch), and each of its threads goes on with the kernel that it had first for these shapes,
whichever graph runs. A process that runs graphs of both kinds may so see another last bit.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import NamedTuple

import numpy as np
import tensorflow.compat.v1 as tf
from tensorflow.core.framework import graph_pb2

from quantizer_core.calibration.fixed_point import limb_sums, to_limbs
from quantizer_core.calibration.sporadic import Seen, SporadicTensors
from quantizer_core.calibration.statistics import NUM_BINS, CalibrationStatistics, TensorStatistics, join_extremes
from quantizer_core.errors import GraphError
from quantizer_core.graph.control_flow import sporadic_nodes
from quantizer_core.graph.graph import canonical, node_of
from quantizer_core.runtime import GraphSession, batch_size_for, imported, stack_batch, tensor_of
from quantizer_core.types import ObservedTensor, PreparedGraph

#: A tensor with more values in one example gives an even sample of its positions to the histogram, not all.
SAMPLE_SIZE = 1 << 12
# Values of steps that wait to be added.
_PENDING_VALUES = 1 << 22
# Values of a batch of 1 up to which TensorFlow's sum is as fast as oneDNN's pooling.
_SMALL = 1 << 17
# Channels that fill a register of AVX2.
_VECTOR = 8
_SCOPE = "quantizer_observer"
# Mean, minimum and maximum that change none.
_NOTHING = np.array([0, np.inf, -np.inf], np.float32)[:, None, None]


class Observer:
    """Gathers calibration statistics; memory does not grow with the number of examples.

    Args:
      prepared: the graph and what to watch in it.
      batch_size: examples a step. 1 is taken where the graph fixes its batch at 1, or where examples do not stay apart
        along the first axis of every watched tensor (a batch folded into another axis, say).
      threads: size of the thread pools (see ``GraphSession``).

    Raises:
      UnknownNodeError: if a watched tensor is not in the graph.
      GraphError: if a watched tensor is not float32, or the graph fixes a batch over 1 without keeping examples apart.
    """

    _minima: np.ndarray
    _maxima: np.ndarray
    _extreme_sums: np.ndarray

    def __init__(self, prepared: PreparedGraph, batch_size: int, threads: int | None = None):
        self.inputs = prepared.inputs
        self.observed = tuple(sorted(prepared.observed, key=lambda tensor: tensor.name))
        sporadic = prepared.graph.remembered(sporadic_nodes)
        self._sporadic = [i for i, tensor in enumerate(self.observed) if node_of(tensor.name) in sporadic]
        steady = [i for i in range(len(self.observed)) if i not in set(self._sporadic)]
        self._averaged = [i for i in steady if self.observed[i].channel_axis is not None]
        # In this order: those whose channels are averaged last.
        self._steady = [*(i for i in steady if self.observed[i].channel_axis is None), *self._averaged]
        names = [tensor.name for tensor in self.observed]
        part = prepared.graph.part([*names, *(spec.name for spec in self.inputs)])
        self.batch_size = (
            1
            if self._sporadic  # what comes from inside a loop tells nothing of its example
            else batch_size_for(part, prepared.inputs, names, batch_size)
        )
        watched = [(i, self.observed[i]) for i in self._sporadic]
        steadily = [self.observed[i] for i in self._steady]
        graph, fetches, self._calls = _instrument(part, steadily, self.batch_size == 1, watched)
        # All else that TensorFlow's optimiser does takes seconds at the first step and saves none later.
        self._session = GraphSession(
            graph, prepared.inputs, fetches, threads=threads, optimize=None,
            targets=self._calls.targets if self._calls else (),
        )  # fmt: skip
        self._reset()

    def observe(self, examples: Sequence[Mapping[str, np.ndarray]]) -> CalibrationStatistics:
        """Returns the statistics of some examples (input name → array without batch dimension).

        Raises:
          DataError: if an example does not fit the graph.
        """
        for start in range(0, len(examples), self.batch_size):
            self.add(examples[start : start + self.batch_size])
        return self.take()

    def add(self, examples: Sequence[Mapping[str, np.ndarray]]) -> None:
        """Runs one batch of 1 to ``batch_size`` examples and adds what it shows to what ``take`` will return.

        Raises:
          DataError: if an example does not fit the graph; nothing is added then.
        """
        feeds = stack_batch(examples, self.inputs, self.batch_size)
        seen: dict[int, Seen] = {}
        if not self.observed:
            results = []
        elif self._calls is None:
            results = self._session.run(feeds)
        else:
            results, seen = self._calls.during(lambda: self._session.run(feeds))
        self._examples += len(examples)
        if self._steady:
            self._pending.append(_Step.of(results, len(examples)))
            self._pending_values += sum(value.size for value in self._pending[-1])
            if self._pending_values >= _PENDING_VALUES:
                self._flush()
        for index, found in seen.items():
            self._add_seen(index, found)

    def take(self) -> CalibrationStatistics:
        """Returns the statistics of all examples added since the last call, and starts anew."""
        self._flush()
        ends = np.cumsum(self._channels)
        tensors = {}
        for index, tensor in enumerate(self.observed):
            histogram = self._histograms.get(index, np.zeros(0, np.int64))
            keys = np.flatnonzero(histogram)
            sums, by_channel = self._seen_sums.get(index), None
            if index in self._averaged and self._channel_sums is not None:
                place = self._averaged.index(index)
                own = slice(ends[place] - self._channels[place], ends[place])
                sums, by_channel = self._channel_sums[:, own].copy(), self._channel_extremes[:, own].copy()
            tensors[tensor.name] = TensorStatistics(
                examples=self._seen_examples.get(index, self._examples),
                nan=int(self._nan[index]),
                positive_infinite=int(self._positive[index]),
                negative_infinite=int(self._negative[index]),
                minimum=float(self._minima[index]),
                maximum=float(self._maxima[index]),
                finite=int(self._finite[index]),
                extreme_sums=self._extreme_sums[:, :, index].copy(),
                keys=keys.astype(np.uint16),
                counts=histogram[keys],
                channel_sums=sums,
                channel_extremes=by_channel,
            )
        statistics = CalibrationStatistics(tensors if self._examples else {}, self._examples)
        self._reset()
        return statistics

    def fork(self) -> Observer:
        """Returns an observer with the same session and statistics of its own, for another thread."""
        other = copy.copy(self)
        other._reset()
        return other

    def close(self) -> None:
        """Frees the session, that of forks too."""
        self._session.close()

    def __enter__(self) -> Observer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _reset(self) -> None:
        tensors = len(self.observed)
        self._seen_sums: dict[int, np.ndarray] = {}
        self._seen_examples = dict.fromkeys(self._sporadic, 0)
        self._examples = 0
        self._nan, self._positive, self._negative, self._finite = np.zeros((4, tensors), np.int64)
        self._minima = np.full(tensors, np.inf)
        self._maxima = np.full(tensors, -np.inf)
        self._extreme_sums = np.zeros((2, 2, tensors), np.int64)
        self._channels = np.zeros(len(self._averaged), np.int64)  # channels of each averaged tensor
        self._channel_sums: np.ndarray | None = None
        self._channel_extremes = np.zeros((2, 0), np.float32)
        self._histograms: dict[int, np.ndarray] = {}
        self._pending: list[_Step] = []
        self._pending_values = 0

    def _add_seen(self, index: int, found: Seen) -> None:
        extremes = np.array([[[found.minimum]], [[found.maximum]]])
        finite = bool(self._add_extremes([index], *extremes)[0, 0])
        self._seen_examples[index] = self._seen_examples.get(index, 0) + 1
        counts, means = found.counts, found.means()
        if finite and counts is not None:
            self._histograms[index] = self._histograms.get(index, np.zeros(NUM_BINS, np.int64)) + counts
        if self.observed[index].channel_axis is not None and means is not None:
            sums = to_limbs(np.where(np.isfinite(means) & finite, means, 0))
            known = self._seen_sums.get(index)
            self._seen_sums[index] = sums if known is None else known + sums

    def _flush(self) -> None:
        """Adds what the steps that wait have shown: all of them at once take a fraction of the time."""
        steps, self._pending, self._pending_values = self._pending, [], 0
        if not steps:
            return
        minima, maxima = np.split(np.concatenate([step.extremes for step in steps], 1), 2)
        by_channel = np.concatenate([step.by_channel for step in steps], 1)
        channels = self._channels = steps[0].channels
        finite = self._add_extremes(
            self._steady,
            np.concatenate([minima, _by_tensor(np.minimum, by_channel[1], channels)]),
            np.concatenate([maxima, _by_tensor(np.maximum, by_channel[2], channels)]),
        )
        if self._averaged:
            kept = finite[len(minima) :]
            if not kept.all():
                by_channel = np.where(np.repeat(kept.T, channels, axis=1), by_channel, _NOTHING)
            self._add_channels(by_channel)
        self._add_samples(steps, finite)

    def _add_extremes(self, indices: Sequence[int], minima: np.ndarray, maxima: np.ndarray) -> np.ndarray:
        """Adds extremes, [tensors, examples], of some tensors; returns which of them are finite numbers."""
        empty = minima > maxima
        nan = np.isnan(minima) | np.isnan(maxima)
        positive, negative = np.isposinf(maxima) & ~nan, np.isneginf(minima) & ~nan
        finite: np.ndarray = ~(empty | nan | positive | negative)
        self._nan[indices] += nan.sum(1)
        self._positive[indices] += (positive & ~empty).sum(1)
        self._negative[indices] += (negative & ~empty).sum(1)
        self._finite[indices] += finite.sum(1)
        self._minima[indices] = np.minimum(self._minima[indices], np.where(finite, minima, np.inf).min(1))
        self._maxima[indices] = np.maximum(self._maxima[indices], np.where(finite, maxima, -np.inf).max(1))
        both = np.where(finite, np.stack([minima, maxima]), 0)  # [2, tensors, examples]
        self._extreme_sums[:, :, indices] += limb_sums(both, -1)
        return finite

    def _add_channels(self, by_channel: np.ndarray) -> None:
        """Adds means, minima and maxima of the channels, [3, examples, all channels]."""
        means, minima, maxima = by_channel
        measured = np.isfinite(means)  # finite values may have an infinite sum
        sums = limb_sums(means if measured.all() else np.where(measured, means, 0), 0)
        extremes = np.stack([minima.min(0), maxima.max(0)])
        first = self._channel_sums is None
        self._channel_sums = sums if first else self._channel_sums + sums
        self._channel_extremes = join_extremes(extremes, extremes if first else self._channel_extremes)

    def _add_samples(self, steps: Sequence[_Step], finite: np.ndarray) -> None:
        """Counts sampled values, tensor by tensor, of the examples that are ``finite`` [steady tensors, examples]."""
        ends = [np.cumsum(step.sizes) for step in steps]
        starts = np.cumsum([0, *(len(step.samples) for step in steps)])
        complete = finite.all(1)
        for place, index in enumerate(self._steady):
            parts = []
            for step, end, start in zip(steps, ends, starts[:-1], strict=True):
                part = step.samples[:, end[place] - step.sizes[place] : end[place]]
                kept = part if complete[place] else part[finite[place, start : start + len(part)]]
                parts.append(kept.reshape(-1))
            counts = np.bincount(upper_halves(np.concatenate(parts)))
            known = self._histograms.get(index)
            if known is None:
                known = self._histograms[index] = np.zeros(NUM_BINS, np.int64)
            known[: len(counts)] += counts


class _Step(NamedTuple):
    """What one step showed of the tensors that ``_instrument`` reduces, without the examples that filled it up."""

    extremes: np.ndarray
    by_channel: np.ndarray
    sizes: np.ndarray
    channels: np.ndarray
    samples: np.ndarray

    @classmethod
    def of(cls, fetched: Sequence[np.ndarray], valid: int) -> _Step:
        extremes, by_channel, sizes, channels, samples = fetched
        return cls(extremes[:, :valid], by_channel[:, :valid], sizes, channels, samples[:valid])


def upper_halves(values: np.ndarray) -> np.ndarray:
    """Returns the upper 16 bits of float32 values, their histogram bins, as intp of the same shape."""
    return (values.view(np.uint32) >> 16).astype(np.intp)


def _by_tensor(reduce: np.ufunc, values: np.ndarray, channels: np.ndarray) -> np.ndarray:
    """Reduces values by channel, [examples, all channels], to [tensors, examples]; NaN stays NaN.

    A tensor that has no channels gives what the reduction of nothing is: infinity, of the sign that changes no other.
    """
    found = np.full((len(channels), len(values)), np.inf if reduce is np.minimum else -np.inf)
    some = np.flatnonzero(channels)
    if len(some):
        starts = np.cumsum(channels) - channels
        found[some] = reduce.reduceat(values, starts[some], axis=1).T
    return found


@dataclasses.dataclass(frozen=True)
class Reduced:
    """What ``watch`` makes of a tensor; batch is the number of examples.

    Attributes:
      sample: sampled values [batch, n].
      minima, maxima: extremes [batch], or [batch, channels] of a tensor with a channel axis.
      means: means of the channels [batch, channels]; None without a channel axis.
    """

    sample: tf.Tensor
    minima: tf.Tensor
    maxima: tf.Tensor
    means: tf.Tensor | None = None


def _instrument(
    graph_def: graph_pb2.GraphDef,
    observed: Sequence[ObservedTensor],
    single: bool,
    sporadic: Sequence[tuple[int, ObservedTensor]],
) -> tuple[tf.Graph, tuple[str, ...], SporadicTensors | None]:
    """Adds nodes that reduce every watched tensor, example by example; returns the graph and what to fetch.

    Sporadic tensors call back instead. Those with a channel axis come last in ``observed``.

    The fetches, each for many tensors, since each has its price: extremes [2 · tensors without channels, batch]
    (minima, then maxima), means, minima and maxima of the channels [3, batch, all channels], number of sampled values
    [tensors], number of channels [tensors with channels], sampled values [batch, all].
    """
    graph = imported(graph_def)
    with graph.as_default():
        with tf.name_scope(_SCOPE):
            reduced = [watch(graph, tensor, single) for tensor in observed]
            calls = SporadicTensors(graph, sporadic) if sporadic else None
            if not observed:
                return graph, (), calls
            whole = [found for found in reduced if found.means is None]
            averaged = [found for found in reduced if found.means is not None]
            none = tf.zeros([tf.shape(reduced[0].sample)[0], 0])
            extremes = [*(found.minima for found in whole), *(found.maxima for found in whole)]
            by_channel = zip(*((found.means, found.minima, found.maxima) for found in averaged), strict=True)
            fetches = (
                tf.stack(extremes) if whole else tf.transpose(none),
                tf.stack([tf.concat(parts, 1) for parts in by_channel] or [none] * 3),
                tf.stack([_width(found.sample) for found in reduced]),
                tf.stack([_width(found.maxima) for found in averaged] or [0])[: len(averaged)],
                tf.concat([found.sample for found in reduced], 1),
            )
        return graph, tuple(fetch.name for fetch in fetches), calls


def watch(graph: tf.Graph, observed: ObservedTensor, single: bool) -> Reduced:
    """Adds nodes to a graph that reduce a tensor, example by example.

    Of a tensor that is proved not to be negative 0 stands for the minima: zero bounds them, it is in every range, and a
    pass over all values is saved.

    Args:
      graph: the default graph, which holds the tensor.
      observed: what to watch.
      single: the whole tensor belongs to one example: the batch is 1.

    Raises:
      UnknownNodeError: if the graph does not hold the tensor.
      GraphError: if it is not float32, or has no such channel axis.
    """
    tensor = tensor_of(graph, canonical(observed.name))
    if tensor.dtype != tf.float32:
        raise GraphError(f"tensor {observed.name!r} is {tensor.dtype.name}; only float32 tensors can be calibrated")
    rank, axis = tensor.shape.rank, observed.channel_axis
    last = rank is None and axis == -1
    if axis is not None and not last:
        if rank is None or not -rank <= axis < rank:
            raise GraphError(f"tensor {observed.name!r} of rank {rank} has no channel axis {axis}")
        axis %= rank
    if single and (not rank or tensor.shape[0] != 1):
        # The whole tensor belongs to the one example, whatever its first axis is.
        tensor = tf.expand_dims(tensor, 0)
        axis = None if axis is None or last else axis + 1
    flat = _rows(tensor)
    sample = _sample(tensor, flat, None if last else axis)
    if axis is None and not last:
        return Reduced(sample, *_extremes(observed, flat, [1]))
    if axis == 0:
        raise GraphError(f"axis 0 of tensor {observed.name!r} holds the examples, so it cannot hold channels")
    if last:  # the rank shows only when the graph runs
        tensor = tf.reshape(tensor, [tf.shape(tensor)[0], -1, tf.shape(tensor)[-1]])
        rest = [1]
    else:
        rest = [i for i in range(1, tensor.shape.rank) if i != axis]
    return Reduced(sample, *_extremes(observed, tensor, rest), _means(tensor, rest))


def _extremes(observed: ObservedTensor, tensor: tf.Tensor, rest: Sequence[int]) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the minima and maxima over the axes ``rest``."""
    shape = tensor.shape.as_list()
    if rest == [1, 2] and all(shape[1:]) and shape[3] < _VECTOR:
        # TensorFlow is slow over so short a last axis: rows of pixels first.
        rows = tf.reshape(tensor, [-1, shape[1], shape[2] * shape[3]])
        parts = _extremes(observed, rows, [1])
        low, high = (tf.reshape(part, [-1, shape[2], shape[3]]) for part in parts)
        rest = [1]
    else:
        low = high = tensor
    maxima = tf.reduce_max(high, rest)
    return tf.zeros_like(maxima) if observed.nonnegative else tf.reduce_min(low, rest), maxima


def _means(tensor: tf.Tensor, rest: Sequence[int]) -> tf.Tensor:
    """Returns the means over the axes ``rest``: of images by oneDNN's pooling, in a third of the time.

    Its start costs as much as the sum of a small image, if that is alone in its batch.
    """
    shape = tensor.shape.as_list()
    if rest == [1, 2] and all(shape[1:3]) and not (shape[0] == 1 and math.prod(size or 0 for size in shape) <= _SMALL):
        return _rows(tf.nn.avg_pool(tensor, shape[1:3], 1, "VALID"))
    return tf.reduce_mean(tensor, rest)


def _rows(tensor: tf.Tensor) -> tf.Tensor:
    """Returns a tensor as [batch, values of an example]."""
    dims = tensor.shape.as_list()[1:] if tensor.shape.rank else [None]
    size = 0 if None in dims else math.prod(dims)  # what is known of shapes needs no op that finds it out
    return tf.reshape(tensor, [-1, size] if size else [tf.shape(tensor)[0], -1])


def _width(rows: tf.Tensor) -> int | tf.Tensor:
    """Returns the second dimension."""
    known = rows.shape.as_list()[1]
    return tf.shape(rows)[1] if known is None else known


def _sample(tensor: tf.Tensor, flat: tf.Tensor, channel_axis: int | None) -> tf.Tensor:
    """Returns [batch, n] values: all, or of a large tensor every k-th position, each with all its channels.

    Gather is what TensorFlow does this with fastest: strided slices took four times as long.
    """
    if tensor.shape.rank is None or None in tensor.shape.as_list()[1:]:
        # Positions cannot be counted ahead: every k-th value. A step without a factor of 2 or 3 meets all channels of
        # the usual counts.
        size = tf.shape(flat)[1]
        step = ((tf.maximum(size, 1) + SAMPLE_SIZE - 1) // SAMPLE_SIZE) | 1
        step += 2 * tf.cast(tf.equal(step % 3, 0), step.dtype)
        return tf.gather(flat, tf.range(0, size, step), axis=1)
    dims: list[int] = tensor.shape.as_list()[1:]
    size = math.prod(dims)
    if size <= SAMPLE_SIZE:
        return flat
    if len(dims) < 2:
        return tf.gather(flat, np.arange(0, size, _step(size, dims), dtype=np.int32), axis=1)
    axis = 1 if channel_axis == 1 else len(dims)
    spatial = [dim for i, dim in enumerate(dims, 1) if i != axis]
    positions = np.arange(0, math.prod(spatial), _step(size, spatial), dtype=np.int32)
    shape = [-1, dims[0], math.prod(spatial)] if axis == 1 else [-1, math.prod(spatial), dims[-1]]
    values = tf.gather(tf.reshape(tensor, shape), positions, axis=2 if axis == 1 else 1)
    return tf.reshape(values, [-1, len(positions) * dims[axis - 1]])


def _step(size: int, dims: Sequence[int]) -> int:
    """Returns the least step that leaves at most SAMPLE_SIZE values and shares no factor with a row's length.

    A common factor would always visit the same columns.
    """
    step = -(-size // SAMPLE_SIZE)
    while any(math.gcd(step, dim) > 1 for dim in dims):
        step += 1
    return step
