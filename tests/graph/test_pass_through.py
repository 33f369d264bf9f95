"""Loading a graph, indexing it and writing it back changes nothing that it holds or computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from quantizer_core.graph.attrs import attr_ints, attr_string, make_const, set_attr, tensor_value
from quantizer_core.graph.files import load_graph
from quantizer_core.graph.graph import Graph, GraphDef, NodeDef


def run(graph_def: GraphDef, feeds: dict[str, object], fetches: list[str]) -> list[np.ndarray]:
    with tf.Graph().as_default():
        tf.import_graph_def(graph_def, name="")
        with tf.compat.v1.Session() as session:
            return session.run(fetches, feeds)


def same_nodes(first: GraphDef, second: GraphDef) -> bool:
    def by_name(graph_def: GraphDef) -> list[NodeDef]:
        return sorted(graph_def.node, key=lambda node: node.name)

    return by_name(first) == by_name(second)


def test_library_versions_and_devices_stay() -> None:
    @tf.function
    def double(a: tf.Tensor) -> tf.Tensor:
        return 2.0 * a

    with tf.Graph().as_default() as graph, graph.device("/cpu:0"):
        x = tf.compat.v1.placeholder(tf.float32, [2], name="x")
        tf.identity(double(x), name="y")
    graph_def = graph.as_graph_def()
    graph_def.versions.min_consumer = 12
    graph_def.version = 3
    result = Graph(graph_def).to_graph_def()
    assert result.SerializeToString(deterministic=True) == graph_def.SerializeToString(deterministic=True)
    np.testing.assert_array_equal(run(result, {"x:0": [1.0, 2.0]}, ["y:0"])[0], [2.0, 4.0])


def test_loops_of_tensorflow_1() -> None:
    with tf.Graph().as_default() as graph:
        tf.compat.v1.disable_control_flow_v2()
        try:
            x = tf.compat.v1.placeholder(tf.float32, [2], name="x")
            _, y = tf.compat.v1.while_loop(lambda i, _: i < 3, lambda i, v: (i + 1, v * 2.0), [0, x])
            tf.identity(y, name="y")
        finally:
            tf.compat.v1.enable_control_flow_v2()
    graph_def = graph.as_graph_def()
    assert {"Enter", "Merge", "NextIteration"} <= {node.op for node in graph_def.node}
    editable = Graph(graph_def)
    assert editable.topological() is not None
    result = editable.to_graph_def()
    assert same_nodes(result, graph_def)
    np.testing.assert_array_equal(run(result, {"x:0": [1.0, 2.0]}, ["y:0"])[0], [8.0, 16.0])
    assert Graph(result).to_graph_def() == result


@pytest.mark.parametrize("name", ["mtcnn", "CRNN_S", "GRU_S", "mobilenet_v1_0.50_160_weights8bit"])
def test_real_graphs_compute_the_same(shared_data: Path, name: str) -> None:
    graph_def = load_graph(shared_data / "graphs" / f"{name}.pb")
    result = Graph(graph_def).to_graph_def()
    assert same_nodes(result, graph_def)
    assert result.versions == graph_def.versions
    assert Graph(result).to_graph_def() == result
    rng = np.random.default_rng(1)
    if name == "mtcnn":
        feeds = {
            "input:0": rng.uniform(0, 255, (60, 80, 3)),
            "min_size:0": 20,
            "thresholds:0": [0.1] * 3,
            "factor:0": 0.7,
        }
        fetches = ["prob:0", "landmarks:0", "box:0"]
    elif name.startswith("mobilenet"):
        feeds = {"input:0": rng.uniform(-1, 1, (1, 160, 160, 3))}
        fetches = ["MobilenetV1/Predictions/Reshape_1:0"]
    else:
        sound = sorted((shared_data / "audio_speech_commands" / "yes").iterdir())[0]
        feeds = {"wav_data:0": sound.read_bytes()}
        fetches = ["labels_softmax:0"]
    for expected, found in zip(run(graph_def, feeds, fetches), run(result, feeds, fetches), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "value",
    [
        True,
        np.bool_(False),
        -3,
        np.int64(7),
        0.5,
        np.float32(0.25),
        "SAME",
        b"\xff",
        tf.qint8,
        tf.TensorShape([None, 3]),
    ],
)
def test_plain_attributes_are_what_tensorflow_writes(value: object) -> None:
    node = NodeDef()
    set_attr(node, "k", [value, value])
    set_attr(node, "k", value)
    field = node.attr["k"].WhichOneof("value")
    expected = {bool: "b", np.bool_: "b", int: "i", np.int64: "i", float: "f", np.float32: "f", str: "s", bytes: "s"}
    assert field == expected.get(type(value), "type" if value is tf.qint8 else "shape")
    set_attr(node, "list", [value, value])
    assert len(getattr(node.attr["list"].list, field)) == 2
    copy = NodeDef()
    set_attr(copy, "k", node.attr["k"])
    assert copy.attr["k"] == node.attr["k"]


def test_attributes_that_cannot_be() -> None:
    node = NodeDef()
    set_attr(node, "k", 1)
    for value in (None, object(), [None]):
        with pytest.raises(TypeError, match="cannot make an attribute"):
            set_attr(node, "k", value)
    assert node.attr["k"].i == 1
    set_attr(node, "empty", [])
    assert node.attr["empty"].WhichOneof("value") == "list"
    assert attr_ints(node, "empty", (1, 2)) == attr_ints(node, "missing", (1, 2)) == (1, 2)
    assert attr_string(node, "data_format", "NHWC") == "NHWC"
    assert "data_format" not in node.attr


@pytest.mark.parametrize("dtype", [tf.qint8, tf.quint8, tf.qint32])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_constants_of_codes(dtype: tf.DType, shape: tuple[int, ...]) -> None:
    codes = np.full(shape, 127, np.int64)
    node = make_const("c", codes, dtype)
    found = tensor_value(node.attr["value"].tensor)
    np.testing.assert_array_equal(found, codes)
    assert found.shape == shape
    assert found.dtype.kind in "iu"
    graph = Graph(GraphDef(node=[node]))
    assert graph.constant("c").dtype == found.dtype
    stored = run(graph.to_graph_def(), {}, ["c:0"])[0]
    assert stored.shape == shape
    assert stored.tobytes() == found.tobytes()


@pytest.mark.parametrize("value", [0.0, -0.0, 1.5, np.nan, -np.inf])
@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (2, 300)])
def test_constants_of_one_float_are_written_as_one(value: float, shape: tuple[int, ...]) -> None:
    array = np.full(shape, value, np.float32)
    node = make_const("c", array)
    assert node.ByteSize() < 80
    for found in (tensor_value(node.attr["value"].tensor), run(GraphDef(node=[node]), {}, ["c:0"])[0]):
        assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, shape, array.tobytes())


def test_zeros_of_both_signs_are_not_written_as_one() -> None:
    array = np.array([0.0, -0.0, 0.0], np.float32)
    assert tensor_value(make_const("c", array).attr["value"].tensor).tobytes() == array.tobytes()


@pytest.mark.parametrize("codes", [[1.5], [128.0], [-129], [np.nan]])
def test_codes_are_never_wrapped_or_truncated(codes: list[float]) -> None:
    with pytest.raises(ValueError, match=r"codes of a qint8 tensor must be whole numbers in \[-128, 127\]"):
        make_const("c", np.array(codes), tf.qint8)
