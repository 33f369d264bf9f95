"""The graphs of the accuracy benchmark: where they lie, how images become inputs, what calibrates and what judges."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from benchmarks.common import shared_data

if TYPE_CHECKING:
    from quantizer_core.config import PreprocessConfig

#: This many images calibrate; none of them is evaluated.
CALIBRATION_IMAGES = 128
LABEL_KEY = "image/class/label"
MOST_VIEWS = 4


@dataclasses.dataclass(frozen=True)
class Case:
    """One trained graph with labelled images.

    Attributes:
      title: for tables.
      graph: its file below ``graphs/`` of the shared data.
      output: the node whose largest entry is the class.
      images: folder below ``images/``.
      normalize: how pixels become the input (see ``PreprocessConfig``).
      labels: CSV file of the folder with columns and offset (see ``read_examples``), or "" for class folders.
      label_offset: index of class 0 in the output.
    """

    title: str
    graph: str
    output: str
    images: str
    normalize: str
    labels: str = ""
    label_offset: int = 0

    def preprocess(self) -> PreprocessConfig:
        from quantizer_core.config import PreprocessConfig

        return PreprocessConfig(
            kind="image", normalize=self.normalize, label_key=LABEL_KEY, label_offset=self.label_offset
        )

    def graph_path(self) -> Path:
        return shared_data() / "graphs" / self.graph

    def examples(self, fold: int = 0, folds: int = 1, views: int = 1) -> tuple[Sequence[bytes], Sequence[bytes]]:
        """Returns the serialized examples to calibrate with and those to evaluate.

        Args:
          fold, folds: with several folds each example is evaluated in one of them, and the others of that fold
            calibrate, evenly thinned out.
          views: how often each image is evaluated: see ``views_of``.
        """
        from quantizer_core.data import read_examples

        folder = shared_data() / "images" / self.images
        labels = f"{folder}/{self.labels}" if self.labels else None
        found = list(read_examples(folder, labels=labels, label_key=LABEL_KEY))
        if folds == 1:
            return found[:CALIBRATION_IMAGES], views_of(found[CALIBRATION_IMAGES:], views)
        found = shuffled(found)
        others = [example for index, example in enumerate(found) if index % folds != fold]
        return others[:: len(others) // CALIBRATION_IMAGES][:CALIBRATION_IMAGES], views_of(found[fold::folds], views)


_Any = TypeVar("_Any")


def shuffled(examples: Sequence[_Any]) -> list[_Any]:
    """Returns examples (or their numbers) in an order that has nothing to do with their classes, always the same.

    Folders of classes give one image each in turn: every tenth would be of one class.
    """
    return [examples[index] for index in np.random.default_rng(0).permutation(len(examples))]


_NIPS = "images.csv:ImageId:TrueLabel:-1"
CASES = {
    "mobilenet": Case(
        "MobileNet V1 0.25 224", "mobilenet_v1_0.25_224_frozen.pb", "MobilenetV1/Predictions/Reshape_1",
        "nips2017_dev", "inception", _NIPS, 1,
    ),
    "squeezenet": Case("SqueezeNet 1.1", "squeezenet1.1.pb", "logits", "nips2017_dev", "torch", _NIPS),
    "resnet20": Case("CIFAR ResNet-20", "cifar10_resnet20.pb", "logits", "cifar10", "torch"),
    "resnet8": Case("MLPerf ResNet-8", "mlperf_resnet8_cifar10.pb", "Identity", "cifar10", "none"),
}  # fmt: skip


def views_of(examples: Sequence[bytes], views: int) -> list[bytes]:
    """Returns examples of images with further views of each: as it is, mirrored, shifted, mirrored and shifted.

    A few hundred images tell an accuracy to ±4 points; other views of them are other inputs to both graphs, and tell
    how often the two differ, and to whose gain, more surely. Shifts are by a sixteenth of either side, down and right,
    up and left if mirrored; the edge is repeated.

    Args:
      examples: serialized ``tf.Example``s with an encoded image in ``image/encoded``.
      views: how many of these, 1 to ``MOST_VIEWS``.
    """
    import io

    import numpy as np
    import tensorflow as tf
    from PIL import Image

    if views == 1:
        return list(examples)
    result = []
    for serialized in examples:
        result.append(serialized)
        example = tf.train.Example.FromString(serialized)
        content = example.features.feature["image/encoded"].bytes_list
        pixels = np.asarray(Image.open(io.BytesIO(content.value[0])).convert("RGB"))
        rows, columns = (max(size // 16, 1) for size in pixels.shape[:2])
        mirrored = pixels[:, ::-1]
        down = np.pad(pixels, ((rows, 0), (columns, 0), (0, 0)), "edge")[:-rows, :-columns]
        up = np.pad(mirrored, ((0, rows), (0, columns), (0, 0)), "edge")[rows:, columns:]
        for view in (mirrored, down, up)[: views - 1]:
            encoded = io.BytesIO()
            Image.fromarray(np.ascontiguousarray(view)).save(encoded, "PNG", compress_level=1)
            content.value[0] = encoded.getvalue()
            result.append(example.SerializeToString())
    return result
