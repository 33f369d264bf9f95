"""A tensor without values is an error of the step, never the end of the process."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from quantizer_core.errors import DataError
from quantizer_core.lowering.conformance import new_graph
from quantizer_core.lowering.kernels import QINT8
from quantizer_core.runtime import GraphSession
from quantizer_core.types import TensorSpec


def test_no_empty_batch_ends_the_process():
    """Without the guard before Dequantize: signal 6, "'data_buffer' Must be non NULL"."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.empty_batches"], cwd=pathlib.Path(__file__).parents[2],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-2000:]}"
    _, runs, _, errors = done.stdout.split()
    # Five batches are empty or become so inside, twice in each of two sessions; some results are empty, not errors.
    assert int(runs) == 52 and 4 <= int(errors) <= 20


@pytest.mark.parametrize("shape", [(3, 4), (1,)])
def test_the_guard_hands_values_on(shape):
    graph, emitter = new_graph(x=shape)
    name = emitter.dequantize(emitter.quantize("x", "q", QINT8, 1.0), "out")
    assert graph.producer(graph.node("out"), 0).op == "Reshape"
    values = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    with GraphSession(graph.to_graph_def(), [TensorSpec("x", "float32", shape)], [name]) as session:
        np.testing.assert_allclose(session.run({"x": values})[0], values, atol=0.51 / 127)


def test_the_error_says_that_there_are_no_values_and_where():
    graph, emitter = new_graph(x=(2, None))
    name = emitter.dequantize(emitter.quantize("x", "q", QINT8, 1.0), "out")
    spec = TensorSpec("x", "float32", (2, -1))  # examples of no values; a batch of none is refused before
    with (
        GraphSession(graph.to_graph_def(), [spec], [name]) as session,
        pytest.raises(
            DataError, match="inputs: Input to reshape is a tensor with 0 values.*'out/not_empty'"
        ) as refusal,
    ):
        session.run({"x": np.zeros((2, 0), np.float32)})
    assert isinstance(refusal.value.__cause__, tf.errors.InvalidArgumentError)
