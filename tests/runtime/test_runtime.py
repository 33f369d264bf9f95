"""Sessions, batches and what the machine can run."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from quantizer_core import runtime
from quantizer_core.errors import DataError, GraphError, MachineError, UnknownNodeError
from quantizer_core.graph.summarize import input_specs
from quantizer_core.types import TensorSpec

X = TensorSpec("x", "float32", (-1, 3))
ROOT = Path(__file__).resolve().parents[2]


def doubled() -> tf.GraphDef:
    with tf.Graph().as_default() as graph:
        x = tf.placeholder(tf.float32, [None, 3], name="x")
        tf.multiply(x, 2.0, name="twice")
        tf.split(x, 3, axis=1, name="parts")
    return graph.as_graph_def()


@pytest.mark.parametrize("optimize", [True, None, False])
def test_fetches_come_in_order_with_and_without_port(optimize: bool | None) -> None:
    value = np.array([[1, 2, 3]], np.float32)
    with runtime.GraphSession(doubled(), [X], ["parts:1", "twice:0", "twice"], optimize=optimize) as session:
        part, one, two = session.run({"x": value, "unused": value})
    np.testing.assert_array_equal(part, [[2]])
    np.testing.assert_array_equal(one, value * 2)
    np.testing.assert_array_equal(two, value * 2)


@pytest.mark.parametrize("fetches", [["x"], ["x", "twice", "x:0"]])
def test_an_input_can_be_fetched(fetches: list[str]) -> None:
    value = np.array([[1, 2, 3]], np.float32)
    with runtime.GraphSession(doubled(), [X], fetches) as session:
        found = session.run({"x": value})
    for name, each in zip(fetches, found, strict=True):
        np.testing.assert_array_equal(each, value * 2 if name == "twice" else value)


def test_values_may_be_of_another_dtype_and_order() -> None:
    with runtime.GraphSession(doubled(), [X], ["twice"]) as session:
        for value in (np.arange(6).reshape(3, 2).T, np.arange(12.0).reshape(4, 3)[::2], [[1, 2, 3]]):
            np.testing.assert_array_equal(session.run({"x": value})[0], 2 * np.asarray(value, np.float32))


@pytest.mark.parametrize("threads", [None, 1, 2])
def test_threads_share_a_session(threads: int | None) -> None:
    values = [np.full((1, 3), number, np.float32) for number in range(64)]
    with (
        runtime.GraphSession(doubled(), [X], ["twice"], threads=threads) as session,
        ThreadPoolExecutor(8) as pool,
    ):
        found = list(pool.map(lambda value: session.run({"x": value})[0], values))
    np.testing.assert_array_equal(found, np.multiply(values, 2))


def test_a_session_that_lives_to_the_end_of_the_process_says_nothing() -> None:
    program = """
import numpy as np
from quantizer_core.runtime import GraphSession
from tests.runtime.test_runtime import X, doubled
session = GraphSession(doubled(), [X], ["twice"])
session.run({"x": np.ones((1, 3), np.float32)})
import threading
threading.current_thread().kept = session
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "Exception ignored" not in done.stderr


def test_unknown_names_give_the_nearest() -> None:
    with pytest.raises(UnknownNodeError, match="'twic'.*did you mean 'twice'"):
        runtime.GraphSession(doubled(), [X], ["twic"])
    with pytest.raises(UnknownNodeError, match="'parts:7'"):
        runtime.GraphSession(doubled(), [X], ["parts:7"])
    with pytest.raises(UnknownNodeError, match="'z'"):
        runtime.GraphSession(doubled(), [TensorSpec("z", "float32", (-1, 3))], ["twice"])


