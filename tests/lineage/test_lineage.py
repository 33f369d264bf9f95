"""Lineage is read from any store of ML Metadata: what made what, once, whatever the cache, imports and reuse did."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from ml_metadata.proto import metadata_store_pb2 as proto

from components import artifacts
from quantizer_core.cli.main import cli
from quantizer_core.config import PreprocessConfig, QuantizationConfig
from quantizer_core.errors import ConfigError, DataError, QuantizerError
from quantizer_core.lineage import answers, records, trace
from tests.helpers.metadata_store import Store

CONFIG = QuantizationConfig(excluded_nodes=("last",), preprocess=PreprocessConfig(label_key="label"))
FIGURES = {"metric": "top1", "fp32": 0.75, "int8": 0.5, "drop": 0.25, "calibration_split": "train", "blessed": 1}
MACHINE = {"machine_cpu": "Some CPU", "machine_features": "avx2", "machine_vnni": 0, "weight_bits": "7"}


def _quantizer(store: Store, root: Path, name: str, inputs: dict[str, list[int]]) -> SimpleNamespace:
    """Records a Quantizer's run; returns the ids of its outputs and of the run."""
    made = SimpleNamespace(
        model=store.artifact("Model", f"{root}/{name}/model", **MACHINE, core_version="1.2"),
        evaluation=store.artifact(records.EVALUATION, f"{root}/{name}/evaluation", **FIGURES),
        blessing=store.artifact("ModelBlessing", f"{root}/{name}/blessing", blessed=1, blessing_message="good enough"),
        ranges=store.artifact(records.RANGES, f"{root}/{name}/ranges", examples=96),
    )
    outputs = {"quantized_model": [made.model], "evaluation": [made.evaluation], "blessing": [made.blessing],
               "calibration_ranges": [made.ranges]}  # fmt: skip
    parameters = {"core_version": "1.2", "evaluation_split": "eval", "quantization_config": CONFIG.to_json()}
    made.step = store.step("Quantizer", inputs, outputs, node=name, **parameters)
    return made


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A store: ExampleGen → Trainer → Freezer → Quantizer → a second one on the first's ranges → Pusher."""
    root = tmp_path_factory.mktemp("store")
    store = Store(root / "metadata.db")
    h = SimpleNamespace(root=root, path=str(root / "metadata.db"))
    h.examples = store.artifact("Examples", f"{root}/examples", split_names='["train", "eval"]', span=3)
    h.trained = store.artifact("Model", f"{root}/trained")
    h.frozen = store.artifact(records.FROZEN_GRAPH, f"{root}/frozen")
    h.pushed = store.artifact("PushedModel", f"{root}/pushed_model", pushed=1, pushed_destination=f"{root}/serving/17")
    h.gen = store.step("ImportExampleGen", {}, {"examples": [h.examples]}, input_base="/data", empty="")
    h.trainer = store.step("Trainer", {"examples": [h.examples]}, {"model": [h.trained]}, run_fn="x" * 300)
    h.freezer = store.step("Freezer", {"model": [h.trained]}, {"frozen_graph": [h.frozen]}, signature="tensors")
    h.first = _quantizer(store, root, "first", {"frozen_graph": [h.frozen], "examples": [h.examples]})
    more = store.artifact("Examples", f"{root}/more")
    h.second = _quantizer(store, root, "second", {"frozen_graph": [h.frozen], "examples": [more],
                                                  "known_ranges": [h.first.ranges]})  # fmt: skip
    inputs = {"model": [h.second.model], "model_blessing": [h.second.blessing]}
    h.pusher = store.step("Pusher", inputs, {"pushed_model": [h.pushed]})
    # A run later: all from the cache; a run that failed; and an import of what is there already.
    store.step("Freezer", {"model": [h.trained]}, {"frozen_graph": [h.frozen]}, state=proto.Execution.CACHED)
    store.step("Quantizer", {"frozen_graph": [h.frozen]}, {}, state=proto.Execution.FAILED)
    store.step("Importer", {}, {"result": [h.first.ranges]})
    h.stray = store.artifact("Model", f"{root}/stray")
    h.foreign_ranges = store.artifact(records.RANGES, f"{root}/foreign_ranges")
    store.step("Importer", {}, {"result": [h.foreign_ranges]})
    h.third = _quantizer(store, root, "third", {"examples": [more], "known_ranges": [h.foreign_ranges]})
    # The first ranges imported anew, which gives them an id of their own, and a verdict of TFX's Evaluator.
    h.imported = store.artifact(records.RANGES, f"{root}/first/ranges", examples=96)
    store.step("Importer", {}, {"result": [h.imported]}, node="Ranges")
    h.fourth = _quantizer(store, root, "fourth", {"examples": [more], "known_ranges": [h.imported]})
    h.verdict = store.artifact("ModelBlessing", f"{root}/verdict")
    compared = {"baseline_model": [h.first.model], "examples": [more], "model": [h.fourth.model]}
    store.step("Evaluator", compared, {"blessing": [h.verdict]})
    return h


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["lineage", *(str(argument) for argument in arguments)])


