"""The tabular pipeline: TFX around the Quantizer, with INT8 kernels inside what TFX's own components read."""

from __future__ import annotations

import dataclasses
import io
import os
import subprocess
import sys
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import json_format
from rich.console import Console
from tensorflow.core.protobuf import saved_model_pb2
from tfx import v1 as tfx
from tfx.components.evaluator.executor import Executor as EvaluatorExecutor
from tfx.components.pusher.executor import Executor as PusherExecutor
from tfx.types import Artifact, artifact_utils, standard_artifacts
from tfx.utils import proto_utils

from components.artifacts import GRAPH_FILE
from pipelines.local import metadata_path
from pipelines.record import RunRecord, latest_run
from pipelines.serve_back import classify, first_examples
from pipelines.tabular import local_runner, make_data
from pipelines.tabular.pipeline import CONFIG, PIPELINE_NAME, PREPROCESS, create_pipeline, eval_config
from pipelines.tabular.predictions import read_predictions
from pipelines.tabular.preprocessing import MEASUREMENTS
from pipelines.tabular.trainer import TRANSFORMED_SIGNATURE
from quantizer_core.calibration.run import calibrate
from quantizer_core.export import export_saved_model
from quantizer_core.graph.files import load_graph
from quantizer_core.graph.summarize import input_specs
from quantizer_core.prepare import prepare
from quantizer_core.quantize import convert
from quantizer_core.runtime import GraphSession
from tests.conftest import IN_CI
from tests.helpers.mlserver import as_input, infer, mlserver, why_no_mlserver

pytestmark = pytest.mark.slow

STEPS = (
    *("CsvExampleGen", "StatisticsGen", "SchemaGen", "Transform", "Trainer"),
    *("Freezer", "Quantizer", "Evaluator", "BulkInferrer", "Pusher"),
)
#: What the dense layers become: those in the middle, and the last, whose logits are floats.
INT8_KERNELS = {"_FusedQuantizedConv2D", "QuantizedMatMulWithBiasAndDequantize"}


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("tabular"))
    local_runner.run(folder)
    return folder


@pytest.fixture(scope="module")
def record(output: str) -> RunRecord:
    return _record(output)


@pytest.fixture(scope="module")
def eval_examples(record: RunRecord) -> list[bytes]:
    return first_examples(record.steps["Transform"]["transformed_examples"].uri + "/Split-eval/*", 1000)


def _record(output: str) -> RunRecord:
    return latest_run(metadata_path(output), PIPELINE_NAME)


def _ops(saved_model: str) -> set[str]:
    """Returns the op types of a SavedModel's graph and functions."""
    message = saved_model_pb2.SavedModel.FromString((Path(saved_model) / "saved_model.pb").read_bytes())
    graph = message.meta_graphs[0].graph_def
    return {node.op for nodes in (graph.node, *(f.node_def for f in graph.library.function)) for node in nodes}


def _logits(quantized_model: str, examples: list[bytes]) -> np.ndarray:
    """Returns what the ``.pb`` gives for the examples, one at a time, read by a parser of the test's own."""
    parsed = [tf.train.Example.FromString(example).features.feature[MEASUREMENTS] for example in examples]
    rows = np.array([feature.float_list.value for feature in parsed], np.float32)
    graph_def = load_graph(os.path.join(quantized_model, "quantized_graph.pb"))
    with GraphSession(graph_def, input_specs(graph_def, [MEASUREMENTS]), ["logits"]) as session:
        return np.concatenate([session.run({MEASUREMENTS: row[None]})[0] for row in rows])


def test_good_model_is_blessed_by_both_and_pushed(record: RunRecord) -> None:
    assert record.states == dict.fromkeys(STEPS, "COMPLETE")
    assert record.steps["Quantizer"]["blessing"].properties["blessed"] == 1
    verdict = record.steps["Evaluator"]["blessing"].properties
    assert verdict["blessed"] == 1
    assert "baseline_model_id" in verdict  # it was compared, not only measured
    pushed = record.outputs["pushed_model"].properties
    assert pushed["pushed"] == 1
    assert (Path(str(pushed["pushed_destination"])) / "saved_model.pb").exists()


def test_quantized_model_computes_its_dense_layers_with_int8_kernels(record: RunRecord) -> None:
    facts = record.steps["Quantizer"]["evaluation"].properties
    assert (facts["quantized_nodes"], facts["candidate_nodes"]) == (3, 3)
    assert facts["calibration_examples"] + facts["evaluation_examples"] == 569
    assert facts["fp32"] > 0.95
    ops = _ops(str(record.outputs["pushed_model"].properties["pushed_destination"]))
    assert ops >= INT8_KERNELS
    assert not ops & {"MatMul", "_FusedMatMul"}