def test_a_graph_that_tensorflow_refuses_is_a_graph_error() -> None:
    graph_def = doubled()
    next(node for node in graph_def.node if node.name == "twice").op = "NoSuchOp"
    with pytest.raises(GraphError, match="NoSuchOp"):
        runtime.GraphSession(graph_def, [X], ["parts"])


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({}, "no value for the graph input 'x'"),
        ({"x": np.zeros((1, 4), np.float32)}, r"'x' takes shape .*3.*, not \[1, 4\]"),
        ({"x": np.full((1, 3), "word")}, "refuses its inputs"),
    ],
)
def test_feeds_that_do_not_fit_are_data_errors(feeds: dict, words: str) -> None:
    with (
        runtime.GraphSession(doubled(), [X], ["twice"]) as session,
        pytest.raises(DataError, match=words),
    ):
        session.run(feeds)


def test_an_empty_batch_is_refused_before_a_kernel_can_end_the_process() -> None:
    with runtime.GraphSession(doubled(), [X], ["twice"]) as session, pytest.raises(DataError, match="'x' is empty"):
        session.run({"x": np.zeros((0, 3), np.float32)})


def test_values_that_an_operation_refuses_are_data_errors() -> None:
    with tf.Graph().as_default() as graph:
        tf.io.decode_png(tf.placeholder(tf.string, [], name="x"), name="image")
    spec = TensorSpec("x", "string", ())
    with (
        runtime.GraphSession(graph.as_graph_def(), [spec], ["image"]) as session,
        pytest.raises(DataError, match="refuses its inputs"),
    ):
        session.run({"x": np.array(b"no png", object)})


def test_a_short_batch_is_filled_with_its_last_example() -> None:
    examples = [{"x": np.full(3, i, np.float32)} for i in range(2)]
    batch = runtime.stack_batch(examples, [X], 4)["x"]
    assert batch.dtype == np.float32
    np.testing.assert_array_equal(batch[:, 0], [0, 1, 1, 1])


@pytest.mark.parametrize("dtype", ["float32", "uint8", "int64", "float64", "bool", "S3"])
@pytest.mark.parametrize("size", [1, 3])
def test_a_batch_lies_where_tensorflow_need_not_copy_it(dtype: str, size: int) -> None:
    spec = TensorSpec("x", "string" if dtype == "S3" else dtype, (-1, 5, 3))
    examples = [{"x": np.arange(index, index + 15).reshape(5, 3).astype(dtype)} for index in range(size)]
    batch = runtime.stack_batch(examples, [spec], size)["x"]
    assert batch.ctypes.data % 64 == 0 and batch.flags.c_contiguous and batch.flags.writeable
    assert batch.dtype == dtype
    np.testing.assert_array_equal(batch, np.stack([example["x"] for example in examples]))


def test_a_step_leaves_memory_that_it_shares_unchanged() -> None:
    with tf.Graph().as_default() as graph:
        x = tf.placeholder(tf.float32, [None, 3], name="x")
        tf.nn.relu(tf.identity(x) - 1, name="y")
        tf.nn.relu(x, name="z")
    examples = [{"x": np.full(3, value, np.float32)} for value in (-1, 2)]
    batch = runtime.stack_batch(examples, [X], 2)
    with runtime.GraphSession(graph.as_graph_def(), [X], ["y", "z"]) as session:
        for _ in range(3):
            y, z = session.run(batch)
            np.testing.assert_array_equal(y[:, 0], [0, 1])
            np.testing.assert_array_equal(z[:, 0], [0, 2])
            np.testing.assert_array_equal(batch["x"][:, 0], [-1, 2])


def test_a_fixed_batch_goes_before_the_size_asked_for() -> None:
    fixed = TensorSpec("x", "float32", (1, 3))
    assert runtime.stack_batch([{"x": np.zeros(3, np.float32)}], [fixed], 16)["x"].shape == (1, 3)
    with pytest.raises(DataError, match="2 examples do not fit a batch of 1"):
        runtime.stack_batch([{"x": np.zeros(3, np.float32)}] * 2, [fixed], 16)


def test_inputs_without_batch_dimension_pass_as_they_are() -> None:
    inputs = [TensorSpec("wav", "string", ()), TensorSpec("text", "string", None)]
    example = {"wav": np.array(b"RIFF", object), "text": np.array(b"t", object)}
    batch = runtime.stack_batch([example], inputs, 8)
    assert batch["wav"].shape == () and batch["wav"].item() == b"RIFF" and batch["text"].shape == ()


