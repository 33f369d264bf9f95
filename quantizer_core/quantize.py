"""The whole way from a frozen FP32 graph to an INT8 one."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from tensorflow.core.framework import graph_pb2

from quantizer_core.batch_memory import examples_within
from quantizer_core.calibration.run import calibrate
from quantizer_core.calibration.statistics import CalibrationStatistics
from quantizer_core.config import QuantizationConfig
from quantizer_core.errors import DataError
from quantizer_core.lowering import lower
from quantizer_core.lowering.parameters import LayerParameters, nominal_parameters
from quantizer_core.planning import QuantizationPlan
from quantizer_core.planning.fine import plan_finely
from quantizer_core.planning.mixed import first_in_float
from quantizer_core.prepare import prepare
from quantizer_core.preprocessing.decoder import ExampleDecoder
from quantizer_core.refinement import refine
from quantizer_core.runtime import check_machine
from quantizer_core.types import PreparedGraph


@dataclasses.dataclass(frozen=True)
class Conversion:
    """An INT8 graph and the plan that it was made from.

    Attributes:
      graph_def: between the same inputs and outputs as the FP32 graph.
      plan: what became of each candidate node, and why.
      prepared: the FP32 graph that the plan is of; it may write inputs in two parts (``fine_inputs``).
      parameters: weights and bias of each kernel, by the name of its FP32 node.
    """

    graph_def: graph_pb2.GraphDef
    plan: QuantizationPlan
    prepared: PreparedGraph
    parameters: Mapping[str, LayerParameters]


def convert(
    prepared: PreparedGraph,
    statistics: CalibrationStatistics,
    config: QuantizationConfig,
    sample: Sequence[bytes] = (),
    on_kernel: Callable[[int, int], None] | None = None,
) -> Conversion:
    """Converts a prepared and calibrated graph; the same bytes for the same arguments on CPUs of the same kind.

    Args:
      prepared: the graph after all rewrites.
      statistics: what calibration saw.
      config: every choice.
      sample: serialized ``tf.Example``s to choose weights and biases on (``CalibrationRun.sample``); without any,
        weights are rounded to nearest and biases corrected by the channel means of the statistics.
      on_kernel: called with the number of kernels whose weights have been chosen on the sample, and of all.

    Raises:
      DataError: if the statistics are not those of this graph.
      GraphError: naming a node that cannot be computed on an example of the sample in INT8.
    """
    examples = _decode(sample[: config.refine_examples], prepared, config)
    examples = examples[: examples_within(prepared, examples, config.max_batch_bytes)]
    given, seen = prepared, statistics
    prepared, statistics, plan = plan_finely(given, seen, config)
    if config.mixed_precision and examples:
        kept = first_in_float(prepared, statistics, plan, examples, config)
        if kept:
            prepared, statistics, plan = plan_finely(given, seen, config, kept)
    refined = refine(prepared, plan, examples, config, on_kernel) if examples else {}
    known = statistics if config.bias_correction else None
    nominal = nominal_parameters(prepared.graph, plan, known, config.weight_clipping, refined)
    parameters = {**nominal, **refined}
    return Conversion(lower(prepared, plan, parameters), plan, prepared, parameters)


def _decode(
    sample: Sequence[bytes], prepared: PreparedGraph, config: QuantizationConfig
) -> list[Mapping[str, np.ndarray]]:
    """Returns the feeds of the examples that can be read; calibration has counted and judged those that cannot."""
    if not sample:
        return []
    decoder = ExampleDecoder(config, prepared.inputs)
    examples: list[Mapping[str, np.ndarray]] = []
    for record in sample:
        with contextlib.suppress(DataError):
            examples.append(decoder.decode(record).feeds)
    return examples


def quantize(
    graph_def: graph_pb2.GraphDef,
    examples: Iterable[bytes],
    config: QuantizationConfig | None = None,
    on_example: Callable[[int], None] | None = None,
) -> Conversion:
    """Prepares, calibrates and converts a frozen graph in this process.

    Args:
      graph_def: the frozen FP32 graph; it is not changed.
      examples: serialized ``tf.Example``s to calibrate with; read once.
      config: every choice; the defaults read one numeric feature for each input of the graph.
      on_example: called with the number of examples read so far.

    Raises:
      MachineError: if this processor or TensorFlow cannot run the INT8 kernels.
      GraphError, ConfigError, DataError: what is wrong with the graph, the options or the examples.
    """
    config = config or QuantizationConfig()
    check_machine()
    prepared = prepare(graph_def, config)
    run = calibrate(prepared, examples, config, on_example)
    return convert(prepared, run.statistics, config, run.sample)
