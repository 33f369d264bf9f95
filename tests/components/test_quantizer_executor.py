"""The Quantizer calibrates, converts, measures and blesses; the Pusher deploys what is blessed and nothing else."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import json_format
from tensorflow.core.framework import graph_pb2
from tfx import v1 as tfx
from tfx.components.pusher.executor import Executor as PusherExecutor
from tfx.types import Artifact, Channel, standard_artifacts

from components.artifacts import (
    CalibrationRanges,
    FrozenGraph,
    GraphMeta,
    QuantizationEvaluation,
    graph_path,
    write_meta,
)
from components.quantizer import executor
from components.quantizer.component import Quantizer
from components.quantizer.executor import Executor
from pipelines.serve_back import classify
from quantizer_core.calibration.saved import CALIBRATION_FILE, SavedCalibration, load_calibration, save_calibration
from quantizer_core.config import PreprocessConfig, QuantizationConfig
from quantizer_core.errors import ConfigError, DataError, GraphError
from quantizer_core.graph.files import load_graph, save_graph
from quantizer_core.graph.summarize import input_specs
from quantizer_core.machine import describe_machine
from quantizer_core.planning.plan import QuantizationPlan
from quantizer_core.prepare import prepare
from quantizer_core.runtime import GraphSession
from quantizer_core.version import VERSION
from tests.helpers.tfx_artifacts import conv_net, examples, frozen_graph, tensor_example

CONFIG = QuantizationConfig(
    preprocess=PreprocessConfig(features={"images": "image"}, label_key="label"), only_faster=False
)

GRAPH = conv_net(4)


def _run_graph(graph_def: graph_pb2.GraphDef, images: np.ndarray) -> np.ndarray:
    with GraphSession(graph_def, input_specs(graph_def, ["images"]), ["logits"]) as session:
        (logits,) = session.run({"images": images})
    return logits


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Smooth random images, of which the graph puts some into each class: float32 [192,8,8,1]."""
    coarse = np.random.default_rng(7).normal(size=(192, 4, 4, 1))
    return tf.image.resize(coarse, (8, 8)).numpy().astype(np.float32)


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> FrozenGraph:
    return frozen_graph(tmp_path_factory.mktemp("frozen") / "graph", GRAPH)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, images: np.ndarray) -> standard_artifacts.Examples:
    """Examples that the FP32 graph classifies without a mistake, noise that looks like none of them, and bad ones."""
    labels = _run_graph(GRAPH, images).argmax(axis=1)
    good = [tensor_example(int(label), image=image) for image, label in zip(images, labels, strict=True)]
    noise = np.random.default_rng(1).normal(scale=1e-3, size=(32, 64))
    splits = {
        "train": good[:96],
        "eval": good[96:],
        "noise": [tensor_example(0, image=row) for row in noise],
        "unlabelled": [tensor_example(image=image) for image in images[96:]],
        "no_image": [tensor_example(1, picture=image) for image in images[:8]],
        "short_image": [tensor_example(1, image=image[:7]) for image in images[:8]],
        "not_finite": [tensor_example(1, image=np.full(64, np.nan)) for _ in range(8)],
        "mixed": [*good[:30], tensor_example(1, image=images[0][:7]), b"\xff"],
        "late_bad": [*good[:16], *(tensor_example(1, picture=image) for image in images[:8])],
        "early_bad": [*(tensor_example(1, picture=image) for image in images[:40]), *good],
        "no_files": [],
    }
    artifact = examples(tmp_path_factory.mktemp("examples") / "data", splits)
    folder = Path(artifact.uri) / "Split-no_records"
    folder.mkdir()
    tf.io.TFRecordWriter(str(folder / "data.gz"), options="GZIP").close()
    artifact.split_names = json.dumps([*splits, "no_records"])
    return artifact


