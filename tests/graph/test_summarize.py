"""Inputs, outputs, counts and shapes are found without running a graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from quantizer_core.errors import GraphError, UnknownNodeError
from quantizer_core.graph.files import load_graph
from quantizer_core.graph.graph import Graph, GraphDef
from quantizer_core.graph.infer import TensorInfo, infer_dtypes, infer_shapes, lazy_shapes, tensor_info
from quantizer_core.graph.summarize import find_inputs, find_outputs, input_specs, summarize_graph
from quantizer_core.types import TensorSpec

v1 = tf.compat.v1


def conv_graph() -> GraphDef:
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 8, 8, 3], name="x")
        v1.placeholder_with_default(1.0, [], name="keep")
        y = tf.nn.conv2d(x, np.ones([3, 3, 3, 500], np.float32), 2, "SAME", name="conv")
        with tf.control_dependencies([tf.debugging.assert_less(y, 1e9), tf.no_op("idle")]):
            tf.nn.top_k(y, 2, name="best")
        tf.constant([b"ab", b"c"], name="words")
        return graph.as_graph_def()


def test_summary() -> None:
    summary = summarize_graph(conv_graph(), "dir/my graph.pb")
    assert summary.inputs == (TensorSpec("x", "float32", (-1, 8, 8, 3)),)
    assert summary.outputs == ("best",)
    assert summary.quantizable == {"Conv2D": 1}
    assert next(iter(summary.ops)) == "Const"
    assert sum(summary.ops.values()) == summary.nodes == len(conv_graph().node)
    assert 3 * 3 * 3 * 500 * 4 + 3 < summary.constant_bytes < 3 * 3 * 3 * 500 * 4 + 1000
    assert summary.state == ()
    assert summary.command == (
        "quantizer convert --input_graph 'dir/my graph.pb' --output_graph 'dir/my graph_int8.pb' --inputs x "
        "--outputs best --calibration_data EXAMPLES --preprocess KIND"
    )
    command = summarize_graph(conv_graph(), "model/", "tensors").command
    assert "--input_graph model --output_graph model_int8.pb --signature tensors --inputs x" in command


def test_functions_and_variables_are_counted() -> None:
    @tf.function
    def add(a: tf.Tensor) -> tf.Tensor:
        return a + tf.constant(np.ones(10, np.float32))

    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [10], name="x")
        tf.identity(add(x) + v1.get_variable("v", [10]), name="y")
    summary = summarize_graph(graph.as_graph_def())
    assert len(summary.functions) == 1
    assert summary.functions[0].startswith("__inference_add_")
    assert summary.function_ops["AddV2"] == 1
    assert summary.state[0] == "v"
    assert "y" in summary.outputs
    assert summary.constant_bytes >= 40


def test_other_nodes_than_placeholders_as_inputs() -> None:
    specs = input_specs(conv_graph(), ["conv:0", "x", "best"])
    assert specs == (
        TensorSpec("conv", "float32", (-1, 4, 4, 500)),
        TensorSpec("x", "float32", (-1, 8, 8, 3)),
        TensorSpec("best", "float32", (-1, 4, 4, 2)),
    )
    with pytest.raises(UnknownNodeError, match="no node 'konv'; did you mean 'conv'"):
        input_specs(conv_graph(), ["konv"])
    with pytest.raises(GraphError, match="'best:1' must be the first output"):
        input_specs(conv_graph(), ["best:1"])
    with pytest.raises(GraphError, match=r"'idle' \(NoOp\) has no output"):
        input_specs(conv_graph(), ["idle"])


@pytest.mark.parametrize("producer", [0, 21, 22, 1766])
@pytest.mark.parametrize("attr", ["missing", "scalar", "unknown", "matrix"])
def test_a_placeholders_shape_is_what_tensorflow_takes_it_for(producer: int, attr: str) -> None:
    graph_def = GraphDef()
    graph_def.versions.producer = producer
    node = graph_def.node.add(name="x", op="Placeholder")
    node.attr["dtype"].type = tf.string.as_datatype_enum
    if attr == "scalar":
        node.attr["shape"].shape.SetInParent()
    elif attr == "unknown":
        node.attr["shape"].shape.unknown_rank = True
    elif attr == "matrix":
        for size in (-1, 3):
            node.attr["shape"].shape.dim.add().size = size
    before = graph_def.SerializeToString(deterministic=True)
    [spec] = input_specs(graph_def, ["x"])
    assert graph_def.SerializeToString(deterministic=True) == before
    assert TensorInfo(spec.dtype, spec.shape) == tensor_info(graph_def)["x"]
    assert spec.dtype == "string"


def test_shapes_and_dtypes_of_every_tensor() -> None:
    graph_def = conv_graph()
    info = tensor_info(graph_def)
    assert info["conv"] == TensorInfo("float32", (-1, 4, 4, 500))
    assert info["best:1"] == TensorInfo("int32", (-1, 4, 4, 2))
    assert info["conv/filter"].dtype == "float32"
    assert "idle" not in info
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        for operation in graph.get_operations():
            for port, tensor in enumerate(operation.outputs):
                name = operation.name if port == 0 else f"{operation.name}:{port}"
                shape = None if tensor.shape.rank is None else tuple(d or -1 for d in tensor.shape.as_list())
                assert info.pop(name) == TensorInfo(tensor.dtype.name, shape)
    assert not info
    assert infer_dtypes(graph_def)["words"] == "string"


def test_a_part_of_a_graph_can_be_asked_alone() -> None:
    graph_def = conv_graph()
    whole = tensor_info(graph_def)
    nodes = Graph(graph_def, copy=False).part(["conv"])
    part = tensor_info(nodes)
    assert part and part == {name: whole[name] for name in part}
    assert {"x", "conv"} <= set(part) and "best" not in part
    asked = []
    shape = lazy_shapes(lambda: asked.append(None) or nodes)
    assert not asked
    assert [shape("conv"), shape("x"), shape("best")] == [whole["conv"].shape, whole["x"].shape, None]
    assert len(asked) == 1


def test_shapes_given_feeds() -> None:
    graph_def = conv_graph()
    shapes = infer_shapes(graph_def, {"x": (4, 8, 8, 3)})
    assert shapes["x"] == (4, 8, 8, 3)
    assert shapes["conv"] == (4, 4, 4, 500)
    shapes = infer_shapes(graph_def, {"conv": (2, None, -1, 500)})
    assert shapes["conv"] == (2, -1, -1, 500)
    assert shapes["best"] == (2, -1, -1, 2)
    assert infer_shapes(graph_def, {"conv": None})["best:1"] is None
    with pytest.raises(UnknownNodeError, match="did you mean 'conv'"):
        infer_shapes(graph_def, {"conf": None})


def test_shapes_that_constants_decide() -> None:
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 512], name="x")
        tf.reshape(x, tf.constant([-1, 2, 256]), name="y")
        tf.gather(x, tf.range(300), axis=1, name="z")
    shapes = infer_shapes(graph.as_graph_def())
    assert shapes["y"] == (-1, 2, 256)
    assert shapes["z"] == (-1, 300)


def test_a_graph_that_tensorflow_refuses() -> None:
    graph_def = GraphDef()
    graph_def.node.add(name="a", op="NoSuchOperation")
    with pytest.raises(GraphError, match="NoSuchOperation"):
        tensor_info(graph_def)


def test_ends_of_loops_count_only_if_there_is_nothing_else() -> None:
    graph_def = GraphDef()
    for name, op, *inputs in (("p", "Placeholder"), ("s", "Switch", "p"), ("e", "Exit", "s"), ("y", "Relu", "s:1")):
        graph_def.node.add(name=name, op=op, input=inputs)
    assert find_outputs(graph_def) == ("y",)
    del graph_def.node[3]
    assert find_outputs(graph_def) == ("e",)
    assert find_inputs(graph_def) == ("p",)


@pytest.mark.parametrize(
    ("name", "inputs", "outputs"),
    [
        ("mobilenet_v1_0.25_224_frozen", {"input": (1, 224, 224, 3)}, ("MobilenetV1/Predictions/Reshape_1",)),
        ("CRNN_S", {"wav_data": None}, ("labels_softmax",)),
        ("ESPCN_x2", {"IteratorGetNext": None}, ("NCHW_output",)),
        (
            "mtcnn",
            {"input": (-1, -1, 3), "min_size": None, "thresholds": (3,), "factor": None},
            ("prob", "landmarks", "box"),
        ),
    ],
)
def test_real_graphs(
    shared_data: Path, name: str, inputs: dict[str, tuple[int, ...] | None], outputs: tuple[str, ...]
) -> None:
    graph_def = load_graph(shared_data / "graphs" / f"{name}.pb")
    summary = summarize_graph(graph_def)
    assert {spec.name: spec.shape for spec in summary.inputs} == inputs
    assert summary.outputs == outputs
    assert summary.quantizable
    info = tensor_info(graph_def)
    assert all(info[spec.name] == (spec.dtype, spec.shape) for spec in summary.inputs)
