"""The pieces of docs/tfx.md make one pipeline that TFX's compiler takes, with the connections that the text tells."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tfx import v1 as tfx
from tfx.dsl.compiler import compiler
from tfx.dsl.components.base.base_node import BaseNode
from tfx.proto.orchestration import pipeline_pb2

from pipelines.tabular import pipeline as tabular
from tests.conftest import REPO_ROOT
from tests.helpers import mlserver
from tests.test_readme import blocks


def _compile(pipeline: tfx.dsl.Pipeline) -> dict[str, pipeline_pb2.PipelineNode]:
    nodes = compiler.Compiler().compile(pipeline).nodes
    return {node.pipeline_node.node_info.id: node.pipeline_node for node in nodes}


def _pipeline(nodes: list[BaseNode]) -> tfx.dsl.Pipeline:
    return tfx.dsl.Pipeline(
        pipeline_name="docs",
        pipeline_root="root",
        components=nodes,
        metadata_connection_config=tfx.orchestration.metadata.sqlite_metadata_connection_config("metadata.db"),
    )


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What the blocks define, run in order beside the tabular pipeline's own first steps."""
    example_gen = tfx.components.CsvExampleGen(input_base="data")
    statistics_gen = tfx.components.StatisticsGen(examples=example_gen.outputs["examples"])
    schema_gen = tfx.components.SchemaGen(statistics=statistics_gen.outputs["statistics"])
    transform = tfx.components.Transform(
        examples=example_gen.outputs["examples"],
        schema=schema_gen.outputs["schema"],
        preprocessing_fn=tabular.PREPROCESSING_FN,
    )
    trainer = tfx.components.Trainer(
        run_fn=tabular.RUN_FN,
        examples=transform.outputs["transformed_examples"],
        transform_graph=transform.outputs["transform_graph"],
        train_args=tfx.proto.TrainArgs(splits=["train"]),
        eval_args=tfx.proto.EvalArgs(splits=["eval"]),
    )
    steps = dict(
        example_gen=example_gen,
        statistics_gen=statistics_gen,
        schema_gen=schema_gen,
        transform=transform,
        trainer=trainer,
    )
    names: dict[str, Any] = dict(steps)
    code = "\n".join(blocks("python", (REPO_ROOT / "docs" / "tfx.md").read_text(encoding="utf-8")))
    exec(compile(code, "tfx.md", "exec"), names)
    return {**names, "steps": steps}


def test_pieces_make_a_pipeline(names: dict[str, Any]) -> None:
    own = [names[key] for key in ("freezer", "quantizer", "evaluator", "resolver", "bulk_inferrer", "pusher")]
    # The block on spans has a way in of its own.
    spans = [names["example_gen"].with_id("SpanGen"), names["spans"], names["quantizer_of_spans"]]
    nodes = _compile(_pipeline([*names["steps"].values(), *own, *spans]))
    assert {"Transform", "Freezer"} <= set(nodes["Quantizer"].upstream_nodes)
    assert "Evaluator" in nodes["BulkInferrer"].upstream_nodes
    resolver = nodes["latest_blessed_model"].inputs
    (graph,) = resolver.input_graphs.values()
    read = {node.input_node.input_key for node in graph.nodes.values() if node.HasField("input_node")}
    assert read == {"_Quantizer.quantized_model", "_Evaluator.blessing"}
    (channel,) = resolver.inputs["_Quantizer.quantized_model"].channels
    assert "docs.Quantizer" in [query.name.field_value.string_value for query in channel.context_queries]
    assert "latest_spans" in nodes["QuantizerOfSpans"].upstream_nodes


@pytest.mark.parametrize("baseline", tabular.BASELINES)
def test_tabular_pipeline_compiles_with_either_baseline(baseline: str) -> None:
    metadata = tfx.orchestration.metadata.sqlite_metadata_connection_config("metadata.db")
    pipeline = tabular.create_pipeline(
        "root", "data", "serving", baseline=baseline, metadata_connection_config=metadata
    )
    nodes = _compile(pipeline)
    upstream = set(nodes["Evaluator"].upstream_nodes)
    assert ("latest_blessed_model" in upstream) == (baseline == "blessed")
    assert "Evaluator" in nodes["Pusher"].upstream_nodes
    assert len(nodes) == 10 + (baseline == "blessed")


def test_server_is_started_and_asked_as_the_tests_do() -> None:
    text = (REPO_ROOT / "docs" / "tfx.md").read_text(encoding="utf-8")
    (start,) = blocks("shell", text)
    assert f" {' '.join(mlserver.COMMAND)}\n" in start
    (request,) = blocks("json", text)
    (given,) = json.loads(request)["inputs"]
    assert given == {**mlserver.as_input([b"an example"]), "data": given["data"]}