def test_the_core_and_the_components_mean_the_same_types() -> None:
    assert artifacts.FrozenGraph.TYPE_NAME == records.FROZEN_GRAPH
    assert artifacts.QuantizationEvaluation.TYPE_NAME == records.EVALUATION
    assert artifacts.CalibrationRanges.TYPE_NAME == records.RANGES


def test_a_pushed_model_goes_back_to_the_fp32_model_and_all_that_decided(house: SimpleNamespace) -> None:
    answer = answers(trace(house.path, f"{house.root}/serving/17"))
    assert answer["asked"]["id"] == house.pushed and answer["pushed_to"] == f"{house.root}/serving/17"
    assert answer["int8_model"]["id"] == house.second.model
    assert answer["fp32"]["frozen_graph"]["uri"] == f"{house.root}/frozen"
    assert answer["fp32"]["made_by"] == house.freezer  # neither the cached run nor the failed one
    assert answer["fp32"]["model"]["id"] == house.trained and answer["fp32"]["model_made_by"] == house.trainer
    assert [each["uri"] for each in answer["examples"]] == [f"{house.root}/more"]
    assert answer["evaluation_split"] == "eval" and answer["core_version"] == "1.2"
    assert QuantizationConfig.from_json(json.dumps(answer["config"])) == CONFIG
    assert answer["machine"] == {"cpu": "Some CPU", "features": "avx2", "vnni": 0, "weight_bits": "7"}
    assert answer["evaluation"]["properties"] == FIGURES
    assert answer["blessing"]["properties"] == {"blessed": 1, "blessing_message": "good enough"}
    assert [step["id"] for step in answer["steps"]] == [
        *(house.gen, house.trainer, house.freezer, house.first.step, house.second.step, house.pusher)
    ]
    assert {step["pipeline"] for step in answer["steps"]} == {"p"} and {step["run"] for step in answer["steps"]} == {
        "r1"
    }
    assert answer["steps"][2]["parameters"] == {"signature": "tensors"}


def test_ranges_that_were_handed_on_lead_to_the_run_that_saw_the_examples(house: SimpleNamespace) -> None:
    calibration = answers(trace(house.path, str(house.pushed)))["calibration"]
    assert calibration["ranges"]["id"] == house.second.ranges and calibration["reused"] is True
    assert calibration["by_step"] == house.first.step and calibration["split"] == "train"
    assert [(each["id"], each["properties"]["span"]) for each in calibration["examples"]] == [(house.examples, 3)]
    own = answers(trace(house.path, str(house.first.model)))["calibration"]
    assert own["reused"] is False and own["by_step"] == house.first.step
    foreign = answers(trace(house.path, str(house.third.model)))["calibration"]
    assert foreign["reused"] is True and foreign["by_step"] is None and foreign["examples"] == []


def test_ranges_that_were_imported_anew_lead_there_too(house: SimpleNamespace) -> None:
    calibration = answers(trace(house.path, str(house.fourth.model)))["calibration"]
    assert calibration["reused"] is True and calibration["by_step"] == house.first.step
    assert [each["id"] for each in calibration["examples"]] == [house.examples]
    for asked in (house.imported, f"{house.root}/first/ranges"):
        assert answers(trace(house.path, str(asked)))["step"] == house.first.step


def test_a_verdict_is_on_the_model_and_not_on_what_it_was_compared_with(house: SimpleNamespace) -> None:
    assert answers(trace(house.path, str(house.verdict)))["int8_model"]["id"] == house.fourth.model


