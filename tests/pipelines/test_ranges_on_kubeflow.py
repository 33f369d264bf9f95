"""The Quantizer's ranges compile for Kubeflow: given on, given back in, and left out."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from tfx import v1 as tfx

from components.artifacts import CalibrationRanges
from components.quantizer.component import Quantizer
from pipelines.digits.pipeline import PREPROCESS, create_pipeline
from pipelines.kubeflow import EVERY_NODE, compile_pipeline
from quantizer_core.config import QuantizationConfig
from quantizer_core.errors import ConfigError

CONFIG = QuantizationConfig(preprocess=PREPROCESS, calibration_method="minmax", only_faster=False)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The digits pipeline with two Quantizers behind its own: on the first's ranges, and on those in a directory."""
    make = tfx.dsl.Pipeline

    def with_more(components: list[Any], **options: Any) -> tfx.dsl.Pipeline:
        nodes = {component.id: component for component in components}
        old = tfx.dsl.Importer(source_uri="gs://old/ranges", artifact_type=CalibrationRanges).with_id("OldRanges")
        more = [
            Quantizer(
                frozen_graph=nodes["Freezer"].outputs["frozen_graph"],
                examples=nodes["ImportExampleGen"].outputs["examples"],
                calibration_ranges=ranges,
                quantization_config=CONFIG,
            ).with_id(name)
            for name, ranges in (
                ("Handed", nodes["Quantizer"].outputs["calibration_ranges"]),
                ("Imported", old.outputs["result"]),
            )
        ]
        return make(components=[*components, old, *more], **options)

    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:  # components belong to the pipeline that is made next
        patch.setattr(tfx.dsl, "Pipeline", with_more)
        pipeline = create_pipeline("gs://root", "gs://data", "gs://serving", pipeline_name="digits")
    compile_pipeline(pipeline, str(folder / "pipeline.yaml"), "image", cpu={EVERY_NODE: 2})
    with pytest.raises(ConfigError, match="there is no node 'OldRanges' to limit"):
        compile_pipeline(pipeline, str(folder / "none.yaml"), "image", cpu={"OldRanges": 2})
    found: dict[str, Any] = yaml.safe_load((folder / "pipeline.yaml").read_text())
    return found


def test_ranges_are_an_output_that_compiles(spec: dict[str, Any]) -> None:
    outputs = spec["components"]["Quantizer"]["outputDefinitions"]["artifacts"]
    assert set(outputs) == {"quantized_model", "evaluation", "blessing", "calibration_ranges"}
    assert "components.CalibrationRanges" in outputs["calibration_ranges"]["artifactType"]["instanceSchema"]


@pytest.mark.parametrize(
    ("task", "producer"),
    [
        ("Quantizer", None),
        ("Handed", {"producerTask": "Quantizer", "outputArtifactKey": "calibration_ranges"}),
        ("Imported", {"producerTask": "OldRanges", "outputArtifactKey": "result"}),
    ],
)
def test_ranges_compile_left_out_and_given(spec: dict[str, Any], task: str, producer: dict[str, str] | None) -> None:
    given = spec["root"]["dag"]["tasks"][task]["inputs"]["artifacts"]
    declared = spec["components"][task]["inputDefinitions"]["artifacts"]
    optional = set() if producer is None else {"known_ranges"}
    assert set(given) == set(declared) == {"frozen_graph", "examples"} | optional
    if producer is not None:
        assert given["known_ranges"]["taskOutputArtifact"] == producer
        assert "components.CalibrationRanges" in declared["known_ranges"]["artifactType"]["instanceSchema"]


def test_a_limit_of_every_node_passes_over_importers_which_run_no_container(spec: dict[str, Any]) -> None:
    executors = spec["deploymentSpec"]["executors"]
    assert set(executors["OldRanges_executor"]) == {"importer"}
    assert executors["Imported_executor"]["container"]["resources"] == {"cpuLimit": 2.0}
