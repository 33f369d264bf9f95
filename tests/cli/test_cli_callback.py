"""``quantizer convert --callback``: the flags of 2020, what is wrong use and what a failure, and what is kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from quantizer_core.calibration.instrument import instrument
from quantizer_core.cli.main import cli
from quantizer_core.config import QuantizationConfig
from quantizer_core.data import tensor_example, write_tfrecords
from quantizer_core.graph.files import load_graph
from quantizer_core.planning.plan import QuantizationPlan
from quantizer_core.prepare import prepare
from quantizer_core.stages import stage_paths
from tests.helpers.classifier import classifier
from tests.helpers.told_ranges import told_log

DATA = np.random.default_rng(0).normal(size=(16, 6, 6, 2)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Path:
    """A folder with net.pb, the same examples in data.gz and as script.log, what a script prints that runs them."""
    (tmp_path / "net.pb").write_bytes(classifier().SerializeToString())
    write_log(tmp_path, QuantizationConfig(), capfd)
    write_tfrecords([tensor_example({"x": row}) for row in DATA], str(tmp_path / "data.gz"))
    return tmp_path


def write_log(folder: Path, config: QuantizationConfig, capfd: pytest.CaptureFixture[str]) -> None:
    prepared = prepare(classifier(), config)
    log = told_log(instrument(prepared), prepared.outputs, [{"x": DATA}], capfd)
    (folder / "script.log").write_text(f"epoch 1\n{log}bye\n")


def convert(folder: Path, *options: object, output: str = "int8.pb") -> Result:
    paths = ("--input_graph", folder / "net.pb", "--output_graph", folder / output)
    return CliRunner().invoke(cli, [str(word) for word in ("convert", *paths, *options)])


def callback(folder: Path) -> tuple[str, str]:
    return "--callback", f"cat '{folder}/script.log' {{}}"


def test_a_command_takes_the_place_of_the_data(folder: Path) -> None:
    for method in ("minmax", "moving_average", "kl", "mse"):
        told = convert(folder, *callback(folder), "--method", method, output=f"{method}.pb")
        assert told.exit_code == 0, told.stderr
        assert "  epoch 1\n" in told.stderr and "Calibrating: 16 examples" in told.stderr
        assert "calibrated on 16 examples" in told.stdout
        direct = convert(folder, "--calibration_data", folder / "data.gz", "--method", method, output="direct.pb")
        assert direct.exit_code == 0, direct.stderr
        assert (folder / f"{method}.pb").read_bytes() == (folder / "direct.pb").read_bytes()
        (folder / "direct.pb").unlink()


def test_flags_of_2020_mean_the_same(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_log(folder, QuantizationConfig(excluded_ops=("MatMul",), excluded_nodes=("pooled",)), capfd)
    result = convert(
        folder, *callback(folder), "--inputs", "x", "--outputs", "scores", "--per_channel", "False",
        *("--excluded_ops", "MatMul", "--excluded_nodes", "pooled", "--debug", "True", "--plan", folder / "plan.json"),
        *("--only_faster", "False"),
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    plan = QuantizationPlan.from_json((folder / "plan.json").read_text())
    assert [(node.op, node.per_channel) for node in plan.nodes if node.quantized] == [("Conv2D", False)]
    kept = stage_paths(str(folder / "int8.pb")).values()
    assert all(load_graph(path).node for path in kept)
    assert b"#quantizer range" in (folder / "int8_instrumented.pb").read_bytes()


@pytest.mark.parametrize(("flag", "kept"), [(["--debug"], True), (["--debug", "false"], False), ([], False)])
def test_debug_is_a_flag_with_or_without_a_value(folder: Path, flag: list[str], kept: bool) -> None:
    assert convert(folder, *flag, *callback(folder), "--json").exit_code == 0
    assert [Path(path).exists() for path in stage_paths(str(folder / "int8.pb")).values()] == [kept] * 4
    again = convert(folder, *flag, *callback(folder), output="int8_frozen_range.pb")
    assert (again.exit_code == 2 and "exists already" in again.stderr) is kept


def test_json_is_alone_on_standard_output(folder: Path) -> None:
    result = convert(folder, *callback(folder), "--json")
    assert json.loads(result.stdout)["calibration_examples"] == 16 and not result.stderr


def test_what_a_command_showed_can_be_kept(folder: Path) -> None:
    ranges = folder / "net.ranges"
    assert convert(folder, *callback(folder), "--save_calibration", ranges).exit_code == 0
    again = convert(folder, "--calibration", ranges, output="again.pb")
    assert again.exit_code == 0, again.stderr
    assert (folder / "again.pb").read_bytes() == (folder / "int8.pb").read_bytes()


def test_graphs_are_compared_on_data_of_ones_own(folder: Path) -> None:
    result = convert(
        folder, *callback(folder), "--evaluation_data", folder / "data.gz", "--metric", "agreement", "--max_drop", 1
    )
    assert result.exit_code == 0 and "compared on 16 examples" in result.stdout


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--callback", "cat log | grep x"], 2, "without a shell"),
        (["--callback", ""], 2, "is empty"),
        (["--callback", "true", "--calibration_data", "data.gz"], 2, "not both"),
        (["--callback", "true", "--calibration", "net.ranges"], 2, "not both"),
        (["--callback", "true", "--num_calibration_examples", "3"], 2, "needs --calibration_data"),
        (["--callback_timeout", "3", "--calibration_data", "data.gz"], 2, "goes with --callback"),
        (["--callback", "true"], 1, "holds no ranges"),
        (["--callback", "false"], 1, "failed with exit code 1"),
        (["--callback", "bash -c 'sleep 60' {}", "--callback_timeout", "0.5"], 1, "longer than 0.5 seconds"),
        ([], 2, "or --callback with a command"),
    ],
)
def test_wrong_use_and_failures(folder: Path, options: list[str], code: int, message: str) -> None:
    before = sorted(folder.iterdir())
    result = convert(folder, *options)
    assert result.exit_code == code and message in result.stderr, result.stderr
    assert sorted(folder.iterdir()) == before
