"""Average precision of object detectors, computed by pycocotools (the ``detection`` extra)."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Sequence

import numpy as np

from quantizer_core.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True)
class ObjectBoxes:
    """Objects of one image: those that are there, or those that a detector found.

    Attributes:
      image: number of the image, unique among all.
      boxes: float [objects, 4]: top, left, bottom, right, in any unit that is the same for both sides.
      classes: int [objects]: number of each one's class.
      scores: float [objects], what the detector holds of each; None for objects that are there.
      crowd: bool [objects]: a region of many objects, which is neither missed nor found wrongly; None: none is.
    """

    image: int
    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray | None = None
    crowd: np.ndarray | None = None

    def __post_init__(self) -> None:
        boxes = np.asarray(self.boxes, np.float64).reshape(-1, 4)
        object.__setattr__(self, "boxes", boxes)
        for name in ("classes", "scores", "crowd"):
            value = getattr(self, name)
            if value is not None and np.shape(value) != (len(boxes),):
                raise DataError(f"image {self.image}: {len(boxes)} boxes, but {name} of shape {list(np.shape(value))}")


@dataclasses.dataclass(frozen=True)
class DetectionMetrics:
    """COCO's figures for boxes, in [0, 1].

    Attributes:
      mean_ap: average precision, mean over classes and over IoU thresholds 0.50, 0.55, …, 0.95.
      ap50, ap75: the same at one threshold.
      images, objects: how many there were.
    """

    mean_ap: float
    ap50: float
    ap75: float
    images: int
    objects: int


def need_pycocotools() -> None:
    """Raises ConfigError if pycocotools is not installed."""
    try:
        import pycocotools.mask  # noqa: F401 - its compiled part
    except ImportError:
        raise ConfigError("average precision needs pycocotools: install the extra 'detection'") from None


def average_precision(truth: Sequence[ObjectBoxes], found: Sequence[ObjectBoxes]) -> DetectionMetrics:
    """Returns COCO's average precision (Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014).

    Args:
      truth: the objects of each image; images without objects count too.
      found: what the detector found, with scores; images not named have none. At most 100 boxes an image count, those
        with the highest scores.

    Raises:
      ConfigError: if pycocotools is not installed.
      DataError: if there are no objects at all, an image comes twice or is not in ``truth``, or scores are missing.
    """
    need_pycocotools()
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images = [each.image for each in truth]
    known_images = set(images)
    for each in found:
        if each.image not in known_images:
            raise DataError(f"the detector's boxes name image {each.image}, of which the objects are not known")
        if each.scores is None:
            raise DataError(f"the detector's boxes of image {each.image} have no scores")
    for numbers in (images, [each.image for each in found]):
        if len(set(numbers)) < len(numbers):
            raise DataError("an image comes twice")
    objects = [row for each in truth for row in _rows(each)]
    if not objects:
        raise DataError("there are no objects in any image: average precision is not defined")
    for number, row in enumerate(objects, 1):
        row["id"] = number
    categories = sorted({int(category) for each in truth for category in each.classes})
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        known = COCO()
        known.dataset = {
            "images": [{"id": image} for image in images],
            "annotations": objects,
            "categories": [{"id": category} for category in categories],
        }
        known.createIndex()
        rows = [row for each in found for row in _rows(each)]
        if not rows:
            return DetectionMetrics(0.0, 0.0, 0.0, len(images), len(objects))
        evaluation = COCOeval(known, known.loadRes(rows), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    mean_ap, ap50, ap75 = (max(float(value), 0.0) for value in evaluation.stats[:3])
    return DetectionMetrics(mean_ap, ap50, ap75, len(images), len(objects))


def _rows(each: ObjectBoxes) -> list[dict[str, object]]:
    """Returns COCO's records of one image's boxes."""
    rows = []
    for index, (top, left, bottom, right) in enumerate(each.boxes.tolist()):
        row: dict[str, object] = {
            "image_id": each.image,
            "category_id": int(each.classes[index]),
            "bbox": [left, top, right - left, bottom - top],
            "area": (right - left) * (bottom - top),
            "iscrowd": int(each.crowd is not None and bool(each.crowd[index])),
        }
        if each.scores is not None:
            row["score"] = float(each.scores[index])
        rows.append(row)
    return rows


def suppress(found: ObjectBoxes, *, iou: float = 0.65, score: float = 0.001, most: int = 300) -> ObjectBoxes:
    """Keeps of overlapping boxes of one class the one with the highest score (non-maximum suppression).

    Args:
      found: boxes with scores.
      iou: boxes that share more than this with a better one go.
      score: boxes with less go.
      most: how many to keep at the most.
    """
    import tensorflow as tf

    assert found.scores is not None
    scores = np.asarray(found.scores, np.float32)
    # Boxes of different classes are moved apart so that they never overlap.
    span = float(found.boxes.max() - found.boxes.min()) + 1 if len(found.boxes) else 1.0
    apart = found.boxes + (np.asarray(found.classes) * span)[:, None]
    kept = tf.image.non_max_suppression(apart.astype(np.float32), scores, most, iou, score).numpy()
    return ObjectBoxes(found.image, found.boxes[kept], np.asarray(found.classes)[kept], scores[kept])
