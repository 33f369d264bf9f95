"""What commands that calibrate have in common: their options as data, and the steps up to the statistics."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

import click
import tensorflow as tf

from quantizer_core.calibration.callback import calibrate_by_callback, sampled_config
from quantizer_core.calibration.command import command_words
from quantizer_core.calibration.run import CalibrationRun, calibrate
from quantizer_core.calibration.saved import load_calibration
from quantizer_core.cli.load import LoadedGraph, load
from quantizer_core.cli.options import IMAGE_KEY, LABEL_KEY, preprocess_config
from quantizer_core.cli.progress import step, warn_of_skipped
from quantizer_core.config import QuantizationConfig
from quantizer_core.data import read_examples
from quantizer_core.errors import ConfigError
from quantizer_core.prepare import prepare
from quantizer_core.quantize import Conversion, convert
from quantizer_core.runtime import check_machine
from quantizer_core.stages import INSTRUMENTED, save_stages_before, stage_paths
from quantizer_core.types import PreparedGraph, TensorSpec

#: Option of the commands → field of QuantizationConfig.
_CONFIG_FIELDS = {
    "excluded_ops": "excluded_ops",
    "excluded_nodes": "excluded_nodes",
    "per_channel": "per_channel",
    "method": "calibration_method",
    "percentile": "percentile",
    "reduce_range": "reduce_range",
    "weight_clipping": "weight_clipping",
    "equalization": "equalization",
    "fine_inputs": "fine_inputs",
    "mixed_precision": "mixed_precision",
    "only_faster": "only_faster",
    "serving_batch_size": "serving_batch_size",
    "bias_correction": "bias_correction",
    "rounding": "rounding",
    "refine_examples": "refine_examples",
    "batch_size": "batch_size",
    "max_batch_bytes": "max_batch_bytes",
    "max_bad_fraction": "max_bad_fraction",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationRequest:
    """The options that say what to calibrate, with what, and what to compare on; None where one was not given.

    ``option_names`` holds those that a command calls otherwise: name here → name there.
    """

    input_graph: str
    calibration_data: str | None = None
    calibration: str | None = None
    callback: str | None = None
    callback_timeout: float | None = None
    inputs: tuple[str, ...] | None = None
    outputs: tuple[str, ...] | None = None
    signature: str | None = None
    num_calibration_examples: int | None = None
    evaluation_data: str | None = None
    evaluate_rest: bool = False
    preprocess: str | None = None
    image_size: tuple[int, ...] | None = None
    resize: str | None = None
    bgr: bool | None = None
    label_offset: int | None = None
    labels: str | None = None
    classes: tuple[str, ...] | None = None
    image_key: str | None = None
    label_key: str | None = None
    excluded_ops: tuple[str, ...] | None = None
    excluded_nodes: tuple[str, ...] | None = None
    per_channel: bool | None = None
    method: str | None = None
    percentile: float | None = None
    reduce_range: str | None = None
    weight_clipping: str | None = None
    equalization: bool | None = None
    fine_inputs: bool | None = None
    mixed_precision: bool | None = None
    only_faster: bool | None = None
    serving_batch_size: int | None = None
    bias_correction: bool | None = None
    rounding: str | None = None
    refine_examples: int | None = None
    batch_size: int | None = None
    max_batch_bytes: int | None = None
    max_bad_fraction: float | None = None
    config: str | None = None
    base: QuantizationConfig = QuantizationConfig()
    option_names: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def option(self, name: str) -> str:
        """Returns how the command spells an option of this name, for messages."""
        return f"--{self.option_names.get(name, name)}"

    @property
    def comparison_data(self) -> str:
        """Where the examples to compare on are."""
        return self.evaluation_data or self.calibration_data or ""

    def check_data(self, compared: bool, callback: bool = True) -> None:
        """Raises ConfigError if the options on what to calibrate and compare on contradict each other.

        Args:
          compared: whether the examples of ``calibration_data`` are compared on, and not only calibrated with.
          callback: whether the command has the option ``callback``.
        """
        if self.evaluate_rest and self.evaluation_data is not None:
            raise ConfigError(f"give --evaluation_data or {self.option('evaluate_rest')}, not both")
        if self.evaluate_rest and self.num_calibration_examples is None:
            raise ConfigError("--evaluate_rest needs --num_calibration_examples: the rest are the examples behind them")
        if self.calibration is None and self.calibration_data is None and self.callback is None:
            words = ", or --callback with a command" if callback else ""
            raise ConfigError(f"give --calibration_data, or --calibration with what an earlier run saw{words}")
        if self.callback is None and self.callback_timeout is not None:
            raise ConfigError("--callback_timeout goes with --callback")
        if self.callback is not None:
            for option in ("calibration", "calibration_data"):
                if getattr(self, option) is not None:
                    raise ConfigError(f"give --callback or --{option}, not both: the command brings its own examples")
            command_words(self.callback, self.input_graph)
        if self.calibration is not None and self.calibration_data is not None and not compared:
            raise ConfigError("give --calibration_data or --calibration, not both: the second takes the first's place")
        if self.calibration_data is None:
            for name in ("evaluate_rest", "num_calibration_examples"):
                if getattr(self, name):
                    raise ConfigError(f"{self.option(name)} needs {self.option('calibration_data')}")


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """A graph ready to convert.

    Attributes:
      graph: as it was loaded.
      config: every choice.
      prepared: the graph as it was calibrated.
      calibration: what that saw.
      sample_config: the choices with the preprocessing of the sample that calibration kept.
    """

    graph: LoadedGraph
    config: QuantizationConfig
    prepared: PreparedGraph
    calibration: CalibrationRun
    sample_config: QuantizationConfig


def check_output(option: str, path: str, overwrite: bool, directory: bool = False) -> None:
    """Raises ConfigError if an option's file (or ``directory``) cannot be written, or may not be replaced."""
    if path.endswith("/") and not directory:
        raise ConfigError(f"{option}: {path!r} names a directory; give the name of a file")
    parent = os.path.dirname(path.rstrip("/"))
    # Object stores have no directories.
    if parent and "://" not in parent and not tf.io.gfile.isdir(parent):
        raise ConfigError(f"{option}: directory {parent!r} does not exist; create it first")
    if tf.io.gfile.exists(path) and not overwrite:
        raise ConfigError(f"{option}: {path!r} exists already; remove it or give --overwrite")
    if tf.io.gfile.exists(path) and tf.io.gfile.isdir(path) != directory:
        raise ConfigError(f"{option}: {path!r} is {'a file' if directory else 'a directory'}")


