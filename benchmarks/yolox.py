"""What YOLOX's raw output stands for: boxes with scores, in pixels of the image (Ge et al., "YOLOX", 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from quantizer_core.evaluation.detection import ObjectBoxes, suppress

SIZE, STRIDES = 416, (8, 16, 32)


def decode(output: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns boxes [3549, 4] (top, left, bottom, right in pixels of the input), classes [3549] and scores [3549].

    Args:
      output: float32 [3549, 85]: of each cell of the three grids the centre (x, y) and size (width, height) to be
        decoded, the probability of an object and those of 80 classes.
    """
    cells, strides = [], []
    for stride in STRIDES:
        side = SIZE // stride
        rows, columns = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
        cells.append(np.stack([columns, rows], -1).reshape(-1, 2))
        strides.append(np.full(side * side, stride))
    scale = np.concatenate(strides)[:, None]
    centres = (output[:, :2] + np.concatenate(cells)) * scale
    sizes = np.exp(output[:, 2:4]) * scale
    boxes = np.concatenate([centres - sizes / 2, centres + sizes / 2], -1)[:, [1, 0, 3, 2]]
    classes = output[:, 5:].argmax(-1)
    return boxes, classes, output[:, 4] * output[:, 5:].max(-1)


def boxes(image: int, output: np.ndarray) -> ObjectBoxes:
    """Returns the boxes of one image after suppression, in pixels of the network's input."""
    found, classes, scores = decode(output.reshape(-1, output.shape[-1]))
    return suppress(ObjectBoxes(image, found, classes, scores))


def truth(annotations: Mapping[str, Any], numbers: Sequence[int]) -> list[ObjectBoxes]:
    """Returns the objects of images, by their numbers in the order of file names, in pixels of the network's input."""
    classes = {category["id"]: index for index, category in enumerate(annotations["categories"])}
    images = sorted(annotations["images"], key=lambda image: image["file_name"])
    result = []
    for number in numbers:
        image = images[number]
        ratio = min(SIZE / image["height"], SIZE / image["width"])
        objects = [each for each in annotations["annotations"] if each["image_id"] == image["id"]]
        corners = np.array([each["bbox"] for each in objects], np.float64).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        result.append(
            ObjectBoxes(
                image["id"],
                corners[:, [1, 0, 3, 2]] * ratio,
                np.array([classes[each["category_id"]] for each in objects], np.int64),
                crowd=np.array([bool(each["iscrowd"]) for each in objects], bool),
            )
        )
    return result


def overlap(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns intersection over union of each box with each, [n, 4] and [m, 4] → [n, m]; corners first and last."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0), -1)
    areas = [np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), -1) for boxes in (one, other)]
    return shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-9)
