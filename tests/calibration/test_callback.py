"""Calibration by a command: what another process shows is what direct calibration sees, and failures are told."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from quantizer_core.calibration.callback import Gathered, calibrate_by_callback, sampled_config
from quantizer_core.calibration.callback import _statistics as tensor_statistics
from quantizer_core.calibration.instrument import instrument
from quantizer_core.calibration.log import Record
from quantizer_core.calibration.run import calibrate
from quantizer_core.config import PreprocessConfig, QuantizationConfig
from quantizer_core.data import tensor_example
from quantizer_core.errors import CommandError, ConfigError
from quantizer_core.graph.files import load_graph
from quantizer_core.prepare import prepare
from quantizer_core.quantize import convert
from quantizer_core.types import PreparedGraph
from tests.helpers.classifier import classifier
from tests.helpers.told_ranges import told_log

SCRIPT = Path(__file__).resolve().parent.parent / "helpers" / "run_graph.py"
CONFIG = QuantizationConfig(batch_size=4, calibration_method="minmax")
DATA = np.random.default_rng(0).normal(size=(12, 6, 6, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def prepared() -> PreparedGraph:
    return prepare(classifier(), CONFIG)


@pytest.fixture
def log(prepared: PreparedGraph, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Path:
    """A file with what the graph prints of ``DATA``: printing that stands for a script that runs it."""
    text = told_log(instrument(prepared), prepared.outputs, [{"x": part} for part in np.split(DATA, 3)], capfd)
    path = tmp_path / "script.log"
    path.write_text(text)
    return path


def test_a_script_in_another_process_gives_the_same_int8_graph(prepared: PreparedGraph, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", DATA)
    command = f"'{sys.executable}' '{SCRIPT}' --feeds '{tmp_path}/rows.npy' --output scores --input_graph=old.pb"
    counted: list[int] = []
    lines: list[str] = []
    told = calibrate_by_callback(
        prepared, command, CONFIG, timeout=120, on_example=counted.append, on_line=lines.append
    )  # fmt: skip
    seen = calibrate(prepared, [tensor_example({"x": row}) for row in DATA], CONFIG)
    assert told == seen
    assert counted == [4, 8, 12] and {"4 rows", "8 rows", "12 rows"} <= set(lines)
    graphs = [
        convert(prepared, run.statistics, config, run.sample).graph_def.SerializeToString(deterministic=True)
        for run, config in ((told, sampled_config(CONFIG)), (seen, CONFIG))
    ]
    assert graphs[0] == graphs[1]


def test_the_log_alone_decides_and_the_graph_file_in_it_does_not_disturb(prepared: PreparedGraph, log: Path) -> None:
    run = calibrate_by_callback(prepared, f"cat '{{}}' '{log}' '{{}}'", CONFIG)
    assert run == calibrate(prepared, [tensor_example({"x": row}) for row in DATA], CONFIG)


def test_the_sample_is_read_as_feeds_whatever_the_preprocessing() -> None:
    config = QuantizationConfig(preprocess=PreprocessConfig(kind="image", normalize="torch"), per_channel=False)
    assert sampled_config(config) == QuantizationConfig(per_channel=False)


def test_inputs_are_printed_for_weights_to_be_chosen_on_alone(prepared: PreparedGraph, tmp_path: Path) -> None:
    none = QuantizationConfig(refine_examples=0)
    for config, printed in ((CONFIG, True), (none, False)):
        path = tmp_path / "kept.pb"
        with pytest.raises(CommandError, match="holds no ranges"):
            calibrate_by_callback(prepared, "true", config, graph_path=str(path))
        assert (load_graph(path) == instrument(prepared)) is printed
        assert (b"#quantizer inputs" in path.read_bytes()) is printed


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("echo hello {}", "ended well, but its log holds no ranges: .* fetch one of scores.* it said last: hello "),
        ("true", "holds no ranges.* it printed nothing else"),
        ("bash -c 'echo one; echo two >&2; exit 7' {}", r"failed with exit code 7; it said last: one \| two"),
        ("bash -c 'kill -9 $$' {}", "was ended by signal 9"),
        ("bash -c 'sleep 60' {}", "longer than 2 seconds"),
        ("no-such-program", "cannot be started"),
        ("bash -c \"grep -v Relu '{log}' | head -c 3000\" {}", "cut short"),
        ("sed '/range x /d' '{log}' {}", "never computed 'x' "),
        ("sed 's/range x /range y /' '{log}' {}", "tells of tensor 'y', which this graph does not watch"),
    ],
)
def test_what_goes_wrong_is_told_in_one_error(prepared: PreparedGraph, log: Path, command: str, message: str) -> None:
    with pytest.raises(CommandError, match=message):
        calibrate_by_callback(prepared, command.replace("{log}", str(log)), CONFIG, timeout=2)


def test_wrong_use_is_found_before_any_work(prepared: PreparedGraph, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="without a shell"):
        calibrate_by_callback(prepared, "python a.py | tee log", CONFIG, graph_path=str(tmp_path / "kept.pb"))
    assert not list(tmp_path.iterdir())


def test_no_graph_is_left_behind(prepared: PreparedGraph, log: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    calibrate_by_callback(prepared, f"bash -c \"cat '{log}'; ls {{}}\"", CONFIG, on_line=lines.append)
    assert lines[-1].endswith(".pb") and not Path(lines[-1]).parent.exists()


def test_a_batch_of_none_adds_nothing(prepared: PreparedGraph) -> None:
    gathered = Gathered(prepared)
    nothing = np.zeros(0, np.int32)
    gathered.add(Record(prepared.observed[0].name, 0, (np.zeros((2, 0), np.float32), nothing, nothing)))
    gathered.add(Record("", 0, tuple(np.zeros((0, 1), np.float32) for _ in prepared.inputs)))
    assert not gathered.tensors


def test_an_empty_tensor_is_no_finite_one_though_it_has_no_negative_values() -> None:
    """Its minimum is 0 by proof, its maximum that of nothing."""
    minima, maxima = np.zeros(2, np.float32), np.full(2, -np.inf, np.float32)
    nothing = np.zeros(0, np.int32)
    found = tensor_statistics(Record("relu", 2, (np.stack([minima, maxima]), nothing, nothing)))
    assert (found.examples, found.finite, found.nan, found.negative_infinite) == (2, 0, 0, 0)