def test_examples_that_cannot_be_stacked_name_the_input() -> None:
    with pytest.raises(DataError, match=r"'x': float32\[2\], float32\[3\]; use batch_size 1"):
        runtime.stack_batch([{"x": np.zeros(2, np.float32)}, {"x": np.zeros(3, np.float32)}], [X], 2)
    with pytest.raises(DataError, match="no value for the graph input 'x'; it has: y"):
        runtime.stack_batch([{"y": np.zeros(2)}], [X], 2)


@pytest.mark.parametrize(
    ("shapes", "limit"),
    [
        ([(-1, 3)], None),
        ([(1, 3)], 1),
        ([(8, 3)], 8),
        ([()], 1),
        ([None], None),
        ([(-1, 3), (8, 3)], 8),
        ([(1, 3), ()], 1),
    ],
)
def test_batch_limit(shapes: list, limit: int | None) -> None:
    specs = [TensorSpec(f"x{i}", "float32", shape) for i, shape in enumerate(shapes)]
    assert runtime.batch_limit(specs) == limit


def test_settings_beside_an_image_are_fed_as_they_are() -> None:
    with tf.Graph().as_default() as graph:
        tf.placeholder(tf.float32, [None, None, 3], name="image")
        tf.placeholder(tf.float32, [3], name="thresholds")
        tf.placeholder(tf.float32, name="factor")
    specs = input_specs(graph.as_graph_def(), ["image", "thresholds", "factor"])
    assert [spec.single for spec in specs] == [True] * 3
    assert runtime.batch_limit(specs) == 1
    example = {"image": np.zeros((4, 5, 3)), "thresholds": np.zeros(3), "factor": np.float32(1)}
    assert {n: np.shape(v) for n, v in runtime.stack_batch([example], specs, 8).items()} == {
        "image": (4, 5, 3), "thresholds": (3,), "factor": (),
    }  # fmt: skip


def test_a_setting_beside_a_batch_of_images_leaves_them_a_batch() -> None:
    with tf.Graph().as_default() as graph:
        tf.placeholder(tf.float32, [None, 8, 8, 3], name="images")
        tf.placeholder(tf.float32, [9], name="anchors")
    specs = input_specs(graph.as_graph_def(), ["images", "anchors"])
    assert [spec.single for spec in specs] == [False, True]
    assert runtime.batch_limit(specs) == 1


def test_contradicting_batches_are_a_graph_error() -> None:
    with pytest.raises(GraphError, match="different batch sizes"):
        runtime.batch_limit([TensorSpec("a", "float32", (2, 3)), TensorSpec("b", "float32", (3, 3))])


@pytest.mark.parametrize(
    ("tensor", "size"),
    [("apart", 16), ("folded", 1), ("whole", 1), ("unknown", 1)],
)
def test_examples_that_do_not_stay_apart_run_one_by_one(tensor: str, size: int) -> None:
    with tf.Graph().as_default() as graph:
        x = tf.placeholder(tf.float32, [None, 4, 3], name="x")
        tf.nn.relu(x, name="apart")
        tf.reshape(x, [-1, 3], name="folded")
        tf.reduce_max(x, name="whole")
        tf.boolean_mask(x, tf.reduce_max(x, [1, 2]) > 0, name="mask")
        tf.identity(graph.get_tensor_by_name("mask/GatherV2:0"), name="unknown")
    spec = TensorSpec("x", "float32", (-1, 4, 3))
    assert runtime.batch_size_for(graph.as_graph_def(), [spec], [tensor], 16) == size


def test_shapes_that_nodes_carry_along_do_not_fix_the_batch() -> None:
    with tf.Graph().as_default() as graph:
        tf.nn.relu(tf.placeholder(tf.float32, [None, 3], name="x"), name="y")
    graph_def = graph.as_graph_def()
    carried = tf.TensorShape([1, 3]).as_proto()  # as of a graph that was frozen with a batch of 1
    graph_def.node[-1].attr["_output_shapes"].list.shape.add().CopyFrom(carried)
    assert runtime.batch_size_for(graph_def, [TensorSpec("x", "float32", (-1, 3))], ["y"], 16) == 16
    assert graph_def.node[-1].attr["_output_shapes"].list.shape[0] == carried


