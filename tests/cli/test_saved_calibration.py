"""``--save_calibration``, ``--calibration`` and ``diff-ranges``: what calibration saw, kept, reused and compared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner, Result

from quantizer_core.calibration.saved import load_calibration
from quantizer_core.cli.main import cli
from quantizer_core.data import tensor_example, write_tfrecords
from quantizer_core.version import VERSION


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with graph.pb, data.gz (16 examples), other.gz (5 examples, three times as large), and net.ranges."""
    root = tmp_path_factory.mktemp("calibration")
    random = np.random.default_rng(0)
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, 8, 8, 3], name="x")
        net = tf.nn.conv2d(x, tf.constant(random.normal(size=(3, 3, 3, 8)).astype(np.float32)), 1, "SAME", name="conv")
        net = tf.reshape(tf.nn.relu(net, name="relu"), [-1, 512])
        tf.matmul(net, tf.constant(random.normal(size=(512, 3)).astype(np.float32)), name="logits")
    (root / "graph.pb").write_bytes(graph.as_graph_def().SerializeToString())
    images = random.normal(size=(21, 8, 8, 3)).astype(np.float32)
    write_tfrecords([tensor_example({"x": image}, 1) for image in images[:16]], str(root / "data.gz"))
    write_tfrecords([tensor_example({"x": 3 * image}, 1) for image in images[16:]], str(root / "other.gz"))
    for name, data in (("net", "data"), ("other", "other")):
        result = _convert(
            root, "--calibration_data", root / f"{data}.gz", "--save_calibration", root / f"{name}.ranges"
        )
        assert result.exit_code == 0, result.stderr
    return root


def _convert(folder: Path, *options: object) -> Result:
    paths = ("--input_graph", folder / "graph.pb", "--output_graph", folder / "int8.pb", "--overwrite")
    return run("convert", *paths, "--only_faster", "false", *options)


def test_saved_calibration_converts_as_the_data_would_without_reading_it(folder: Path) -> None:
    for options in (("--method", "minmax"), ("--excluded_ops", "Conv2D"), ("--rounding", "nearest")):
        fresh = _convert(folder, "--calibration_data", folder / "data.gz", *options)
        assert fresh.exit_code == 0 and "Calibrating: 16 examples" in fresh.stderr
        graph = (folder / "int8.pb").read_bytes()
        again = _convert(folder, "--calibration", folder / "net.ranges", *options)
        assert again.exit_code == 0, again.stderr
        assert "Calibrating" not in again.stderr and "calibrated on 16 examples" in again.stdout
        assert (folder / "int8.pb").read_bytes() == graph


def test_the_rest_of_the_calibration_data_can_still_be_compared_on(folder: Path) -> None:
    result = _convert(
        folder, "--calibration", folder / "net.ranges", "--calibration_data", folder / "data.gz",
        *("--num_calibration_examples", 10, "--evaluate_rest", "--metric", "agreement", "--max_drop", 1, "--json"),
    )  # fmt: skip
    assert json.loads(result.stdout)["evaluation"]["num_examples"] == 6


