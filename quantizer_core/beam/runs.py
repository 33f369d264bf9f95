"""Calibration and evaluation as Beam transforms: the same figures, to the bit, on any runner and number of workers."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.transforms import window
from apache_beam.utils.shared import Shared
from apache_beam.utils.windowed_value import WindowedValue

from quantizer_core.batch_memory import batch_size_within
from quantizer_core.calibration.observer import Observer
from quantizer_core.calibration.run import CalibrationRun, batch_size
from quantizer_core.config import QuantizationConfig
from quantizer_core.errors import MachineError
from quantizer_core.evaluation.run import Comparer, EvaluationRun
from quantizer_core.graph.files import load_graph
from quantizer_core.prepare import load_prepared
from quantizer_core.preprocessing.decoder import ExampleDecoder
from quantizer_core.reads import BatchReader, ReadCounts
from quantizer_core.runtime import check_machine, has_vnni
from quantizer_core.sample import KEPT_RECORDS, SmallestHashes, digest_of
from quantizer_core.types import TensorSpec
from quantizer_core.version import VERSION

_NAMESPACE = "quantizer"


class Calibrate(beam.PTransform):
    """PCollection of serialized ``tf.Example``s → one ``CalibrationRun``, the bytes that ``calibrate`` would give.

    The pipeline does not judge the run: hand it to ``quantizer_core.calibration.run.checked`` where the pipeline was
    started, so that an empty input or bad examples are the same DataError on every runner, without a worker that tries
    again. Records are counted before they are spread over the workers, and ``checked`` compares.

    Counters (namespace ``quantizer``): ``examples_read``, ``examples_skipped`` and, for each kind of fault,
    ``examples_skipped_KIND``; ``batches``; ``inference_microseconds``.

    Args:
      prepared_dir: where ``save_prepared`` wrote the graph, as any path that TensorFlow knows; every worker process
        reads it, once.
      config: as in ``calibrate``.
    """

    def __init__(self, prepared_dir: str, config: QuantizationConfig):
        super().__init__()
        self._arguments = (_Maker.here(), prepared_dir, config)

    def expand(self, examples: beam.PCollection[bytes]) -> beam.PCollection[CalibrationRun]:
        return examples | _Runs(functools.partial(_Calibration, *self._arguments), CalibrationRun)


class Evaluate(beam.PTransform):
    """PCollection of serialized ``tf.Example``s → one ``EvaluationRun``, the one that ``evaluate`` would give.

    Counters as in ``Calibrate``; the run is for ``quantizer_core.evaluation.run.checked`` to judge.

    Args:
      fp32_path, int8_path: the two graphs, as any paths that TensorFlow knows; every worker process reads them, once.
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
        self._arguments = (_Maker.here(), fp32_path, int8_path, tuple(inputs), tuple(outputs), config)

    def expand(self, examples: beam.PCollection[bytes]) -> beam.PCollection[EvaluationRun]:
        return examples | _Runs(functools.partial(_Evaluation, *self._arguments), EvaluationRun)


@dataclasses.dataclass(frozen=True)
class _Maker:
    """What a worker has to have in common with the process that makes the pipeline.

    Attributes:
      version: of the product.
      vnni: whether its processor sums 8-bit products without saturating, by which ``reduce_range='auto'`` goes.
    """

    version: str
    vnni: bool

    @classmethod
    def here(cls) -> _Maker:
        """Returns what this process has."""
        return cls(VERSION, has_vnni())

    def check_worker(self) -> None:
        """Makes sure that this process can do the work as the one that made the pipeline would.

        Raises:
          MachineError: if it cannot run INT8 graphs, or has another version of the product.
        """
        check_machine()
        if self.version != VERSION:
            raise MachineError(
                f"a Beam worker has version {VERSION} of quantizer_core, the process that made the pipeline "
                f"{self.version}: give the workers the same"
            )


class _Reading(Protocol):
    """What one bundle is read with."""

    reader: BatchReader

    def run(self, reads: ReadCounts) -> Any:
        """Returns what the bundle showed."""


