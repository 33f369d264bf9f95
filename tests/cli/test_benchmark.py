"""``quantizer benchmark``: what it times, in processes of their own, and what it says of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner, Result

from quantizer_core.cli.main import cli
from quantizer_core.data import tensor_example, write_tfrecords
from quantizer_core.errors import ConfigError
from quantizer_core.runtime import stack_batch
from quantizer_core.speed.child import answer
from quantizer_core.speed.feeds import load_feeds, noise, save_feeds, with_shapes
from quantizer_core.speed.measure import NodeTime, Setting, Timing, Trace, batches_for
from quantizer_core.types import TensorSpec


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def graph_path(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, None, None, 4], name="x")
        x = tf.nn.relu(tf.nn.conv2d(x, rng.normal(size=(3, 3, 4, 8)).astype(np.float32), 1, "SAME"))
        tf.nn.conv2d(x, rng.normal(size=(3, 3, 8, 8)).astype(np.float32), 1, "SAME", name="end")
    path = tmp_path / "graph.pb"
    path.write_bytes(graph.as_graph_def().SerializeToString())
    return path


def test_feeds_come_back_whole(tmp_path: Path) -> None:
    feeds = {
        "image": np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3),
        "sound": np.array([b"RIFF\0\0", b""], object),
        "flag": np.array(False),
    }
    save_feeds(feeds, tmp_path / "feeds")
    found = load_feeds(tmp_path / "feeds")
    assert set(found) == set(feeds)
    for name, value in feeds.items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].shape == value.shape


def test_noise_has_the_inputs_shapes_and_dtypes() -> None:
    inputs = [
        TensorSpec("x", "float32", (-1, 4, 3)),
        TensorSpec("image", "uint8", (1, 5, 5, 3)),
        TensorSpec("training", "bool", ()),
        TensorSpec("thresholds", "float32", (3,), single=True),
    ]
    found = noise(inputs)
    assert {name: (value.shape, value.dtype.name) for name, value in found.items()} == {
        "x": ((4, 3), "float32"), "image": ((5, 5, 3), "uint8"), "training": ((), "bool"),
        "thresholds": ((3,), "float32"),
    }  # fmt: skip
    assert found["image"].max() > 100 and not found["training"]
    assert stack_batch([found], inputs[:1], 3)["x"].shape == (3, 4, 3)


def test_open_shapes_are_asked_for() -> None:
    image = TensorSpec("image", "float32", (-1, -1, -1, 3))
    with pytest.raises(ConfigError, match=r"'image' is \[\?, \?, \?, 3\].*--shape image=300,300,3"):
        noise([image])
    assert noise(with_shapes([image], {"image": (6, 7, 3)}))["image"].shape == (6, 7, 3)
    with pytest.raises(ConfigError, match=r"one example of 'image' has shape \[\?, \?, \?, 3\]"):
        with_shapes([image], {"image": (6, 7, 4)})
    with pytest.raises(ConfigError, match="no input 'imge'.*'image'"):
        with_shapes([image], {"imge": (6, 7, 3)})
    with pytest.raises(ConfigError, match="takes strings"):
        noise([TensorSpec("wav", "string", ())])
    assert with_shapes([TensorSpec("any", "float32", None)], {"any": (2,)})[0].shape == (-1, 2)


def test_figures_of_timings() -> None:
    fp32 = Timing("FP32", Setting(1, 4), (10.0, 12.0, 20.0))
    int8 = Timing("INT8", Setting(1, 4), (5.0, 4.0, 10.0))
    assert fp32.latency == 12.0 and int8.throughput == 1000 * 4 / 5
    assert int8.speedup_over(fp32) == (2.0, 2.0, 3.0)
    trace = Trace("INT8", Setting(1, 1), (NodeTime("a", "Conv2D", 3), NodeTime("b", "Mul", 2), NodeTime("c", "Mul", 2)))
    assert trace.total == 7 and trace.by_op() == {"Mul": (2, 4), "Conv2D": (1, 3)}


def test_a_batch_that_the_graph_fixes_is_taken() -> None:
    assert batches_for([TensorSpec("x", "float32", (-1, 3))], (1, 16, 1)) == (1, 16)
    assert batches_for([TensorSpec("x", "float32", (4, 3))], (1, 16)) == (4,)


def test_the_child_times_steps_and_nodes(graph_path: Path, tmp_path: Path) -> None:
    save_feeds({"x": np.ones((2, 8, 8, 4), np.float32)}, tmp_path / "feeds")
    spec = {"name": "x", "dtype": "float32", "shape": (-1, -1, -1, 4), "single": False}
    request = {"graph": str(graph_path), "inputs": [spec], "outputs": ["end"], "feeds": str(tmp_path / "feeds"),
               "threads": 1, "bfloat16": False}  # fmt: skip
    timed = answer({**request, "seconds": 0.02})
    assert timed["milliseconds"] > 0 and timed["steps"] >= 3
    timeline = tmp_path / "timeline.json"
    nodes = answer({**request, "trace": True, "timeline": str(timeline)})["nodes"]
    times = [time for _, _, time in nodes]
    assert times == sorted(times, reverse=True) and ("end" in {name for name, _, _ in nodes})
    assert sum("Conv2D" in op for _, op, _ in nodes) == 2
    assert json.loads(timeline.read_text())["traceEvents"]


@pytest.mark.slow
def test_fp32_and_int8_side_by_side(graph_path: Path) -> None:
    folder = graph_path.parent
    rows = np.random.default_rng(0).normal(size=(8, 8, 8, 4)).astype(np.float32)
    examples = [tensor_example({"x": row, "x/shape": np.array(row.shape)}) for row in rows]
    write_tfrecords(examples, str(folder / "data.gz"))
    int8 = folder / "int8.pb"
    done = run("convert", "--input_graph", graph_path, "--output_graph", int8, "--calibration_data", folder / "data.gz")
    assert done.exit_code == 0, done.stderr
    given = ["benchmark", "--input_graph", graph_path, "--int8_graph", int8, "--threads", 1, "--repeats", 1,
             "--seconds", 0.01]  # fmt: skip
    found = run(*given, "--batch_sizes", "2", "--shape", "x=8,8,4", "--json")
    assert found.exit_code == 0, found.stderr
    settings = json.loads(found.stdout)["settings"]
    assert [(row["threads"], row["batch"]) for row in settings] == [(1, 2)]
    for row in settings:
        ratio = row["fp32"]["milliseconds"] / row["int8"]["milliseconds"]
        assert row["int8"]["speedup"]["median"] == pytest.approx(ratio)
    text = run(*given, "--batch_sizes", "1", "--data", folder / "data.gz", "--trace", "--timeline", folder / "lines")
    assert text.exit_code == 0, text.stderr
    assert text.stdout.splitlines()[0].split() == [
        "threads", "batch", "FP32", "ms", "FP32", "ex/s", "INT8", "ms", "INT8", "ex/s", "speed-up", "spread"
    ]  # fmt: skip
    assert "lowest latency: " in text.stdout and "_FusedQuantizedConv2D" in text.stdout
    assert {path.name for path in (folder / "lines").iterdir()} == {"fp32.json", "int8.json"}


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        ([], 2, "--shape x=300,300,3"),
        (["--shape", "x"], 2, "'x' is not like image=224,224,3"),
        (["--threads", "0"], 2, "no list of positive numbers"),
        (["--inputs", "y"], 1, "no node 'y'"),
    ],
)
def test_wrong_use_gets_one_line(graph_path: Path, given: list[str], code: int, said: str) -> None:
    result = run("benchmark", "--input_graph", graph_path, *given)
    assert result.exit_code == code, result.output
    assert said in result.stderr.splitlines()[-1]
