"""Gives each channel of a tensor between kernels a scale, so that channels of small values use more of the codes.

The idea is cross-layer equalisation (Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias
Correction", ICCV 2019, section 4.1), turned to the activations: weights have a scale for each output channel anyway, so
the kernel that makes a channel may multiply it for nothing, and the filters that read it are divided by as much. A
depthwise filter, too, has its own scale for each channel; any other reader shares one scale among the channels it
sums, so what its input gains in precision its weights lose, and the best share of the way is taken.

A result that floats alone read is fitted channel by channel where one channel's range would starve another: in what
goes into a gate (x · sigmoid(x)) ranges may differ by a hundred.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from quantizer_core.calibration.statistics import CalibrationStatistics, TensorStatistics
from quantizer_core.graph.graph import Graph
from quantizer_core.planning.plan import TensorPlan
from quantizer_core.planning.structure import Step

#: How far to go: a scale is (range of the tensor / range of the channel) to this power. Not the whole way: the largest
#: value of one channel is less well known than that of a tensor, and what is new to it must not be clipped.
SHARES = (0.0, 0.25, 0.5)
#: The range of a channel is that of calibration and so much more.
MARGIN = 0.05
#: A channel's range is at least the tensor's over this.
WIDEST = 16.0
#: What second-order rounding leaves of the weights' rounding noise.
REFINED = 0.3
#: Predicted noise has to fall by this share, or the tensor is left alone.
WORTH = 0.01
#: A channel whose range holds fewer codes than this is starved; one below this share of the widest is taken for empty.
FEW_CODES, NOTHING = 17, 1e-3
#: Share of its range that a channel fitted by itself gets on either side.
ROOM = 0.125


def equalize(
    graph: Graph,
    outputs: Collection[str],
    steps: Sequence[Step],
    classes: Iterable[Sequence[str]],
    tensors: Mapping[str, TensorPlan],
    statistics: CalibrationStatistics,
) -> dict[str, TensorPlan]:
    """Returns the tensors that get scales, with them; the others are left out.

    Only tensors that means or convolutions without a sum make can have them, where kernels alone read them, a MaxPool
    or a concatenation of channels handing them on; or where floats alone do.

    Args:
      graph: the FP32 graph.
      outputs: names of its output nodes.
      steps: the INT8 kernels to be, with scales per channel of their weights.
      classes: the sets of tensors that share dtype and range.
      tensors: their plans.
      statistics: what calibration saw of the tensors that kernels read.
    """
    result: dict[str, TensorPlan] = {}
    around = defaultdict(list)  # tensor → the steps that make or read it, by their place
    for place, step in enumerate(steps):
        for tensor in {*step.sources, step.summand, step.output}:
            around[tensor].append(place)
    for members in classes:
        places = sorted({place for member in members for place in around[member]})
        family = _Family(graph, [steps[place] for place in places], members)
        if len(members) == 1 and family.handed_on and not family.taken:
            fitted = _fitted(tensors[members[0]], statistics)
            if fitted is not None:
                result[members[0]] = fitted
            continue
        if not family.readers or any(tensors[member].offset for member in members):
            continue
        if not family.handed_on or family.read_elsewhere(outputs):
            continue
        scales = _best_scales(family, tensors[members[0]], statistics)
        if scales is not None:
            for member in members:
                own = tuple(float(np.float32(value)) for value in scales[family.channels[member]])
                result[member] = dataclasses.replace(tensors[member], scale=own)
    return result


class _Family:
    """The tensors of one class and which channels they have in common; ``steps`` are those that make or read them.

    Attributes:
      channels: tensor → for each of its channels the number of that channel in the family, int64.
      count: how many channels the family has.
      taken: whether a kernel reads a member.
      handed_on: whether each member is made by a convolution that may scale its channels, or hands channels on.
      readers: the kernels with weights that read members.
    """

    def __init__(self, graph: Graph, steps: Sequence[Step], members: Sequence[str]):
        self._graph, self._members = graph, frozenset(members)
        self._made = [step for step in steps if step.integer and step.output in self._members]
        self._takers = [step for step in steps if self._members.intersection((*step.sources, step.summand))]
        self.readers = [step for step in self._takers if step.form in ("convolution", "matmul", "average")]
        self.taken = bool(self._takers)
        self.channels: dict[str, np.ndarray] = {}
        self.count = 0
        self.handed_on = len(self._made) == len(members) and all(self._number(step) for step in self._made)

    def _number(self, step: Step) -> bool:
        """Numbers the channels of a step's result; False if they could not be scaled one by one."""
        if step.form == "average" or (step.form == "convolution" and not step.summand):
            shape = step.window or self._graph.constant_shape(self._graph.node(step.name).input[1]) or (0, 0, 0, 0)
            width = shape[2] if _depthwise(step) else shape[3]
            self.channels[step.output] = np.arange(self.count, self.count + width)
            self.count += width
            return True
        if not all(source in self.channels for source in step.sources):
            return False
        if step.op == "ConcatV2":
            anchor = self._graph.node(step.name)
            axis = self._graph.constant(self._graph.data_inputs(anchor)[-1])
            if axis is None or int(axis) not in (3, -1):
                return False
        elif step.op != "MaxPool":  # an average says nothing of how large the values are that it is made of
            return False
        self.channels[step.output] = np.concatenate([self.channels[source] for source in step.sources])
        return True

    def read_elsewhere(self, outputs: Collection[str]) -> bool:
        """Tells whether floats or a fused sum read a member, which take it as it is."""
        taken = {
            name for step in self._takers for name in (step.name, *step.fused) if step.summand not in self._members
        }
        return any(
            member in outputs or any(edge.consumer.name not in taken for edge in self._graph.consumers(member))
            for member in self._members
        )

    def filter(self, reader: Step, found: TensorStatistics) -> _Filter:
        """Returns what counts of a reader's filter, and the variances of the channels that it reads."""
        anchor = self._graph.node(reader.name)
        if reader.form == "average":
            weights = np.full((*reader.window, 1), 1 / math.prod(reader.window[:2]), np.float32)
        else:
            weights = np.abs(np.asarray(self._graph.constant(anchor.input[1]), np.float32))
        if anchor.op == "MatMul" and anchor.attr["transpose_b"].b:
            weights = weights.T
        weights = weights.reshape(-1, *weights.shape[-2:])  # [taps, channels read, outputs]; depthwise: one output
        return _Filter(
            self.channels[reader.sources[0]],
            np.einsum("tio,tio->i", weights, weights, dtype=np.float64),
            weights.max(0),
            len(weights),
            _depthwise(reader),
            _variances(found),
        )


