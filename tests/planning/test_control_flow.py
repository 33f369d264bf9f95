"""Networks with TensorFlow 1 while loops and branches: calibrated in place, INT8 inside, close to FP32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from tensorflow.core.framework import graph_pb2

from quantizer_core.calibration.observer import Observer
from quantizer_core.graph.control_flow import frames, pivots, sporadic_nodes
from quantizer_core.graph.files import load_graph
from quantizer_core.graph.graph import Graph
from quantizer_core.prepare import prepare
from quantizer_core.quantize import Conversion, convert
from quantizer_core.runtime import GraphSession, stack_batch
from quantizer_core.types import PreparedGraph
from tests.helpers.nets import everything, relative_error

RNG = np.random.default_rng(3)


def constant(*shape: int) -> tf.Tensor:
    return tf.constant((RNG.normal(size=shape) / np.sqrt(shape[-2] if len(shape) > 1 else 4)).astype(np.float32))


@pytest.fixture
def old_control_flow():
    """TensorFlow 1 loops and branches, as frozen graphs of that time hold them."""
    was = tf.control_flow_v2_enabled()
    tf.disable_control_flow_v2()
    yield
    if was:
        tf.enable_control_flow_v2()


def recurrent() -> graph_pb2.GraphDef:
    """A cell over ten times the input and the state, four steps long."""
    with tf.Graph().as_default() as graph:
        x = tf.placeholder(tf.float32, [1, 4, 6], name="x")
        weights, bias = constant(14, 8), constant(8)

        def body(step, state):
            joined = tf.concat([x[:, step] * 10.0, state], 1)
            return step + 1, tf.tanh(tf.nn.bias_add(tf.matmul(joined, weights), bias))

        _, state = tf.while_loop(lambda step, state: step < 4, body, [0, tf.zeros([1, 8])])
        tf.matmul(state, constant(8, 5), name="out")
    return graph.as_graph_def()


def in_sixteenths(*shape: int) -> tf.Tensor:
    """Weights of which sums of products are exact in float32, in whatever order a kernel adds."""
    return tf.constant(RNG.integers(-16, 17, shape).astype(np.float32) / 16)


def branched(weights=constant) -> graph_pb2.GraphDef:
    """Two convolutions that run only where the input's mean is positive."""
    with tf.Graph().as_default() as graph:
        x = tf.placeholder(tf.float32, [1, 8, 8, 4], name="x")
        first, second, bias = weights(3, 3, 4, 8), weights(3, 3, 8, 6), weights(8)

        def taken():
            hidden = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(x, first, 1, "SAME"), bias))
            return tf.nn.conv2d(hidden, second, 1, "SAME")

        out = tf.cond(tf.reduce_mean(x) > 0, taken, lambda: tf.zeros([1, 8, 8, 6]))
        tf.identity(out, name="out")
    return graph.as_graph_def()


def converted(graph_def: graph_pb2.GraphDef, examples: list) -> tuple[PreparedGraph, Conversion]:
    config = everything(outputs=("out",))
    prepared = prepare(graph_def, config)
    with Observer(prepared, 8) as observer:
        return prepared, convert(prepared, observer.observe(examples), config)


def outputs_of(graph_def: graph_pb2.GraphDef, prepared: PreparedGraph, examples: list) -> list[list[np.ndarray]]:
    with GraphSession(graph_def, prepared.inputs, prepared.outputs) as session:
        return [session.run(stack_batch([example], prepared.inputs, 1)) for example in examples]


def test_a_recurrent_cell_is_quantised_inside_its_loop(old_control_flow):
    graph_def = recurrent()
    assert "Enter" in {node.op for node in graph_def.node}
    examples = [{"x": RNG.normal(size=(4, 6)).astype(np.float32)} for _ in range(12)]
    prepared, conversion = converted(graph_def, examples)
    assert conversion.plan.counts()["MatMul"] == (3, 3)  # input and state have a product, and a range, each
    framed = frames(Graph(conversion.graph_def))
    assert any(node.op == "QuantizeV2" and node.name in framed for node in conversion.graph_def.node)
    found = outputs_of(conversion.graph_def, prepared, examples)
    exact = outputs_of(graph_def, prepared, examples)
    assert relative_error(np.array(found), np.array(exact)) < 0.05


def test_a_branch_is_quantised_whether_or_not_an_example_takes_it(old_control_flow):
    graph_def = branched()
    assert "Switch" in {node.op for node in graph_def.node}
    examples = [{"x": (RNG.normal(size=(8, 8, 4)) + shift).astype(np.float32)} for shift in (0.5, -0.5, 0.4, -0.6)]
    prepared, conversion = converted(graph_def, examples)
    assert conversion.plan.counts()["Conv2D"] == (2, 2)
    found = np.array(outputs_of(conversion.graph_def, prepared, examples))
    exact = np.array(outputs_of(graph_def, prepared, examples))
    assert relative_error(found, exact) < 0.05
    np.testing.assert_array_equal(found[[1, 3]], 0)


def test_weights_of_a_branch_are_in_the_graph_once(old_control_flow):
    """As INT8 constants of the branch alone: no Switch hands the FP32 ones on any more."""
    prepared, conversion = converted(branched(), [{"x": np.full((8, 8, 4), 0.5, np.float32)}])
    for graph_def, dtype in ((prepared.graph.to_graph_def(), tf.float32), (conversion.graph_def, tf.qint8)):
        values = [tf.make_ndarray(node.attr["value"].tensor) for node in graph_def.node if node.op == "Const"]
        weights = [value for value in values if value.ndim == 4 and value.any()]
        assert sorted(value.shape for value in weights) == [(3, 3, 4, 8), (3, 3, 8, 6)]
        assert {value.dtype for value in weights} == {np.dtype(dtype.as_numpy_dtype)}
    switches = [node for node in conversion.graph_def.node if node.op == "Switch"]
    assert len({node.name for node in switches if node.input[0] == node.input[1]}) == 1


