"""The Quantizer's work: calibrate on Beam, convert, evaluate on Beam, judge, export, bless."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
import math
import os
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
import tensorflow as tf
from tensorflow.core.framework import graph_pb2
from tfx.components.evaluator import constants
from tfx.dsl.components.base import base_beam_executor
from tfx.types import Artifact, artifact_utils
from tfx.utils import path_utils

from components.artifacts import EVALUATION_FILE, graph_path, read_meta
from components.outputs import describe, fresh_outputs
from components.quantizer.beam_io import records_in_turn, split_patterns
from components.quantizer.parameters import Parameters
from quantizer_core.beam import Calibrate, Evaluate, ReadRecords, SampleExamples, WriteOne, read_one
from quantizer_core.calibration.run import CalibrationRun
from quantizer_core.calibration.run import checked as checked_calibration
from quantizer_core.calibration.saved import CALIBRATION_FILE, SavedCalibration, load_calibration, save_calibration
from quantizer_core.errors import DataError
from quantizer_core.evaluation.judge import EvaluationResult, judge
from quantizer_core.evaluation.run import EvaluationRun, evaluate
from quantizer_core.evaluation.run import checked as checked_evaluation
from quantizer_core.export import export_saved_model
from quantizer_core.graph.files import load_graph, save_graph
from quantizer_core.machine import describe_machine
from quantizer_core.planning.plan import SLOWER, QuantizationPlan
from quantizer_core.prepare import prepare, save_prepared
from quantizer_core.preprocessing.decoder import ExampleDecoder
from quantizer_core.quantize import convert
from quantizer_core.reads import ReadCounts
from quantizer_core.runtime import check_machine
from quantizer_core.types import PreparedGraph
from quantizer_core.version import VERSION
from quantizer_core.whole_file import write_text

FROZEN_GRAPH = "frozen_graph"
EXAMPLES = "examples"
KNOWN_RANGES = "known_ranges"
QUANTIZED_MODEL = "quantized_model"
EVALUATION = "evaluation"
BLESSING = "blessing"
CALIBRATION_RANGES = "calibration_ranges"

#: Files of the quantized model, beside its SavedModel.
QUANTIZED_GRAPH_FILE = "quantized_graph.pb"
PLAN_FILE = "plan.json"
#: The file of the evaluation with what the workers counted: batches and seconds differ from run to run.
COUNTERS_FILE = "counters.json"

_WORK_DIRECTORY = "work"

#: Of the split that the graphs are compared on, as many examples are tried before the work begins, if that many can be
#: used among the first.
_TRIED_EXAMPLES, _LOOKED_AT = 16, 1000

_logger = logging.getLogger(__name__)


class Executor(base_beam_executor.BaseBeamExecutor):
    """Executor of the Quantizer."""

    def Do(  # noqa: N802 - TFX's name
        self,
        input_dict: dict[str, list[Artifact]],
        output_dict: dict[str, list[Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Quantizes a frozen graph and judges the result. May be run again: it starts from empty outputs.

        Args:
          input_dict: ``frozen_graph`` (FrozenGraph), ``examples`` (one or more Examples) and, if calibration is not
            to be made anew, ``known_ranges`` (CalibrationRanges).
          output_dict: ``quantized_model`` (Model), ``evaluation`` (QuantizationEvaluation), ``blessing``
            (ModelBlessing) and ``calibration_ranges`` (CalibrationRanges).
          exec_properties: the parameters of ``Quantizer``.

        Raises:
          ConfigError: if a parameter is outside its domain, or the known ranges are not of this graph.
          GraphError: if the graph cannot be read or quantized.
          DataError: if a split is missing or empty, or too many of its examples cannot be read.
          MachineError: if this machine or TensorFlow build cannot run INT8 kernels.
        """
        parameters = Parameters.from_exec_properties(exec_properties)
        frozen = artifact_utils.get_single_instance(input_dict[FROZEN_GRAPH])
        given = artifact_utils.get_single_instance(input_dict[KNOWN_RANGES]) if input_dict.get(KNOWN_RANGES) else None
        known = load_calibration(given.uri) if given is not None else None
        calibration_patterns = [] if known else split_patterns(input_dict[EXAMPLES], parameters.calibration_split)
        evaluation_patterns = split_patterns(input_dict[EXAMPLES], parameters.evaluation_split)
        check_machine()
        meta = read_meta(frozen.uri)
        config = dataclasses.replace(
            parameters.config,
            inputs=parameters.config.inputs or meta.inputs,
            outputs=parameters.config.outputs or meta.outputs,
        )
        parameters = dataclasses.replace(parameters, config=config)
        with fresh_outputs(output_dict, exec_properties) as outputs:
            self._run(frozen.uri, known, calibration_patterns, evaluation_patterns, parameters, outputs)

    def _run(
        self,
        frozen_uri: str,
        known: SavedCalibration | None,
        calibration_patterns: Sequence[str],
        evaluation_patterns: Sequence[str],
        parameters: Parameters,
        outputs: dict[str, Artifact],
    ) -> None:
        config = parameters.config
        model, evaluation = outputs[QUANTIZED_MODEL], outputs[EVALUATION]
        fp32_path, int8_path = graph_path(frozen_uri), os.path.join(model.uri, QUANTIZED_GRAPH_FILE)
        work = os.path.join(evaluation.uri, _WORK_DIRECTORY)
        tf.io.gfile.makedirs(work)

        graph_def = load_graph(fp32_path)
        prepared = prepare(graph_def, config)
        if known is None:
            next(records_in_turn(calibration_patterns))  # there are any
        _try_comparison(graph_def, prepared, evaluation_patterns, parameters)
        saved = known or self._calibrate(prepared, calibration_patterns, parameters, work)
        calibration = saved.run_for(prepared, config, "what was given as calibration_ranges")
        ranges = outputs[CALIBRATION_RANGES]
        save_calibration(saved, os.path.join(ranges.uri, CALIBRATION_FILE))
        conversion = convert(prepared, calibration.statistics, config.without_label(), calibration.sample)
        save_graph(conversion.graph_def, int8_path)
        _tell(conversion.plan)
        compared = self._evaluate(prepared, fp32_path, int8_path, evaluation_patterns, parameters, work)

        sizes = {
            f"{name}_bytes": tf.io.gfile.stat(path).length for name, path in (("fp32", fp32_path), ("int8", int8_path))
        }
        facts = {**sizes, **_facts(parameters, conversion.plan, saved.source, calibration, compared)}
        result = judge(compared.counts, metric=parameters.metric, max_drop=parameters.max_drop, facts=facts)
        export_saved_model(
            conversion.graph_def,
            prepared.inputs,
            prepared.outputs,
            config.preprocess,
            path_utils.serving_model_dir(model.uri),
        )
        write_text(os.path.join(model.uri, PLAN_FILE), conversion.plan.to_json() + "\n")
        write_text(os.path.join(evaluation.uri, EVALUATION_FILE), result.to_json())
        counters = {**_counters("calibration", calibration), **_counters("evaluation", compared)}
        write_text(os.path.join(evaluation.uri, COUNTERS_FILE), json.dumps(counters, indent=2, sort_keys=True) + "\n")
        tf.io.gfile.rmtree(work)
        describe(evaluation, {**_properties(result), **counters})
        describe(model, {**{key: facts[key] for key in _MODEL_FACTS}, **_machine_facts(conversion.plan)})
        describe(ranges, _ranges_facts(saved, reused=known is not None))
        _bless(outputs[BLESSING], result, model.uri, frozen_uri)
        _logger.info("%s: %s", "blessed" if result.blessed else "not blessed", result.reason)

    def _calibrate(
        self, prepared: PreparedGraph, patterns: Sequence[str], parameters: Parameters, work: str
    ) -> SavedCalibration:
        config = parameters.config.without_label()  # calibration needs no labels
        directory, path = os.path.join(work, "prepared"), os.path.join(work, "calibration")
        save_prepared(prepared, directory)
        with self._make_beam_pipeline() as pipeline:
            examples = _examples(pipeline, patterns, parameters.num_calibration_examples)
            _ = examples | "Calibrate" >> Calibrate(directory, config) | "Save" >> WriteOne(path)
        run = checked_calibration(read_one(path), config)
        _warn_of_skipped("calibration", run.reads)
        return SavedCalibration.of(run, prepared, config, parameters.calibration_split)

    def _evaluate(
        self,
        prepared: PreparedGraph,
        fp32_path: str,
        int8_path: str,
        patterns: Sequence[str],
        parameters: Parameters,
        work: str,
    ) -> EvaluationRun:
        path = os.path.join(work, "evaluation")
        with self._make_beam_pipeline() as pipeline:
            examples = _examples(pipeline, patterns, parameters.num_evaluation_examples)
            evaluate = Evaluate(fp32_path, int8_path, prepared.inputs, prepared.outputs, parameters.config)
            _ = examples | "Evaluate" >> evaluate | "Save" >> WriteOne(path)
        run = checked_evaluation(read_one(path), parameters.config)
        _warn_of_skipped("evaluation", run.reads)
        return run