def _depthwise(step: Step) -> bool:
    """Tells whether a step's kernel is a depthwise convolution, as a mean's is."""
    return step.form == "average" or step.op == "DepthwiseConv2dNative"


@dataclasses.dataclass(frozen=True)
class _Filter:
    """A filter that reads a family.

    Attributes:
      channels: the family's numbers of the channels that it reads, int64 [channels].
      squares: sums of its squared weights, float64 [channels].
      largest: largest magnitudes over its taps, float32 [channels, outputs].
      taps: how many it has.
      depthwise: whether each channel has a scale of its own.
      variances: of the channels' values, float64 [channels].
    """

    channels: np.ndarray
    squares: np.ndarray
    largest: np.ndarray
    taps: int
    depthwise: bool
    variances: np.ndarray

    def noise(self, scales: np.ndarray, step: float) -> float:
        """Returns the rounding noise that its results get from the input, and from its own weights.

        A value rounded to multiples of d is off by d²/12 in the mean square (Widrow and Kollár, "Quantization Noise",
        2008).

        Args:
          scales: of the family's channels.
          step: what the input, times its scale, is rounded to multiples of.
        """
        own = scales[self.channels]
        total = float(np.sum(self.squares * (step / own) ** 2)) / 12
        if not self.depthwise:
            grid = (self.largest / own[:, None].astype(np.float32)).max(0) / 127
            values = float(self.variances @ own**2)
            total += REFINED * float(np.square(grid, dtype=np.float64).sum()) / 12 * self.taps * values
        return total


def _fitted(planned: TensorPlan, statistics: CalibrationStatistics) -> TensorPlan | None:
    """Fits the codes of a result that floats alone read to the range of each channel, if one has too few of them.

    Dequantising it takes a multiplication more then, so results whose channels all have enough codes stay as they are.
    """
    found = statistics.tensors.get(planned.name)
    if found is None or found.channel_extremes is None:
        return None
    low, high = found.channel_extremes.astype(np.float64)
    lowest = 0.0 if planned.dtype == "quint8" else -planned.limit
    low = np.maximum(low, lowest - planned.offsets)  # what lies below has been found not to matter
    width = np.maximum(high - low, 0)
    step = planned.limit / (255 if planned.dtype == "quint8" else 127)
    if not np.any(width[width > NOTHING * width.max()] < FEW_CODES * step):
        return None
    low = np.zeros_like(low) if found.minimum >= 0 else low - width * ROOM
    # No channel's codes reach beyond the planned range: behind a Relu6 nothing else clips at 6. Offsets are rounded to
    # a step, by which that range may fall short.
    high = np.minimum(high + width * ROOM, planned.limit - planned.offsets + (step if planned.offset else 0.0))
    width = np.maximum(high - low, (high - low).max() / 255)
    offset, scale = (tuple(float(np.float32(value)) for value in values) for values in (-low, planned.limit / width))
    return dataclasses.replace(planned, dtype="quint8", offset=offset, scale=scale)


def _best_scales(family: _Family, planned: TensorPlan, statistics: CalibrationStatistics) -> np.ndarray | None:
    """Returns the scales of a family's channels, float64, all at least 1; None if none are worth it."""
    top = np.zeros(family.count)
    known = np.zeros(family.count, bool)
    filters: list[_Filter] = []
    for reader in family.readers:
        found = statistics.tensors.get(reader.sources[0])
        which = family.channels[reader.sources[0]]
        if found is None or found.channel_extremes is None or found.channel_extremes.shape[1] != len(which):
            return None
        top[which] = np.maximum(top[which], np.abs(found.channel_extremes).max(0))
        known[which] = True
        filters.append(family.filter(reader, found))
    top = np.where(known, top * (1 + MARGIN), planned.limit)
    widest = planned.limit / np.clip(top, planned.limit / WIDEST, planned.limit)
    step = planned.limit / (255 if planned.dtype == "quint8" else 127)
    noise = [sum(each.noise(widest**share, step) for each in filters) for share in SHARES]
    best = int(np.argmin(noise))
    return widest ** SHARES[best] if noise[best] < (1 - WORTH) * noise[0] else None


def _variances(found: TensorStatistics) -> np.ndarray:
    """Returns an estimate of the variance of each channel from its mean m and extremes: (m - min)·min(m - min, max - m)

    This is the bound of Bhatia and Davis (2000), (m - min)(max - m), for a lopsided channel brought down to that of an
    exponential distribution.
    """
    means, extremes = found.channel_means(), found.channel_extremes
    assert means is not None and extremes is not None
    below, above = np.maximum(means - extremes[0], 0), np.maximum(extremes[1] - means, 0)
    return np.asarray(below * np.minimum(below, above))
