"""Average precision: cases whose figure is known by hand."""

from __future__ import annotations

import numpy as np
import pytest

from quantizer_core.errors import DataError
from quantizer_core.evaluation.detection import DetectionMetrics, ObjectBoxes, average_precision, suppress

BOX = [10.0, 10.0, 50.0, 60.0]
FAR = [200.0, 200.0, 260.0, 280.0]


def there(image: int, *boxes: list[float], classes: list[int] | None = None, crowd: list[bool] | None = None):
    return ObjectBoxes(image, np.array(boxes), np.array(classes or [1] * len(boxes)), None, crowd and np.array(crowd))


def found(image: int, *boxes: list[float], scores: list[float], classes: list[int] | None = None):
    return ObjectBoxes(image, np.array(boxes), np.array(classes or [1] * len(boxes)), np.array(scores))


def test_perfect_boxes_have_precision_one():
    truth = [there(1, BOX, FAR, classes=[1, 2]), there(2, BOX), there(3)]
    result = average_precision(
        truth, [found(1, BOX, FAR, scores=[0.9, 0.2], classes=[1, 2]), found(2, BOX, scores=[1])]
    )
    assert result == DetectionMetrics(pytest.approx(1), pytest.approx(1), pytest.approx(1), 3, 3)


def test_a_missed_object_halves_the_recall():
    result = average_precision([there(1, BOX, FAR)], [found(1, BOX, scores=[0.9])])
    assert result.ap50 == pytest.approx(51 / 101)  # precision 1 at the recalls 0, 0.01, …, 0.50


def test_a_second_box_on_an_object_is_wrong_and_so_is_the_wrong_class():
    truth = [there(1, BOX, FAR)]
    twice = average_precision(truth, [found(1, BOX, BOX, FAR, scores=[0.9, 0.8, 0.7])])
    assert twice.ap50 == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert average_precision(truth, [found(1, BOX, FAR, scores=[0.9, 0.8], classes=[2, 2])]).mean_ap == 0
    assert average_precision(truth, []).mean_ap == 0


def test_a_loose_box_counts_at_low_thresholds_alone():
    half = [BOX[0], BOX[1], BOX[2], BOX[1] + (BOX[3] - BOX[1]) * 0.62]
    result = average_precision([there(1, BOX)], [found(1, half, scores=[0.5])])
    assert (result.ap50, result.ap75) == (pytest.approx(1), 0) and result.mean_ap == pytest.approx(0.3)


def test_boxes_in_a_crowd_are_neither_right_nor_wrong():
    truth = [there(1, BOX, FAR, crowd=[False, True])]
    inside = [FAR[0] + 5, FAR[1] + 5, FAR[0] + 25, FAR[1] + 25]
    assert average_precision(truth, [found(1, inside, BOX, scores=[0.9, 0.8])]).mean_ap == pytest.approx(1)


def test_what_cannot_be_scored_is_said():
    for truth, boxes, words in (
        ([there(1)], [], "no objects in any image"),
        ([there(1, BOX), there(1, BOX)], [], "comes twice"),
        ([there(1, BOX)], [found(2, BOX, scores=[1.0])], "name image 2"),
        ([there(1, BOX)], [there(1, BOX)], "have no scores"),
    ):
        with pytest.raises(DataError, match=words):
            average_precision(truth, boxes)
    with pytest.raises(DataError, match=r"2 boxes, but scores of shape \[1\]"):
        found(1, BOX, FAR, scores=[0.5])


def test_suppression_keeps_the_best_of_each_class():
    near = [value + 2 for value in BOX]
    boxes = found(7, BOX, near, near, FAR, FAR, scores=[0.5, 0.9, 0.4, 0.3, 0.0001], classes=[1, 1, 2, 1, 2])
    kept = suppress(boxes)
    assert kept.image == 7 and kept.scores.tolist() == pytest.approx([0.9, 0.4, 0.3])
    assert kept.classes.tolist() == [1, 2, 1]
    assert len(suppress(found(1, scores=[])).boxes) == 0