def config_of(request: CalibrationRequest) -> QuantizationConfig:
    """Returns the config file's choices, or ``base`` without one, with the options over them.

    Raises:
      ConfigError: if the file cannot be read, or a value does not fit.
    """
    config = request.base
    if request.config is not None:
        try:
            with tf.io.gfile.GFile(request.config) as file:
                config = QuantizationConfig.from_json(file.read())
        except tf.errors.OpError as error:
            raise ConfigError(f"--config {request.config!r} cannot be read: {error.message}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"--config {request.config!r} is no text, so no QuantizationConfig") from None
    preprocess = preprocess_config(
        config.preprocess,
        request.preprocess,
        **{name: getattr(request, name) for name in ("image_size", "resize", "bgr", "label_offset", "label_key")},
        image_key=request.image_key,
    )
    given = {field: getattr(request, option) for option, field in _CONFIG_FIELDS.items()}
    changes = {field: value for field, value in given.items() if value is not None}
    return dataclasses.replace(config, preprocess=preprocess, **changes)


def calibrated(
    request: CalibrationRequest,
    config: QuantizationConfig,
    quiet: bool = False,
    stages_beside: str | None = None,
    check: Callable[[PreparedGraph], object] | None = None,
) -> Calibrated:
    """Checks the machine, loads and prepares the graph, and calibrates it or takes a saved calibration.

    Args:
      request, config: the options.
      quiet: show no progress.
      stages_beside: path of the INT8 graph to keep the intermediate graphs beside; None keeps none.
      check: called with the prepared graph, to raise what it finds wrong with it before the calibration.

    Raises:
      QuantizerError: see ``check_machine``, ``load``, ``prepare``, ``calibrate``, ``calibrate_by_callback`` and
        ``SavedCalibration.run_for``.
    """
    check_machine()
    known = load_calibration(request.calibration) if request.calibration is not None else None
    with step("Loading and preparing", quiet):
        graph = load(request.input_graph, request.signature)
        config = named(request, config, graph)
        prepared = prepare(graph.graph_def, config)
    if check is not None:
        check(prepared)
    if stages_beside is not None:
        save_stages_before(prepared, stages_beside, config.refine_examples > 0)
    unlabelled = config.without_label()
    if known is not None:
        run = known.run_for(prepared, config, f"--calibration {request.calibration!r}")
        return Calibrated(graph, config, prepared, run, unlabelled)
    if request.callback is not None:
        with step("Calibrating", quiet) as seen:
            run = calibrate_by_callback(
                prepared,
                request.callback,
                config,
                timeout=request.callback_timeout,
                on_example=seen,
                on_line=None if quiet else lambda line: click.echo(f"  {line}", err=True),
                graph_path=stage_paths(stages_beside)[INSTRUMENTED] if stages_beside is not None else None,
            )
        return Calibrated(graph, config, prepared, run, sampled_config(config))
    # Labels are of what is compared on; calibration does without.
    labelled = request.evaluation_data is None
    found = examples_of(request, request.calibration_data or "", config, prepared.inputs, labelled)
    examples = itertools.islice(found, request.num_calibration_examples)
    with step("Calibrating", quiet, total=request.num_calibration_examples) as seen:
        calibration = calibrate(prepared, examples, unlabelled, seen)
    warn_of_skipped("calibration", calibration.reads, quiet)
    return Calibrated(graph, config, prepared, calibration, unlabelled)


def named(request: CalibrationRequest, config: QuantizationConfig, graph: LoadedGraph) -> QuantizationConfig:
    """Returns the choices with the inputs and outputs that the options, the config file or a signature name."""
    return dataclasses.replace(
        config,
        inputs=graph.input_names(request.inputs or config.inputs),
        outputs=graph.output_names(request.outputs or config.outputs),
    )


def converted(ready: Calibrated, quiet: bool = False) -> Conversion:
    """Converts what was calibrated."""
    calibration = ready.calibration
    with step("Converting", quiet, unit="kernels") as seen:
        return convert(ready.prepared, calibration.statistics, ready.sample_config, calibration.sample, seen)


def examples_of(
    request: CalibrationRequest,
    path: str,
    config: QuantizationConfig,
    inputs: Sequence[TensorSpec],
    labelled: bool = True,
) -> Iterator[bytes]:
    """Returns the serialized examples at a path, as the options say; their labels matter if ``labelled``."""
    image_key = config.preprocess.image_key
    if config.preprocess.kind == "tensors" and len(inputs) == 1 and request.image_key is None:
        # A folder of WAV files for a graph that takes the file's bytes: the input's own feature gets them.
        name = inputs[0].name
        image_key = config.preprocess.features.get(name, name)
    return read_examples(
        path,
        labels=request.labels if labelled else None,
        classes=request.classes if labelled else None,
        label_key=config.preprocess.label_key or LABEL_KEY,
        image_key=image_key or IMAGE_KEY,
    )


def comparison_examples(
    request: CalibrationRequest, config: QuantizationConfig, inputs: Sequence[TensorSpec]
) -> Iterator[bytes]:
    """Returns the examples to compare FP32 and INT8 on: those given, the rest, or the calibration data."""
    examples = examples_of(request, request.comparison_data, config, inputs)
    return itertools.islice(examples, request.num_calibration_examples, None) if request.evaluate_rest else examples
