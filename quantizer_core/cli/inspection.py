"""The steps of ``quantizer inspect``: calibrate and convert as ``quantizer convert`` does, then compare the layers."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from quantizer_core.cli.progress import step
from quantizer_core.cli.steps import CalibrationRequest, calibrated, comparison_examples, config_of, converted
from quantizer_core.errors import ConfigError
from quantizer_core.evaluation.layers import LayerReport, compare_layers
from quantizer_core.planning.plan import QuantizationPlan


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What there is to show.

    Attributes:
      plan: what became of each candidate node.
      report: how far the tensors lie from FP32; None if only a plan was read.
    """

    plan: QuantizationPlan
    report: LayerReport | None = None


def inspect_graph(options: Mapping[str, Any], count: int, quiet: bool = False) -> Inspection:
    """Calibrates, converts and compares on at most ``count`` examples.

    Args:
      options: the fields of ``CalibrationRequest``.
      count: how many examples to compare on.
      quiet: show no progress.

    Raises:
      QuantizerError: see ``calibrated``, ``convert`` and ``compare_layers``.
    """
    request = CalibrationRequest(**options)
    request.check_data(compared=request.evaluation_data is None, callback=False)
    if request.calibration_data is None and request.evaluation_data is None:
        raise ConfigError("--calibration holds no examples to compare on: give --evaluation_data")
    ready = calibrated(request, config_of(request), quiet)
    conversion = converted(ready, quiet)
    examples = itertools.islice(comparison_examples(request, ready.config, ready.prepared.inputs), count)
    with step("Comparing", quiet, total=count) as seen:
        report = compare_layers(
            conversion.prepared, conversion.graph_def, conversion.plan, examples, ready.config, seen
        )  # fmt: skip
    return Inspection(conversion.plan, report)


def read_plan(path: str) -> QuantizationPlan:
    """Reads a plan that ``quantizer convert --plan`` wrote.

    Raises:
      ConfigError: if there is none, or it is of another format.
    """
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            return QuantizationPlan.from_json(file.read().decode())
    except tf.errors.OpError as error:
        raise ConfigError(f"--plan {path!r} cannot be read: {error.message}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--plan {path!r} is no text, so no plan") from None