def test_bulk_inferrer_gives_what_the_graph_gives(record: RunRecord, eval_examples: list[bytes]) -> None:
    predictions = read_predictions(record.steps["BulkInferrer"]["inference_result"].uri)
    assert sorted(prediction.example for prediction in predictions) == sorted(eval_examples)
    expected = _logits(record.steps["Quantizer"]["quantized_model"].uri, [p.example for p in predictions])
    np.testing.assert_array_equal([prediction.logits for prediction in predictions], expected)
    assert np.mean([p.logits.argmax() == p.label for p in predictions]) > 0.95


def test_report_tells_both_verdicts_and_the_answers(output: str, record: RunRecord) -> None:
    text = io.StringIO()
    local_runner.report(Console(file=text, width=200), output)
    for word in ("INT8 accuracy", "Blessed", "Evaluator blessed", "labels  ", "answers "):
        assert word in text.getvalue()


_PLAIN_TENSORFLOW = """
import sys
import numpy as np, tensorflow as tf
model, examples, answers = sys.argv[1:]
serialized = list(tf.data.TFRecordDataset(examples).as_numpy_iterator())
(result,) = tf.saved_model.load(model).signatures["serving_default"](examples=tf.constant(serialized)).values()
np.save(answers, result.numpy())
"""


def test_plain_tensorflow_serves_the_pushed_model_in_another_process(
    tmp_path: Path, record: RunRecord, eval_examples: list[bytes]
) -> None:
    with tf.io.TFRecordWriter(str(tmp_path / "examples")) as writer:
        for example in eval_examples:
            writer.write(example)
    pushed = str(record.outputs["pushed_model"].properties["pushed_destination"])
    # Isolated: neither this checkout nor the environment's paths are there.
    command = [sys.executable, "-I", "-c", _PLAIN_TENSORFLOW, pushed, tmp_path / "examples", tmp_path / "answers.npy"]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=300)
    served = np.load(tmp_path / "answers.npy")
    np.testing.assert_array_equal(served, _logits(record.steps["Quantizer"]["quantized_model"].uri, eval_examples))
    np.testing.assert_array_equal(served[:8], classify(pushed, eval_examples[:8]))


@pytest.fixture(scope="module")
def served_model(record: RunRecord, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Runs MLServer on the pushed model; gives its address. In CI it has to be installed."""
    reason = why_no_mlserver()
    if reason and IN_CI:
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    pushed = str(record.outputs["pushed_model"].properties["pushed_destination"])
    with mlserver(pushed, tmp_path_factory.mktemp("mlserver")) as address:
        yield address


def test_mlserver_serves_the_pushed_model_over_the_network(
    served_model: str, record: RunRecord, eval_examples: list[bytes]
) -> None:
    assert _ops(str(record.outputs["pushed_model"].properties["pushed_destination"])) >= INT8_KERNELS
    (answer,) = infer(served_model, as_input(eval_examples))
    assert (answer["name"], answer["datatype"]) == ("logits", "FP32")
    served = np.array(answer["data"], np.float32).reshape(answer["shape"])  # JSON carries float32 without loss
    expected = _logits(record.steps["Quantizer"]["quantized_model"].uri, eval_examples)
    assert len(expected) > 100
    np.testing.assert_array_equal(served, expected)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "rows"}, "takes one input, examples"),
        ({"datatype": "FP32"}, "send BYTES with content_type base64"),
        ({"parameters": {}}, "send BYTES with content_type base64"),
        ({"shape": [3]}, "has 2 examples"),
        ({"data": ["not", "base64"]}, "not in base64"),
        ({"data": 5}, "not a list of examples"),
        ({"data": ["bm90IGFu", "ZXhhbXBsZQ=="]}, "cannot read the examples"),
    ],
)
def test_mlserver_refuses_what_is_no_example_and_goes_on(
    served_model: str, eval_examples: list[bytes], wrong: dict[str, Any], message: str
) -> None:
    good = as_input(eval_examples[:2])
    with pytest.raises(urllib.error.HTTPError) as refusal:
        infer(served_model, {**good, **wrong})
    with refusal.value:
        assert refusal.value.code == 400
        assert message in refusal.value.read().decode()
    nested = {"shape": [2, 1], "data": [[each] for each in good["data"]]}
    for right in (good, {**good, **nested}):
        (answer,) = infer(served_model, right)
        assert answer["shape"] == [2, make_data.NUM_CLASSES]


def _artifact(kind: type[Artifact], uri: str | Path) -> Any:
    artifact = kind()
    artifact.uri = str(uri)
    Path(uri).mkdir(parents=True, exist_ok=True)
    return artifact


def _sign_flipped(frozen_uri: str, examples: list[bytes], directory: Path) -> standard_artifacts.Model:
    """Makes an INT8 model of the frozen graph with the sign of the last layer's weights turned round."""
    graph_def = load_graph(os.path.join(frozen_uri, GRAPH_FILE))
    flipped = 0
    for node in graph_def.node:
        value = tf.make_ndarray(node.attr["value"].tensor) if node.op == "Const" else np.empty(0)
        if value.shape == (32, make_data.NUM_CLASSES):
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(-value))
            flipped += 1
    assert flipped == 1
    config = dataclasses.replace(CONFIG, inputs=(MEASUREMENTS,), outputs=("logits",))
    prepared = prepare(graph_def, config)
    run = calibrate(prepared, examples, config)
    conversion = convert(prepared, run.statistics, config, run.sample)
    model = _artifact(standard_artifacts.Model, directory / "model")
    export_saved_model(
        conversion.graph_def, prepared.inputs, prepared.outputs, PREPROCESS, f"{model.uri}/Format-Serving"
    )
    return model