def _quantize(
    frozen: FrozenGraph, data: Artifact, root: Path | str, ranges: Artifact | None = None, **parameters: Any
) -> dict[str, Artifact]:
    component = Quantizer(
        frozen_graph=Channel(type=FrozenGraph),
        examples=Channel(type=standard_artifacts.Examples),
        **{"quantization_config": CONFIG, "max_drop": 0.1, **parameters},
    )
    outputs: dict[str, Artifact] = {
        "quantized_model": standard_artifacts.Model(),
        "evaluation": QuantizationEvaluation(),
        "blessing": standard_artifacts.ModelBlessing(),
        "calibration_ranges": CalibrationRanges(),
    }
    for key, artifact in outputs.items():
        artifact.uri = f"{root}/{key}"
    known = {} if ranges is None else {"known_ranges": [ranges]}
    Executor().Do(
        {"frozen_graph": [frozen], "examples": [data], **known},
        {key: [artifact] for key, artifact in outputs.items()},
        component.exec_properties,
    )
    return outputs


def _push(outputs: Mapping[str, Artifact], root: Path) -> Artifact:
    pushed = standard_artifacts.PushedModel()
    pushed.uri = str(root / "pushed_model")
    destination = tfx.proto.PushDestination(
        filesystem=tfx.proto.PushDestination.Filesystem(base_directory=str(root / "serving"))
    )
    PusherExecutor().Do(
        {"model": [outputs["quantized_model"]], "model_blessing": [outputs["blessing"]]},
        {"pushed_model": [pushed]},
        {"push_destination": json_format.MessageToJson(destination)},
    )
    return pushed


