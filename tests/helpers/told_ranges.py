"""What an instrumented graph prints, caught in this process: no other one has to start TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from tensorflow.core.framework import graph_pb2

from quantizer_core.calibration.callback import Gathered
from quantizer_core.calibration.instrument import instrument
from quantizer_core.calibration.log import LogReader
from quantizer_core.calibration.run import CalibrationRun
from quantizer_core.types import PreparedGraph


def told_log(
    graph_def: graph_pb2.GraphDef,
    fetches: Sequence[str],
    batches: Iterable[Mapping[str, np.ndarray]],
    capfd: pytest.CaptureFixture[str],
    prefix: str = "",
) -> str:
    """Runs a graph on batches, as a script would, and returns what it printed to standard error."""
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name=prefix)
        start = f"{prefix}/" if prefix else ""
        capfd.readouterr()
        with tf.Session(graph=graph) as session:
            for batch in batches:
                session.run(
                    [f"{start}{name}:0" for name in fetches], {f"{start}{k}:0": v for k, v in batch.items()}
                )  # fmt: skip
    return capfd.readouterr().err


def told_run(
    prepared: PreparedGraph,
    batches: Iterable[Mapping[str, np.ndarray]],
    capfd: pytest.CaptureFixture[str],
    *,
    fetches: Sequence[str] = (),
    prefix: str = "",
    change: Callable[[graph_pb2.GraphDef], graph_pb2.GraphDef] = lambda graph_def: graph_def,
) -> CalibrationRun:
    """Returns what calibration by a script would see that runs the graph on these batches."""
    graph_def = change(instrument(prepared))
    gathered = Gathered(prepared)
    reader = LogReader(gathered.add, lambda line: None)
    reader.feed(told_log(graph_def, fetches or prepared.outputs, batches, capfd, prefix).encode())
    reader.finish()
    return gathered.run()