def _try_comparison(
    graph_def: graph_pb2.GraphDef, prepared: PreparedGraph, patterns: Sequence[str], parameters: Parameters
) -> None:
    """Raises before the work what would end it after hours: compares the FP32 graph with itself on a few examples.

    Raises:
      ConfigError: if the preprocessing does not fit the graph's inputs.
      DataError: if there are no examples, none of the first can be used, or the metric cannot be had from them.
      GraphError: if the graph cannot be run.
    """
    config = dataclasses.replace(parameters.config, max_bad_fraction=1.0)
    first: list[bytes] = []
    usable: list[bytes] = []
    decoder = ExampleDecoder(config, prepared.inputs)
    for record in itertools.islice(records_in_turn(patterns), _LOOKED_AT):
        if len(first) < _TRIED_EXAMPLES:
            first.append(record)
        with contextlib.suppress(DataError):
            decoder.decode(record)
            usable.append(record)
        if len(usable) == _TRIED_EXAMPLES:
            break
    try:
        run = evaluate(graph_def, graph_def, prepared.inputs, prepared.outputs, usable or first, config)
        judge(run.counts, metric=parameters.metric, max_drop=parameters.max_drop, facts={})
    except DataError as error:
        raise DataError(f"the first examples of split {parameters.evaluation_split!r}: {error}") from None


