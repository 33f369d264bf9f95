"""Calibration and evaluation as Beam transforms: the same figures, to the bit, on any runner and number of workers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.transforms import window
from apache_beam.utils.shared import Shared
from apache_beam.utils.windowed_value import WindowedValue

from quantizer_core.calibration.observer import Observer
from quantizer_core.calibration.run import CalibrationRun
from quantizer_core.calibration.run import checked as checked_calibration
from quantizer_core.config import QuantizationConfig
from quantizer_core.evaluation.run import Comparer, EvaluationRun
from quantizer_core.evaluation.run import checked as checked_evaluation
from quantizer_core.graph.files import load_graph
from quantizer_core.prepare import load_prepared
from quantizer_core.preprocessing.decoder import ExampleDecoder
from quantizer_core.reads import BatchReader, ReadCounts
from quantizer_core.runtime import check_machine
from quantizer_core.sample import KEPT_RECORDS, Hashed, SmallestHashes, digest_of
from quantizer_core.types import TensorSpec

_NAMESPACE = "quantizer"


class Calibrate(beam.PTransform):
    """PCollection of serialized ``tf.Example``s → one ``CalibrationRun``, the bytes that ``calibrate`` would give.

    The pipeline fails with DataError if the input is empty, too many records cannot be used, or a watched tensor held
    NaN or infinity. Counters (namespace ``quantizer``): ``examples_read``, ``examples_skipped``, ``batches``.

    Args:
      prepared_dir: where ``save_prepared`` wrote the graph; every worker reads it, once.
      config: as in ``calibrate``.
    """

    def __init__(self, prepared_dir: str, config: QuantizationConfig):
        super().__init__()
        self._prepared_dir = prepared_dir
        self._config = config

    def expand(self, examples: beam.PCollection[bytes]) -> beam.PCollection[CalibrationRun]:
        load = functools.partial(_Calibration, self._prepared_dir, self._config)
        return examples | _Runs(load, CalibrationRun) | "Check" >> beam.Map(checked_calibration, self._config)


class Evaluate(beam.PTransform):
    """PCollection of serialized ``tf.Example``s → one ``EvaluationRun``, the one that ``evaluate`` would give.

    The pipeline fails with DataError if the input is empty or too many records cannot be used. Counters as in
    ``Calibrate``.

    Args:
      fp32_path, int8_path: the two graphs; every worker reads them, once.
      inputs, outputs: the inputs and names of the outputs of both.
      config: as in ``evaluate``.
    """

    def __init__(
        self,
        fp32_path: str,
        int8_path: str,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[str],
        config: QuantizationConfig,
    ):
        super().__init__()
        self._arguments = (fp32_path, int8_path, tuple(inputs), tuple(outputs), config)
        self._config = config

    def expand(self, examples: beam.PCollection[bytes]) -> beam.PCollection[EvaluationRun]:
        load = functools.partial(_Evaluation, *self._arguments)
        return examples | _Runs(load, EvaluationRun) | "Check" >> beam.Map(checked_evaluation, self._config)


class SampleExamples(beam.PTransform):
    """PCollection of bytes → ``count`` of its records (all, if there are fewer or ``count`` is 0).

    They are those of the smallest SHA-256 hash: a random choice that depends on the records alone, not on their order,
    the sharding or the runner. One worker holds ``count`` records.
    """

    def __init__(self, count: int):
        super().__init__()
        self._count = count

    def expand(self, records: beam.PCollection[bytes]) -> beam.PCollection[bytes]:
        if not self._count:
            return records
        return (
            records
            | "Smallest" >> beam.CombineGlobally(self.combine_fn())
            | "Records" >> beam.FlatMap(lambda chosen: [record for _, record in chosen])
            | "Rebalance" >> beam.Reshuffle()
        )

    def combine_fn(self) -> beam.CombineFn:
        """Returns what chooses the records: PCollection → one sorted list of (hash, record)."""
        return _Smallest(self._count)


class _Reading(Protocol):
    """What one bundle is read with."""

    reader: BatchReader

    def run(self, reads: ReadCounts) -> Any:
        """Returns what the bundle showed."""


class _Calibration:
    """A prepared graph, loaded. Shared by the threads of a worker: each bundle works on a fork."""

    def __init__(self, prepared_dir: str, config: QuantizationConfig):
        check_machine()  # the worker's: it may be another machine than that which makes the pipeline
        prepared = load_prepared(prepared_dir)
        self.decoder = ExampleDecoder(config, prepared.inputs)
        self.observer = Observer(prepared, config.batch_size)

    def reading(self) -> _Reading:
        return _CalibrationReading(self)


class _CalibrationReading:
    def __init__(self, graph: _Calibration):
        self._observer = graph.observer.fork()
        self._kept = SmallestHashes(KEPT_RECORDS)
        self.reader = BatchReader(graph.decoder, self._add, self._observer.batch_size, self._keep)

    def _add(self, batch: Sequence[Any]) -> None:
        self._observer.add([example.feeds for example in batch])

    def _keep(self, record: bytes, example: Any) -> None:
        self._kept.add(record, digest_of(example.feeds))

    def run(self, reads: ReadCounts) -> CalibrationRun:
        return CalibrationRun(self._observer.take(), reads, tuple(self._kept.chosen()))


class _Evaluation:
    """The two graphs, loaded. Shared by the threads of a worker: each bundle works on a fork."""

    def __init__(
        self,
        fp32_path: str,
        int8_path: str,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[str],
        config: QuantizationConfig,
    ):
        check_machine()
        self.decoder = ExampleDecoder(config, inputs)
        self.comparer = Comparer(load_graph(fp32_path), load_graph(int8_path), inputs, outputs, config.batch_size)

    def reading(self) -> _Reading:
        return _EvaluationReading(self)


class _EvaluationReading:
    def __init__(self, graphs: _Evaluation):
        self._comparer = graphs.comparer.fork()
        self.reader = BatchReader(graphs.decoder, self._comparer.add, self._comparer.batch_size)

    def run(self, reads: ReadCounts) -> EvaluationRun:
        return EvaluationRun(self._comparer.take(), reads)


class _Runs(beam.PTransform):
    """PCollection of records → the one merged run over all of them; the empty run for no records."""

    def __init__(self, load: Callable[[], _Calibration | _Evaluation], empty: Callable[[], Any]):
        super().__init__()
        self._load = load
        self._empty = empty

    def expand(self, records: beam.PCollection[bytes]) -> beam.PCollection[Any]:
        return (
            records
            | "OneWindow" >> beam.WindowInto(window.GlobalWindows())
            | "Run" >> beam.ParDo(_RunBundle(self._load))
            | "Merge" >> beam.CombineGlobally(_Merge(self._empty))
        )


class _RunBundle(beam.DoFn):
    """Puts the records of a bundle through the graph in batches of one size; gives one run a bundle."""

    def __init__(self, load: Callable[[], _Calibration | _Evaluation]):
        self._load = load
        self._shared = Shared()
        self._counters = {
            name: Metrics.counter(_NAMESPACE, name) for name in ("examples_read", "examples_skipped", "batches")
        }

    def setup(self) -> None:
        self._graph = self._shared.acquire(self._load)

    def start_bundle(self) -> None:
        self._reading = self._graph.reading()

    def process(self, record: bytes) -> None:
        self._reading.reader.add(record)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        reads = self._reading.reader.finish()
        self._counters["examples_read"].inc(reads.read)
        self._counters["examples_skipped"].inc(reads.skipped)
        self._counters["batches"].inc(self._reading.reader.batches)
        whole = window.GlobalWindow()
        yield WindowedValue(self._reading.run(reads), whole.max_timestamp(), [whole])


class _Merge(beam.CombineFn):
    """Merges runs; exact, associative and commutative, so the runner may group as it likes."""

    def __init__(self, empty: Callable[[], Any]):
        self._empty = empty

    def create_accumulator(self) -> Any:
        return self._empty()

    def add_input(self, accumulator: Any, run: Any) -> Any:
        return accumulator.merge(run)

    def merge_accumulators(self, accumulators: Iterable[Any]) -> Any:
        return functools.reduce(lambda one, two: one.merge(two), accumulators, self._empty())

    def extract_output(self, accumulator: Any) -> Any:
        return accumulator


class _Smallest(beam.CombineFn):
    """Keeps the records of the smallest hashes, as sorted (hash, record) pairs."""

    def __init__(self, count: int):
        self._count = count

    def create_accumulator(self) -> SmallestHashes:
        return SmallestHashes(self._count)

    def add_input(self, kept: SmallestHashes, record: bytes) -> SmallestHashes:
        kept.add(record)
        return kept

    def merge_accumulators(self, accumulators: Iterable[SmallestHashes]) -> SmallestHashes:
        return SmallestHashes(self._count, [pair for kept in accumulators for pair in kept.chosen()])

    def compact(self, kept: SmallestHashes) -> SmallestHashes:
        return SmallestHashes(self._count, kept.chosen())

    def extract_output(self, kept: SmallestHashes) -> list[Hashed]:
        return kept.chosen()
