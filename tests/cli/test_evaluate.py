"""``quantizer evaluate``: two graphs that are there, compared on examples, with the verdict as the exit code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner, Result

from quantizer_core.cli.main import cli
from quantizer_core.data import tensor_example, write_tfrecords


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Holds a classifier, the INT8 graph made of it, one with other weights, and 24 labelled examples."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(24, 8, 8, 4)).astype(np.float32)
    kernel = (rng.normal(size=(3, 3, 4, 8)) / 6).astype(np.float32)
    for name, head in (("fp32", rng.normal(size=(8, 5))), ("other", rng.normal(size=(8, 5)))):
        with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
            x = tf.compat.v1.placeholder(tf.float32, [None, 8, 8, 4], name="x")
            y = tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(x, kernel, 1, "SAME")), [1, 2])
            scores = tf.nn.softmax(tf.matmul(y, tf.constant(head.astype(np.float32))), name="scores")
            if name == "fp32":
                classes = session.run(scores, {x: rows}).argmax(1)
        (tmp_path / f"{name}.pb").write_bytes(graph.as_graph_def().SerializeToString())
    examples = [
        tensor_example({"x": row, "class": np.array(label, np.int64)}) for row, label in zip(rows, classes, strict=True)
    ]
    write_tfrecords(examples, str(tmp_path / "data.gz"))
    done = run("convert", "--input_graph", tmp_path / "fp32.pb", "--output_graph", tmp_path / "int8.pb",
               "--calibration_data", tmp_path / "data.gz", "--num_calibration_examples", 16)  # fmt: skip
    assert done.exit_code == 0, done.stderr
    return tmp_path


def arguments(folder: Path, int8: str = "int8.pb") -> list[object]:
    return ["evaluate", "--input_graph", folder / "fp32.pb", "--int8_graph", folder / int8,
            "--evaluation_data", folder / "data.gz", "--label_key", "class"]  # fmt: skip


def test_the_verdict_is_that_of_convert(folder: Path) -> None:
    result = run(*arguments(folder), "--skip_examples", 16, "--max_drop", 0.2, "--json")
    assert result.exit_code == 0, result.stderr
    alone = json.loads(result.stdout)
    assert alone["num_examples"] == 8 and alone["fp32"] == 1.0
    both = run("convert", "--input_graph", folder / "fp32.pb", "--output_graph", folder / "again.pb",
               "--calibration_data", folder / "data.gz", "--num_calibration_examples", 16, "--evaluate_rest",
               "--label_key", "class", "--max_drop", 0.2, "--json")  # fmt: skip
    assert json.loads(both.stdout)["evaluation"] == alone


def test_a_graph_that_is_not_good_enough_gives_exit_code_3(folder: Path) -> None:
    result = run(*arguments(folder, "other.pb"), "--report", folder / "report.json")
    assert result.exit_code == 3, result.stderr
    assert "NOT BLESSED" in result.stdout and "Evaluating: 24 examples" in result.stderr
    assert json.loads((folder / "report.json").read_text())["blessed"] is False
    again = run(*arguments(folder), "--report", folder / "report.json")
    assert again.exit_code == 2 and "exists already" in again.stderr
    assert json.loads((folder / "report.json").read_text())["blessed"] is False


def test_num_examples_bounds_the_comparison(folder: Path) -> None:
    result = run(*arguments(folder), "--skip_examples", 3, "--num_examples", 5, "--metric", "agreement", "--json")
    assert json.loads(result.stdout)["num_examples"] == 5


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        (["--metric", "top2"], 2, "--metric is 'top2'; did you mean"),
        (["--max_drop", "7"], 2, "--max_drop must lie in [0, 1]"),
        (["--outputs", "score"], 1, "score"),
        (["--skip_examples", "24"], 1, "no examples"),
        (["--evaluation_data", "nowhere"], 1, "nowhere"),
        (["--label_key", "klass"], 1, "have no label feature 'klass', which --metric top1 needs"),
        (["--report", "nowhere/report.json"], 2, "--report: directory 'nowhere' does not exist"),
        (["--int8_graph", "."], 2, "--int8_graph '.' is a directory: name the graph file"),
    ],
)
def test_wrong_use_gets_one_line(folder: Path, given: list[str], code: int, said: str) -> None:
    result = run(*arguments(folder), *given)
    assert result.exit_code == code, result.output
    assert said in result.stderr.splitlines()[-1]


def test_graphs_that_do_not_fit_are_named(folder: Path) -> None:
    with tf.Graph().as_default() as graph:
        tf.identity(tf.compat.v1.placeholder(tf.float32, [None, 8, 8, 4], name="image"), name="scores")
    (folder / "stranger.pb").write_bytes(graph.as_graph_def().SerializeToString())
    result = run(*arguments(folder, "stranger.pb"))
    assert result.exit_code == 1
    assert "stranger.pb' has no node 'x'" in result.stderr and "which is an input of" in result.stderr