def test_inspect_takes_a_saved_calibration(folder: Path) -> None:
    paths = ("inspect", "--input_graph", folder / "graph.pb", "--calibration", folder / "net.ranges",
             "--only_faster", "false")  # fmt: skip
    result = run(*paths, "--evaluation_data", folder / "other.gz", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["examples"] == 5
    result = run(*paths)
    assert result.exit_code == 2 and "--calibration holds no examples to compare on" in result.stderr


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ([], 2, "give --calibration_data, or --calibration"),
        (
            ["--calibration", "net.ranges", "--calibration_data", "data.gz"],
            2,
            "--calibration_data or --calibration, not",
        ),
        (["--calibration", "net.ranges", "--num_calibration_examples", "3"], 2, "needs --calibration_data"),
        (["--calibration", "net.ranges", "--save_calibration", "new.ranges"], 2, "--save_calibration goes with"),
        (["--calibration", "none.ranges"], 2, "'none.ranges' does not exist; expected a saved calibration"),
        (["--calibration", "graph.pb"], 1, "'graph.pb' is no saved calibration"),
        (["--calibration", "data.gz"], 1, "'data.gz' is no saved calibration"),
        (
            ["--calibration", "net.ranges", "--outputs", "relu"],
            2,
            "--calibration 'net.ranges' is of a graph with the o",
        ),
        (["--calibration", "net.ranges", "--input_graph", "twin.pb"], 2, "'net.ranges' is of another graph"),
        (["--calibration", "net.ranges", "--preprocess", "unit"], 2, 'kind="tensors", and this conversion has "image"'),
        (["--calibration", "net.ranges", "--excluded_nodes", "relu"], 2, "did not watch tensor 'conv'"),
        (["--calibration_data", "data.gz", "--save_calibration", "no/x"], 2, "--save_calibration: directory 'no'"),
        (["--calibration_data", "data.gz", "--save_calibration", "graph.pb"], 2, "are the same path"),
    ],
)
def test_wrong_use_is_one_line_and_writes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(folder)
    twin = tf.compat.v1.GraphDef.FromString((folder / "graph.pb").read_bytes())
    twin.node[1].attr["value"].tensor.tensor_content = bytes(len(twin.node[1].attr["value"].tensor.tensor_content))
    (folder / "twin.pb").write_bytes(twin.SerializeToString())
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    result = run("convert", "--output_graph", "int8.pb", "--input_graph", "graph.pb", "--overwrite", *options)
    assert result.exit_code == code, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert message in line
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_existing_file_is_kept_without_overwrite(folder: Path, tmp_path: Path) -> None:
    paths = ("convert", "--input_graph", folder / "graph.pb", "--output_graph", tmp_path / "int8.pb")
    result = run(*paths, "--calibration_data", folder / "data.gz", "--save_calibration", folder / "net.ranges")
    assert result.exit_code == 2 and "net.ranges' exists already" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_diff_ranges_shows_the_largest_change_first(folder: Path) -> None:
    result = run("diff-ranges", folder / "net.ranges", folder / "other.ranges", "--method", "minmax")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == f"A: 16 examples of {folder / 'data.gz'}, by version {VERSION}"
    assert lines[1].startswith("B: 5 examples")
    (head,) = (number for number, line in enumerate(lines) if line.startswith("change %"))
    rows = [line.split() for line in lines[head + 1 : head + 5]]
    assert {row[-1] for row in rows} == {"x", "relu", "Reshape", "logits"}
    changes = [float(row[0]) for row in rows]
    assert changes == sorted(changes, reverse=True) and changes[-1] > 30  # values three times as large
    assert [row[2:4] for row in rows] == [["16", "5"]] * 4
    assert lines[-1] == "4 tensors: 0 identical, 0 with a range in one of the two only"


def test_diff_ranges_as_json_holds_the_statistics_figures(folder: Path) -> None:
    result = run("diff-ranges", folder / "net.ranges", folder / "other.ranges", "--method", "minmax", "--json")
    found = json.loads(result.stdout)
    assert found["same_graph"] and found["same_preprocessing"] and not found["identical"]
    assert (found["a"]["examples"], found["b"]["examples"]) == (16, 5)
    statistics = load_calibration(folder / "net.ranges").run.statistics.tensors
    for entry in found["tensors"]:
        tensor = statistics[entry["tensor"]]
        assert entry["a"] == [min(tensor.minimum, 0.0), max(tensor.maximum, 0.0)]
        assert 0.01 < entry["outside"] < 0.9
    top = json.loads(run("diff-ranges", folder / "net.ranges", folder / "other.ranges", "--top", 1, "--json").stdout)
    assert len(top["tensors"]) == 1


def test_diff_ranges_tells_tensors_that_one_lacks_and_other_graphs(folder: Path, tmp_path: Path) -> None:
    narrow = tmp_path / "narrow.ranges"
    result = _convert(
        folder, "--calibration_data", folder / "data.gz", "--outputs", "relu", "--save_calibration", narrow
    )
    assert result.exit_code == 0, result.stderr
    text = run("diff-ranges", folder / "net.ranges", narrow).stdout
    assert "they are of different graphs" in text
    (row,) = [line for line in text.splitlines() if line.endswith(" logits")]
    assert row.split()[0] == "–" and "–" in row.split()[-2]
    assert "4 tensors: 2 identical, 2 with a range in one of the two only" in text
    assert json.loads(run("diff-ranges", folder / "net.ranges", folder / "net.ranges", "--json").stdout)["identical"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["net.ranges", "none"], 2, "'none' does not exist"),
        (["net.ranges", "graph.pb"], 1, "is no saved calibration"),
        (["net.ranges", "net.ranges", "--percentile", "5"], 2, "--percentile must lie in (50, 100]"),
        (["net.ranges"], 2, "Missing argument 'B'"),
    ],
)
def test_diff_ranges_refuses_what_is_no_calibration(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(folder)
    result = run("diff-ranges", *arguments)
    assert result.exit_code == code and message in result.stderr
