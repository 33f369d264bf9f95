"""What calibration remembers of activations: statistics whose merge is exact, so that sharding and order never show."""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from collections.abc import Callable, Mapping

import numpy as np

from quantizer_core.calibration.fixed_point import mean_of_limbs
from quantizer_core.errors import DataError

#: Histogram bins: one for each value of a float32's upper 16 bits (sign, exponent and 7 bits of mantissa, a bfloat16).
NUM_BINS = 1 << 16
_MAGIC = b"QSTAT002"
_NO_KEYS = np.zeros(0, np.uint16)
_MINUS_ZERO = 1 << 15  # the bin of -0
_NO_COUNTS = np.zeros(0, np.int64)


def _zero_extremes() -> np.ndarray:
    return np.zeros((2, 2), np.int64)


@dataclasses.dataclass(frozen=True, eq=False)
class TensorStatistics:
    """Statistics of one float32 tensor over a set of examples.

    Every field is an integer that adds up or an extreme, so ``merge`` is associative and commutative to the bit.

    The histogram's edges do not depend on data: bin ``k`` holds the floats whose upper 16 bits are ``k`` (0…32639 zero
    and positive, 32768… negative, growing in magnitude), which are at most 1/128 of their value wide. It counts every
    value of a small tensor and an even sample of a large one (see ``quantizer_core.calibration.observer``); the
    extremes and the means are of all values, but for the minima of a tensor that the graph proves not to be negative,
    for which 0 stands.

    Attributes:
      examples: number of examples (of a tensor that is not computed in every run: those that computed it).
      nan, positive_infinite, negative_infinite: number of examples in which the tensor held such a value.
      minimum, maximum: exact extremes over the examples with finite values; (inf, -inf) if there are none.
      finite: number of examples with finite values (not empty, no NaN, no infinity).
      extreme_sums: int64 [limb, 2]: sums of the finite examples' minima and maxima (see fixed_point.py).
      keys: uint16, ascending: the bins that are not empty; that of -0 is counted with 0.
      counts: int64: their counts.
      channel_sums: int64 [limb, channels]: sums over the finite examples of the mean of each channel; None if no means
        were asked for.
      channel_extremes: float32 [2, channels]: exact minima and maxima of each channel over the finite examples; None
        if no means were asked for, or the tensor is not computed in every run.
    """

    examples: int = 0
    nan: int = 0
    positive_infinite: int = 0
    negative_infinite: int = 0
    minimum: float = math.inf
    maximum: float = -math.inf
    finite: int = 0
    extreme_sums: np.ndarray = dataclasses.field(default_factory=_zero_extremes)
    keys: np.ndarray = dataclasses.field(default_factory=lambda: _NO_KEYS)
    counts: np.ndarray = dataclasses.field(default_factory=lambda: _NO_COUNTS)
    channel_sums: np.ndarray | None = None
    channel_extremes: np.ndarray | None = None

    def __post_init__(self) -> None:
        # Adding 0 turns -0 into 0: which of the two is the smaller must not depend on the order of merging.
        object.__setattr__(self, "minimum", self.minimum + 0.0)
        object.__setattr__(self, "maximum", self.maximum + 0.0)
        # In the histogram too: which of them a kernel gives for no sum at all differs from kernel to kernel.
        place = int(np.searchsorted(self.keys, _MINUS_ZERO))
        if place < len(self.keys) and self.keys[place] == _MINUS_ZERO:
            counts = np.delete(self.counts, place)
            keys = np.delete(self.keys, place)
            if not len(keys) or keys[0]:
                keys, counts = np.insert(keys, 0, 0), np.insert(counts, 0, 0)
            counts[0] += self.counts[place]
            object.__setattr__(self, "keys", keys)
            object.__setattr__(self, "counts", counts)

    @property
    def count(self) -> int:
        """Number of values in the histogram."""
        return int(self.counts.sum())

    def mean_extremes(self) -> tuple[float, float]:
        """Returns the averages over the examples of the smallest and of the largest value of each.

        Raises:
          DataError: if no example was finite.
        """
        if not self.finite:
            raise DataError("no finite values were observed")
        low, high = mean_of_limbs(self.extreme_sums, self.finite)
        return float(low), float(high)

    def channel_means(self) -> np.ndarray | None:
        """Returns the mean of every channel over examples and positions as float64 [channels].

        An example's mean is the float32 that TensorFlow computes; examples are averaged exactly (each counts the same
        however many positions it has). None if no means were asked for or no example was finite.
        """
        if self.channel_sums is None or not self.finite:
            return None
        return mean_of_limbs(self.channel_sums, self.finite)

    def merge(self, other: TensorStatistics) -> TensorStatistics:
        """Returns the statistics of both sets of examples together.

        Raises:
          DataError: if the two saw different numbers of channels.
        """
        if not self.examples:
            return other
        if not other.examples:
            return self
        keys = np.union1d(self.keys, other.keys)
        counts = np.zeros(len(keys), np.int64)
        counts[np.searchsorted(keys, self.keys)] += self.counts
        counts[np.searchsorted(keys, other.keys)] += other.counts
        return TensorStatistics(
            examples=self.examples + other.examples,
            nan=self.nan + other.nan,
            positive_infinite=self.positive_infinite + other.positive_infinite,
            negative_infinite=self.negative_infinite + other.negative_infinite,
            minimum=min(self.minimum, other.minimum),
            maximum=max(self.maximum, other.maximum),
            finite=self.finite + other.finite,
            extreme_sums=self.extreme_sums + other.extreme_sums,
            keys=keys,
            counts=counts,
            channel_sums=self._joined(other, "channel_sums", np.add),
            channel_extremes=self._joined(other, "channel_extremes", join_extremes),
        )

    def _joined(
        self, other: TensorStatistics, field: str, join: Callable[[np.ndarray, np.ndarray], np.ndarray]
    ) -> np.ndarray | None:
        """Joins what both know by channel; one that was empty in every example knows nothing of its channels."""
        one, two = getattr(self, field), getattr(other, field)
        if one is None and not self.finite:
            return two
        if two is None and not other.finite:
            return one
        return _join_channels(one, two, join)

    def to_bytes(self) -> bytes:
        """Returns a canonical form: equal statistics give equal bytes, on every machine."""
        return CalibrationStatistics({"": self}, self.examples).to_bytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> TensorStatistics:
        """Reads ``to_bytes``'s form; raises DataError if it is damaged."""
        tensors = CalibrationStatistics.from_bytes(data).tensors
        if list(tensors) != [""]:
            raise DataError("these bytes hold the statistics of several tensors, not of one")
        return tensors[""]

    def __eq__(self, other: object) -> bool:
        return self.to_bytes() == other.to_bytes() if isinstance(other, TensorStatistics) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.to_bytes())


