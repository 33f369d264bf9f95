"""The Quantizer's contract: a frozen graph and examples in; INT8 model, evaluation, blessing and ranges out."""

from __future__ import annotations

from tfx.dsl.components.base import base_beam_component, executor_spec
from tfx.orchestration import data_types
from tfx.types import BaseChannel, Channel, standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.artifacts import CalibrationRanges, FrozenGraph, QuantizationEvaluation
from components.fingerprint import fingerprint
from components.quantizer import executor
from components.quantizer.parameters import Parameters
from quantizer_core.config import QuantizationConfig
from quantizer_core.errors import ConfigError
from quantizer_core.version import VERSION


class QuantizerSpec(ComponentSpec):
    """Inputs, outputs and parameters of the Quantizer: one JSON string and plain scalars, as every runner takes."""

    PARAMETERS = {
        "quantization_config": ExecutionParameter(type=str),
        "calibration_split": ExecutionParameter(type=str),
        "evaluation_split": ExecutionParameter(type=str),
        "num_calibration_examples": ExecutionParameter(type=int),
        "num_evaluation_examples": ExecutionParameter(type=int),
        "metric": ExecutionParameter(type=str),
        "max_drop": ExecutionParameter(type=float),
        "module_fingerprint": ExecutionParameter(type=str),
        "core_version": ExecutionParameter(type=str),
    }
    INPUTS = {
        executor.FROZEN_GRAPH: ChannelParameter(type=FrozenGraph),
        executor.EXAMPLES: ChannelParameter(type=standard_artifacts.Examples),
        # The argument's own name is the output's.
        executor.KNOWN_RANGES: ChannelParameter(type=CalibrationRanges, optional=True),
    }
    OUTPUTS = {
        executor.QUANTIZED_MODEL: ChannelParameter(type=standard_artifacts.Model),
        executor.EVALUATION: ChannelParameter(type=QuantizationEvaluation),
        executor.BLESSING: ChannelParameter(type=standard_artifacts.ModelBlessing),
        executor.CALIBRATION_RANGES: ChannelParameter(type=CalibrationRanges),
    }


class Quantizer(base_beam_component.BaseBeamComponent):
    """Calibrates a frozen FP32 graph, converts it to INT8, compares the two on data and blesses the INT8 model or not.

    Component ``outputs`` contains:
      - ``quantized_model``: a ``Model``. ``Format-Serving`` is a SavedModel with a signature on tensors and one on
        serialized examples; ``quantized_graph.pb`` and ``plan.json`` lie beside it.
      - ``evaluation``: a ``QuantizationEvaluation``.
      - ``blessing``: a ``ModelBlessing``, for ``Pusher(model_blessing=…)``.
      - ``calibration_ranges``: a ``CalibrationRanges``, what calibration saw, for ``Quantizer(calibration_ranges=…)``.
    """

    SPEC_CLASS = QuantizerSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(executor.Executor)

    def __init__(
        self,
        frozen_graph: BaseChannel,
        examples: BaseChannel,
        calibration_ranges: BaseChannel | None = None,
        quantization_config: QuantizationConfig | str = "",
        calibration_split: str = "train",
        evaluation_split: str = "eval",
        num_calibration_examples: int = 0,
        num_evaluation_examples: int = 0,
        metric: str = "top1",
        max_drop: float = 0.01,
        module_fingerprint: str | None = None,
        core_version: str = VERSION,
    ):
        """Makes a Quantizer.

        Args:
          frozen_graph: a channel of type ``FrozenGraph``, from a Freezer or a GraphImporter.
          examples: a channel of type ``Examples`` with ``tf.Example`` payload.
          calibration_ranges: a channel of type ``CalibrationRanges`` with what an earlier Quantizer saw of the same
            graph under the same preprocessing. It is taken in place of a pass over ``calibration_split``, so that
            another method, exclusion or rounding costs no calibration.
          quantization_config: every choice of the conversion, as it is or as its JSON. Inputs and outputs that it
            leaves open are those of the frozen graph.
          calibration_split: the split whose examples give the ranges (not read with ``calibration_ranges``).
          evaluation_split: the split on which the two graphs are compared.
          num_calibration_examples: how many examples to calibrate on; 0: all.
          num_evaluation_examples: how many examples to evaluate on; 0: all.
          metric: ``top1`` or ``top5`` on labelled examples; ``agreement`` or ``similarity``, which need no labels (see
            ``quantizer_core.evaluation.judge``).
          max_drop: the largest loss of the metric, absolute, that is blessed (0.01 is one point).
          module_fingerprint: part of the cache key where the preprocessing is a module: None takes the file's SHA-256
            now. Give one where the file cannot be read when the pipeline is compiled.
          core_version: part of the cache key, so that a new version of the product is not served old results.

        Raises:
          ConfigError: if a parameter is outside its domain, or known only when the pipeline runs but wanted here.
        """
        named = {"quantization_config": quantization_config, "metric": metric, "max_drop": max_drop}
        for name, value in named.items():
            if isinstance(value, data_types.RuntimeParameter):
                raise ConfigError(
                    f"{name} is a RuntimeParameter; it is checked when the pipeline is made, so give the value itself"
                )
        if isinstance(quantization_config, str):
            quantization_config = QuantizationConfig.from_json(quantization_config)
        module_file = quantization_config.preprocess.module_file
        if module_fingerprint is None:
            module_fingerprint = fingerprint(module_file) if module_file else ""
        given = {
            "quantization_config": quantization_config.to_json(),
            "calibration_split": calibration_split,
            "evaluation_split": evaluation_split,
            "num_calibration_examples": num_calibration_examples,
            "num_evaluation_examples": num_evaluation_examples,
            "metric": metric,
            "max_drop": max_drop,
            "module_fingerprint": module_fingerprint,
            "core_version": core_version,
        }
        # Complains when the pipeline is written, not hours into its run.
        checked = Parameters.from_exec_properties(given)
        numbers = ("num_calibration_examples", "num_evaluation_examples", "max_drop")
        parameters = {**given, **{name: getattr(checked, name) for name in numbers}}
        super().__init__(
            spec=QuantizerSpec(
                frozen_graph=frozen_graph,
                examples=examples,
                known_ranges=calibration_ranges,
                quantized_model=Channel(type=standard_artifacts.Model),
                evaluation=Channel(type=QuantizationEvaluation),
                blessing=Channel(type=standard_artifacts.ModelBlessing),
                calibration_ranges=Channel(type=CalibrationRanges),
                **parameters,
            )
        )
