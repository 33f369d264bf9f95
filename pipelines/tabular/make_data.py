"""scikit-learn's breast cancer data, 569 rows of 30 measurements and a diagnosis, as a CSV file."""

from __future__ import annotations

import csv
import os

import tensorflow as tf

#: Column with the class: 0 malignant, 1 benign.
LABEL_KEY = "benign"
NUM_CLASSES = 2

_FILE_NAME = "breast_cancer.csv"

_STATISTICS = ("mean", "error", "worst")
_QUANTITIES = (
    *("radius", "texture", "perimeter", "area", "smoothness"),
    *("compactness", "concavity", "concave_points", "symmetry", "fractal_dimension"),
)
#: Columns with the measurements, in the order of scikit-learn.
FEATURE_KEYS = tuple(f"{statistic}_{quantity}" for statistic in _STATISTICS for quantity in _QUANTITIES)


def write_rows(directory: str) -> str:
    """Writes the rows, under a line that names the columns, into ``directory`` if they are not there; returns the file.

    A file that exists is kept, untouched: ExampleGen's cache goes by size and time of change.
    """
    from sklearn.datasets import load_breast_cancer

    path = os.path.join(directory, _FILE_NAME)
    if not tf.io.gfile.exists(path):
        data = load_breast_cancer()
        tf.io.gfile.makedirs(directory)
        partial = os.path.join(directory, f".{_FILE_NAME}.partial")
        with tf.io.gfile.GFile(partial, "w") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([*FEATURE_KEYS, LABEL_KEY])
            for measurements, label in zip(data.data.tolist(), data.target.tolist(), strict=True):
                writer.writerow([*measurements, label])
        tf.io.gfile.rename(partial, path)
    return path
