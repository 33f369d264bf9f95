"""What the pipelines compile to for Kubeflow: image, commands, limits, root, parameters, in a form that kfp loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from kfp import components
from kfp.pipeline_spec import pipeline_spec_pb2

from pipelines.digits import kubeflow_runner as digits_runner
from pipelines.frozen_graph import kubeflow_runner as frozen_graph_runner
from pipelines.kubeflow import compile_pipeline, deployment, read_spec
from pipelines.tabular import kubeflow_runner as tabular_runner
from pipelines.tabular.pipeline import create_pipeline
from quantizer_core.config import QuantizationConfig
from quantizer_core.errors import ConfigError

WHERE = ["--image", "registry/quantizer:1", "--pipeline_root", "gs://b/runs", "--serving_root", "gs://b/serving"]
DIGITS = [*WHERE, "--data_root", "gs://b/digits"]
TABULAR = [*WHERE, "--data_root", "gs://b/rows"]
FROZEN_GRAPH = [*WHERE, "--graph", "gs://b/net.pb", "--examples", "gs://b/data", "--metric", "agreement"]
FINGERPRINT = ["--fingerprint", "v1"]

DIGITS_NODES = {"ImportExampleGen", "Trainer", "Freezer", "Quantizer", "Pusher"}
TABULAR_NODES = {
    *("CsvExampleGen", "StatisticsGen", "SchemaGen", "Transform", "Trainer"),
    *("Freezer", "Quantizer", "Evaluator", "BulkInferrer", "Pusher"),
}
FROZEN_GRAPH_NODES = {"ImportExampleGen", "GraphImporter", "Quantizer", "Pusher"}

ResourceSpec = pipeline_spec_pb2.PipelineDeploymentConfig.PipelineContainerSpec.ResourceSpec


@pytest.fixture(autouse=True)
def _loud(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps the runners from turning down the logging of the whole test process."""
    for runner in (digits_runner, frozen_graph_runner, tabular_runner):
        monkeypatch.setattr(runner, "quiet", lambda: None)


def compiled(output: Path, *arguments: str) -> Path:
    """Compiles the digits pipeline, or the one that the arguments are for (see ``invoke``)."""
    result = invoke(output, *arguments)
    assert result.exit_code == 0, result.output
    (path,) = output.rglob("*.yaml")
    assert str(path) in result.output
    return path


def invoke(output: Path, *arguments: str) -> Result:
    """Calls the runner of the frozen graph if the arguments name one, the tabular one if they name its data."""
    runner = frozen_graph_runner if "--graph" in arguments else digits_runner
    if TABULAR[-1] in arguments or "--min_accuracy" in arguments:
        runner = tabular_runner
    return CliRunner().invoke(runner.main, [*arguments, "--output", str(output)], catch_exceptions=False)


@pytest.mark.parametrize(
    ("arguments", "name", "nodes"),
    [
        (DIGITS, "digits", DIGITS_NODES),
        (TABULAR, "tabular", TABULAR_NODES),
        ([*FROZEN_GRAPH, *FINGERPRINT], "frozen-graph", FROZEN_GRAPH_NODES),
    ],
    ids=["digits", "tabular", "frozen_graph"],
)
def test_one_create_pipeline_compiles_to_a_spec_that_kfp_loads(
    tmp_path: Path, arguments: list[str], name: str, nodes: set[str]
) -> None:
    path = compiled(tmp_path, *arguments)
    assert path == tmp_path / name / "pipeline.yaml"
    loaded = components.load_component_from_file(str(path))
    assert loaded.name == name
    assert loaded.pipeline_spec.schema_version == "2.1.0"
    assert loaded.pipeline_spec == read_spec(str(path))
    assert set(loaded.pipeline_spec.root.dag.tasks) == nodes
    assert loaded.pipeline_spec.default_pipeline_root == "gs://b/runs"
    for executor in deployment(loaded.pipeline_spec).executors.values():
        assert executor.container.image == "registry/quantizer:1"
        # Given, it takes the place of the image's entry point.
        assert executor.container.command[:2] == ["python", "-m"]
        assert executor.container.args[0] == "--executor_class_path"


def test_same_options_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = compiled(tmp_path / "a", *DIGITS), compiled(tmp_path / "b", *DIGITS)
    assert first.read_bytes() == second.read_bytes()


def test_limits_reach_every_node_and_one_of_its_own(tmp_path: Path) -> None:
    limits = ["--cpu", "2", "--cpu", "Quantizer=8", "--memory", "4", "--memory", "ImportExampleGen=1.5"]
    executors = deployment(read_spec(str(compiled(tmp_path, *DIGITS, *limits)))).executors
    found = {label.removesuffix("_executor"): executor.container.resources for label, executor in executors.items()}
    assert found == {
        "ImportExampleGen": ResourceSpec(cpu_limit=2, memory_limit=1.5),
        "Trainer": ResourceSpec(cpu_limit=2, memory_limit=4),
        "Freezer": ResourceSpec(cpu_limit=2, memory_limit=4),
        "Quantizer": ResourceSpec(cpu_limit=8, memory_limit=4),
        "Pusher": ResourceSpec(cpu_limit=2, memory_limit=4),
    }


