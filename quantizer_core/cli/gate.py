"""The gate of the commands that compare FP32 with INT8: its options, and the way from examples to a verdict."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from tensorflow.core.framework import graph_pb2

from quantizer_core.cli.options import LABEL_KEY
from quantizer_core.cli.progress import step
from quantizer_core.config import QuantizationConfig
from quantizer_core.errors import ConfigError, nearest
from quantizer_core.evaluation.detectors import DETECTION_METRICS, evaluate_detectors, judge_detectors
from quantizer_core.evaluation.judge import METRICS, EvaluationResult, judge
from quantizer_core.evaluation.run import evaluate
from quantizer_core.types import TensorSpec


def check_gate(metric: str, max_drop: float) -> None:
    """Raises ConfigError if the metric is not known (the nearest is named), or the drop is no share."""
    if metric not in (known := (*METRICS, *DETECTION_METRICS)):
        raise ConfigError(f"--metric is {metric!r}{nearest(metric, known)}; choose one of {', '.join(known)}")
    if not 0 <= max_drop <= 1:
        raise ConfigError(f"--max_drop must lie in [0, 1] (0.01 is one point), not {max_drop}")


def with_label(config: QuantizationConfig, metric: str) -> QuantizationConfig:
    """Returns the choices with the usual feature for the class, if the metric needs it and none was named."""
    if metric not in ("top1", "top5") or config.preprocess.label_key:
        return config
    return dataclasses.replace(config, preprocess=dataclasses.replace(config.preprocess, label_key=LABEL_KEY))


def evaluated(
    graphs: tuple[graph_pb2.GraphDef, graph_pb2.GraphDef, Sequence[TensorSpec], Sequence[str]],
    examples: Iterable[bytes],
    config: QuantizationConfig,
    metric: str,
    max_drop: float,
    quiet: bool,
) -> EvaluationResult:
    """Compares two graphs on examples, showing how it gets on, and judges the INT8 one.

    Args:
      graphs: FP32, INT8, and the inputs and outputs of both.
      examples: serialized ``tf.Example``s.
      config: preprocessing and batch size.
      metric, max_drop: of the gate.
      quiet: show no progress.

    Raises:
      QuantizerError: see ``evaluate``, ``evaluate_detectors`` and ``judge``.
    """
    with step("Evaluating", quiet) as seen:
        if metric in DETECTION_METRICS:
            found = evaluate_detectors(*graphs, examples, config, labelled=metric == "coco_map", on_example=seen)
            return judge_detectors(found, metric=metric, max_drop=max_drop)
        return judge(evaluate(*graphs, examples, config, seen).counts, metric=metric, max_drop=max_drop)
