"""The steps of ``quantizer convert``, in order: check, load, prepare, calibrate, convert, evaluate, write."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from quantizer_core.calibration.run import CalibrationRun
from quantizer_core.calibration.saved import SavedCalibration, save_calibration
from quantizer_core.cli.gate import check_comparison, check_gate, evaluated, with_label
from quantizer_core.cli.progress import step
from quantizer_core.cli.steps import (
    Calibrated,
    CalibrationRequest,
    calibrated,
    check_output,
    comparison_examples,
    config_of,
    converted,
)
from quantizer_core.errors import ConfigError
from quantizer_core.evaluation.detectors import DETECTION_METRICS, detector_outputs
from quantizer_core.evaluation.judge import EvaluationResult
from quantizer_core.export import export_saved_model
from quantizer_core.graph.files import is_saved_model, save_graph
from quantizer_core.planning.plan import QuantizationPlan
from quantizer_core.quantize import Conversion
from quantizer_core.stages import save_stages_after, stage_paths
from quantizer_core.types import PreparedGraph
from quantizer_core.whole_file import write_text

#: The options that name files or directories to write.
_OUTPUTS = ("output_graph", "plan", "save_calibration", "report", "saved_model")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request(CalibrationRequest):
    """The command's options; None where one was not given."""

    output_graph: str
    metric: str = "top1"
    max_drop: float = 0.01
    plan: str | None = None
    save_calibration: str | None = None
    saved_model: str | None = None
    report: str | None = None
    overwrite: bool = False
    debug: bool = False

    @property
    def evaluates(self) -> bool:
        return self.evaluate_rest or self.evaluation_data is not None


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of it.

    Attributes:
      request: what was asked.
      plan: what became of each candidate node.
      calibration: how many examples were used and left out.
      evaluation: the verdict, or None if none was asked for.
      sizes: bytes of the FP32 and of the INT8 graph.
    """

    request: Request
    plan: QuantizationPlan
    calibration: CalibrationRun
    evaluation: EvaluationResult | None
    sizes: tuple[int, int]

    def facts(self) -> dict[str, Any]:
        """Returns everything as JSON data (NaN as None)."""
        facts: dict[str, Any] = {
            "output_graph": self.request.output_graph,
            "quantized": self.plan.quantized,
            "candidates": self.plan.candidates,
            "by_op": {op: list(counts) for op, counts in self.plan.counts().items()},
            "calibration_examples": self.calibration.reads.read,
            "skipped_examples": self.calibration.reads.skipped,
            "fp32_bytes": self.sizes[0],
            "int8_bytes": self.sizes[1],
        }
        if self.evaluation is not None:
            facts["evaluation"] = json.loads(self.evaluation.to_json())
        return facts


def run(request: Request, quiet: bool = False) -> Result:
    """Converts a graph as the command's options say.

    Everything that can be wrong with the options is found before any work, and nothing but the first stages of
    ``debug`` is written before all the work is done.

    Raises:
      ConfigError: for options that do not fit, or an output that exists.
      QuantizerError: see ``prepare``, ``calibrate``, ``convert`` and ``evaluate``.
    """
    config = config_of(request)
    if request.evaluates:
        config = with_label(config, request.metric)
    _check_request(request)
    check = None
    if request.evaluates:
        examples = comparison_examples(request, config, ())
        config = check_comparison(examples, config, request.metric, request.comparison_data)
        if request.metric in DETECTION_METRICS:
            check = _check_detector
    ready = calibrated(request, config, quiet, request.output_graph if request.debug else None, check)
    config, prepared, calibration = ready.config, ready.prepared, ready.calibration
    conversion = converted(ready, quiet)
    fp32_graph = ready.graph.graph_def
    evaluation = None
    if request.evaluates:
        examples = comparison_examples(request, config, prepared.inputs)
        evaluation = evaluated(
            (fp32_graph, conversion.graph_def, prepared.inputs, prepared.outputs),
            examples, config, request.metric, request.max_drop, quiet,
        )  # fmt: skip
    with step("Writing", quiet):
        if request.debug:
            save_stages_after(conversion, request.output_graph)
        _write(request, ready, conversion, evaluation)
    sizes = (fp32_graph.ByteSize(), conversion.graph_def.ByteSize())
    return Result(request, conversion.plan, calibration, evaluation, sizes)


def _check_detector(prepared: PreparedGraph) -> None:
    detector_outputs(prepared.outputs)


def _check_request(request: Request) -> None:
    request.check_data(compared=request.evaluate_rest)
    if request.save_calibration is not None and request.calibration is not None:
        raise ConfigError(
            "--save_calibration goes with --calibration_data or --callback: --calibration names what is saved already"
        )
    if request.report is not None and not request.evaluates:
        raise ConfigError(f"--report needs --evaluation_data or {request.option('evaluate_rest')}")
    check_gate(request.metric, request.max_drop)
    outputs = {request.option(name): getattr(request, name) for name in _OUTPUTS}
    stages = {}
    if request.debug:
        graph = request.option("output_graph")
        stages = {f"{graph} (its {stage})": path for stage, path in stage_paths(request.output_graph).items()}
    seen: dict[str, str] = {_place(request.input_graph): request.option("input_graph")}
    if request.calibration is not None:
        seen.setdefault(_place(request.calibration), "--calibration")
    for option, path in (outputs | stages).items():
        if path is None:
            continue
        other = seen.setdefault(_place(path), option)
        if other != option:
            raise ConfigError(f"{option} and {other} are the same path {path!r}")
        # Stages are replaced: a run that failed leaves the first of them.
        check_output(option, path, request.overwrite or option in stages, directory=path == request.saved_model)
    old = request.saved_model
    if old is not None and tf.io.gfile.exists(old) and not is_saved_model(old):
        raise ConfigError(
            f"{request.option('saved_model')}: {old!r} exists and is no SavedModel, so it is not replaced; remove it "
            "or name another directory"
        )


def _place(path: str) -> str:
    """Returns where a path leads, links followed if it is local."""
    scheme, remote, rest = path.rpartition("://")
    return f"{scheme}{remote}{os.path.normpath(rest)}" if remote else os.path.realpath(path)


def _write(request: Request, ready: Calibrated, conversion: Conversion, evaluation: EvaluationResult | None) -> None:
    """Writes all outputs, or none: if one fails, those that were not there before are removed again."""
    config, prepared = ready.config, ready.prepared
    graph_def, inputs, outputs = conversion.graph_def, prepared.inputs, prepared.outputs
    source = request.calibration_data or request.callback or ""
    writers: list[tuple[str | None, Callable[[str], None]]] = [
        (
            request.saved_model,
            lambda path: export_saved_model(graph_def, inputs, outputs, config.preprocess, path, request.overwrite),
        ),
        (request.plan, lambda path: write_text(path, conversion.plan.to_json() + "\n")),
        (
            request.save_calibration,
            lambda path: save_calibration(
                SavedCalibration.of(ready.calibration, prepared, ready.sample_config, source), path, request.overwrite
            ),
        ),
        (request.report, lambda path: write_text(path, evaluation.to_json() if evaluation else "")),
        (request.output_graph, lambda path: save_graph(graph_def, path, request.overwrite)),
    ]
    with contextlib.ExitStack() as undo:
        for path, write in writers:
            if path is None:
                continue
            if not tf.io.gfile.exists(path):
                undo.callback(_remove, path)
            write(path)
        undo.pop_all()


def _remove(path: str) -> None:
    if tf.io.gfile.isdir(path):
        tf.io.gfile.rmtree(path)
    elif tf.io.gfile.exists(path):
        tf.io.gfile.remove(path)