def test_limit_of_one_node_leaves_the_others_free(tmp_path: Path) -> None:
    executors = deployment(read_spec(str(compiled(tmp_path, *DIGITS, "--memory", "Trainer=6")))).executors
    limited = {name for name, executor in executors.items() if executor.container.HasField("resources")}
    assert limited == {"Trainer_executor"}


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("Quantiser=4", "there is no node 'Quantiser' to limit; did you mean 'Quantizer'?"),
        ("Quantizer=much", "'Quantizer=much' is no limit"),
        ("0", "cpuLimit of every node must be more than 0"),
        ("Pusher=nan", "cpuLimit of Pusher must be more than 0"),
    ],
)
def test_limit_that_will_not_do_is_told_and_nothing_written(tmp_path: Path, limit: str, message: str) -> None:
    result = invoke(tmp_path / "out", *DIGITS, "--cpu", limit)
    assert result.exit_code == 1
    assert message in result.output
    assert not (tmp_path / "out").exists()


def test_beam_flags_reach_the_steps_that_run_beam(tmp_path: Path) -> None:
    flag = "--direct_num_workers=4"
    executors = deployment(read_spec(str(compiled(tmp_path, *DIGITS, "--beam", flag)))).executors
    for node in ("ImportExampleGen", "Quantizer"):
        assert flag in executors[f"{node}_executor"].container.args


def test_parameters_reach_the_tasks(tmp_path: Path) -> None:
    config = QuantizationConfig(inputs=("images",), calibration_method="minmax")
    options = ["--config", config.to_json(), "--calibration_examples", "100", "--max_drop", "0.02"]
    tasks = read_spec(str(compiled(tmp_path, *FROZEN_GRAPH, *FINGERPRINT, *options))).root.dag.tasks
    given = {name: value.runtime_value.constant for name, value in tasks["Quantizer"].inputs.parameters.items()}
    assert QuantizationConfig.from_json(given["quantization_config"].string_value) == config
    assert given["num_calibration_examples"].number_value == 100
    assert given["max_drop"].number_value == 0.02
    importer = {name: value.runtime_value.constant for name, value in tasks["GraphImporter"].inputs.parameters.items()}
    assert importer["graph_path"].string_value == "gs://b/net.pb"
    assert importer["fingerprint"].string_value == "v1"
    assert json.loads(importer["inputs"].string_value) == ["images"]


def test_graph_that_cannot_be_read_here_needs_a_fingerprint(tmp_path: Path) -> None:
    arguments = [str(tmp_path / "none.pb") if word == "gs://b/net.pb" else word for word in FROZEN_GRAPH]
    result = invoke(tmp_path / "out", *arguments)
    assert result.exit_code == 1
    assert "none.pb cannot be read" in result.output
    assert compiled(tmp_path / "out", *arguments, *FINGERPRINT).exists()


def test_evaluator_of_the_tabular_pipeline_gates_the_push_against_fp32(tmp_path: Path) -> None:
    options = ["--max_drop", "0.03", "--min_accuracy", "0.8", "--train_steps", "7"]
    tasks = read_spec(str(compiled(tmp_path, *TABULAR, *options))).root.dag.tasks
    sources = {
        (name, key): source.task_output_artifact.producer_task
        for name in ("Evaluator", "Pusher", "BulkInferrer")
        for key, source in tasks[name].inputs.artifacts.items()
    }
    assert sources["Evaluator", "model"] == "Quantizer"
    assert sources["Evaluator", "baseline_model"] == "Trainer"
    assert sources["Pusher", "model_blessing"] == sources["BulkInferrer", "model_blessing"] == "Evaluator"
    given = {name: value.runtime_value.constant for name, value in tasks["Evaluator"].inputs.parameters.items()}
    (metrics,) = json.loads(given["eval_config"].string_value)["metrics_specs"]
    threshold = metrics["metrics"][1]["threshold"]
    assert threshold["value_threshold"] == {"lower_bound": 0.8}
    assert threshold["change_threshold"]["absolute"] == -0.03
    trained = tasks["Trainer"].inputs.parameters["train_args"].runtime_value.constant.string_value
    assert json.loads(trained)["num_steps"] == 7
    assert tasks["Quantizer"].inputs.parameters["max_drop"].runtime_value.constant.number_value == 0.03


def test_rows_are_written_on_demand(tmp_path: Path) -> None:
    data = tmp_path / "data"
    compiled(tmp_path / "out", *WHERE, "--data_root", str(data), "--write_data", "--min_accuracy", "0.9")
    assert [path.name for path in data.iterdir()] == ["breast_cancer.csv"]


def test_digits_are_written_on_demand(tmp_path: Path) -> None:
    data = tmp_path / "data"
    compiled(tmp_path / "out", *WHERE, "--data_root", str(data), "--write_data", "--train_steps", "5")
    assert [path.name for path in data.iterdir()] == ["digits.tfrecord.gz"]


@pytest.mark.parametrize("text", ["- a", "a: [", "{nothing: 1}"])
def test_file_that_is_no_spec_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "pipeline.yaml").write_text(text)
    with pytest.raises(ConfigError, match="pipeline.yaml is no compiled pipeline"):
        read_spec(str(tmp_path / "pipeline.yaml"))


def test_a_resolver_is_refused_by_name(tmp_path: Path) -> None:
    pipeline = create_pipeline("gs://b/runs", "gs://b/rows", "gs://b/serving", baseline="blessed")
    with pytest.raises(ConfigError, match=r"node 'latest_blessed_model' is a resolver, .* by an Importer"):
        compile_pipeline(pipeline, str(tmp_path / "pipeline.yaml"), "registry/quantizer:1")
    assert list(tmp_path.iterdir()) == []
