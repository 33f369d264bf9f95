"""Spans of examples reach the Quantizer together; a new version of the product is not served old results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tfx import v1 as tfx

from components.graph_importer.component import GraphImporter
from components.quantizer.component import Quantizer
from pipelines.record import RunRecord, latest_run
from quantizer_core.config import PreprocessConfig, QuantizationConfig
from quantizer_core.data import write_tfrecords
from quantizer_core.graph.files import load_graph, save_graph
from quantizer_core.version import VERSION
from tests.helpers.tfx_artifacts import conv_net, tensor_example

pytestmark = pytest.mark.slow


def _write_span(folder: Path, span: int, calibration: int, evaluation: int) -> None:
    random = np.random.default_rng(span)
    for split, count in (("calibration", calibration), ("evaluation", evaluation)):
        rows = (tensor_example(image=random.normal(size=(8, 8, 1))) for _ in range(count))
        write_tfrecords(rows, str(folder / f"span-{span}" / f"{split}.tfrecord.gz"))


def _run(folder: Path, core_version: str = VERSION) -> RunRecord:
    example_gen = tfx.components.ImportExampleGen(
        input_base=str(folder / "data"),
        input_config=tfx.proto.Input(
            splits=[
                tfx.proto.Input.Split(name=split, pattern=f"span-{{SPAN}}/{split}*")
                for split in ("calibration", "evaluation")
            ]
        ),
    )
    spans = tfx.dsl.Resolver(
        strategy_class=tfx.dsl.experimental.SpanRangeStrategy,
        config={"range_config": tfx.proto.RangeConfig(rolling_range=tfx.proto.RollingRange(num_spans=2))},
        examples=tfx.dsl.Channel(
            type=tfx.types.standard_artifacts.Examples, producer_component_id=example_gen.id, output_key="examples"
        ),
    ).with_id("latest_spans")
    spans.add_upstream_node(example_gen)
    importer = GraphImporter(graph_path=str(folder / "net.pb"))
    quantizer = Quantizer(
        frozen_graph=importer.outputs["frozen_graph"],
        examples=spans.outputs["examples"],
        quantization_config=QuantizationConfig(
            preprocess=PreprocessConfig(features={"images": "image"}), only_faster=False
        ),
        calibration_split="calibration",
        evaluation_split="evaluation",
        metric="agreement",
        max_drop=0.2,
        core_version=core_version,
    )
    metadata_path = str(folder / "metadata.db")
    tfx.orchestration.LocalDagRunner().run(
        tfx.dsl.Pipeline(
            pipeline_name="spans",
            pipeline_root=str(folder / "pipeline"),
            components=[example_gen, spans, importer, quantizer],
            enable_cache=True,
            metadata_connection_config=tfx.orchestration.metadata.sqlite_metadata_connection_config(metadata_path),
        )
    )
    return latest_run(metadata_path, "spans")


def test_latest_spans_are_quantized_together_and_again_with_a_new_version(tmp_path: Path) -> None:
    save_graph(conv_net(4), str(tmp_path / "net.pb"))
    _write_span(tmp_path / "data", 1, calibration=20, evaluation=10)
    first = _run(tmp_path)
    facts = first.steps["Quantizer"]["evaluation"].properties
    assert (facts["calibration_examples"], facts["evaluation_examples"]) == (20, 10)

    _write_span(tmp_path / "data", 2, calibration=12, evaluation=5)
    second = _run(tmp_path)
    assert second.steps["ImportExampleGen"]["examples"].properties["span"] == 2
    assert (second.states["ImportExampleGen"], second.states["Quantizer"]) == ("COMPLETE", "COMPLETE")
    assert second.states["GraphImporter"] == "CACHED"
    facts = second.steps["Quantizer"]["evaluation"].properties
    assert (facts["calibration_examples"], facts["evaluation_examples"]) == (32, 15)
    ops = {
        node.op for node in load_graph(f"{second.steps['Quantizer']['quantized_model'].uri}/quantized_graph.pb").node
    }
    assert "_FusedQuantizedConv2D" in ops

    third = _run(tmp_path, core_version=f"{VERSION}.next")
    assert third.states["ImportExampleGen"] == third.states["GraphImporter"] == "CACHED"
    assert third.states["Quantizer"] == "COMPLETE"
    assert third.steps["Quantizer"]["evaluation"].properties["core_version"] == VERSION
