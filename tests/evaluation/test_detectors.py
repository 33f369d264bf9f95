"""Detectors: boxes matched, average precision of both graphs, and the gate, on graphs whose boxes are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from tensorflow.core.framework import graph_pb2

from quantizer_core.config import QuantizationConfig
from quantizer_core.data import tensor_example
from quantizer_core.errors import ConfigError, DataError, GraphError
from quantizer_core.evaluation.detection import ObjectBoxes
from quantizer_core.evaluation.detectors import (
    OUTPUTS,
    evaluate_detectors,
    iou,
    judge_detectors,
    match,
    objects_of,
)
from quantizer_core.graph.summarize import input_specs

CONFIG = QuantizationConfig()
KEYS = ("ymin", "xmin", "ymax", "xmax")


def detector(
    shift: float = 0.0, score: float = 0.9, found: int = 2, classes: tuple[float, ...] = (1, 2, 1)
) -> graph_pb2.GraphDef:
    """Finds the boxes that it is fed, moved down by ``shift``, the first ``found`` of three."""
    with tf.Graph().as_default() as graph:
        boxes = tf.placeholder(tf.float32, [1, 3, 4], name="x")
        tf.identity(boxes + [shift, 0.0, shift, 0.0], name=OUTPUTS[0])
        tf.identity(tf.reduce_mean(boxes, -1) * 0.0 + [[score, score - 0.1, score - 0.2]], name=OUTPUTS[1])
        tf.identity(tf.reduce_mean(boxes) * tf.zeros([1]) + float(found), name=OUTPUTS[2])
        tf.identity(tf.reduce_mean(boxes, -1) * 0.0 + [list(classes)], name=OUTPUTS[3])
    return graph.as_graph_def()


def image(number: int, labelled: bool = True) -> bytes:
    boxes = np.array([[0.1, 0.1, 0.4, 0.4], [0.5, 0.5, 0.9, 0.8], [0.0, 0.6, 0.2, 0.9]], np.float32) + number / 100
    features = {"x": boxes}
    if labelled:
        features |= {f"image/object/bbox/{key}": boxes[:2, index] for index, key in enumerate(KEYS)}
        features |= {"image/object/class/label": np.array([1, 2])}
    return tensor_example(features)


def compared(other: graph_pb2.GraphDef, labelled: bool = True):
    fp32 = detector()
    examples = [image(number, labelled) for number in range(4)]
    return evaluate_detectors(fp32, other, input_specs(fp32, ["x"]), OUTPUTS, examples, CONFIG, labelled=labelled)


def test_the_same_boxes_are_all_matched_and_as_precise() -> None:
    run = compared(detector())
    assert (run.images, run.boxes, run.matched, run.nonfinite) == (4, 8, 8, 0)
    assert run.fp32 is not None and run.fp32.mean_ap == pytest.approx(1) and run.int8 == run.fp32
    result = judge_detectors(run, metric="coco_map")
    assert result.blessed and result.drop == 0 and result.agreement == 1 and result.num_examples == 4
    assert result.facts["ap50_int8"] == pytest.approx(1)


def test_a_detector_that_finds_nothing_right_is_doubted() -> None:
    other = detector(classes=(7, 7, 7))
    examples = [image(number) for number in range(4)]
    run = evaluate_detectors(other, other, input_specs(other, ["x"]), OUTPUTS, examples, CONFIG, labelled=True)
    result = judge_detectors(run, metric="coco_map")
    assert result.blessed and result.fp32 == 0 and "FP32 itself finds nothing right: check the numbers" in result.reason
    assert "FP32 itself" not in judge_detectors(compared(detector()), metric="coco_map").reason


def test_moved_boxes_lose_precision_and_then_their_match() -> None:
    near, far = compared(detector(0.02)), compared(detector(0.25))
    assert near.int8 is not None and 0.5 < near.int8.mean_ap < 1 and near.matched == 8
    assert far.int8 is not None and far.int8.mean_ap == 0 and far.matched == 0
    result = judge_detectors(near, metric="coco_map", max_drop=0.05)
    assert not result.blessed and "coco_map falls from 100.00% (FP32)" in result.reason
    assert judge_detectors(near, metric="boxes").blessed
    assert not judge_detectors(far, metric="boxes").blessed


def test_a_missing_box_counts_against_int8_and_an_unlikely_one_is_not_found() -> None:
    assert judge_detectors(compared(detector(found=1)), metric="boxes").int8 == 0.5
    assert judge_detectors(compared(detector(score=0.29)), metric="boxes").int8 == 0.5  # 0.29, and 0.19
    assert judge_detectors(compared(detector(classes=(1, 1, 1))), metric="boxes").int8 == 0.5


def test_images_without_objects_compare_by_boxes_alone() -> None:
    run = compared(detector(), labelled=False)
    assert run.fp32 is None and judge_detectors(run, metric="boxes").int8 == 1
    with pytest.raises(ConfigError, match="choose one of coco_map, boxes"):
        judge_detectors(run, metric="coco_map")
    with pytest.raises(DataError, match="'image/object/bbox/ymin': coco_map needs objects"):
        evaluate_detectors(
            detector(), detector(), input_specs(detector(), ["x"]), OUTPUTS, [image(0, labelled=False)], CONFIG
        )


def test_nan_is_never_blessed() -> None:
    result = judge_detectors(compared(detector(shift=math.nan)), metric="boxes", max_drop=1)
    assert not result.blessed and "NaN or infinity on 4 of 4" in result.reason


def test_other_outputs_are_named() -> None:
    fp32 = detector()
    with pytest.raises(GraphError, match="no output 'num_detections'"):
        evaluate_detectors(fp32, fp32, input_specs(fp32, ["x"]), [OUTPUTS[0], OUTPUTS[1], OUTPUTS[3]], [], CONFIG)


def test_each_box_is_taken_once() -> None:
    box = np.array([[0.0, 0.0, 1.0, 1.0]])
    two = ObjectBoxes(0, np.repeat(box, 2, 0), np.array([1, 1]), np.array([0.9, 0.8]))
    one = ObjectBoxes(0, box, np.array([1]), np.array([0.9]))
    assert match(two, one) == (2, 1) and match(one, two) == (1, 1)
    assert iou(box[0], np.array([0.0, 0.5, 1.0, 1.5])) == pytest.approx(1 / 3)
    assert iou(box[0], np.array([2.0, 2.0, 3.0, 3.0])) == 0


def test_objects_of_different_number_are_a_fault_of_the_example() -> None:
    features = {f"image/object/bbox/{key}": np.zeros(2, np.float32) for key in KEYS}
    with pytest.raises(DataError, match="differ in number"):
        objects_of(tensor_example(features | {"image/object/class/label": np.array([1])}))
    boxes, classes, crowd = objects_of(
        tensor_example(
            features | {"image/object/class/label": np.array([1, 2]), "image/object/is_crowd": np.array([0, 1])}
        )
    )
    assert boxes.shape == (2, 4) and classes.tolist() == [1, 2] and crowd.tolist() == [False, True]