def _examples(pipeline: beam.Pipeline, patterns: Sequence[str], count: int) -> beam.PCollection[bytes]:
    return pipeline | "Read" >> ReadRecords(patterns) | "Sample" >> SampleExamples(count)


#: The facts that ML Metadata keeps about the quantized model itself, whatever the verdict on it.
_MODEL_FACTS = ("fp32_bytes", "int8_bytes", "quantized_nodes", "candidate_nodes", "slower_nodes")


def _facts(
    parameters: Parameters,
    plan: QuantizationPlan,
    calibrated_on: str,
    calibration: CalibrationRun,
    evaluation: EvaluationRun,
) -> dict[str, Any]:
    return {
        "quantized_nodes": plan.quantized,
        "candidate_nodes": plan.candidates,
        "slower_nodes": plan.slower,
        "core_version": VERSION,
        "calibration_split": calibrated_on,
        **calibration.reads.facts("calibration"),
        "evaluation_split": parameters.evaluation_split,
        **evaluation.reads.facts("evaluation"),
    }


def _tell(plan: QuantizationPlan) -> None:
    """Logs how much of the graph is in INT8, as a warning if nothing is: the model that may be pushed gains nothing."""
    level = logging.INFO if plan.quantized else logging.WARNING
    _logger.log(
        level, "%d of %d nodes in INT8; %s tells why not the others", plan.quantized, plan.candidates, PLAN_FILE
    )
    if plan.slower:
        _logger.log(level, "%d of the others stay FP32 as %s (only_faster)", plan.slower, SLOWER)


def _warn_of_skipped(stage: str, reads: ReadCounts) -> None:
    for warning in reads.warnings(stage):
        _logger.warning("%s", warning)


def _counters(stage: str, run: CalibrationRun | EvaluationRun) -> dict[str, int | float]:
    """Returns what the workers of a stage counted: the examples, and what they took."""
    return {
        **run.reads.facts(stage),
        f"{stage}_batches": run.work.batches,
        f"{stage}_inference_seconds": run.work.microseconds / 1e6,
    }


def _properties(result: EvaluationResult) -> dict[str, Any]:
    names = ("fp32", "int8", "drop", "max_drop", "agreement", "mcnemar_p", "relative_error", "divergence")
    figures = {name: float(getattr(result, name)) for name in names}
    # ML Metadata's database holds no NaN: a figure that could not be had is left out.
    known = {name: value for name, value in figures.items() if not math.isnan(value)}
    return {**result.facts, **known, "metric": result.metric, "reason": result.reason, "blessed": int(result.blessed)}


def _machine_facts(plan: QuantizationPlan) -> dict[str, Any]:
    """Returns what of the machine that converted decides about the graph, and the bits of its weights."""
    machine = describe_machine()
    bits = sorted({node.weight_bits for node in plan.nodes if node.quantized and node.weight_bits})
    return {
        "weight_bits": ",".join(map(str, bits)),
        "machine_cpu": machine["cpu"],
        "machine_features": ",".join(name for name, has in machine["cpu_features"].items() if has),
        "machine_vnni": machine["vnni_used"],
        "machine_onednn": machine["onednn"],
        "machine_tensorflow": machine["tensorflow"],
    }


def _ranges_facts(saved: SavedCalibration, reused: bool) -> dict[str, Any]:
    return {
        "source": saved.source,
        "examples": saved.run.reads.read,
        "skipped": saved.run.reads.skipped,
        "tensors": len(saved.run.statistics.tensors),
        "graph_fingerprint": saved.fingerprint,
        "calibrated_by_version": saved.core_version,
        "reused": reused,
    }


def _bless(blessing: Artifact, result: EvaluationResult, model_uri: str, frozen_uri: str) -> None:
    """Writes the verdict as TFX's Evaluator does (its ``current_model_id`` is not known before the step ends)."""
    name = constants.BLESSED_FILE_NAME if result.blessed else constants.NOT_BLESSED_FILE_NAME
    verdict = constants.BLESSED_VALUE if result.blessed else constants.NOT_BLESSED_VALUE
    write_text(os.path.join(blessing.uri, name), "")
    blessing.set_int_custom_property(constants.ARTIFACT_PROPERTY_BLESSED_KEY, verdict)
    blessing.set_string_custom_property(constants.ARTIFACT_PROPERTY_CURRENT_MODEL_URI_KEY, model_uri)
    blessing.set_string_custom_property(constants.ARTIFACT_PROPERTY_BASELINE_MODEL_URI_KEY, frozen_uri)
    blessing.set_string_custom_property(constants.ARTIFACT_PROPERTY_BLESSING_MESSAGE_KEY, result.reason)
