"""scikit-learn's digits, 1,797 grey images of 8 × 8 pixels, as a TFRecord file of ``tf.Example``s."""

from __future__ import annotations

import os

import numpy as np
import tensorflow as tf

from quantizer_core.data import tensor_example, write_tfrecords

#: Feature with the pixels: 64 floats in [0, 1], row by row.
IMAGE_KEY = "image"
#: Feature with the class: one integer, 0 to 9.
LABEL_KEY = "label"
#: Height, width and channels of an image.
IMAGE_SHAPE = (8, 8, 1)
NUM_CLASSES = 10

_FILE_NAME = "digits.tfrecord.gz"


def digits_examples() -> list[bytes]:
    """Returns the digits as serialized ``tf.Example``s, in scikit-learn's order and with the same bytes every time."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.data / 16.0).astype(np.float32)  # sixteenths: exact
    return [
        tensor_example({IMAGE_KEY: pixels}, int(label), LABEL_KEY)
        for pixels, label in zip(images, digits.target, strict=True)
    ]


def write_digits(directory: str) -> str:
    """Writes the digits into ``directory`` if they are not there yet; returns the file.

    A file that exists is kept, untouched: ExampleGen's cache goes by size and time of change.
    """
    path = os.path.join(directory, _FILE_NAME)
    if not tf.io.gfile.exists(path):
        write_tfrecords(digits_examples(), path)
    return path
