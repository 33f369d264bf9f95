"""``quantizer inspect`` from its options to its tables."""

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
    """Holds a graph of a convolution, a residual with a fused sum and a LeakyRelu that keeps the end FP32."""
    rng = np.random.default_rng(0)

    def weights(*shape: int) -> tf.Tensor:
        return tf.constant(rng.normal(size=shape).astype(np.float32) / np.sqrt(np.prod(shape[:-1])))

    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, 8, 8, 4], name="x")
        x = tf.nn.relu(tf.nn.conv2d(x, weights(3, 3, 4, 8), 1, "SAME", name="stem"), name="stem/relu")
        inner = tf.nn.relu(tf.nn.conv2d(x, weights(3, 3, 8, 8), 1, "SAME", name="inner"))
        x = tf.nn.relu(tf.nn.conv2d(inner, weights(3, 3, 8, 8), 1, "SAME", name="last") + x, name="sum/relu")
        tf.nn.max_pool2d(tf.nn.leaky_relu(x), 2, 2, "VALID", name="pool")
    (tmp_path / "graph.pb").write_bytes(graph.as_graph_def().SerializeToString())
    rows = rng.normal(size=(24, 8, 8, 4)).astype(np.float32)
    write_tfrecords([tensor_example({"x": row}) for row in rows], str(tmp_path / "data.gz"))
    return tmp_path


def paths(folder: Path) -> list[object]:
    return ["--input_graph", folder / "graph.pb", "--calibration_data", folder / "data.gz", "--only_faster", "false"]


def test_tables_worst_first_and_what_stayed_fp32(folder: Path) -> None:
    result = run("inspect", *paths(folder), "--num_calibration_examples", 16, "--evaluate_rest")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split()[:2] == ["SQNR", "dB"]
    ratios = [float(line.split()[0]) for line in lines[1 : lines.index("")]]
    assert ratios == sorted(ratios) and len(ratios) == 4 and 20 < ratios[0] < 60
    (row,) = [line for line in lines if "last (" in line and "_FusedQuantizedConv2D" in line]
    assert "quint8 → quint8" in row and "of 256" in row and "0 … " in row
    assert "4 tensors, worst first; compared on 8 examples" in lines
    (pool,) = [line for line in lines if line.startswith("pool")]
    assert pool.split(maxsplit=2) == ["pool", "MaxPool", "its input is not INT8"]
    assert lines[-1] == "3 of 4 nodes in INT8: Conv2D 3/3, MaxPool 0/1"
    assert "Comparing: 8 examples" in result.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["data.gz", "graph.pb"]


def test_json_holds_the_same(folder: Path) -> None:
    result = run("inspect", *paths(folder), "--examples", 5, "--top", 2, "--json")
    assert result.exit_code == 0 and result.stderr == ""
    facts = json.loads(result.stdout)
    assert facts["examples"] == 5 and len(facts["layers"]) == 2 and facts["quantized"] == 3
    assert facts["layers"][0]["sqnr_db"] <= facts["layers"][1]["sqnr_db"]
    assert [entry["node"] for entry in facts["fp32"]] == ["pool"]
    shown = run("inspect", *paths(folder), "--examples", 5, "--top", 2).stdout
    assert "2 tensors, worst first (2 better ones not shown)" in shown
    assert f"{facts['layers'][0]['sqnr_db']:.1f}" in shown.splitlines()[1]


def test_choices_of_the_conversion_count(folder: Path) -> None:
    result = run("inspect", *paths(folder), "--excluded_nodes", "inner", "--json")
    facts = json.loads(result.stdout)
    assert {"node": "inner", "op": "Conv2D", "reason": "excluded by the configuration"} in facts["fp32"]
    assert "inner" not in {layer["node"] for layer in facts["layers"]}


def test_a_saved_plan_is_printed_without_running_anything(folder: Path) -> None:
    plan = folder / "plan.json"
    converted = run("convert", *paths(folder), "--output_graph", folder / "int8.pb", "--plan", plan)
    assert converted.exit_code == 0, converted.stderr
    result = run("inspect", "--plan", plan)
    assert result.exit_code == 0 and result.stderr == ""
    (row,) = [line for line in result.stdout.splitlines() if line.startswith("last ")]
    assert "_FusedQuantizedConv2D" in row and "quint8 → quint8" in row and row.endswith("sum/relu")
    assert "3 of 4 nodes in INT8" in result.stdout and "its input is not INT8" in result.stdout
    facts = json.loads(run("inspect", "--plan", plan, "--json").stdout)
    assert facts["plan"] == json.loads(plan.read_text()) and facts["candidates"] == 4


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--plan", "lists.json"], 2, "not a quantization plan"),
        ([], 2, "give --input_graph and --calibration_data (or --plan alone)"),
        (["--input_graph", "graph.pb"], 2, "give --calibration_data"),
        (["--input_graph", "graph.pb", "--plan", "plan.json"], 2, "--plan is printed alone, without --input_graph"),
        (["--plan", "none.json"], 2, "--plan 'none.json' cannot be read"),
        (["--plan", "graph.pb"], 2, "--plan 'graph.pb' is no text, so no plan"),
        (["--input_graph", "graph.pb", "--calibration_data", "data.gz", "--evaluate_rest"], 2, "--evaluate_rest needs"),
        (["--input_graph", "graph.pb", "--calibration_data", "data.gz", "--evaluation_data", "no"], 1, "no examples"),
        (["--input_graph", "none.pb", "--calibration_data", "data.gz"], 1, "does not exist"),
        (["--top", "0"], 2, "--top"),
    ],
)
def test_wrong_use_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(folder)
    (folder / "lists.json").write_text('{"format": 1, "nodes": ["a"], "tensors": []}')
    result = run("inspect", *options)
    assert result.exit_code == code, result.stderr
    assert "--callback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.lower().startswith("error: ")]
    assert message in line


@pytest.mark.slow
def test_resnet_on_real_images(shared_data: Path) -> None:
    result = run(
        *("inspect", "--input_graph", shared_data / "graphs" / "cifar10_resnet20.pb", "--outputs", "logits"),
        *("--calibration_data", shared_data / "images" / "cifar10", "--preprocess", "torch"),
        *("--num_calibration_examples", 128, "--evaluate_rest", "--json"),
    )
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["examples"] == 64 and facts["unmeasured"] == []
    assert min(layer["sqnr_db"] for layer in facts["layers"]) > 20
    assert sum(layer["op"] == "Conv2D" for layer in facts["layers"]) >= 19
