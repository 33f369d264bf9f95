"""The graph that prints its ranges: what it tells is what direct calibration sees, however a script runs it."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from tensorflow.python.tools.optimize_for_inference_lib import optimize_for_inference

from quantizer_core.calibration.callback import Gathered
from quantizer_core.calibration.instrument import instrument
from quantizer_core.calibration.log import LogReader
from quantizer_core.calibration.observer import Observer
from quantizer_core.calibration.run import CalibrationRun, calibrate, checked
from quantizer_core.config import QuantizationConfig
from quantizer_core.data import tensor_example
from quantizer_core.errors import CommandError, DataError
from quantizer_core.prepare import prepare
from quantizer_core.runtime import GraphSession
from quantizer_core.types import PreparedGraph
from tests.helpers.nets import Net, build
from tests.helpers.told_ranges import told_run

BATCH = 4
CONFIG = QuantizationConfig(batch_size=BATCH)
DATA = np.random.default_rng(5).normal(size=(12, 12, 12, 8)).astype(np.float32)


def branches(net: Net, x: tf.Tensor) -> list[tf.Tensor]:
    """Two outputs, one of which the other reads; a join, a sum and a dense layer."""
    first = net.conv(x, 8, relu="relu6")
    joined = tf.concat([net.conv(first, 8, relu="relu"), net.depthwise(first)], 3)
    summed = tf.nn.relu(net.conv(joined, 8) + first)
    flat = tf.reshape(tf.nn.avg_pool2d(summed, 12, 1, "VALID"), [-1, 8])
    return [summed, net.dense(flat, 5)]


@pytest.fixture(scope="module")
def prepared() -> PreparedGraph:
    graph_def, names = build(branches)
    return prepare(graph_def, QuantizationConfig(outputs=names))


def batches(data: np.ndarray = DATA) -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, len(data), BATCH):
        yield {"x": data[start : start + BATCH]}


def direct(prepared: PreparedGraph, data: np.ndarray = DATA) -> CalibrationRun:
    return calibrate(prepared, [tensor_example({"x": each}) for each in data], CONFIG)


def test_tells_what_direct_calibration_sees_to_the_bit(
    prepared: PreparedGraph, capfd: pytest.CaptureFixture[str]
) -> None:
    told, seen = told_run(prepared, batches(), capfd), direct(prepared)
    assert len(seen.statistics.tensors) > 5 and any(
        t.channel_sums is not None for t in seen.statistics.tensors.values()
    )
    assert told.statistics.to_bytes() == seen.statistics.to_bytes()
    assert told.hashed == seen.hashed and len(told.hashed) == len(DATA)
    assert told.reads == seen.reads


def test_is_the_same_graph_between_its_inputs_and_outputs(prepared: PreparedGraph) -> None:
    with (
        GraphSession(prepared.graph_def, prepared.inputs, prepared.outputs) as plain,
        GraphSession(instrument(prepared), prepared.inputs, prepared.outputs) as printing,
    ):
        for batch in batches():
            for one, other in zip(plain.run(batch), printing.run(batch), strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert instrument(prepared) == instrument(prepared)


def test_survives_a_prefix_and_the_optimiser_that_zoo_scripts_call(
    prepared: PreparedGraph, capfd: pytest.CaptureFixture[str]
) -> None:
    def optimised(graph_def: tf.GraphDef) -> tf.GraphDef:
        return optimize_for_inference(graph_def, ["x"], list(prepared.outputs), tf.float32.as_datatype_enum)

    told = told_run(prepared, batches(), capfd, prefix="v0", change=optimised)
    assert told.statistics.to_bytes() == direct(prepared).statistics.to_bytes()


def test_each_output_tells_what_it_depends_on(prepared: PreparedGraph, capfd: pytest.CaptureFixture[str]) -> None:
    last = told_run(prepared, batches(), capfd, fetches=prepared.outputs[1:])
    assert last.statistics == told_run(prepared, batches(), capfd).statistics
    with pytest.raises(CommandError, match=f"never computed .* it has to fetch the outputs {prepared.outputs[0]}, "):
        told_run(prepared, batches(), capfd, fetches=prepared.outputs[:1])


def test_threads_do_not_mix_their_records(prepared: PreparedGraph, capfd: pytest.CaptureFixture[str]) -> None:
    gathered = Gathered(prepared)
    reader = LogReader(gathered.add, lambda line: None)
    with GraphSession(instrument(prepared), prepared.inputs, prepared.outputs) as session:
        capfd.readouterr()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(session.run, [*batches()] * 8))
        reader.feed(capfd.readouterr().err.encode())
    reader.finish()
    expected = direct(prepared, np.concatenate([DATA] * 8))
    assert gathered.run().statistics.to_bytes() == expected.statistics.to_bytes()


def test_nan_is_named_in_the_end(prepared: PreparedGraph, capfd: pytest.CaptureFixture[str]) -> None:
    data = DATA.copy()
    data[5, 3, 3, 0] = np.nan
    told = told_run(prepared, batches(data), capfd)
    with pytest.raises(DataError, match="held NaN in 1 of 12 examples"):
        checked(told, CONFIG)


def test_outputs_of_several_ports_keep_them(capfd: pytest.CaptureFixture[str]) -> None:
    with tf.Graph().as_default() as graph:
        net = Net(2)
        x = tf.placeholder(tf.float32, [None, 12, 12, 8], name="x")
        tf.split(net.conv(net.conv(x, 8, relu="relu"), 6, relu="relu"), 3, axis=3, name="parts")
    prepared = prepare(graph.as_graph_def(), QuantizationConfig(outputs=("parts",)))
    with GraphSession(instrument(prepared), prepared.inputs, ["parts:0", "parts:2"]) as session:
        assert [part.shape for part in session.run({"x": DATA[:2]})] == [(2, 12, 12, 2)] * 2
    assert told_run(prepared, batches(), capfd).statistics == direct(prepared).statistics


@pytest.mark.parametrize("shape", [(1, 12, 12, 8), (None, None, None, 8)])
def test_a_fixed_batch_and_images_of_any_size(shape: tuple[int | None, ...], capfd: pytest.CaptureFixture[str]) -> None:
    graph_def, names = build(lambda net, x: net.conv(net.conv(x, 8, relu="relu"), 4, relu="relu"), shape)
    prepared = prepare(graph_def, QuantizationConfig(outputs=names))
    data = [{"x": DATA[index : index + 1, : 12 if shape[1] else 6 + index]} for index in range(5)]
    told = told_run(prepared, data, capfd)
    with Observer(prepared, 1) as observer:
        assert told.statistics == observer.observe([{"x": feeds["x"][0]} for feeds in data])
    examples = [tensor_example({"x": feeds["x"][0]}, with_shapes=shape[0] is None) for feeds in data]
    assert sorted(told.sample) == sorted(examples)


def test_loops_and_branches_tell_each_time_they_compute(capfd: pytest.CaptureFixture[str]) -> None:
    was = tf.control_flow_v2_enabled()
    tf.disable_control_flow_v2()
    try:
        with tf.Graph().as_default() as graph:
            net = Net(1)
            x = tf.placeholder(tf.float32, [1, 12, 12, 8], name="x")
            weights = net.weights(3, 3, 8, 8)

            def body(step: tf.Tensor, value: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                return step + 1, tf.nn.relu(tf.nn.conv2d(value, weights, 1, "SAME")) * 0.5 + 0.1

            _, looped = tf.while_loop(lambda step, _: step < 3, body, [0, x])
            last = net.weights(3, 3, 8, 4)
            branch = tf.cond(
                tf.reduce_mean(x) > 0,
                lambda: tf.nn.conv2d(looped, last, 1, "SAME"),
                lambda: tf.nn.conv2d(looped * 2.0, last * 0.5, 1, "SAME"),
            )
            tf.nn.relu(branch, name="out")
    finally:
        if was:
            tf.enable_control_flow_v2()
    prepared = prepare(graph.as_graph_def(), QuantizationConfig(outputs=("out",)))
    told = told_run(prepared, [{"x": each[None]} for each in DATA], capfd)
    with Observer(prepared, 1) as observer:
        seen = observer.observe([{"x": each} for each in DATA])
    assert told.reads.read == len(DATA)
    in_loop = 0
    for name, found in told.statistics.tensors.items():
        known = seen.tensors[name]
        assert (found.minimum, found.maximum) == (known.minimum, known.maximum)
        assert np.array_equal(found.keys, known.keys) and np.array_equal(found.counts, known.counts)
        in_loop += found.examples == 3 * known.examples and found.finite > 0
    assert in_loop
