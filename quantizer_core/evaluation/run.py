"""Evaluation in one process: the same examples through the FP32 and the INT8 graph."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType

import numpy as np
from tensorflow.core.framework import graph_pb2

from quantizer_core.batch_memory import batch_size_within
from quantizer_core.config import QuantizationConfig
from quantizer_core.errors import GraphError
from quantizer_core.evaluation.counts import EvaluationCounts, compare
from quantizer_core.preprocessing.decoder import ExampleDecoder
from quantizer_core.reads import BatchReader, Example, ReadCounts, Work, read_all
from quantizer_core.runtime import GraphSession, batch_size_for, stack_batch
from quantizer_core.types import TensorSpec


@dataclasses.dataclass(frozen=True)
class EvaluationRun:
    """What evaluation saw.

    Attributes:
      counts: the comparison of the two graphs.
      reads: how many examples were used, and how many not and why.
      work: what it took; no part of the result.
    """

    counts: EvaluationCounts = dataclasses.field(default_factory=EvaluationCounts)
    reads: ReadCounts = dataclasses.field(default_factory=ReadCounts)
    work: Work = dataclasses.field(default_factory=Work, compare=False)

    def merge(self, other: EvaluationRun) -> EvaluationRun:
        """Returns the run over both sets of examples: exact, associative and commutative."""
        return EvaluationRun(
            self.counts.merge(other.counts), self.reads.merge(other.reads), self.work.merge(other.work)
        )


class Comparer:
    """Two graphs ready to run side by side.

    Batches have one constant size, filled up with copies of the last example, so that an example's outcome does not
    depend on its neighbours.

    Args:
      fp32_graph: the FP32 graph.
      int8_graph: the INT8 graph, with the same inputs and outputs.
      inputs: the inputs of both.
      outputs: names of the outputs of both.
      batch_size: examples a step; 1 is taken where the graph asks for it (see ``batch_size_for``).
      threads: size of the thread pools (see ``GraphSession``).
    """

    def __init__(
        self,
        fp32_graph: graph_pb2.GraphDef,
        int8_graph: graph_pb2.GraphDef,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[str],
        batch_size: int,
        threads: int | None = None,
    ):
        self.inputs = tuple(inputs)
        self.batch_size = batch_size_for(fp32_graph, inputs, outputs, batch_size)
        self._fp32 = GraphSession(fp32_graph, inputs, outputs, threads=threads)
        self._int8 = GraphSession(int8_graph, inputs, outputs, threads=threads)
        self._counts = EvaluationCounts()

    def add(self, examples: Sequence[Example]) -> None:
        """Runs one batch of 1 to ``batch_size`` examples and counts it.

        Raises:
          DataError: if an example does not fit the graph or its label not the output; nothing is counted then.
        """
        feeds = stack_batch([example.feeds for example in examples], self.inputs, self.batch_size)
        fp32, int8 = self._fp32.run(feeds), self._int8.run(feeds)
        counts = self._counts
        for index, example in enumerate(examples):
            counts = counts.merge(compare(self._of(fp32, index), self._of(int8, index), example.label))
        self._counts = counts

    def take(self) -> EvaluationCounts:
        """Returns the counts of all examples added since the last call, and starts anew."""
        counts, self._counts = self._counts, EvaluationCounts()
        return counts

    def fork(self) -> Comparer:
        """Returns a comparer with the same sessions and counts of its own, for another thread."""
        other = copy.copy(self)
        other._counts = EvaluationCounts()
        return other

    def close(self) -> None:
        """Frees the sessions, those of forks too."""
        self._fp32.close()
        self._int8.close()

    def __enter__(self) -> Comparer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _of(self, outputs: Sequence[np.ndarray], index: int) -> list[np.ndarray]:
        """Returns one example's part of the outputs."""
        if self.batch_size == 1:
            return list(outputs)
        for output in outputs:
            if not output.ndim or len(output) != self.batch_size:
                raise GraphError(
                    f"an output of shape {list(output.shape)} does not hold the {self.batch_size} examples of a batch "
                    "along its first axis; use batch_size 1"
                )
        return [output[index] for output in outputs]


def evaluate(
    fp32_graph: graph_pb2.GraphDef,
    int8_graph: graph_pb2.GraphDef,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[str],
    examples: Iterable[bytes],
    config: QuantizationConfig,
    on_example: Callable[[int], None] | None = None,
) -> EvaluationRun:
    """Runs both graphs on examples and compares them one by one.

    Args:
      fp32_graph, int8_graph: the graphs.
      inputs, outputs: the inputs and names of the outputs of both.
      examples: serialized ``tf.Example``s; read once, not kept.
      config: preprocessing (with the label), batch size and the share of bad records to accept.
      on_example: called with the number of records read so far.

    Raises:
      DataError: if there are no examples, or too many cannot be used.
      ConfigError: if the preprocessing does not fit the graph's inputs.
      GraphError: if a graph cannot be run.
    """
    decoder = ExampleDecoder(config, inputs)
    batch_size = batch_size_within(fp32_graph, inputs, outputs, config)
    with Comparer(fp32_graph, int8_graph, inputs, outputs, batch_size) as comparer:
        reader = BatchReader(decoder, comparer.add, comparer.batch_size)
        reads = read_all(reader, examples, on_example)
        return checked(EvaluationRun(comparer.take(), reads, reader.work), config)


def checked(run: EvaluationRun, config: QuantizationConfig) -> EvaluationRun:
    """Returns the run if enough examples could be used.

    Raises:
      DataError: if there were no examples, or too many were bad.
    """
    run.reads.check(config.max_bad_fraction, "evaluation", run.work.records)
    return run
