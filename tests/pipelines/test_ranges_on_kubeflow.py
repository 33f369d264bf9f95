"""The Quantizer's ranges compile for Kubeflow: given on, given back in, and left out."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from tfx import v1 as tfx
from tfx.orchestration.kubeflow.v2.kubeflow_v2_dag_runner import KubeflowV2DagRunner, KubeflowV2DagRunnerConfig

from components.artifacts import CalibrationRanges
from components.quantizer.component import Quantizer
from pipelines.digits.pipeline import PREPROCESS, create_pipeline
from quantizer_core.config import QuantizationConfig

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
    config = KubeflowV2DagRunnerConfig(default_image="image", use_pipeline_spec_2_1=True)
    KubeflowV2DagRunner(config, output_dir=str(folder), output_filename="pipeline.yaml").run(pipeline)
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