def test_a_branch_that_no_example_takes_stays_fp32_and_says_so(old_control_flow):
    graph_def = branched()
    prepared, conversion = converted(graph_def, [{"x": np.full((8, 8, 4), -1, np.float32)}])
    assert conversion.plan.quantized == 0
    assert {node.reason for node in conversion.plan.nodes} == {"no calibration example reached it"}
    examples = [{"x": np.full((8, 8, 4), 0.5, np.float32)}]
    found, exact = (np.array(outputs_of(graph, prepared, examples)) for graph in (conversion.graph_def, graph_def))
    assert relative_error(found, exact) < 1e-6


def test_statistics_of_loops_and_branches_do_not_depend_on_order_or_split(old_control_flow):
    # Exact sums: other graphs of this process may change the last bits of a batch of 1 (see observer.py).
    prepared = prepare(branched(in_sixteenths), everything(outputs=("out",)))
    values = [RNG.integers(-16, 17, (8, 8, 4)) / 8 + shift for shift in (0.5, -0.5, 0.375)]
    examples = [{"x": value.astype(np.float32)} for value in values]
    with Observer(prepared, 8) as observer:
        whole = observer.observe(examples)
        parts = [observer.observe([example]) for example in reversed(examples)]
    merged = parts[0].merge(parts[1]).merge(parts[2])
    assert merged.to_bytes() == whole.to_bytes()
    seen = {stats.examples for stats in whole.tensors.values()}
    assert seen == {2}


def test_what_runs_never_or_several_times_is_told_apart(old_control_flow):
    with tf.Graph().as_default() as graph:
        x = tf.placeholder(tf.float32, [], name="x")
        _, looped = tf.while_loop(lambda i, v: i < 3, lambda i, v: (i + 1, v * 2.0), [0, x], name="loop")
        joined = tf.cond(x > 0, lambda: tf.exp(x, name="maybe"), lambda: x, name="choice")
        nested = tf.cond(x > 1, lambda: tf.cond(x > 2, lambda: tf.exp(x), lambda: x, name="in"), lambda: x, name="by")
        tf.add_n([looped, joined, nested], name="always")
    indexed = Graph(graph.as_graph_def())
    sporadic = sporadic_nodes(indexed)
    assert {"loop/mul", "choice/maybe", "by/in/Merge", "by/in/Exp"} <= sporadic
    assert not {"x", "always", "loop/Exit", "choice/Merge", "by/Merge"} & sporadic
    assert frames(indexed)["loop/mul"] == ("loop/while_context",)
    assert pivots(indexed) == {"loop/while_context": "loop/Merge"}


def test_the_detector_with_three_networks_in_loops_and_branches(shared_data: Path):
    from PIL import Image

    graph_def = load_graph(str(shared_data / "graphs" / "mtcnn.pb"))
    config = everything(outputs=("box", "prob", "landmarks"))
    prepared = prepare(graph_def, config)
    assert all(spec.single or spec.shape == () for spec in prepared.inputs)
    settings = {"min_size": np.float32(40), "thresholds": np.array([0.6, 0.7, 0.7], np.float32)}
    examples = []
    for path in sorted((shared_data / "images" / "coco128").rglob("*.jpg"))[3:9]:  # one of them shows a face
        pixels = np.asarray(Image.open(path).convert("RGB"), np.float32)[..., ::-1]
        examples.append({"input": pixels, **settings, "factor": np.float32(0.709)})
    with Observer(prepared, 8) as observer:
        conversion = convert(prepared, observer.observe(examples), config)
    assert conversion.plan.counts()["Conv2D"] == (19, 19)
    found = outputs_of(conversion.graph_def, prepared, examples)
    exact = outputs_of(graph_def, prepared, examples)
    assert sum(len(box) for box, _, _ in exact) > 0
    for (box, prob, landmarks), (fp32_box, fp32_prob, fp32_landmarks) in zip(found, exact, strict=True):
        assert box.shape == fp32_box.shape
        if len(box):
            np.testing.assert_allclose(box, fp32_box, atol=0.05 * np.ptp(fp32_box))
            np.testing.assert_allclose(prob, fp32_prob, atol=0.02)
            np.testing.assert_allclose(landmarks, fp32_landmarks, atol=0.05 * np.ptp(fp32_box))


def test_a_gated_recurrent_network_agrees_with_fp32(shared_data: Path):
    graph_def = load_graph(str(shared_data / "graphs" / "GRU_S.pb"))
    config = everything()
    prepared = prepare(graph_def, config)
    paths = sorted((shared_data / "audio_speech_commands").glob("*/*.wav"))
    examples = [{"wav_data": np.array(path.read_bytes(), object)} for path in paths[::12]]
    with Observer(prepared, 8) as observer:
        conversion = convert(prepared, observer.observe(examples), config)
    assert conversion.plan.counts()["MatMul"] == (5, 5)
    fresh = [{"wav_data": np.array(path.read_bytes(), object)} for path in paths[5::12]]
    found = np.concatenate([out[0] for out in outputs_of(conversion.graph_def, prepared, fresh)])
    exact = np.concatenate([out[0] for out in outputs_of(graph_def, prepared, fresh)])
    assert (found.argmax(1) == exact.argmax(1)).mean() >= 0.9