def test_int8_model_worse_than_fp32_is_not_blessed_by_the_evaluator_and_not_pushed(
    tmp_path: Path, record: RunRecord, eval_examples: list[bytes]
) -> None:
    model = _sign_flipped(record.steps["Freezer"]["frozen_graph"].uri, eval_examples[:32], tmp_path)
    assert _ops(f"{model.uri}/Format-Serving") >= INT8_KERNELS
    data = _artifact(standard_artifacts.Examples, record.steps["Transform"]["transformed_examples"].uri)
    data.split_names = artifact_utils.encode_split_names(["train", "eval"])
    fp32 = _artifact(standard_artifacts.Model, record.steps["Trainer"]["model"].uri)
    blessing = _artifact(standard_artifacts.ModelBlessing, tmp_path / "blessing")
    config = eval_config(max_drop=0.02, min_accuracy=0.0, baseline_signature=TRANSFORMED_SIGNATURE)
    EvaluatorExecutor().Do(
        {"examples": [data], "model": [model], "baseline_model": [fp32]},
        {
            "evaluation": [_artifact(standard_artifacts.ModelEvaluation, tmp_path / "evaluation")],
            "blessing": [blessing],
        },
        {"eval_config": proto_utils.proto_to_json(config), "example_splits": '["eval"]'},
    )
    assert blessing.get_int_custom_property("blessed") == 0
    pushed = _artifact(standard_artifacts.PushedModel, tmp_path / "pushed")
    destination = tfx.proto.PushDestination(
        filesystem=tfx.proto.PushDestination.Filesystem(base_directory=str(tmp_path / "serving"))
    )
    PusherExecutor().Do(
        {"model": [model], "model_blessing": [blessing]},
        {"pushed_model": [pushed]},
        {"push_destination": json_format.MessageToJson(destination)},
    )
    assert pushed.get_int_custom_property("pushed") == 0
    assert not (tmp_path / "serving").exists()


def test_second_run_comes_from_the_cache(output: str, record: RunRecord) -> None:
    local_runner.run(output)
    again = _record(output)
    assert again.states == dict.fromkeys(STEPS, "CACHED")
    assert again.steps == record.steps


_WRONG_SIGN = f"""
import tensorflow as tf

FEATURES = {{"{MEASUREMENTS}": tf.io.FixedLenFeature([30], tf.float32)}}


def preprocess(features):
    return {{"{MEASUREMENTS}": -features["{MEASUREMENTS}"]}}
"""


def test_model_that_mistakes_its_examples_is_refused_beside_the_one_blessed_last(
    tmp_path: Path, output: str, record: RunRecord
) -> None:
    # The Quantizer cannot see it: both graphs are fed the same. TFX's Evaluator asks the whole model.
    module = tmp_path / "wrong_sign.py"
    module.write_text(_WRONG_SIGN, encoding="utf-8")
    wrong = dataclasses.replace(PREPROCESS, kind="module", features={}, module_file=str(module))
    pushed_before = sorted(os.listdir(os.path.join(output, "serving")))
    local_runner.run(
        output, quantization_config=dataclasses.replace(CONFIG, preprocess=wrong), min_accuracy=0.0, baseline="blessed"
    )
    now = _record(output)
    assert {step for step, state in now.states.items() if state == "CACHED"} == set(STEPS[: STEPS.index("Quantizer")])
    assert now.steps["Quantizer"]["blessing"].properties["blessed"] == 1
    verdict = now.steps["Evaluator"]["blessing"].properties
    assert verdict.get("blessed", 0) == 0
    assert verdict["baseline_model"] == record.steps["Quantizer"]["quantized_model"].uri
    assert now.steps["Pusher"]["pushed_model"].properties["pushed"] == 0
    assert read_predictions(now.steps["BulkInferrer"]["inference_result"].uri) == []
    assert sorted(os.listdir(os.path.join(output, "serving"))) == pushed_before


def test_unknown_baseline_is_refused() -> None:
    with pytest.raises(ValueError, match="choose one of fp32, blessed"):
        create_pipeline("root", "data", "serving", baseline="int4")
