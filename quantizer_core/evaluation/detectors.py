"""Evaluation of object detectors: COCO's average precision of both graphs, and how many of FP32's boxes INT8 finds.

The graphs follow the convention of the TensorFlow Object Detection API: outputs ``detection_boxes`` [N, M, 4] (top,
left, bottom, right as shares of the image), ``detection_scores`` and ``detection_classes`` [N, M] and
``num_detections`` [N]. The objects that are there come from the features of its TFRecords, ``image/object/bbox/ymin``,
``xmin``, ``ymax``, ``xmax`` and ``image/object/class/label``, ``image/object/is_crowd`` if it is there.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from tensorflow.core.framework import graph_pb2

from quantizer_core.config import QuantizationConfig
from quantizer_core.errors import ConfigError, DataError, GraphError
from quantizer_core.evaluation.detection import DetectionMetrics, ObjectBoxes, average_precision, need_pycocotools
from quantizer_core.evaluation.judge import EvaluationResult, decide
from quantizer_core.graph.graph import node_of
from quantizer_core.preprocessing.decoder import ExampleDecoder
from quantizer_core.preprocessing.diagnosis import parsed_example
from quantizer_core.reads import BatchReader, ReadCounts, read_all
from quantizer_core.runtime import GraphSession, stack_batch
from quantizer_core.types import TensorSpec

#: ``coco_map`` is the mean average precision on labelled images; ``boxes`` the share of FP32's boxes that INT8 finds.
DETECTION_METRICS = ("coco_map", "boxes")
OUTPUTS = ("detection_boxes", "detection_scores", "num_detections", "detection_classes")
#: FP32's boxes of this score count; INT8 finds one by a box of its class that overlaps by ``IOU`` and has ``FOUND``.
SCORE, FOUND, IOU = 0.3, 0.2, 0.5

_BOX_KEYS = tuple(f"image/object/bbox/{side}" for side in ("ymin", "xmin", "ymax", "xmax"))
#: A feature that every example with objects has.
OBJECTS_KEY = _BOX_KEYS[0]
_CLASS_KEY, _CROWD_KEY = "image/object/class/label", "image/object/is_crowd"


@dataclasses.dataclass(frozen=True)
class DetectionRun:
    """What two detectors made of the same images.

    Attributes:
      images: how many there were.
      boxes: FP32's boxes with a score of ``SCORE`` at least.
      matched: of these, the boxes that INT8 found.
      nonfinite: images for which INT8 gave NaN or infinity where FP32 did not.
      fp32, int8: average precision; None where the images carry no objects.
      reads: how many examples were used, and how many not and why.
    """

    images: int
    boxes: int
    matched: int
    nonfinite: int
    fp32: DetectionMetrics | None
    int8: DetectionMetrics | None
    reads: ReadCounts


@dataclasses.dataclass(frozen=True)
class _Labelled:
    """A decoded example with its objects."""

    feeds: dict[str, np.ndarray]
    label: int | None
    truth: tuple[np.ndarray, np.ndarray, np.ndarray] | None


class _Decoder:
    def __init__(self, config: QuantizationConfig, inputs: Sequence[TensorSpec], labelled: bool):
        unlabelled = config.without_label()
        self._decoder, self._labelled = ExampleDecoder(unlabelled, inputs), labelled

    def decode(self, serialized: bytes) -> _Labelled:
        truth = objects_of(serialized) if self._labelled else None
        return _Labelled(self._decoder.decode(serialized).feeds, None, truth)


def objects_of(serialized: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the objects of an example: boxes float32 [objects, 4], classes int64 [objects], crowd bool [objects].

    Raises:
      DataError: if the features are missing or do not fit each other.
    """
    features = parsed_example(serialized).features.feature
    missing = [key for key in (*_BOX_KEYS, _CLASS_KEY) if key not in features]
    if missing:
        raise DataError(f"the example has no feature {missing[0]!r}: coco_map needs objects", reason="missing_feature")
    sides = [np.array(features[key].float_list.value, np.float32) for key in _BOX_KEYS]
    classes = np.array(features[_CLASS_KEY].int64_list.value, np.int64)
    crowd = np.array(features[_CROWD_KEY].int64_list.value, bool) if _CROWD_KEY in features else np.zeros(0, bool)
    crowd = crowd if len(crowd) else np.zeros(len(classes), bool)
    if {len(side) for side in sides} != {len(classes)} or len(crowd) != len(classes):
        raise DataError("the example's boxes, classes and crowd flags differ in number", reason="bad_label")
    return np.stack(sides, 1), classes, crowd


