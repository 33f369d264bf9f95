"""The gate of the commands that compare FP32 with INT8: its options, and the way from examples to a verdict."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

from tensorflow.core.framework import graph_pb2

from quantizer_core.cli.options import LABEL_KEY
from quantizer_core.cli.progress import step, warn_of_skipped
from quantizer_core.config import QuantizationConfig
from quantizer_core.errors import ConfigError, DataError, nearest
from quantizer_core.evaluation.detection import need_pycocotools
from quantizer_core.evaluation.detectors import (
    DETECTION_METRICS,
    OBJECTS_KEY,
    DetectionRun,
    evaluate_detectors,
    judge_detectors,
)
from quantizer_core.evaluation.judge import METRICS, EvaluationResult, judge
from quantizer_core.evaluation.run import EvaluationRun, evaluate
from quantizer_core.preprocessing.diagnosis import parsed_example
from quantizer_core.types import TensorSpec

_LABELLED = ("top1", "top5")
#: How many examples are looked at for a label before all the work.
_LOOKED_AT = 16


def check_gate(metric: str, max_drop: float) -> None:
    """Raises ConfigError if the metric is not known (the nearest is named), or the drop is no share."""
    if metric not in (known := (*METRICS, *DETECTION_METRICS)):
        raise ConfigError(f"--metric is {metric!r}{nearest(metric, known)}; choose one of {', '.join(known)}")
    if not 0 <= max_drop <= 1:
        raise ConfigError(f"--max_drop must lie in [0, 1] (0.01 is one point), not {max_drop}")


def with_label(config: QuantizationConfig, metric: str) -> QuantizationConfig:
    """Returns the choices with the usual feature for the class, if the metric needs it and none was named."""
    if metric not in _LABELLED or config.preprocess.label_key:
        return config
    return dataclasses.replace(config, preprocess=dataclasses.replace(config.preprocess, label_key=LABEL_KEY))


def check_comparison(
    examples: Iterator[bytes], config: QuantizationConfig, metric: str, path: str
) -> QuantizationConfig:
    """Raises what of a comparison can be known to fail before any work on it.

    Args:
      examples: those to compare on; only the first are read.
      config: the choices, with the label's feature.
      metric: of the gate.
      path: where the examples are, for the message.

    Returns:
      The choices to compare by: without the label where the metric needs none and the first examples have none.

    Raises:
      DataError: if there are no examples, or none of the first has the label or the objects that the metric needs.
      ConfigError: if the metric needs a package that is not installed.
    """
    if metric == "coco_map":
        need_pycocotools()
    first = list(itertools.islice(examples, _LOOKED_AT))
    if not first:
        raise DataError(f"there are no examples for evaluation in {path!r} behind those left out or calibrated with")
    key = OBJECTS_KEY if metric == "coco_map" else config.preprocess.label_key
    if any(_holds(record, key) for record in first):
        return config
    if metric == "coco_map":
        raise DataError(
            f"the first {len(first)} examples in {path!r} have no objects (feature {key!r}), which --metric coco_map "
            "needs: choose --metric boxes, which compares the boxes of the two graphs"
        )
    if metric not in _LABELLED:
        return config.without_label()
    raise DataError(
        f"the first {len(first)} examples in {path!r} have no label feature {key!r}, which --metric {metric} needs: "
        "give --labels FILE.csv for a folder, or the feature's name by --label_key, or choose --metric agreement"
    )


def _holds(record: bytes, feature: str) -> bool:
    with contextlib.suppress(DataError):
        return feature in parsed_example(record).features.feature
    return False


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
        run: DetectionRun | EvaluationRun
        if metric in DETECTION_METRICS:
            run = evaluate_detectors(*graphs, examples, config, labelled=metric == "coco_map", on_example=seen)
        else:
            run = evaluate(*graphs, examples, config, seen)
    warn_of_skipped("evaluation", run.reads, quiet)
    facts = run.reads.facts("evaluation")
    if isinstance(run, DetectionRun):
        return judge_detectors(run, metric=metric, max_drop=max_drop, facts=facts)
    return judge(run.counts, metric=metric, max_drop=max_drop, facts=facts)
