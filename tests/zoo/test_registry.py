"""The registry: the nine entries of 2020 as they were, their launch commands, and what a broken file is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quantizer_core.errors import ConfigError
from quantizer_core.zoo import load_models, zoo_model
from quantizer_core.zoo.registry import MODELS

FOUR = ("detection_boxes", "detection_scores", "num_detections", "detection_classes")
#: Name → --model-name, inputs, outputs, excluded ops, per channel: the table of 2020.
ENTRIES = {
    "resnet50": ("resnet50", ("input",), ("predict",), (), False),
    "resnet50v1_5": ("resnet50v1_5", ("input_tensor",), ("ArgMax", "softmax_tensor"), (), True),
    "resnet101": ("resnet101", ("input",), ("resnet_v1_101/predictions/Reshape_1",), (), False),
    "mobilenet_v1": ("mobilenet_v1", ("input",), ("MobilenetV1/Predictions/Reshape_1",), (), True),
    "inceptionv3": ("inceptionv3", ("input",), ("predict",), (), False),
    "ssd_mobilenet": ("ssd-mobilenet", ("image_tensor",), FOUR, ("ConcatV2",), True),
    "ssd_resnet34": ("ssd-resnet34", ("input",), ("v/stack", "v/Softmax"), ("ConcatV2",), False),
    "faster_rcnn": ("faster_rcnn", ("image_tensor",), FOUR, (), False),
    "rfcn": ("rfcn", ("image_tensor",), FOUR, (), False),
}


def test_the_nine_entries_are_those_of_2020() -> None:
    models = load_models()
    assert list(models) == list(ENTRIES)
    for name, (launched, inputs, outputs, excluded, per_channel) in ENTRIES.items():
        config = models[name].config
        assert f"--model-name={launched}" in models[name].arguments
        assert (config.inputs, config.outputs, config.excluded_ops) == (inputs, outputs, excluded)
        assert (config.per_channel, config.excluded_nodes) == (per_channel, ())
        assert {"--framework=tensorflow", "--precision=int8", "--mode=inference", "--accuracy-only"} <= set(
            models[name].arguments
        )


def checkout(tmp_path: Path) -> Path:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "launch_benchmark.py").write_text("")
    return tmp_path


def test_the_launch_command_is_that_of_the_zoo(tmp_path: Path) -> None:
    zoo = str(checkout(tmp_path))
    command = zoo_model("rfcn").launch_command(zoo, "/data", "/sources")
    assert command == [
        *("python", f"{zoo}/benchmarks/launch_benchmark.py", "--model-name=rfcn", "--framework=tensorflow"),
        *("--precision=int8", "--mode=inference", "--socket-id=0", "--accuracy-only", "--in-graph={}"),
        *("--data-location=/data", "--model-source-dir=/sources", "--", 'split="accuracy_message"'),
    ]
    assert zoo_model("resnet50").launch_command(zoo, "/data")[-2:] == ["--in-graph={}", "--data-location=/data"]


def test_a_launch_that_cannot_work_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no benchmarks/launch_benchmark.py"):
        zoo_model("resnet50").launch_command(str(tmp_path), "/data")
    zoo = str(checkout(tmp_path))
    with pytest.raises(ConfigError, match="'rfcn' needs --models_source_dir"):
        zoo_model("rfcn").launch_command(zoo, "/data")
    with pytest.raises(ConfigError, match="'resnet50' takes no --models_source_dir"):
        zoo_model("resnet50").launch_command(zoo, "/data", "/sources")


def test_unknown_models_and_broken_registries_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'resnet5' is not known; did you mean 'resnet50'"):
        zoo_model("resnet5")
    entries = json.loads(MODELS.read_text())
    path = tmp_path / "models.json"

    def broken(change) -> str:
        changed = json.loads(json.dumps(entries))
        change(changed)
        path.write_text(json.dumps(changed))
        with pytest.raises(ConfigError) as caught:
            load_models(path)
        return str(caught.value)

    assert "$[1]" in broken(lambda all: all[1].pop("MODEL_NAME"))
    assert "PER_CHANNEL_FLAG" in broken(
        lambda all: all[0]["QUANTIZE_GRAPH_CONVERTER_PARAMS"].update(PER_CHANNEL_FLAG="False")
    )
    assert "names 'resnet50' twice" in broken(lambda all: all.append(all[0]))
    assert "model 'resnet50'" in broken(lambda all: all[0]["DIRECT_CALIBRATION_PARAMS"]["PREPROCESS"].update(kind="x"))
    path.write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_models(path)