def evaluate_detectors(
    fp32_graph: graph_pb2.GraphDef,
    int8_graph: graph_pb2.GraphDef,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[str],
    examples: Iterable[bytes],
    config: QuantizationConfig,
    *,
    labelled: bool = True,
    on_example: Callable[[int], None] | None = None,
) -> DetectionRun:
    """Runs both detectors on one image after the other.

    What both find is kept until the end, at most ``M`` boxes an image: average precision ranks them over all images.

    Args:
      fp32_graph, int8_graph: the graphs.
      inputs, outputs: the inputs and names of the outputs of both.
      examples: serialized ``tf.Example``s; read once, not kept.
      config: preprocessing and the share of bad records to accept.
      labelled: whether the examples hold objects, and average precision is wanted.
      on_example: called with the number of records read so far.

    Raises:
      ConfigError: if pycocotools is not installed, or the preprocessing does not fit the graph.
      DataError: if there are no examples, or too many cannot be used.
      GraphError: if the outputs are not a detector's, or a graph cannot be run.
    """
    if labelled:
        need_pycocotools()
    order = detector_outputs(outputs)
    found: tuple[list[ObjectBoxes], list[ObjectBoxes]] = ([], [])
    truth: list[ObjectBoxes] = []
    counts = {"images": 0, "boxes": 0, "matched": 0, "nonfinite": 0}
    sessions = [GraphSession(graph, inputs, order) for graph in (fp32_graph, int8_graph)]

    def consume(batch: Sequence[Any]) -> None:
        for example in batch:
            feeds = stack_batch([example.feeds], inputs, 1)
            image = counts["images"]
            one, other = (_boxes(image, session.run(feeds)) for session in sessions)
            boxes, matched = match(one, other)
            counts["images"] += 1
            counts["boxes"] += boxes
            counts["matched"] += matched
            counts["nonfinite"] += _finite(one) and not _finite(other)
            if example.truth is not None:
                truth.append(ObjectBoxes(image, example.truth[0], example.truth[1], crowd=example.truth[2]))
                found[0].append(one)
                found[1].append(other)

    try:
        reader = BatchReader(_Decoder(config, inputs, labelled), consume, 1)
        reads = read_all(reader, examples, on_example)
    finally:
        for session in sessions:
            session.close()
    reads.check(config.max_bad_fraction, "evaluation", reader.work.records)
    metrics = [average_precision(truth, boxes) for boxes in found] if labelled else [None, None]
    return DetectionRun(**counts, fp32=metrics[0], int8=metrics[1], reads=reads)


def match(fp32: ObjectBoxes, int8: ObjectBoxes) -> tuple[int, int]:
    """Returns how many boxes FP32 finds in an image, and how many of them INT8 finds too.

    FP32's boxes choose in the order of their scores, each the box of its class that overlaps most and is not taken.
    """
    assert fp32.scores is not None and int8.scores is not None
    wanted = [index for index in np.argsort(-fp32.scores, kind="stable") if fp32.scores[index] >= SCORE]
    free = set(np.flatnonzero(int8.scores >= FOUND).tolist())
    matched = 0
    for index in wanted:
        same = [other for other in sorted(free) if int8.classes[other] == fp32.classes[index]]
        overlaps = [iou(fp32.boxes[index], int8.boxes[other]) for other in same]
        if overlaps and max(overlaps) >= IOU:
            free.discard(same[int(np.argmax(overlaps))])
            matched += 1
    return len(wanted), matched


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the intersection of two boxes over their union."""
    top, left = np.maximum(one[:2], other[:2])
    bottom, right = np.minimum(one[2:], other[2:])
    shared = max(bottom - top, 0.0) * max(right - left, 0.0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return float(shared / (areas - shared)) if areas > shared else 0.0


def judge_detectors(
    run: DetectionRun, *, metric: str, max_drop: float = 0.01, facts: Mapping[str, Any] | None = None
) -> EvaluationResult:
    """Decides whether an INT8 detector is good enough: as ``judge``, by a metric of ``DETECTION_METRICS``.

    Raises:
      ConfigError: for another metric.
      DataError: if FP32 finds no box to compare by ``boxes``.
    """
    share = run.matched / run.boxes if run.boxes else math.nan
    if metric == "coco_map" and run.fp32 is not None and run.int8 is not None:
        fp32, int8 = run.fp32.mean_ap, run.int8.mean_ap
    elif metric == "boxes":
        if not run.boxes:
            raise DataError(f"FP32 finds no box of score {SCORE:g} in {run.images} images: nothing can be compared")
        fp32, int8 = 1.0, share
    else:
        raise ConfigError(f"metric is {metric!r}; choose one of {', '.join(DETECTION_METRICS)}")
    doubt = ""
    if fp32 <= 0:
        doubt = " FP32 itself finds nothing right: check the numbers of the classes, the boxes and the preprocessing."
    more: dict[str, float] = {"boxes": run.boxes, "matched": run.matched}
    if run.fp32 is not None and run.int8 is not None:
        more |= {"ap50_fp32": run.fp32.ap50, "ap50_int8": run.int8.ap50}
    return decide(
        metric,
        fp32,
        int8,
        max_drop,
        examples=run.images,
        nonfinite=run.nonfinite,
        agreement=share,
        doubt=doubt,
        facts={**more, **(facts or {})},
    )


def detector_outputs(outputs: Sequence[str]) -> list[str]:
    """Returns the four outputs in the order of ``OUTPUTS``, found by the last part of their names.

    Raises:
      GraphError: if one of them is missing.
    """
    by_name = {node_of(name).rpartition("/")[2]: name for name in outputs}
    missing = [name for name in OUTPUTS if name not in by_name]
    if missing:
        raise GraphError(
            f"the graph has no output {missing[0]!r}: the metrics {' and '.join(DETECTION_METRICS)} need the outputs "
            f"{', '.join(OUTPUTS)}"
        )
    return [by_name[name] for name in OUTPUTS]


def _boxes(image: int, outputs: Sequence[np.ndarray]) -> ObjectBoxes:
    boxes, scores, number, classes = (np.asarray(output)[0] for output in outputs)
    kept = slice(int(number))
    return ObjectBoxes(image, boxes[kept], np.round(classes[kept]).astype(np.int64), scores[kept])


def _finite(found: ObjectBoxes) -> bool:
    assert found.scores is not None
    return bool(np.isfinite(found.boxes).all() and np.isfinite(found.scores).all())
