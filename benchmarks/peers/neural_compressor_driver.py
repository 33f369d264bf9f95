"""Quantises a frozen graph with Intel Neural Compressor at its defaults, and classifies the evaluation images if any.

Runs in Neural Compressor's own environment; see this folder's ``__init__.py`` for what it reads and writes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf
from neural_compressor import PostTrainingQuantConfig, quantization


class Images:
    """What Neural Compressor calibrates with: batches of images, each with labels that it does not use."""

    batch_size = 1

    def __init__(self, images: np.ndarray):
        self._images = images

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for image in self._images:
            yield image[None], np.zeros(1, np.int64)


def main(folder: Path) -> None:
    case = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    calibration = np.load(folder / "calibration.npy")
    config = PostTrainingQuantConfig(
        inputs=[case["input"]],
        outputs=case.get("outputs", [case["output"]]),
        calibration_sampling_size=[len(calibration)],
    )
    started = time.perf_counter()
    model = quantization.fit(case["graph"], config, calib_dataloader=Images(calibration))
    seconds = time.perf_counter() - started
    (folder / "neural_compressor.pb").write_bytes(model.graph_def.SerializeToString())
    if (folder / "evaluation.npy").exists():
        classify(model.graph_def, case, folder)
    print(seconds)


def classify(graph_def: tf.compat.v1.GraphDef, case: dict[str, str], folder: Path) -> None:
    evaluation = np.load(folder / "evaluation.npy")
    with tf.Graph().as_default() as graph:
        tf.graph_util.import_graph_def(graph_def, name="")
        ends = [graph.get_tensor_by_name(f"{case[end]}:0") for end in ("input", "output")]
        with tf.compat.v1.Session() as session:
            scores = [session.run(ends[1], {ends[0]: image[None]}).reshape(-1) for image in evaluation]
    np.save(folder / "int8.npy", np.argmax(scores, 1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
