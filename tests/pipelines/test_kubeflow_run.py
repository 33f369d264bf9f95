"""The compiled specs, run without a cluster: each container's command verbatim, in a process of its own, with only the
image's packages; a good model through to the push, a bad one to "not pushed"."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format

from pipelines.digits import make_data
from pipelines.digits import pipeline as digits
from pipelines.frozen_graph import pipeline as frozen_graph
from pipelines.kubeflow import compile_pipeline
from pipelines.rehearsal import Artifacts, rehearse
from pipelines.serve_back import classify, first_examples, labels
from quantizer_core.config import PreprocessConfig, QuantizationConfig
from quantizer_core.data import write_tfrecords
from quantizer_core.graph.files import load_graph, save_graph
from tests.helpers.image_packages import ImageProcess
from tests.helpers.tfx_artifacts import conv_net, tensor_example

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> ImageProcess:
    return ImageProcess(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def good(process: ImageProcess, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mapping[str, Artifacts]]:
    """The digits pipeline: trained, frozen, calibrated, evaluated, blessed and pushed."""
    folder = tmp_path_factory.mktemp("good")
    make_data.write_digits(str(folder / "data"))
    pipeline = digits.create_pipeline(
        pipeline_root=str(folder / "runs"),
        data_root=str(folder / "data"),
        serving_root=str(folder / "serving"),
        train_steps=100,
        max_drop=0.03,
    )
    spec = compile_pipeline(pipeline, str(folder / "pipeline.yaml"), "image")
    return folder, rehearse(spec, str(folder / "runs"), process)


@pytest.fixture(scope="module")
def bad(process: ImageProcess, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mapping[str, Artifacts]]:
    """The frozen graph pipeline, calibrated on images that are a thousand times too faint."""
    folder = tmp_path_factory.mktemp("bad")
    images = np.random.default_rng(3).normal(size=(64, 8, 8, 1))
    for name, scale, chosen in (("calibration", 1e-3, images[:32]), ("evaluation", 1.0, images[32:])):
        examples = [tensor_example(image=image * scale) for image in chosen]
        write_tfrecords(examples, str(folder / "data" / f"{name}.tfrecord.gz"))
    save_graph(conv_net(4), str(folder / "net.pb"))
    pipeline = frozen_graph.create_pipeline(
        pipeline_root=str(folder / "runs"),
        graph_path=str(folder / "net.pb"),
        examples_root=str(folder / "data"),
        serving_root=str(folder / "serving"),
        quantization_config=QuantizationConfig(
            preprocess=PreprocessConfig(features={"images": "image"}), only_faster=False
        ),
        metric="agreement",
        max_drop=0.15,
    )
    spec = compile_pipeline(pipeline, str(folder / "pipeline.yaml"), "image")
    return folder, rehearse(spec, str(folder / "runs"), process)


def said(outputs: Mapping[str, Artifacts], task: str, key: str) -> dict[str, Any]:
    metadata: dict[str, Any] = json_format.MessageToDict(outputs[task][key].metadata)
    return metadata


def test_commands_see_the_packages_of_the_image_alone(process: ImageProcess) -> None:
    names = ("components", "pipelines", "quantizer_core")
    code = f"from importlib.util import find_spec; print(*(find_spec(name).origin for name in {names}), sep='\\n')"
    exit_code, printed = process(["python", "-c", code])
    assert exit_code == 0, printed
    assert printed.split() == [str(process.packages / name / "__init__.py") for name in names]


def test_good_model_goes_through_calibration_evaluation_and_blessing_to_the_push(
    good: tuple[Path, Mapping[str, Artifacts]],
) -> None:
    folder, outputs = good
    assert set(outputs) == {"ImportExampleGen", "Trainer", "Freezer", "Quantizer", "Pusher"}
    facts = said(outputs, "Quantizer", "evaluation")
    assert facts["calibration_examples"] + facts["evaluation_examples"] == 1797
    assert facts["fp32"] > 0.8
    assert facts["drop"] <= 0.03
    assert said(outputs, "Quantizer", "blessing")["blessed"] == 1
    pushed = said(outputs, "Pusher", "pushed_model")
    assert pushed["pushed"] == 1
    assert Path(pushed["pushed_destination"]).parent == folder / "serving"


def test_pushed_model_is_int8_and_answers(good: tuple[Path, Mapping[str, Artifacts]]) -> None:
    _, outputs = good
    graph = load_graph(outputs["Quantizer"]["quantized_model"].uri + "/quantized_graph.pb")
    assert not {"Conv2D", "DepthwiseConv2dNative", "MatMul"} & {node.op for node in graph.node}
    examples = first_examples(outputs["ImportExampleGen"]["examples"].uri + "/Split-eval/*", 20)
    answers = classify(said(outputs, "Pusher", "pushed_model")["pushed_destination"], examples).argmax(axis=1)
    assert (answers == labels(examples, make_data.LABEL_KEY)).mean() >= 0.8


def test_bad_model_completes_and_is_not_pushed(bad: tuple[Path, Mapping[str, Artifacts]]) -> None:
    folder, outputs = bad
    assert set(outputs) == {"ImportExampleGen", "GraphImporter", "Quantizer", "Pusher"}
    facts = said(outputs, "Quantizer", "evaluation")
    assert facts["evaluation_examples"] == 32
    assert facts["drop"] > 0.15
    blessing = said(outputs, "Quantizer", "blessing")
    assert blessing["blessed"] == 0
    assert blessing["blessing_message"] == facts["reason"]
    assert said(outputs, "Pusher", "pushed_model")["pushed"] == 0
    assert not (folder / "serving").exists()


def test_every_command_is_the_spec_s_own(
    process: ImageProcess, good: tuple[Path, Mapping[str, Artifacts]], bad: tuple[Path, Mapping[str, Artifacts]]
) -> None:
    run = [command for command in process.commands if "--executor_class_path" in command]
    assert len(run) == len(good[1]) + len(bad[1])
    assert all(command[0] == "python" and "{{$}}" not in command for command in run)
