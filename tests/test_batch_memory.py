"""Batches keep to a memory limit: their size follows from the graph alone, and the memory really taken follows it."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow.compat.v1 as tf
from tensorflow.core.framework import graph_pb2

from quantizer_core import calibration, evaluation
from quantizer_core.batch_memory import batch_size_within, bytes_per_example
from quantizer_core.beam import runs
from quantizer_core.config import PreprocessConfig, QuantizationConfig
from quantizer_core.errors import ConfigError
from quantizer_core.graph.summarize import input_specs
from quantizer_core.reads import BatchReader
from tests.helpers.classifier import CONFIG, INPUTS, OUTPUTS, classifier, prepared_classifier, records

ROOT = Path(__file__).resolve().parent.parent


def chain(batch: int | None = None, size: int | None = 8) -> graph_pb2.GraphDef:
    """Returns x [·,8,8,4] → a [·,8,8,4] → its view v → b [·,8,8,2], and from x and b the output [·,8,8,6]."""
    with tf.Graph().as_default() as graph:
        x = tf.placeholder(tf.float32, [batch, size, size, 4], name="x")
        a = tf.nn.conv2d(x, tf.ones([1, 1, 4, 4]), 1, "SAME", name="a")
        v = tf.identity(a, name="v")
        b = tf.nn.conv2d(v, tf.ones([1, 1, 4, 2]), 1, "SAME", name="b")
        tf.concat([x, b], 3, name="out")
        tf.nn.relu(tf.tile(x, [1, 9, 9, 9]), name="unused")
    return graph.as_graph_def()


def test_the_estimate_is_what_is_alive_at_a_time_and_the_decoded_example() -> None:
    graph_def = chain()
    pixel = 8 * 8 * 4  # bytes of one channel
    # At the end x, b and out are alive: a, behind its view, has been read; what no output needs is not counted.
    assert bytes_per_example(graph_def, input_specs(graph_def, ["x"]), ["out"]) == pixel * (4 + (4 + 2 + 6))
    # With a fetched too it stays to the end, once for itself and its view.
    assert bytes_per_example(graph_def, input_specs(graph_def, ["x"]), ["out", "a:0"]) == pixel * (4 + (4 + 4 + 2 + 6))


def test_the_size_of_images_is_taken_from_the_config_where_the_graph_leaves_it_open() -> None:
    graph_def = chain(size=None)
    with tf.Graph().as_default() as graph:
        x = tf.placeholder(tf.float32, [None, None, None, 3], name="x")
        tf.nn.conv2d(x, tf.ones([1, 1, 3, 5]), 2, "SAME", name="out")
    image = graph.as_graph_def()
    preprocess = PreprocessConfig(kind="image", image_size=(6, 10))
    pixels = 4 * 60
    assert bytes_per_example(image, input_specs(image, ["x"]), ["out"], preprocess) == pixels * 3 * 2 + pixels // 4 * 5
    assert bytes_per_example(graph_def, input_specs(graph_def, ["x"]), ["out"]) == 0  # nothing tells


@pytest.mark.parametrize(
    ("limit", "held", "size"),
    [(1 << 30, 0, 64), (4096 * 10, 0, 10), (4096 * 11 - 1, 0, 10), (1, 0, 1), (81920, 4096, 10)],
)
def test_a_batch_is_the_largest_within_the_limit(limit: int, held: int, size: int) -> None:
    graph_def = chain()
    specs = input_specs(graph_def, ["x"])
    assert bytes_per_example(graph_def, specs, ["out"]) == 4096
    config = QuantizationConfig(batch_size=64, max_batch_bytes=limit)
    assert batch_size_within(graph_def, specs, ["out"], config, held) == size


def test_a_batch_that_the_graph_fixes_is_left_alone() -> None:
    graph_def = chain(batch=8)
    config = QuantizationConfig(batch_size=16, max_batch_bytes=1)
    assert batch_size_within(graph_def, input_specs(graph_def, ["x"]), ["out"], config) == 16


def test_all_who_make_batches_come_to_the_same_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process and in a Beam worker, for calibration and for evaluation."""
    from quantizer_core.graph.files import save_graph
    from quantizer_core.prepare import save_prepared

    prepared = prepared_classifier()
    save_prepared(prepared, str(tmp_path / "prepared"))
    paths = [str(tmp_path / name) for name in ("fp32.pb", "int8.pb")]
    for path in paths:
        save_graph(classifier(), path)
    needed = bytes_per_example(prepared.graph_def, INPUTS, OUTPUTS)
    samples = 2 * 4 * 4096 * len(prepared.observed)
    config = dataclasses.replace(CONFIG, batch_size=16, max_batch_bytes=3 * (needed + samples))
    sizes: list[int] = []
    made = BatchReader.__init__

    def noted(self: BatchReader, decoder: object, consume: object, batch_size: int, *rest: object) -> None:
        sizes.append(batch_size)
        made(self, decoder, consume, batch_size, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(BatchReader, "__init__", noted)
    calibration.run.calibrate(prepared, records(8), config)
    runs._CalibrationReading(runs._Calibration(*runs.Calibrate(str(tmp_path / "prepared"), config)._arguments))
    assert sizes == [3, 3]
    config = dataclasses.replace(config, max_batch_bytes=5 * needed)
    evaluation.evaluate(classifier(), classifier(), INPUTS, OUTPUTS, records(8), config)
    runs._EvaluationReading(runs._Evaluation(*runs.Evaluate(*paths, INPUTS, OUTPUTS, config)._arguments))
    assert sizes == [3, 3, 5, 5]


def test_a_limit_below_one_byte_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_batch_bytes must be a positive integer, not 0"):
        QuantizationConfig(max_batch_bytes=0)


_PEAK = """
import sys
from pathlib import Path
import numpy as np
import tensorflow.compat.v1 as tf
import quantizer_core as qc
from quantizer_core.calibration.run import calibrate
from quantizer_core.data import tensor_example

with tf.Graph().as_default() as graph:
    x = tf.placeholder(tf.float32, [None, 256, 256, 3], name="x")
    for layer in range(3):
        x = tf.nn.relu(tf.nn.conv2d(x, tf.ones([1, 1, x.shape[3], 32]), 1, "SAME"))
    tf.reduce_mean(x, [1, 2], name="out")

def peak():
    # Not getrusage: what it gives at first is the peak of the process that started this one.
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))

config = qc.QuantizationConfig(inputs=("x",), outputs=("out",), batch_size=64, max_batch_bytes=int(sys.argv[1]))
prepared = qc.prepare(graph.as_graph_def(), config)
example = tensor_example({"x": np.ones((256, 256, 3), np.float32)})
before = peak()
run = calibrate(prepared, [example] * 64, config)
print(run.work.batches, peak() - before)
"""


@pytest.mark.slow
def test_the_memory_taken_follows_the_limit() -> None:
    """64 images of 256 × 256 through layers of 8 MiB an image: 1 GiB and more in one batch."""
    peaks = {}
    for limit in (1 << 31, 1 << 28):
        command = [sys.executable, "-c", _PEAK, str(limit)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_ENABLE_ONEDNN_OPTS": "1"}
        found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
        batches, peak = map(int, found.split()[-2:])
        peaks[limit] = peak
        assert (batches > 1) == (limit == 1 << 28)
    assert peaks[1 << 31] > 1 << 30
    assert peaks[1 << 28] < 1.5 * (1 << 28) + (1 << 27)  # an estimate, and what does not grow with the batch
