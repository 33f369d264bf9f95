"""One calibration, several conversions: ranges given on within a pipeline and taken from an earlier one, and traced."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tfx import v1 as tfx
from tfx.types import standard_artifacts

from components.artifacts import CalibrationRanges, FrozenGraph
from components.quantizer.component import Quantizer
from pipelines.record import latest_run
from quantizer_core.config import PreprocessConfig, QuantizationConfig
from quantizer_core.lineage import answers, trace
from tests.helpers.tfx_artifacts import conv_net, examples, frozen_graph, tensor_example

pytestmark = pytest.mark.slow

CONFIG = QuantizationConfig(preprocess=PreprocessConfig(features={"images": "image"}), only_faster=False)
CHANGED = dataclasses.replace(CONFIG, calibration_method="minmax", excluded_ops=("MatMul",))
NO_SPLIT = "a split that is not there"  # reading it would fail the run


def _run(folder: Path, name: str, components: Callable[[Any, Any], list[Any]]) -> None:
    """Runs a pipeline whose graph and examples are imported."""
    graph = tfx.dsl.Importer(source_uri=str(folder / "graph"), artifact_type=FrozenGraph).with_id("Graph")
    data = tfx.dsl.Importer(
        source_uri=str(folder / "data"),
        artifact_type=standard_artifacts.Examples,
        properties={"split_names": '["train", "eval"]'},
    ).with_id("Data")
    made = components(graph.outputs["result"], data.outputs["result"])
    metadata = tfx.orchestration.metadata.sqlite_metadata_connection_config(str(folder / "metadata.db"))
    tfx.orchestration.LocalDagRunner().run(
        tfx.dsl.Pipeline(
            pipeline_name=name,
            pipeline_root=str(folder / name),
            components=[graph, data, *made],
            enable_cache=True,
            metadata_connection_config=metadata,
        )
    )


def _quantizer(graph: Any, data: Any, id_: str, **options: Any) -> Quantizer:
    options = {"quantization_config": CONFIG, "metric": "agreement", "max_drop": 1.0, **options}
    return Quantizer(frozen_graph=graph, examples=data, **options).with_id(id_)


def _pusher(quantizer: Quantizer, folder: Path) -> Any:
    return tfx.components.Pusher(
        model=quantizer.outputs["quantized_model"],
        model_blessing=quantizer.outputs["blessing"],
        push_destination=tfx.proto.PushDestination(
            filesystem=tfx.proto.PushDestination.Filesystem(base_directory=str(folder / "serving"))
        ),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pipelines on one store.

    ``one`` calibrates, converts again on the ranges with another method and an exclusion, and pushes that; ``two``
    takes the ranges from where ``one`` left them.
    """
    root = tmp_path_factory.mktemp("reuse")
    frozen_graph(root / "graph", conv_net(4))
    images = np.random.default_rng(7).normal(size=(48, 8, 8, 1))
    records = [tensor_example(image=image) for image in images]
    examples(root / "data", {"train": records[:32], "eval": records[32:]})

    def one(graph: Any, data: Any) -> list[Any]:
        first = _quantizer(graph, data, "First")
        ranges = first.outputs["calibration_ranges"]
        second = _quantizer(
            graph, data, "Second", calibration_ranges=ranges, quantization_config=CHANGED, calibration_split=NO_SPLIT
        )
        return [first, second, _pusher(second, root)]

    def two(graph: Any, data: Any) -> list[Any]:
        uri = latest_run(str(root / "metadata.db"), "one").outputs["calibration_ranges"].uri
        ranges = tfx.dsl.Importer(source_uri=uri, artifact_type=CalibrationRanges).with_id("Ranges")
        result = ranges.outputs["result"]
        return [ranges, _quantizer(graph, data, "Third", calibration_ranges=result, calibration_split=NO_SPLIT)]

    _run(root, "one", one)
    _run(root, "two", two)
    return root


def _files(folder: Path, pipeline: str, node: str, output: str, name: str) -> bytes:
    (path,) = (folder / pipeline / node / output).glob(f"*/{name}")
    return path.read_bytes()


def test_ranges_handed_on_and_imported_are_those_of_the_one_calibration(folder: Path) -> None:
    first, second, third = (
        _files(folder, pipeline, node, "calibration_ranges", "calibration.ranges")
        for pipeline, node in (("one", "First"), ("one", "Second"), ("two", "Third"))
    )
    assert first == second == third
    graphs = [
        _files(folder, pipeline, node, "quantized_model", "quantized_graph.pb")
        for pipeline, node in (("one", "First"), ("one", "Second"), ("two", "Third"))
    ]
    assert graphs[0] == graphs[2] != graphs[1]


def test_lineage_of_the_pushed_model_goes_through_the_ranges_to_their_examples(folder: Path) -> None:
    store = str(folder / "metadata.db")
    (pushed,) = (folder / "serving").iterdir()
    answer = answers(trace(store, str(pushed)))
    steps = {step["id"]: step["node"] for step in answer["steps"]}
    assert answer["pushed_to"] == str(pushed)
    assert steps[answer["step"]] == "Second" and answer["calibration"]["reused"] is True
    assert steps[answer["calibration"]["by_step"]] == "First" and answer["calibration"]["split"] == "train"
    assert [each["uri"] for each in answer["calibration"]["examples"]] == [str(folder / "data")]
    assert answer["config"]["excluded_ops"] == ["MatMul"]
    assert answer["fp32"]["frozen_graph"]["uri"] == str(folder / "graph")
    assert steps[answer["fp32"]["made_by"]] == "Graph"


def test_lineage_of_imported_ranges_leads_to_the_pipeline_that_calibrated(folder: Path) -> None:
    (model,) = (folder / "two" / "Third" / "quantized_model").iterdir()
    answer = answers(trace(str(folder / "metadata.db"), str(model)))
    (calibrated,) = (step for step in answer["steps"] if step["id"] == answer["calibration"]["by_step"])
    assert (calibrated["node"], calibrated["pipeline"]) == ("First", "one")
