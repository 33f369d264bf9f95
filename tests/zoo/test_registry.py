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
BATCHES_OF_100 = ("resnet50", "resnet50v1_5", "resnet101", "mobilenet_v1", "inceptionv3")
WITH_SOURCES = ("ssd_mobilenet", "ssd_resnet34", "faster_rcnn", "rfcn")


def test_the_nine_entries_are_those_of_2020() -> None:
    models = load_models()
    assert list(models) == list(ENTRIES)
    for name, (launched, inputs, outputs, excluded, per_channel) in ENTRIES.items():
        config = models[name].config
        assert f"--model-name={launched}" in models[name].arguments
        assert (config.inputs, config.outputs, config.excluded_ops) == (inputs, outputs, excluded)
        assert (config.per_channel, config.excluded_nodes) == (per_channel, ())
        more = {"--batch-size=100"} if name in BATCHES_OF_100 else {"--batch-size=1"} if "ssd" in name else set()
        more |= {"--socket-id=0"} if name in ("inceptionv3", "faster_rcnn", "rfcn") else set()
        assert set(models[name].arguments) == {
            *(f"--model-name={launched}", "--framework=tensorflow", "--precision=int8", "--mode=inference"),
            *("--accuracy-only", *more),
        }
        assert bool(models[name].model_source_dir) == (name in WITH_SOURCES)
        assert bool(models[name].passed_on) == (name in ("mobilenet_v1", "rfcn"))


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
        *("--data-location=/data", "--model-source-dir=/sources", "--", "split=accuracy_message"),
    ]
    command = zoo_model("mobilenet_v1").launch_command(zoo, "/data")
    assert command[-5:] == [
        *("--", "--input_height=224", "--input_width=224", "--input_layer=input"),
        "--output_layer=MobilenetV1/Predictions/Reshape_1",
    ]
    assert zoo_model("resnet50").launch_command(zoo, "/data")[-2:] == ["--in-graph={}", "--data-location=/data"]


@pytest.mark.parametrize("direct", [["-- split=x"], ["--", "split=x"], [" split=x "]])
def test_entries_spelled_as_those_of_2020(tmp_path: Path, direct: list[str]) -> None:
    """The quick start's begin with a blank; others hold an option and its value, or the separator."""
    entry = json.loads(MODELS.read_text())[0]
    entry["LAUNCH_BENCHMARK_PARAMS"] = {
        "LAUNCH_BENCHMARK_SCRIPT": "benchmarks/launch_benchmark.py",
        "LAUNCH_BENCHMARK_CMD": [" --model-name=resnet50", "--framework tensorflow", " --accuracy-only"],
        "IN_GRAPH": " --in-graph {}",
        "DATA_LOCATION": " --data-location={}",
        "DIRECT_PASS_PARAMS_TO_MODEL": direct,
    }
    (tmp_path / "mine.json").write_text(json.dumps([entry]))
    zoo = str(checkout(tmp_path))
    command = zoo_model("resnet50", tmp_path / "mine.json").launch_command(zoo, "/my data")
    assert command[2:] == [
        *("--model-name=resnet50", "--framework", "tensorflow", "--accuracy-only", "--in-graph", "{}"),
        *("--data-location=/my data", "--", "split=x"),
    ]


def test_an_open_quotation_is_told(tmp_path: Path) -> None:
    entry = json.loads(MODELS.read_text())[0]
    entry["LAUNCH_BENCHMARK_PARAMS"]["LAUNCH_BENCHMARK_CMD"].append("--note=it's")
    (tmp_path / "mine.json").write_text(json.dumps([entry]))
    with pytest.raises(ConfigError, match="it's' cannot be taken apart: No closing quotation|cannot be taken apart"):
        zoo_model("resnet50", tmp_path / "mine.json").launch_command(str(checkout(tmp_path)), "/data")


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