def _join_channels(
    one: np.ndarray | None, two: np.ndarray | None, join: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray | None:
    if one is None and two is None:
        return None
    if one is None or two is None or one.shape != two.shape:
        shapes = ["none" if values is None else str(values.shape[1]) for values in (one, two)]
        raise DataError(f"statistics of different graphs cannot be merged: {shapes[0]} and {shapes[1]} channels")
    return join(one, two)


def join_extremes(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Returns the extremes of both, float32 [2, channels]; adding 0 turns -0 into 0."""
    return np.stack([np.minimum(one[0], two[0]), np.maximum(one[1], two[1])]) + np.float32(0)


@dataclasses.dataclass(frozen=True)
class CalibrationStatistics:
    """Statistics of all observed tensors over a set of examples; the neutral element of ``merge`` is the empty one.

    Attributes:
      tensors: tensor name → statistics, sorted by name.
      num_examples: number of examples.
    """

    tensors: Mapping[str, TensorStatistics] = dataclasses.field(default_factory=dict)
    num_examples: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", dict(sorted(self.tensors.items())))

    def merge(self, other: CalibrationStatistics) -> CalibrationStatistics:
        """Returns the statistics of both sets of examples together: exact, associative and commutative.

        Raises:
          DataError: if a tensor has different numbers of channels in the two.
        """
        nothing = TensorStatistics()
        names = self.tensors.keys() | other.tensors.keys()
        return CalibrationStatistics(
            {name: self.tensors.get(name, nothing).merge(other.tensors.get(name, nothing)) for name in names},
            self.num_examples + other.num_examples,
        )

    def to_bytes(self) -> bytes:
        """Returns a canonical form: equal statistics give equal bytes, on every machine.

        It is a magic number, the length of a JSON header, the header (sorted; floats as hexadecimal) and, tensor by
        tensor, the arrays in little-endian order: keys, counts, extreme_sums, channel_sums, channel_extremes.
        """
        headers, arrays = [], []
        for name, stats in self.tensors.items():
            width = 4 if not len(stats.counts) or int(stats.counts.max()) < 1 << 32 else 8
            channels = None if stats.channel_sums is None else stats.channel_sums.shape[1]
            headers.append(
                {
                    "name": name,
                    "examples": stats.examples,
                    "nonfinite": [stats.nan, stats.positive_infinite, stats.negative_infinite],
                    "finite": stats.finite,
                    "range": [float(stats.minimum).hex(), float(stats.maximum).hex()],
                    "bins": len(stats.keys),
                    "count_bytes": width,
                    "channels": channels,
                    "channel_extremes": stats.channel_extremes is not None,
                }
            )
            arrays.append(stats.keys.astype("<u2").tobytes())
            arrays.append(stats.counts.astype(f"<u{width}").tobytes())
            arrays.append(stats.extreme_sums.astype("<i8").tobytes())
            if stats.channel_sums is not None:
                arrays.append(stats.channel_sums.astype("<i8").tobytes())
            if stats.channel_extremes is not None:
                arrays.append(stats.channel_extremes.astype("<f4").tobytes())
        header = json.dumps({"examples": self.num_examples, "tensors": headers}, sort_keys=True).encode()
        return b"".join([_MAGIC, struct.pack("<Q", len(header)), header, *arrays])

    @classmethod
    def from_bytes(cls, data: bytes) -> CalibrationStatistics:
        """Reads ``to_bytes``'s form.

        Raises:
          DataError: if the bytes are no calibration statistics, or damaged.
        """
        try:
            return cls._read(data)
        except (ValueError, KeyError, TypeError, struct.error) as error:
            raise DataError(f"these are no calibration statistics, or they are damaged: {error}") from None

    @classmethod
    def _read(cls, data: bytes) -> CalibrationStatistics:
        if data[: len(_MAGIC)] != _MAGIC:
            raise ValueError(f"they begin with {data[: len(_MAGIC)]!r}, not {_MAGIC!r}")
        (length,) = struct.unpack_from("<Q", data, len(_MAGIC))
        position = len(_MAGIC) + 8 + length
        header = json.loads(data[len(_MAGIC) + 8 : position])

        def take(dtype: str, count: int) -> np.ndarray:
            nonlocal position
            array = np.frombuffer(data, dtype, count, position)
            position += array.nbytes
            return array

        tensors = {}
        for entry in header["tensors"]:
            bins, channels = entry["bins"], entry["channels"]
            nan, positive, negative = entry["nonfinite"]
            low, high = entry["range"]
            tensors[entry["name"]] = TensorStatistics(
                examples=entry["examples"],
                nan=nan,
                positive_infinite=positive,
                negative_infinite=negative,
                minimum=float.fromhex(low),
                maximum=float.fromhex(high),
                finite=entry["finite"],
                keys=take("<u2", bins).astype(np.uint16),
                counts=take(f"<u{entry['count_bytes']}", bins).astype(np.int64),
                extreme_sums=take("<i8", 4).astype(np.int64).reshape(2, 2),
                channel_sums=None if channels is None else take("<i8", 2 * channels).astype(np.int64).reshape(2, -1),
                channel_extremes=(
                    take("<f4", 2 * channels).astype(np.float32).reshape(2, -1) if entry["channel_extremes"] else None
                ),
            )
        if position != len(data):
            raise ValueError(f"{len(data) - position} bytes are left over")
        return cls(tensors, header["examples"])


def check_finite(statistics: CalibrationStatistics) -> None:
    """Makes sure that no observed tensor held NaN or infinity, and that none was always empty.

    Raises:
      DataError: naming the first such tensor, what it held and in how many examples.
    """
    for name, stats in statistics.tensors.items():
        held = {"NaN": stats.nan, "+infinity": stats.positive_infinite, "-infinity": stats.negative_infinite}
        found = [f"{what} in {count} of {stats.examples} examples" for what, count in held.items() if count]
        if found:
            raise DataError(
                f"tensor {name!r} held {', '.join(found)}: its range cannot be chosen; check the preprocessing and "
                f"the examples, or exclude the nodes that make it"
            )
        if stats.examples and not stats.finite:
            raise DataError(f"tensor {name!r} was empty in all {stats.examples} examples: its range cannot be chosen")
