"""Calibration in one process: serialized examples in, statistics out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from quantizer_core.batch_memory import batch_size_within
from quantizer_core.calibration.observer import SAMPLE_SIZE, Observer
from quantizer_core.calibration.statistics import CalibrationStatistics, check_finite
from quantizer_core.config import QuantizationConfig
from quantizer_core.preprocessing.decoder import ExampleDecoder
from quantizer_core.reads import BatchReader, ReadCounts, Work, read_all
from quantizer_core.sample import KEPT_RECORDS, Hashed, SmallestHashes, digest_of
from quantizer_core.types import PreparedGraph

__all__ = ["CalibrationRun", "ReadCounts", "calibrate", "checked"]


@dataclasses.dataclass(frozen=True)
class CalibrationRun:
    """What calibration saw.

    Attributes:
      statistics: of the watched tensors.
      reads: how many examples were used, and how many not and why.
      hashed: the ``KEPT_RECORDS`` examples of the smallest hashes, with these, sorted.
      work: what it took; no part of the result.
    """

    statistics: CalibrationStatistics = dataclasses.field(default_factory=CalibrationStatistics)
    reads: ReadCounts = dataclasses.field(default_factory=ReadCounts)
    hashed: tuple[Hashed, ...] = ()
    work: Work = dataclasses.field(default_factory=Work, compare=False)

    @property
    def sample(self) -> tuple[bytes, ...]:
        """A bounded sample of the examples that does not depend on their order or sharding."""
        return tuple(record for _, record in self.hashed)

    def merge(self, other: CalibrationRun) -> CalibrationRun:
        """Returns the run over both sets of examples: exact, associative and commutative."""
        kept = SmallestHashes(KEPT_RECORDS, [*self.hashed, *other.hashed]).chosen()
        return CalibrationRun(
            self.statistics.merge(other.statistics),
            self.reads.merge(other.reads),
            tuple(kept),
            self.work.merge(other.work),
        )


def calibrate(
    prepared: PreparedGraph,
    examples: Iterable[bytes],
    config: QuantizationConfig,
    on_example: Callable[[int], None] | None = None,
) -> CalibrationRun:
    """Runs the graph on examples and gathers the statistics of its watched tensors.

    The statistics are the same bytes for every order of the examples (see ``Observer``).

    Args:
      prepared: the graph and what to watch in it.
      examples: serialized ``tf.Example``s; read once; a bounded sample is kept.
      config: preprocessing, batch size and the share of bad records to accept.
      on_example: called with the number of records read so far.

    Raises:
      DataError: if there are no examples, too many cannot be used, or a watched tensor held NaN or infinity.
      ConfigError: if the preprocessing does not fit the graph's inputs.
    """
    decoder = ExampleDecoder(config, prepared.inputs)
    with Observer(prepared, batch_size(prepared, config)) as observer:
        kept = SmallestHashes(KEPT_RECORDS)
        reader = BatchReader(
            decoder,
            lambda batch: observer.add([example.feeds for example in batch]),
            observer.batch_size,
            lambda record, example: kept.add(record, digest_of(example.feeds)),
        )
        reads = read_all(reader, examples, on_example)
        return checked(CalibrationRun(observer.take(), reads, tuple(kept.chosen()), reader.work), config)


def batch_size(prepared: PreparedGraph, config: QuantizationConfig) -> int:
    """Returns how many examples a step of calibration takes, should the graph leave it free."""
    samples = 2 * 4 * SAMPLE_SIZE * len(prepared.observed)  # of every watched tensor: by itself, and joined to leave
    return batch_size_within(prepared.graph_def, prepared.inputs, prepared.outputs, config, samples)


def checked(run: CalibrationRun, config: QuantizationConfig) -> CalibrationRun:
    """Returns the run if it is fit to choose ranges from.

    Raises:
      DataError: see ``calibrate``.
    """
    run.reads.check(config.max_bad_fraction, "calibration", run.work.records)
    check_finite(run.statistics)
    return run