def test_a_fixed_batch_that_is_folded_is_refused() -> None:
    with tf.Graph().as_default() as graph:
        x = tf.placeholder(tf.float32, [8, 4, 3], name="x")
        tf.reshape(x, [-1, 3], name="folded")
    spec = TensorSpec("x", "float32", (8, 4, 3))
    with pytest.raises(GraphError, match="batch at 8, but tensor 'folded'"):
        runtime.batch_size_for(graph.as_graph_def(), [spec], ["folded"], 16)


@pytest.mark.parametrize(
    ("flags", "limit", "expected"),
    [
        ({"avx2"}, None, False),
        ({"avx512_vnni"}, None, True),
        ({"avx_vnni"}, None, True),
        ({"avx512_vnni"}, "AVX2", False),
        ({"avx512_vnni"}, "avx512_core", False),
        ({"avx512_vnni"}, "AVX512_CORE_VNNI", True),
        ({"avx512_vnni"}, "AVX512_CORE_AMX", True),
        ({"avx512_vnni"}, "AVX2_VNNI", False),
        ({"avx512_vnni", "avx_vnni"}, "AVX2_VNNI", True),
    ],
)
def test_has_vnni(monkeypatch: pytest.MonkeyPatch, flags: set[str], limit: str | None, expected: bool) -> None:
    monkeypatch.setattr(runtime, "cpu_flags", lambda: frozenset(flags))
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    if limit:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert runtime.has_vnni() is expected


class _OneDnn:
    def __init__(self, on: bool):
        self.on = on

    def IsMklEnabled(self) -> bool:  # noqa: N802 - TensorFlow's name
        return self.on


def test_check_machine_tells_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_pywrap_util_port", _OneDnn(True))
    monkeypatch.setattr(runtime, "cpu_flags", lambda: frozenset({"avx2"}))
    runtime.check_machine()
    monkeypatch.setattr(runtime, "cpu_flags", lambda: frozenset({"sse4_2"}))
    with pytest.raises(MachineError, match="no AVX2"):
        runtime.check_machine()
    monkeypatch.setattr(runtime, "_pywrap_util_port", _OneDnn(False))
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    with pytest.raises(MachineError, match="TF_ENABLE_ONEDNN_OPTS=0.*unset"):
        runtime.check_machine()
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "1")
    with pytest.raises(MachineError, match="has no oneDNN"):
        runtime.check_machine()
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS")
    with pytest.raises(MachineError, match="processors without VNNI unless TF_ENABLE_ONEDNN_OPTS=1"):
        runtime.check_machine()


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        (
            "Graph execution error:\n\nDetected at node 'a' defined at (most recent call last):\n"
            "    File \"x.py\", line 1\nNode: 'a'\nsizes differ: 4 and 6\n\t [[{{node a}}]]",
            "sizes differ: 4 and 6 (node 'a')",
        ),
        (
            "Graph execution error:\n\nDetected at node 'a' defined at\nNode: 'a'\nDetected at node 'b' defined at\n"
            "Node: 'b'\n2 root error(s) found.\n  (0) INVALID_ARGUMENT:  sizes differ\n\t [[{{node a}}]]\n\t [[b/_3]]\n"
            "  (1) INVALID_ARGUMENT:  others differ\n\t [[{{node b}}]]\n0 successful operations.",
            "sizes differ (node 'a')",
        ),
        ("node b: sizes differ\n\t [[{{node b}}]]", "node b: sizes differ"),
        ("no kernel\n", "no kernel"),
    ],
)
def test_the_cause_is_found_among_the_headings(message, cause):
    assert runtime._first_line(tf.errors.InvalidArgumentError(None, None, message)) == cause
