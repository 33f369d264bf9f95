"""The frozen graph pipeline: a small graph in the fast suite, and a real MobileNet on real images in the slow one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from pipelines.frozen_graph import local_runner
from pipelines.frozen_graph import mobilenet as mobilenet_case
from pipelines.frozen_graph.pipeline import PIPELINE_NAME
from pipelines.local import metadata_path
from pipelines.record import RunRecord, latest_run
from pipelines.serve_back import classify, first_examples, labels
from quantizer_core.data import write_tfrecords
from quantizer_core.errors import ConfigError, DataError
from quantizer_core.graph.files import load_graph, save_graph
from quantizer_core.planning.plan import QuantizationPlan
from tests.helpers.tfx_artifacts import conv_net, tensor_example

STEPS = ("ImportExampleGen", "GraphImporter", "Quantizer", "Pusher")


@pytest.fixture(autouse=True)
def _loud(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps the runner from turning down the logging of the whole test process."""
    monkeypatch.setattr(local_runner, "quiet", lambda: None)


def _record(output: Path) -> RunRecord:
    return latest_run(metadata_path(str(output)), PIPELINE_NAME)


def _invoke(folder: Path, calibration_scale: float) -> tuple[Result, RunRecord]:
    """Runs the pipeline on a small graph, calibrated on images whose values are scaled."""
    save_graph(conv_net(4), str(folder / "net.pb"))
    images = np.random.default_rng(3).normal(size=(64, 8, 8, 1))
    scaled = [tensor_example(image=image * calibration_scale) for image in images[:32]]
    write_tfrecords(scaled, str(folder / "data" / "calibration.tfrecord.gz"))
    write_tfrecords([tensor_example(image=i) for i in images[32:]], str(folder / "data" / "evaluation.tfrecord"))
    config = folder / "config.json"
    config.write_text(json.dumps({"preprocess": {"features": {"images": "image"}}, "only_faster": False}))
    arguments = ["--graph", folder / "net.pb", "--examples", folder / "data", "--config", f"@{config}"]
    arguments += ["--metric", "agreement", "--max_drop", "0.15", "--output", folder / "out"]
    result = CliRunner().invoke(local_runner.main, [str(argument) for argument in arguments], catch_exceptions=False)
    return result, _record(folder / "out")


def test_graph_file_is_quantized_and_pushed(tmp_path: Path) -> None:
    result, record = _invoke(tmp_path, 1.0)
    assert result.exit_code == 0, result.output
    assert "INT8 agreement" in result.output
    assert record.states == dict.fromkeys(STEPS, "COMPLETE")
    assert record.outputs["evaluation"].properties["evaluation_examples"] == 32
    assert record.outputs["pushed_model"].properties["pushed"] == 1


def test_graph_calibrated_on_noise_completes_and_is_not_pushed(tmp_path: Path) -> None:
    result, record = _invoke(tmp_path, 1e-3)
    assert result.exit_code == 3, result.output
    assert "not pushed" in result.output
    assert record.states == dict.fromkeys(STEPS, "COMPLETE")
    assert record.outputs["blessing"].properties["blessed"] == 0
    assert record.outputs["pushed_model"].properties["pushed"] == 0
    assert not (tmp_path / "out" / "serving").exists()


@pytest.mark.parametrize(
    ("changes", "error"), [({"graph": "none.pb"}, ConfigError), ({"config": '{"imputs": ["a"]}'}, ConfigError)]
)
def test_what_will_not_do_is_refused_before_anything_runs(
    tmp_path: Path, changes: dict[str, str], error: type[Exception]
) -> None:
    save_graph(conv_net(), str(tmp_path / "net.pb"))
    options = {"graph": str(tmp_path / "net.pb"), "examples": str(tmp_path), "metric": "agreement", **changes}
    with pytest.raises(error):
        local_runner.run(str(tmp_path / "out"), **options)
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_graph_and_examples_go_together() -> None:
    result = CliRunner().invoke(local_runner.main, ["--graph", "net.pb"])
    assert result.exit_code == 2
    assert "--examples together" in result.output


def test_what_is_given_changes_the_choices_for_mobilenet_and_leaves_the_others() -> None:
    own = mobilenet_case.config("")
    given = mobilenet_case.config('{"preprocess": {"resize": "crop"}, "rounding": "nearest"}')
    assert given == dataclasses.replace(
        own, rounding="nearest", preprocess=dataclasses.replace(own.preprocess, resize="crop")
    )


def test_missing_shared_data_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTIZER_SHARED_DATA", str(tmp_path / "none"))
    with pytest.raises(DataError, match="QUANTIZER_SHARED_DATA"):
        mobilenet_case.shared_data()


@pytest.fixture(scope="module")
def mobilenet(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """MobileNet V1 0.25, calibrated on the first 128 images by name and evaluated on the others."""
    root = tmp_path_factory.mktemp("mobilenet")
    arguments = ["--output", str(root), "--max_drop", "0.05", "--config", '{"bias_correction": false}']
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_runner, "quiet", lambda: None)
        patch.setenv("QUANTIZER_SHARED_DATA", str(shared_data))
        result = CliRunner().invoke(local_runner.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return _record(root)


@pytest.mark.slow
def test_mobilenet_keeps_its_accuracy_and_is_pushed(mobilenet: RunRecord) -> None:
    facts = mobilenet.outputs["evaluation"].properties
    assert (facts["calibration_examples"], facts["evaluation_examples"]) == (128, 272)
    assert facts["fp32"] > 0.5
    assert facts["drop"] <= 0.03
    assert mobilenet.outputs["pushed_model"].properties["pushed"] == 1


@pytest.mark.slow
def test_mobilenet_runs_in_int8_behind_its_first_layers(mobilenet: RunRecord) -> None:
    folder = Path(mobilenet.outputs["quantized_model"].uri)
    counts = QuantizationPlan.from_json((folder / "plan.json").read_text()).counts()
    # The first of each stay FP32: their results lose most when rounded (mixed_precision).
    assert counts["Conv2D"] == (14, 15)
    assert counts["DepthwiseConv2dNative"] == (12, 13)
    ops = [node.op for node in load_graph(str(folder / "quantized_graph.pb")).node]
    assert not {"Add", "AddV2"} & set(ops)
    assert [ops.count(op) for op in ("Conv2D", "DepthwiseConv2dNative", "Relu6")] == [1, 1, 2]
    assert ops.count("Mul") == 1  # the scales of the logits, which are not rounded


@pytest.mark.slow
def test_pushed_mobilenet_classifies_encoded_images(mobilenet: RunRecord) -> None:
    examples = first_examples(mobilenet.outputs["examples"].uri + "/Split-evaluation/*", 32)
    served = classify(str(mobilenet.outputs["pushed_model"].properties["pushed_destination"]), examples)
    right = served.argmax(axis=1) == np.array(labels(examples, "image/class/label")) + 1
    assert right.mean() > 0.3
