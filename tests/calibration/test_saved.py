"""A saved calibration converts to what a new pass over the data would give, or says why it cannot."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from quantizer_core.calibration import saved as saved_module
from quantizer_core.calibration.run import CalibrationRun, calibrate
from quantizer_core.calibration.saved import CALIBRATION_FILE, SavedCalibration, load_calibration, save_calibration
from quantizer_core.config import PreprocessConfig, QuantizationConfig
from quantizer_core.data import read_tfrecords, tensor_example, write_tfrecords
from quantizer_core.errors import ConfigError, DataError
from quantizer_core.prepare import prepare
from quantizer_core.quantize import convert
from quantizer_core.reads import ReadCounts
from quantizer_core.types import PreparedGraph
from tests.helpers.nets import Net, build, data_for, everything, statistics_of


def _net(net: Net, x: tf.Tensor) -> tf.Tensor:
    """Returns a net with a fused sum, a join, pools, an activation in floats and a dense layer."""
    first = net.conv(x, 8, relu="relu", name="first")
    second = net.conv(first, 8, name="second")
    summed = tf.nn.relu(tf.add(second, first, name="sum"), name="sum_relu")
    gated = net.conv(summed, 8, name="gate")
    gated = gated * tf.sigmoid(gated)
    side = net.depthwise(summed, relu="relu6", name="side")
    joined = tf.concat([gated, side], 3, name="join")
    pooled = tf.nn.avg_pool2d(net.conv(joined, 8, relu="relu", name="after"), 2, 2, "VALID", name="average")
    return net.dense(tf.reshape(pooled, [-1, 8 * 36]), 5, name="dense")


GRAPH, OUTPUTS = build(_net, (None, 12, 12, 4))
for _node in GRAPH.node:  # as frozen graphs come: TensorFlow adds attributes that have their defaults when it runs them
    for _name in ("dilations", "explicit_paddings", "data_format"):
        _node.attr.pop(_name, None)
CONFIG = QuantizationConfig(only_faster=False, outputs=OUTPUTS, batch_size=4, refine_examples=4)


def _records() -> list[bytes]:
    random = np.random.default_rng(3)
    return [tensor_example({"x": random.normal(size=(12, 12, 4)).astype(np.float32)}) for _ in range(10)]


def _calibrated(config: QuantizationConfig) -> tuple[PreparedGraph, CalibrationRun]:
    prepared = prepare(GRAPH, config)
    return prepared, calibrate(prepared, _records(), config)


@pytest.fixture(scope="module")
def saved() -> SavedCalibration:
    prepared, run = _calibrated(CONFIG)
    return SavedCalibration.of(run, prepared, CONFIG, "records")


@pytest.fixture(scope="module")
def file(saved: SavedCalibration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "net.ranges"
    save_calibration(saved, path)
    return path


def _changed(**changes: Any) -> QuantizationConfig:
    return dataclasses.replace(CONFIG, **changes)


CHANGES = [
    _changed(calibration_method="minmax"),
    _changed(calibration_method="percentile", percentile=90.0, rounding="nearest", per_channel=False),
    _changed(refine_examples=8, equalization=False, fine_inputs=False, reduce_range="on"),
    *(_changed(excluded_ops=(op,)) for op in ("MatMul", "AvgPool", "ConcatV2", "AddV2")),
    *(_changed(excluded_nodes=(node,)) for node in ("first", "gate")),
]


@pytest.mark.parametrize("config", CHANGES, ids=lambda config: "-".join((
    config.calibration_method, *config.excluded_ops, *config.excluded_nodes, config.reduce_range)))  # fmt: skip
def test_another_conversion_gives_the_graph_that_calibrating_again_would(
    file: Path, config: QuantizationConfig
) -> None:
    prepared, run = _calibrated(config)
    taken = load_calibration(file).run_for(prepared, config)
    assert taken.statistics.to_bytes() == run.statistics.to_bytes()
    assert taken == run
    again, fresh = (convert(prepared, each.statistics, config, each.sample) for each in (taken, run))
    assert again.graph_def.SerializeToString(deterministic=True) == fresh.graph_def.SerializeToString(
        deterministic=True
    )


def test_the_same_calibration_gives_the_same_bytes_whatever_the_order_of_the_examples(
    saved: SavedCalibration, file: Path, tmp_path: Path
) -> None:
    assert load_calibration(file) == saved
    prepared = prepare(GRAPH, CONFIG)
    run = calibrate(prepared, _records()[::-1], CONFIG)
    save_calibration(SavedCalibration.of(run, prepared, CONFIG, "records"), tmp_path / CALIBRATION_FILE)
    assert (tmp_path / CALIBRATION_FILE).read_bytes() == file.read_bytes()
    assert load_calibration(tmp_path) == saved  # by the directory, as a pipeline's artifact is named


@pytest.mark.parametrize(("op", "tensor"), [("Relu", "BiasAdd"), ("BiasAdd", "after")])
def test_excluding_what_a_kernel_takes_in_needs_the_tensor_before_it(
    saved: SavedCalibration, op: str, tensor: str
) -> None:
    config = _changed(excluded_ops=(op,))
    with pytest.raises(ConfigError, match=f"did not watch tensor '{tensor}', .* with nothing excluded, .*_ops={op};"):
        saved.run_for(prepare(GRAPH, config), config)


def test_an_exclusion_that_leaves_another_graph_is_named(saved: SavedCalibration) -> None:
    """What is excluded is not folded: the bias, written as a sum, stays what it is."""
    graph_def, _ = build(lambda net, x: net.conv(tf.raw_ops.AddV2(x=net.conv(x, 8, bias=False), y=net.weights(8)), 4))
    config = everything(inputs=("x",))
    prepared = prepare(graph_def, config)
    statistics = statistics_of(prepared, data_for(prepared))
    run = CalibrationRun(statistics, ReadCounts(read=4))
    taken = SavedCalibration.of(run, prepared, config)
    with pytest.raises(ConfigError, match=r"not folded into kernels: it was nothing, and is AddV2\); calibrate this"):
        excluding = everything(inputs=("x",), excluded_ops=("AddV2",))
        taken.run_for(prepare(graph_def, excluding), excluding)


def test_a_calibration_without_examples_tells_that_it_has_none(
    saved: SavedCalibration, caplog: pytest.LogCaptureFixture
) -> None:
    bare = dataclasses.replace(saved, run=dataclasses.replace(saved.run, hashed=()))
    bare.run_for(prepare(GRAPH, CONFIG), dataclasses.replace(CONFIG, refine_examples=0))
    assert not caplog.text
    bare.run_for(prepare(GRAPH, CONFIG), dataclasses.replace(CONFIG, refine_examples=32))
    assert "holds no examples: weights are rounded to nearest" in caplog.text


def test_exclusions_that_are_lifted_need_what_was_not_watched() -> None:
    narrow = _changed(excluded_nodes=("dense", "side"), excluded_ops=("ConcatV2",))
    prepared, run = _calibrated(narrow)
    taken = SavedCalibration.of(run, prepared, narrow)
    assert taken.run_for(prepared, narrow) == run
    with pytest.raises(ConfigError) as error:
        taken.run_for(prepare(GRAPH, CONFIG), CONFIG, "--calibration 'x'")
    assert "--calibration 'x' did not watch tensor '" in str(error.value)
    assert "excluded_nodes=dense,side and excluded_ops=ConcatV2" in str(error.value)
    assert "this conversion has nothing excluded; calibrate again" in str(error.value)


def test_channel_means_that_are_missing_are_named(saved: SavedCalibration) -> None:
    tensors = {
        name: dataclasses.replace(found, channel_sums=None, channel_extremes=None)
        for name, found in saved.run.statistics.tensors.items()
    }
    statistics = dataclasses.replace(saved.run.statistics, tensors=tensors)
    bare = dataclasses.replace(saved, run=dataclasses.replace(saved.run, statistics=statistics))
    with pytest.raises(ConfigError, match="has no channel means of tensor"):
        bare.run_for(prepare(GRAPH, CONFIG), CONFIG)


def test_another_graph_is_one_clear_error(saved: SavedCalibration, monkeypatch: pytest.MonkeyPatch) -> None:
    other, _ = build(_net, (None, 12, 12, 4), seed=1)
    with pytest.raises(ConfigError, match="^the saved calibration is of another graph: its nodes or weights differ"):
        saved.run_for(prepare(other, CONFIG), CONFIG)
    monkeypatch.setattr(saved_module, "VERSION", "9.9")
    with pytest.raises(ConfigError, match=r"is of another graph \(by version 0.1.0; this is 9.9\)"):
        saved.run_for(prepare(other, CONFIG), CONFIG)
    short = _changed(outputs=("average",))
    with pytest.raises(ConfigError, match=f"with the outputs {OUTPUTS[0]}, not average"):
        saved.run_for(prepare(GRAPH, short), short)


def test_another_preprocessing_is_named_and_labels_are_not_part_of_it(saved: SavedCalibration, tmp_path: Path) -> None:
    prepared = prepare(GRAPH, CONFIG)
    labelled = _changed(preprocess=PreprocessConfig(label_key="label", label_offset=1, bgr=True))  # bgr is of images
    assert saved.run_for(prepared, labelled) == saved.run
    for preprocess, words in (
        (PreprocessConfig(features={"x": "y"}), r'features=\{\}, and this conversion has \{"x": "y"\}'),
        (PreprocessConfig(kind="image"), 'kind="tensors", and this conversion has "image"'),
    ):
        with pytest.raises(ConfigError, match=words):
            saved.run_for(prepared, _changed(preprocess=preprocess))
    module = tmp_path / "module.py"
    module.write_text("one")
    config = _changed(preprocess=PreprocessConfig(kind="module", module_file=str(module)))
    by_module = SavedCalibration.of(saved.run, prepared, config)
    module.rename(tmp_path / "moved.py")
    moved = _changed(preprocess=PreprocessConfig(kind="module", module_file=str(tmp_path / "moved.py")))
    assert by_module.run_for(prepared, moved) == saved.run  # its content counts, not its place
    (tmp_path / "moved.py").write_text("two")
    with pytest.raises(ConfigError, match="the preprocessing option module="):
        by_module.run_for(prepared, moved)


def test_a_stricter_share_of_bad_examples_is_asked_of_a_saved_calibration_too() -> None:
    lenient = _changed(max_bad_fraction=0.5)
    prepared = prepare(GRAPH, CONFIG)
    run = calibrate(prepared, [*_records(), b"broken"], lenient)
    taken = SavedCalibration.of(run, prepared, lenient)
    assert taken.run_for(prepared, lenient).reads.skipped == 1
    with pytest.raises(DataError, match="1 of 11 examples for calibration cannot be used"):
        taken.run_for(prepared, CONFIG)


def _rewrite(path: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    records = change(list(read_tfrecords([str(path)])))
    path.unlink()
    write_tfrecords(records, str(path))


def _header(**changes: Any) -> Callable[[list[bytes]], list[bytes]]:
    return lambda records: [json.dumps({**json.loads(records[0]), **changes}).encode(), *records[1:]]


def test_every_way_to_cut_or_flip_the_file_is_noticed(file: Path, tmp_path: Path) -> None:
    data = file.read_bytes()
    path = tmp_path / "damaged.ranges"
    for cut in [0, 1, 11, 12, 100, len(data) // 2, *range(len(data) - 5000, len(data), 499)]:
        path.write_bytes(data[:cut])
        with pytest.raises(DataError, match="no saved calibration|damaged or cut short"):
            load_calibration(path)
    for place in [0, 9, 50, *range(2000, len(data), len(data) // 40)]:
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(DataError, match="no saved calibration|damaged or cut short"):
            load_calibration(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda records: records[:1], "damaged or cut short: these are no calibration statistics"),
        (lambda records: records[:-2], "damaged or cut short: it holds 8 of the 10 examples of its sample"),
        (lambda records: [*records, b"more"], "it holds 11 of the 10 examples"),
        (_header(reads={"red": 1}), "damaged or cut short: .*red"),
        (_header(sample=["zz"] * 10), "damaged or cut short"),
        (_header(format_version=2, core_version="9.9"), "of format 2, by version 9.9; this version reads format 1"),
        (_header(format="something"), "is no saved calibration"),
        (lambda records: records[2:], "is no saved calibration: convert --save_calibration"),  # as TFRecords of data
    ],
)
def test_whole_records_that_do_not_fit_together_are_noticed(
    file: Path, tmp_path: Path, change: Callable[[list[bytes]], list[bytes]], words: str
) -> None:
    path = tmp_path / "copy.ranges"
    path.write_bytes(file.read_bytes())
    _rewrite(path, change)
    with pytest.raises(DataError, match=words):
        load_calibration(path)


def test_a_file_that_is_missing_or_another_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.ranges' does not exist; expected a saved calibration"):
        load_calibration(tmp_path / "none.ranges")
    with pytest.raises(ConfigError, match=f"holds no {CALIBRATION_FILE}"):
        load_calibration(tmp_path)
    (tmp_path / "graph.pb").write_bytes(GRAPH.SerializeToString())
    with pytest.raises(DataError, match=r"graph\.pb' is no saved calibration"):
        load_calibration(tmp_path / "graph.pb")


def test_the_file_appears_whole_or_not_at_all(
    saved: SavedCalibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.ranges"
    path.write_bytes(b"mine")
    with pytest.raises(ConfigError, match="exists already"):
        save_calibration(saved, path)
    with pytest.raises(ConfigError, match="is a directory"):
        save_calibration(saved, tmp_path)
    with pytest.raises(DataError, match="cannot write"):
        save_calibration(saved, tmp_path / "nowhere" / "net.ranges")

    def interrupted(*arguments: object) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(saved_module.CalibrationStatistics, "to_bytes", interrupted)  # after the header is written
        save_calibration(saved, path, overwrite=True)
    assert [each.name for each in tmp_path.iterdir()] == ["net.ranges"] and path.read_bytes() == b"mine"
    save_calibration(saved, path, overwrite=True)
    assert load_calibration(path) == saved
