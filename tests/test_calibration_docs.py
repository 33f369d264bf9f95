"""docs/calibration_and_lineage.md stays true: its commands and its Python run as printed, its keys are the answers'."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from tests.helpers.metadata_store import Store
from tests.test_readme import ROOT, blocks, run_shell, workplace

__all__ = ["workplace"]

TEXT = (ROOT / "docs" / "calibration_and_lineage.md").read_text(encoding="utf-8")
CONVERT, DIFF, LINEAGE = blocks("shell", TEXT)
PYTHON, PIPELINE = blocks("python", TEXT)


@pytest.mark.slow
def test_saved_calibrations_convert_and_compare_as_printed(workplace: Path) -> None:
    run_shell(CONVERT, workplace)
    exec(compile(PYTHON, "calibration_and_lineage.md", "exec"), {"__name__": "docs"})
    graphs = ["mobilenet_int8.pb", "mobilenet_nearest.pb", "mobilenet_float_pool.pb"]
    assert len({(workplace / name).read_bytes() for name in graphs}) == 3
    told = run_shell(DIFF, workplace)
    columns = next(line for line in TEXT.splitlines() if line.startswith("change %"))
    assert columns.split() == next(line for line in told.splitlines() if line.startswith("change %")).split()
    assert re.search(r"\n(\d+) tensors .*: \1 identical, 0 with a range", told)  # the same photos, by both ways


def test_lineage_is_asked_as_printed(tmp_path: Path) -> None:
    store, pushed = LINEAGE.split()[3:]
    (tmp_path / store).parent.mkdir(parents=True)
    writer = Store(tmp_path / store)
    evaluation = writer.artifact("components.QuantizationEvaluation", "evaluation")
    model = writer.artifact("Model", "model")
    writer.step("Quantizer", {}, {"quantized_model": [model], "evaluation": [evaluation]})
    artifact = writer.artifact("PushedModel", "pushed", pushed_destination=str(tmp_path / pushed))
    writer.step("Pusher", {"model": [model]}, {"pushed_model": [artifact]})
    assert run_shell(LINEAGE, tmp_path).startswith(f"PushedModel {artifact}: {tmp_path / pushed}\n└── by Pusher, ")


def test_keys_of_the_answer_are_all_told() -> None:
    from quantizer_core.lineage import Artifact, Lineage, Step, answers

    made = {7: Artifact(7, "Model", "m", {}), 8: Artifact(8, "components.QuantizationEvaluation", "e", {})}
    step = Step(1, "Quantizer", "Quantizer", "p", "r", "now", {}, {}, {"quantized_model": (7,), "evaluation": (8,)})
    answer = answers(Lineage(7, made, {1: step}, {7: 1, 8: 1}))
    rows = re.findall(r"^\| (`.*?) \|", TEXT, re.MULTILINE)
    assert {key for row in rows for key in re.findall(r"`(\w+)`", row)} == set(answer)


def test_pipeline_example_makes_quantizers() -> None:
    from tfx.types import Channel, standard_artifacts
    from tfx.v1.dsl import Importer

    from components.artifacts import CalibrationRanges, FrozenGraph
    from components.quantizer.component import Quantizer
    from quantizer_core.config import PreprocessConfig, QuantizationConfig

    names = {
        "Importer": Importer,
        "Quantizer": Quantizer,
        "CalibrationRanges": CalibrationRanges,
        "dataclasses": dataclasses,
        "graph": Channel(type=FrozenGraph),
        "examples": Channel(type=standard_artifacts.Examples),
        "config": QuantizationConfig(preprocess=PreprocessConfig(label_key="label")),
        "directory": "old/ranges",
    }
    exec(compile(PIPELINE, "calibration_and_lineage.md", "exec"), names)
    first, second, third, earlier = (names[name] for name in ("first", "second", "third", "earlier"))
    assert "known_ranges" not in first.inputs
    assert second.inputs["known_ranges"] is first.outputs["calibration_ranges"]
    assert third.inputs["known_ranges"] is earlier.outputs["result"]
    assert second.exec_properties != first.exec_properties