def test_a_model_is_named_by_place_or_by_id(house: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(model: object) -> int:
        return trace(house.path, str(model)).asked

    assert asked(house.second.model) == house.second.model
    assert asked(f"{house.root}/second/model/") == house.second.model
    assert asked(f"{house.root}/second/model/Format-Serving/saved_model.pb") == house.second.model
    assert asked(f"{house.root}/serving/../serving/17/variables") == house.pushed
    monkeypatch.chdir(house.root)
    assert asked("serving/17") == house.pushed
    (house.root / "link").symlink_to(house.root / "serving")
    assert asked("link/17") == house.pushed
    for id_ in (house.second.evaluation, house.second.blessing, house.second.ranges):
        assert trace(house.path, str(id_)).quantizer().id == house.second.step


def test_of_several_pushes_to_one_place_the_latest_counts(tmp_path: Path) -> None:
    store = Store(tmp_path / "metadata.db")
    ids = [store.artifact("PushedModel", f"{tmp_path}/{i}", pushed_destination=f"{tmp_path}/serving") for i in range(3)]
    assert trace(str(tmp_path / "metadata.db"), f"{tmp_path}/serving").asked == ids[-1]


def test_the_tree_tells_each_step_once(house: SimpleNamespace) -> None:
    result = _run("--metadata", house.path, house.pushed)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == f"PushedModel {house.pushed}: {house.root}/serving/17"
    for node in ("ImportExampleGen", "Trainer", "Freezer", "first", "second", "Pusher"):
        assert sum(f" by {node}, 20" in line and "told above" not in line for line in lines) == 1, node
    text = result.stdout
    for words in (
        "signature=tensors", "run_fn=" + "x" * 120 + "…", "input_base=/data", "blessed: good enough", "(told above)",
        "core version: 1.2", "machine: cpu Some CPU, features avx2, vnni 0, weight_bits 7",
        'config: {"excluded_nodes": ["last"], "preprocess": {"label_key": "label"}}',
        f"96 examples of train, handed on from step {house.first.step}", "fp32 0.75, int8 0.5, drop 0.25",
    ):  # fmt: skip
        assert words in text, words
    assert "empty=" not in text
    depth = {name: next(line.index(name) for line in lines if name in line) for name in ("Freezer,", "Trainer,")}
    assert depth["Freezer,"] < depth["Trainer,"]
    foreign = _run("--metadata", house.path, house.third.model).stdout
    assert "handed on from step of another store" in foreign


def test_the_shell_gives_the_answers_as_json(house: SimpleNamespace) -> None:
    result = _run("--metadata", house.path, f"{house.root}/serving/17", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout) == answers(trace(house.path, str(house.pushed)))


def test_a_model_without_a_quantizer_behind_it_is_told(house: SimpleNamespace) -> None:
    with pytest.raises(DataError, match="was not made by a Quantizer, but by: ImportExampleGen, Trainer"):
        answers(trace(house.path, str(house.trained)))
    with pytest.raises(DataError, match="not made by a Quantizer, but by: no recorded step"):
        answers(trace(house.path, str(house.stray)))
    result = _run("--metadata", house.path, house.trained)
    assert result.exit_code == 1 and result.stdout == "" and "was not made by a Quantizer" in result.stderr


@pytest.mark.parametrize("model", ["9999", "serving/18", "gs://bucket/model"])
def test_a_model_that_is_not_recorded_is_told_with_what_is(house: SimpleNamespace, model: str) -> None:
    with pytest.raises(ConfigError, match=f"records no artifact '{model}'.*pushed to {house.root}/serving/17"):
        trace(house.path, model)


def test_what_is_no_store_is_told_and_not_touched(tmp_path: Path) -> None:
    import sqlite3

    with pytest.raises(ConfigError, match=r"none\.db' cannot be read: No such file"):
        trace(str(tmp_path / "none.db"), "1")
    assert not (tmp_path / "none.db").exists()
    (tmp_path / "text.db").write_text("a text of some length")
    with pytest.raises(DataError, match=r"text\.db' is no SQLite file"):
        trace(str(tmp_path / "text.db"), "1")
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE mine (a)")
    before = (tmp_path / "other.db").read_bytes()
    with pytest.raises(DataError, match=r"other\.db' is no store of ML Metadata"):
        trace(str(tmp_path / "other.db"), "1")
    assert (tmp_path / "other.db").read_bytes() == before


def test_reading_leaves_the_store_as_it_was(house: SimpleNamespace) -> None:
    before = Path(house.path).read_bytes()
    answers(trace(house.path, str(house.pushed)))
    assert Path(house.path).read_bytes() == before


def test_a_missing_package_is_one_error_with_the_way_out(
    house: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ml_metadata", None)  # as if it were not installed
    with pytest.raises(QuantizerError, match=r"pip install 'tfx-quantizer\[lineage\]'"):
        trace(house.path, "1")
    result: Any = _run("--metadata", house.path, 1)
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1