class _Calibration:
    """A prepared graph, loaded. Shared by the threads of a worker: each bundle works on a fork."""

    def __init__(self, maker: _Maker, prepared_dir: str, config: QuantizationConfig):
        maker.check_worker()
        prepared = load_prepared(prepared_dir)
        self.decoder = ExampleDecoder(config, prepared.inputs)
        self.observer = Observer(prepared, batch_size(prepared, config))

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
        return CalibrationRun(self._observer.take(), reads, tuple(self._kept.chosen()), self.reader.work)


class _Evaluation:
    """The two graphs, loaded. Shared by the threads of a worker: each bundle works on a fork."""

    def __init__(
        self,
        maker: _Maker,
        fp32_path: str,
        int8_path: str,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[str],
        config: QuantizationConfig,
    ):
        maker.check_worker()
        if config.reduce_range == "auto" and maker.vnni and not has_vnni():
            raise MachineError(
                "a Beam worker's processor has no VNNI (or ONEDNN_MAX_CPU_ISA forbids it), on which the 8-bit weights "
                "of the INT8 graph saturate, and that of the process that made the pipeline has it: evaluate on "
                "machines like those that will serve, or set reduce_range to 'on'"
            )
        self.decoder = ExampleDecoder(config, inputs)
        fp32_graph, int8_graph = load_graph(fp32_path), load_graph(int8_path)
        size = batch_size_within(fp32_graph, inputs, outputs, config)
        self.comparer = Comparer(fp32_graph, int8_graph, inputs, outputs, size)

    def reading(self) -> _Reading:
        return _EvaluationReading(self)


class _EvaluationReading:
    def __init__(self, graphs: _Evaluation):
        self._comparer = graphs.comparer.fork()
        self.reader = BatchReader(graphs.decoder, self._comparer.add, self._comparer.batch_size)

    def run(self, reads: ReadCounts) -> EvaluationRun:
        return EvaluationRun(self._comparer.take(), reads, self.reader.work)


class _Runs(beam.PTransform):
    """PCollection of records → the one merged run over all of them; the empty run for no records."""

    def __init__(self, load: Callable[[], _Calibration | _Evaluation], empty: Callable[[], Any]):
        super().__init__()
        self._load = load
        self._empty = empty

    def expand(self, records: beam.PCollection[bytes]) -> beam.PCollection[Any]:
        records = records | "OneWindow" >> beam.WindowInto(window.GlobalWindows())
        count = records | "Count" >> beam.combiners.Count.Globally()
        return (
            records
            | "Rebalance" >> beam.Reshuffle()
            | "Run" >> beam.ParDo(_RunBundle(self._load))
            | "Merge" >> beam.CombineGlobally(_Merge(self._empty))
            | "AddCount" >> beam.Map(_with_count, beam.pvalue.AsSingleton(count))
        )


def _with_count(run: Any, count: int) -> Any:
    """Notes in a run how many records there were before they were spread over the workers."""
    return dataclasses.replace(run, work=dataclasses.replace(run.work, records=count))


class _RunBundle(beam.DoFn):
    """Puts the records of a bundle through the graph in batches of one size; gives one run a bundle."""

    def __init__(self, load: Callable[[], _Calibration | _Evaluation]):
        self._load = load
        self._shared = Shared()

    def setup(self) -> None:
        self._graph = self._shared.acquire(self._load)

    def start_bundle(self) -> None:
        self._reading = self._graph.reading()

    def process(self, record: bytes) -> Iterable[Any]:
        self._reading.reader.add(record)
        return ()  # what the records showed comes at the end of the bundle

    def finish_bundle(self) -> Iterator[WindowedValue]:
        reads = self._reading.reader.finish()
        work = self._reading.reader.work
        counted = {
            "examples_read": reads.read,
            "examples_skipped": reads.skipped,
            **{f"examples_skipped_{reason}": number for reason, number in reads.reasons.items()},
            "batches": work.batches,
            "inference_microseconds": work.microseconds,
        }
        for name, number in counted.items():
            Metrics.counter(_NAMESPACE, name).inc(number)
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
