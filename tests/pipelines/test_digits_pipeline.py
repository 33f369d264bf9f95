"""The demo end to end: trained, frozen, quantized, blessed, pushed and served back; a second run is all cache."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner
from rich.console import Console

from pipelines.digits import local_runner
from pipelines.digits.pipeline import PREPROCESS
from pipelines.digits.trainer import INPUT_NAME, parse_examples
from pipelines.local import metadata_path
from pipelines.record import RunRecord, latest_run
from pipelines.serve_back import classify, first_examples
from quantizer_core.cli.main import cli
from quantizer_core.config import QuantizationConfig
from quantizer_core.graph.files import load_graph
from quantizer_core.graph.summarize import input_specs
from quantizer_core.machine import describe_machine
from quantizer_core.planning.plan import QuantizationPlan
from quantizer_core.runtime import GraphSession
from quantizer_core.version import VERSION

TRAIN_STEPS = 300
STEPS = ("ImportExampleGen", "Trainer", "Freezer", "Quantizer", "Pusher")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("digits"))
    local_runner.run(folder, train_steps=TRAIN_STEPS)
    return folder


@pytest.fixture(scope="module")
def record(output: str) -> RunRecord:
    return latest_run(metadata_path(output), "digits")


def test_every_step_completes_and_the_model_is_blessed_and_pushed(record: RunRecord) -> None:
    assert record.states == dict.fromkeys(STEPS, "COMPLETE")
    assert record.outputs["blessing"].properties["blessed"] == 1
    pushed = record.outputs["pushed_model"].properties
    assert pushed["pushed"] == 1
    assert (Path(str(pushed["pushed_destination"])) / "saved_model.pb").exists()


def test_int8_loses_at_most_a_point(record: RunRecord) -> None:
    facts = record.outputs["evaluation"].properties
    assert facts["fp32"] > 0.97
    assert facts["drop"] <= 0.01
    assert facts["agreement"] > 0.98
    assert facts["int8_bytes"] < facts["fp32_bytes"]
    assert facts["calibration_examples"] + facts["evaluation_examples"] == 1797
    written = json.loads((Path(record.outputs["evaluation"].uri) / "evaluation.json").read_text())
    # SQLite keeps six digits.
    assert (written["fp32"], written["int8"]) == pytest.approx((facts["fp32"], facts["int8"]), abs=1e-6)


def test_every_convolution_and_dense_layer_runs_in_int8(record: RunRecord) -> None:
    folder = Path(record.outputs["quantized_model"].uri)
    counts = QuantizationPlan.from_json((folder / "plan.json").read_text()).counts()
    assert counts["Conv2D"] == (3, 3)
    assert counts["DepthwiseConv2dNative"] == (1, 1)
    assert counts["MatMul"] == (2, 2)
    ops = {node.op for node in load_graph(str(folder / "quantized_graph.pb")).node}
    assert not ops & {"Conv2D", "DepthwiseConv2dNative", "MatMul", "_FusedConv2D", "_FusedMatMul"}


def test_pushed_model_serves_what_the_quantized_graph_computes(record: RunRecord) -> None:
    examples = first_examples(record.outputs["examples"].uri + "/Split-eval/*", 20)
    served = classify(str(record.outputs["pushed_model"].properties["pushed_destination"]), examples)
    graph_def = load_graph(record.outputs["quantized_model"].uri + "/quantized_graph.pb")
    images, labels = parse_examples(tf.constant(examples))
    with GraphSession(graph_def, input_specs(graph_def, [INPUT_NAME]), ["logits"]) as session:
        rows = [session.run({INPUT_NAME: image[None]})[0] for image in images.numpy()]
    np.testing.assert_array_equal(served, np.concatenate(rows))
    assert (served.argmax(axis=1) == labels.numpy()).mean() >= 0.9


def test_lineage_answers_all_that_made_the_pushed_model(output: str, record: RunRecord) -> None:
    pushed = str(record.outputs["pushed_model"].properties["pushed_destination"])
    arguments = ["lineage", "--metadata", metadata_path(output), pushed]
    result = CliRunner().invoke(cli, [*arguments, "--json"])
    assert result.exit_code == 0, result.stderr
    answer, machine = json.loads(result.stdout), describe_machine()
    steps = {step["id"]: step for step in answer["steps"]}
    assert answer["pushed_to"] == pushed
    assert [step["component"] for step in answer["steps"]] == list(STEPS)
    assert answer["int8_model"]["uri"] == record.outputs["quantized_model"].uri
    assert answer["fp32"]["frozen_graph"]["uri"] == record.outputs["frozen_graph"].uri
    assert answer["fp32"]["model"]["uri"] == record.outputs["model"].uri
    assert steps[answer["fp32"]["made_by"]]["component"] == "Freezer"
    assert f'"num_steps": {TRAIN_STEPS}' in steps[answer["fp32"]["model_made_by"]]["parameters"]["train_args"]
    assert [each["uri"] for each in answer["examples"]] == [record.outputs["examples"].uri]
    assert (answer["calibration"]["split"], answer["evaluation_split"]) == ("train", "eval")
    assert answer["calibration"]["ranges"]["uri"] == record.outputs["calibration_ranges"].uri
    assert answer["calibration"]["reused"] is False and answer["calibration"]["by_step"] == answer["step"]
    assert QuantizationConfig.from_json(json.dumps(answer["config"])).preprocess == PREPROCESS
    assert answer["core_version"] == VERSION
    assert answer["machine"]["cpu"] == machine["cpu"] and answer["machine"]["tensorflow"] == tf.version.VERSION
    assert "avx2" in answer["machine"]["features"] and answer["machine"]["onednn"] == 1
    assert set(answer["machine"]["weight_bits"].split(",")) <= {"7", "8"}
    assert answer["evaluation"]["properties"] == dict(record.outputs["evaluation"].properties)
    assert answer["blessing"]["properties"]["blessed"] == 1
    tree = CliRunner().invoke(cli, arguments).stdout
    assert tree.startswith(f"PushedModel {answer['asked']['id']}: {pushed}")
    for step in STEPS:
        assert f"by {step}, " in tree


def test_ranges_of_the_pipeline_can_be_compared(record: RunRecord) -> None:
    uri = record.outputs["calibration_ranges"].uri
    found = json.loads(CliRunner().invoke(cli, ["diff-ranges", uri, uri, "--json"]).stdout)
    assert found["identical"] and found["a"]["source"] == "train"
    assert found["a"]["examples"] == record.outputs["evaluation"].properties["calibration_examples"]


def test_report_tells_the_figures_and_asks_the_pushed_model(output: str, record: RunRecord) -> None:
    text = io.StringIO()
    local_runner.report(Console(file=text, width=200), output)
    for word in ("FP32 accuracy", "INT8 accuracy", "Agreement", "KiB INT8", "Blessed", "serving", "evaluation.json"):
        assert word in text.getvalue()
    assert "The pushed model, loaded back" in text.getvalue()


def test_second_run_comes_from_the_cache(output: str, record: RunRecord) -> None:
    local_runner.run(output, train_steps=TRAIN_STEPS)
    again = latest_run(metadata_path(output), "digits")
    assert again.states == dict.fromkeys(STEPS, "CACHED")
    assert again.outputs == record.outputs


def test_run_that_never_was_is_told(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match=r"no pipeline has run"):
        latest_run(str(tmp_path / "metadata.db"), "digits")