def _files(uri: str) -> dict[str, bytes]:
    return {str(p.relative_to(uri)): p.read_bytes() for p in Path(uri).rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def good_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("good")


@pytest.fixture(scope="module")
def good(good_root: Path, frozen: FrozenGraph, data: Artifact) -> dict[str, Artifact]:
    return _quantize(frozen, data, good_root)


def test_good_model_is_blessed_as_the_evaluator_does(good: dict[str, Artifact], frozen: FrozenGraph) -> None:
    blessing = good["blessing"]
    assert list(_files(blessing.uri)) == ["BLESSED"]
    assert blessing.get_int_custom_property("blessed") == 1
    assert blessing.get_string_custom_property("current_model") == good["quantized_model"].uri
    assert blessing.get_string_custom_property("baseline_model") == frozen.uri


def test_metadata_carries_the_figures(good: dict[str, Artifact], frozen: FrozenGraph) -> None:
    evaluation, model = good["evaluation"], good["quantized_model"]
    plan = QuantizationPlan.from_json((Path(model.uri) / "plan.json").read_text())
    assert evaluation.get_string_custom_property("metric") == "top1"
    assert evaluation.get_float_custom_property("fp32") == 1.0
    int8, drop = (evaluation.get_float_custom_property(name) for name in ("int8", "drop"))
    assert 0.9 <= int8 <= 1.0
    assert drop == pytest.approx(1.0 - int8)
    assert evaluation.get_float_custom_property("agreement") == pytest.approx(int8)
    expected = {
        "blessed": 1,
        "quantized_nodes": plan.quantized,
        "candidate_nodes": plan.candidates,
        "slower_nodes": 0,
        "calibration_examples": 96,
        "evaluation_examples": 96,
        "fp32_bytes": (Path(frozen.uri) / "graph.pb").stat().st_size,
        "int8_bytes": (Path(model.uri) / "quantized_graph.pb").stat().st_size,
    }
    assert {key: evaluation.get_int_custom_property(key) for key in expected} == expected
    assert {"Conv2D": (1, 1), "MaxPool": (1, 1), "MatMul": (1, 1)}.items() <= plan.counts().items()
    assert evaluation.get_string_custom_property("core_version") == VERSION
    assert evaluation.get_string_custom_property("calibration_split") == "train"
    assert model.get_int_custom_property("quantized_nodes") == plan.quantized
    written = json.loads((Path(evaluation.uri) / "evaluation.json").read_text())
    assert (written["int8"], written["drop"], written["blessed"]) == (int8, drop, True)


def test_saved_model_serves_what_the_graph_beside_it_computes(good: dict[str, Artifact], images: np.ndarray) -> None:
    uri = good["quantized_model"].uri
    served = classify(f"{uri}/Format-Serving", [tensor_example(image=image) for image in images[:4]])
    graph_def = load_graph(f"{uri}/quantized_graph.pb")
    np.testing.assert_array_equal(served, np.concatenate([_run_graph(graph_def, images[i : i + 1]) for i in range(4)]))
    assert any(node.op.startswith(("Quantized", "_FusedQuantized")) for node in graph_def.node)


def test_running_again_gives_the_same_bytes_over_whatever_was_left(
    good: dict[str, Artifact], good_root: Path, frozen: FrozenGraph, data: Artifact
) -> None:
    before = {key: _files(artifact.uri) for key, artifact in good.items()}
    (good_root / "blessing" / "NOT_BLESSED").write_text("")
    (good_root / "evaluation" / "work").mkdir()
    again = _quantize(frozen, data, good_root)
    after = {key: _files(artifact.uri) for key, artifact in again.items()}
    assert sorted(after["evaluation"]) == ["counters.json", "evaluation.json"]
    # SavedModels carry a fingerprint of their own making.
    for key, files in after.items():
        for name in files:
            if "Format-Serving" not in name and name != "counters.json":  # it holds the seconds that it took
                assert files[name] == before[key][name], f"{key}/{name}"
        assert files.keys() == before[key].keys()


def test_no_path_of_an_artifact_is_taken_for_a_local_one(
    good: dict[str, Artifact], data: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``ram://`` is a file system that TensorFlow alone knows; what lands there came by the artifacts' URIs.

    The SavedModel is left out: unlike an object store, ``ram://`` renames a folder without what is in it.
    """
    exported = []
    monkeypatch.setattr(executor, "export_saved_model", lambda *arguments: exported.append(arguments[-1]))
    frozen = FrozenGraph()
    frozen.uri = "ram://executor/frozen"
    tf.io.gfile.makedirs(frozen.uri)
    save_graph(GRAPH, graph_path(frozen.uri))
    write_meta(frozen.uri, GraphMeta(("images",), ("logits",)))
    outputs = _quantize(frozen, data, "ram://executor/out")
    for key, name in (
        ("calibration_ranges", CALIBRATION_FILE),
        ("evaluation", "evaluation.json"),
        ("quantized_model", "plan.json"),
    ):
        with tf.io.gfile.GFile(f"{outputs[key].uri}/{name}", "rb") as file:
            assert file.read() == (Path(good[key].uri) / name).read_bytes(), name
    assert tf.io.gfile.listdir(outputs["blessing"].uri) == ["BLESSED"]
    assert exported == [f"{outputs['quantized_model'].uri}/Format-Serving"]


def test_good_model_is_pushed(good: dict[str, Artifact], tmp_path: Path) -> None:
    assert _push(good, tmp_path).get_int_custom_property("pushed") == 1
    assert (tmp_path / "pushed_model" / "saved_model.pb").exists()


def test_metadata_carries_the_machine_that_decides_about_int8(good: dict[str, Artifact]) -> None:
    model, machine = good["quantized_model"], describe_machine()
    assert model.get_string_custom_property("machine_cpu") == machine["cpu"]
    assert model.get_string_custom_property("machine_tensorflow") == tf.version.VERSION
    assert model.get_int_custom_property("machine_onednn") == 1
    assert model.get_int_custom_property("machine_vnni") == machine["vnni_used"]
    features = model.get_string_custom_property("machine_features").split(",")
    assert features == [name for name, has in machine["cpu_features"].items() if has] and "avx2" in features
    plan = QuantizationPlan.from_json((Path(model.uri) / "plan.json").read_text())
    bits = {str(node.weight_bits) for node in plan.nodes if node.weight_bits}
    assert set(model.get_string_custom_property("weight_bits").split(",")) == bits != set()


def test_what_calibration_saw_is_an_artifact(good: dict[str, Artifact], frozen: FrozenGraph) -> None:
    ranges = good["calibration_ranges"]
    saved = load_calibration(ranges.uri)
    assert list(_files(ranges.uri)) == [CALIBRATION_FILE]
    assert (saved.source, saved.run.reads.read, len(saved.run.sample)) == ("train", 96, 64)
    assert (saved.inputs, saved.outputs, saved.core_version) == (("images",), ("logits",), VERSION)
    assert ranges.get_string_custom_property("source") == "train"
    expected = {"examples": 96, "skipped": 0, "reused": 0, "tensors": len(saved.run.statistics.tensors)}
    assert {key: ranges.get_int_custom_property(key) for key in expected} == expected
    assert ranges.get_string_custom_property("graph_fingerprint") == saved.fingerprint


@pytest.fixture
def no_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("a pass over the data was made")

    monkeypatch.setattr("components.quantizer.executor.Calibrate", refuse)


def test_ranges_fed_back_in_give_the_same_model_without_a_pass_over_the_data(
    good: dict[str, Artifact], frozen: FrozenGraph, data: Artifact, tmp_path: Path, no_calibration: None
) -> None:
    again = _quantize(frozen, data, tmp_path, good["calibration_ranges"], calibration_split="is not read")
    for key, name in (("quantized_model", "quantized_graph.pb"), ("calibration_ranges", CALIBRATION_FILE)):
        assert _files(again[key].uri)[name] == _files(good[key].uri)[name]
    assert again["evaluation"].get_string_custom_property("calibration_split") == "train"
    assert again["evaluation"].get_int_custom_property("calibration_examples") == 96
    assert again["calibration_ranges"].get_int_custom_property("reused") == 1


def test_another_method_and_exclusion_on_old_ranges_give_what_a_new_calibration_would(
    good: dict[str, Artifact], frozen: FrozenGraph, data: Artifact, tmp_path: Path
) -> None:
    config = dataclasses.replace(CONFIG, calibration_method="minmax", excluded_ops=("MatMul",))
    fresh = _quantize(frozen, data, tmp_path / "fresh", quantization_config=config)
    again = _quantize(frozen, data, tmp_path / "again", good["calibration_ranges"], quantization_config=config)
    graphs = [_files(each["quantized_model"].uri)["quantized_graph.pb"] for each in (fresh, again, good)]
    assert graphs[0] == graphs[1] != graphs[2]
    # The first's are handed on whole, so that the exclusion can be lifted again.
    assert _files(again["calibration_ranges"].uri) == _files(good["calibration_ranges"].uri)


def test_ranges_of_another_graph_or_damaged_ones_are_refused_and_leave_nothing(
    good: dict[str, Artifact], data: Artifact, tmp_path: Path
) -> None:
    other = frozen_graph(tmp_path / "frozen" / "graph", conv_net(5))
    with pytest.raises(ConfigError, match="given as calibration_ranges is of another graph"):
        _quantize(other, data, tmp_path / "out", good["calibration_ranges"])
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []
    damaged = CalibrationRanges()
    damaged.uri = str(tmp_path)
    (tmp_path / CALIBRATION_FILE).write_bytes(_files(good["calibration_ranges"].uri)[CALIBRATION_FILE][:-1])
    with pytest.raises(DataError, match="damaged or cut short"):
        _quantize(other, data, tmp_path / "out", damaged)


def test_a_file_from_the_shell_is_taken_in_a_pipeline(
    good: dict[str, Artifact], frozen: FrozenGraph, data: Artifact, tmp_path: Path, no_calibration: None
) -> None:
    config = dataclasses.replace(CONFIG, inputs=("images",), outputs=("logits",))
    run = load_calibration(good["calibration_ranges"].uri).run
    ranges = CalibrationRanges()
    ranges.uri = str(tmp_path / "shell")
    (tmp_path / "shell").mkdir()
    for source in ("photos/", ""):  # a program need not say what the examples were
        saved = SavedCalibration.of(run, prepare(GRAPH, config), config, source)
        save_calibration(saved, tmp_path / "shell" / CALIBRATION_FILE, overwrite=True)
        outputs = _quantize(frozen, data, tmp_path / "out", ranges)
        assert outputs["evaluation"].get_string_custom_property("calibration_split") == source


def test_calibration_needs_no_labels(
    good: dict[str, Artifact], frozen: FrozenGraph, data: Artifact, tmp_path: Path
) -> None:
    """Neither of its examples, nor of the sample in ranges that are fed back in, on which weights are chosen."""
    fresh = _quantize(frozen, data, tmp_path / "fresh", calibration_split="unlabelled")
    labelled = _quantize(frozen, data, tmp_path / "labelled", calibration_split="eval")  # the same images
    again = _quantize(frozen, data, tmp_path / "again", fresh["calibration_ranges"])
    assert fresh["evaluation"].get_string_custom_property("metric") == "top1"
    graphs = [_files(each["quantized_model"].uri)["quantized_graph.pb"] for each in (fresh, labelled, again, good)]
    assert graphs[0] == graphs[1] == graphs[2] != graphs[3]


def test_model_calibrated_on_noise_completes_and_is_neither_blessed_nor_pushed(
    frozen: FrozenGraph, data: Artifact, tmp_path: Path
) -> None:
    outputs = _quantize(frozen, data, tmp_path, calibration_split="noise")
    assert list(_files(outputs["blessing"].uri)) == ["NOT_BLESSED"]
    assert outputs["blessing"].get_int_custom_property("blessed") == 0
    assert outputs["evaluation"].get_int_custom_property("blessed") == 0
    assert outputs["evaluation"].get_float_custom_property("drop") > 0.1
    assert "drop" in outputs["evaluation"].get_string_custom_property("reason")
    assert (tmp_path / "quantized_model" / "Format-Serving" / "saved_model.pb").exists()
    assert _push(outputs, tmp_path).get_int_custom_property("pushed") == 0
    assert not (tmp_path / "serving").exists()


def test_agreement_is_measured_without_labels_on_as_many_examples_as_asked(
    frozen: FrozenGraph, data: Artifact, tmp_path: Path
) -> None:
    config = QuantizationConfig(preprocess=PreprocessConfig(features={"images": "image"}), only_faster=False)
    evaluation = _quantize(
        frozen,
        data,
        tmp_path,
        quantization_config=config,
        metric="agreement",
        evaluation_split="unlabelled",
        num_calibration_examples=20,
        num_evaluation_examples=30,
    )["evaluation"]
    assert evaluation.get_int_custom_property("calibration_examples") == 20
    assert evaluation.get_int_custom_property("evaluation_examples") == 30
    assert evaluation.get_int_custom_property("blessed") == 1


def test_a_model_that_stays_fp32_as_int8_would_be_slower_says_so(
    frozen: FrozenGraph, data: Artifact, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outputs = _quantize(frozen, data, tmp_path, quantization_config=dataclasses.replace(CONFIG, only_faster=True))
    plan = QuantizationPlan.from_json((tmp_path / "quantized_model" / "plan.json").read_text())
    assert (plan.quantized, plan.slower) == (0, 2)  # the convolution and the matrix product; a pool alone gains nothing
    for artifact in (outputs["evaluation"], outputs["quantized_model"]):
        assert artifact.get_int_custom_property("slower_nodes") == 2
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "0 of 3 nodes in INT8; plan.json tells why not the others" in warnings
    assert "2 of the others stay FP32 as INT8 would be slower (only_faster)" in warnings


def test_what_is_skipped_is_logged_and_counted(
    frozen: FrozenGraph, data: Artifact, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = dataclasses.replace(CONFIG, max_bad_fraction=0.1)
    outputs = _quantize(frozen, data, tmp_path, quantization_config=config, calibration_split="mixed")
    assert "calibration: 1 of 32 examples skipped, for example: feature 'image' holds 56 floats" in caplog.text
    assert "calibration: 1 of 32 examples skipped, for example: a record of 1 bytes" in caplog.text
    counters = json.loads((tmp_path / "evaluation" / "counters.json").read_text())
    expected = {"calibration_examples": 30, "calibration_skipped": 2, "calibration_skipped_wrong_shape": 1}
    expected |= {"calibration_skipped_damaged_record": 1, "calibration_batches": 2, "evaluation_batches": 6}
    expected |= {"evaluation_examples": 96, "evaluation_skipped": 0}
    seconds = {"calibration_inference_seconds", "evaluation_inference_seconds"}
    assert {name: value for name, value in counters.items() if name not in seconds} == expected
    assert outputs["evaluation"].get_int_custom_property("calibration_skipped_wrong_shape") == 1
    assert outputs["evaluation"].get_float_custom_property("calibration_inference_seconds") > 0


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"calibration_split": "trian"}, "no split 'trian'; did you mean 'train'"),
        ({"evaluation_split": "test"}, "no split 'test'"),
        ({"calibration_split": "no_files"}, "split 'no_files' is empty"),
        ({"calibration_split": "no_records"}, "no example"),
        ({"evaluation_split": "no_records"}, "no example"),
        ({"calibration_split": "no_image"}, "'image'"),
        ({"calibration_split": "short_image"}, "'image'"),
        ({"calibration_split": "not_finite"}, "(?i)nan|infinit|finite"),
        ({"evaluation_split": "no_image"}, "'image'"),
        ({"evaluation_split": "unlabelled"}, "'label'"),
        ({"evaluation_split": "late_bad"}, "^8 of 24 examples for evaluation cannot be used"),
    ],
)
def test_bad_examples_are_refused_and_leave_nothing(
    frozen: FrozenGraph, data: Artifact, tmp_path: Path, parameters: dict[str, str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        _quantize(frozen, data, tmp_path, **parameters)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_bad_examples_at_the_head_of_a_split_are_no_hindrance(
    frozen: FrozenGraph, data: Artifact, tmp_path: Path
) -> None:
    config = dataclasses.replace(CONFIG, max_bad_fraction=0.2)
    evaluation = _quantize(frozen, data, tmp_path, quantization_config=config, evaluation_split="early_bad")[
        "evaluation"
    ]
    assert evaluation.get_int_custom_property("evaluation_skipped") == 40


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"calibration_split": "no_records"}, "there are no examples in .*Split-no_records"),
        ({"evaluation_split": "no_records"}, "there are no examples in .*Split-no_records"),
        ({"evaluation_split": "unlabelled"}, "the first examples of split 'unlabelled': 16 of 16 examples .*'label'"),
        ({"evaluation_split": "no_image"}, "the first examples of split 'no_image': .*'image'"),
    ],
)
def test_what_would_fail_at_the_end_fails_before_the_work(
    frozen: FrozenGraph,
    data: Artifact,
    tmp_path: Path,
    parameters: dict[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Executor, "_calibrate", lambda *arguments: pytest.fail("it calibrates"))
    with pytest.raises(DataError, match=message):
        _quantize(frozen, data, tmp_path, **parameters)


def test_a_metric_that_does_not_fit_the_graph_fails_before_the_work(
    data: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Executor, "_calibrate", lambda *arguments: pytest.fail("it calibrates"))
    artifact = frozen_graph(tmp_path / "frozen", GRAPH, outputs=["MaxPool2d"])
    with pytest.raises(DataError, match="split 'eval': no output of the graph is a vector of class scores"):
        _quantize(artifact, data, tmp_path / "out")


def test_damaged_frozen_graph_is_refused(data: Artifact, tmp_path: Path) -> None:
    artifact = frozen_graph(tmp_path / "frozen", GRAPH)
    (tmp_path / "frozen" / "graph.pb").write_bytes(b"\x0a\xff")
    with pytest.raises(GraphError, match=r"graph\.pb"):
        _quantize(artifact, data, tmp_path / "out")
    (tmp_path / "frozen" / "meta.json").unlink()
    with pytest.raises(GraphError, match=r"meta\.json is missing"):
        _quantize(artifact, data, tmp_path / "out")
