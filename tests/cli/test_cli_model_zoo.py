"""``quantizer model-zoo``: a registry entry is all that a graph needs, for classifiers and for detectors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner, Result

from quantizer_core.cli.main import cli
from quantizer_core.cli.model_zoo import request_of
from quantizer_core.data import tensor_example, write_tfrecords
from quantizer_core.graph.files import load_graph
from quantizer_core.zoo.registry import MODELS

COUNT = 12
SIDES = ("ymin", "xmin", "ymax", "xmax")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in ("model-zoo", *arguments)])


def write(path: Path, outputs: str, head) -> Path:
    """Writes a graph of uint8 images of any size: two convolutions, and a head."""
    rng = np.random.default_rng(0)
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.uint8, [None, None, None, 3], name="image_tensor")
        net = tf.cast(x, tf.float32) / 127.5 - 1.0
        for channels, inputs in ((8, 3), (8, 8)):
            weights = (rng.normal(size=(3, 3, inputs, channels)) / np.sqrt(9 * inputs)).astype(np.float32)
            net = tf.nn.relu(tf.nn.conv2d(net, tf.constant(weights), 1, "SAME"))
        head(tf.reduce_mean(net, [1, 2]), rng)
    path.write_bytes(graph.as_graph_def().SerializeToString())
    assert all(name in {node.name for node in graph.as_graph_def().node} for name in outputs.split(","))
    return path


def entry(name: str, outputs: str, preprocess: dict, metric: str, excluded: tuple[str, ...] = ()) -> dict:
    found = json.loads(MODELS.read_text())[0] | {"MODEL_NAME": name}
    found["QUANTIZE_GRAPH_CONVERTER_PARAMS"] = {
        "INPUT_NODE_LIST": ["image_tensor"], "OUTPUT_NODE_LIST": outputs.split(","), "EXCLUDED_OPS_LIST": [*excluded],
        "EXCLUDED_NODE_LIST": [], "PER_CHANNEL_FLAG": True,
    }  # fmt: skip
    found["DIRECT_CALIBRATION_PARAMS"] = {"PREPROCESS": {"kind": "image", **preprocess}, "METRIC": metric}
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of several sizes, with classes and objects; a classifier and a detector; their registry."""
    rng = np.random.default_rng(1)
    records = []
    for number in range(COUNT):
        image = rng.integers(0, 256, (16 + number, 24, 3), np.uint8)
        box = np.array([[0.1, 0.2, 0.5, 0.6]], np.float32)
        features = {"image/encoded": tf.io.encode_png(image).numpy(), "image/object/class/label": np.array([1])}
        features |= {f"image/object/bbox/{side}": box[:, index] for index, side in enumerate(SIDES)}
        records.append(tensor_example(features | {"image/class/label": np.array([number % 3])}))
    write_tfrecords(records, str(tmp_path / "records"))

    def classes(means: tf.Tensor, rng: np.random.Generator) -> None:
        tf.nn.softmax(tf.matmul(means, tf.constant(rng.normal(size=(8, 3)).astype(np.float32))), name="classes")

    def boxes(means: tf.Tensor, _: np.random.Generator) -> None:
        scale = means[:, :1] * 1e-3  # a box that moves a little with the image
        tf.expand_dims(tf.constant([[0.1, 0.2, 0.5, 0.6]]) + scale, 1, name="detection_boxes")
        tf.identity(0.9 - scale, name="detection_scores")
        tf.reduce_sum(scale * 0.0 + 1.0, 1, name="num_detections")
        tf.identity(scale * 0.0 + 1.0, name="detection_classes")

    four = "detection_boxes,detection_scores,num_detections,detection_classes"
    write(tmp_path / "net.pb", "classes", classes)
    write(tmp_path / "detector.pb", four, boxes)
    models = [
        entry("net", "classes", {"image_size": [16, 16], "label_key": "image/class/label"}, "agreement", ("MatMul",)),
        entry("detector", four, {"resize": "none"}, "coco_map"),
    ]
    (tmp_path / "models.json").write_text(json.dumps(models))
    return tmp_path


def convert(folder: Path, model: str, *more: object) -> Result:
    return run(
        *("--registry", folder / "models.json", "--model", model, "--in_graph", folder / f"{model}.pb"),
        *("--data_location", folder / "records", "--num_calibration_examples", 8, *more),
    )


def test_a_classifier_by_its_entry_alone(folder: Path) -> None:
    result = convert(folder, "net", "--evaluate", "--max_drop", 1, "--json")
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["output_graph"] == str(folder / "net_int8.pb") and (folder / "net_int8.pb").exists()
    assert facts["by_op"]["Conv2D"] == [2, 2]
    assert (facts["evaluation"]["metric"], facts["evaluation"]["num_examples"]) == ("agreement", COUNT - 8)
    assert "MatMul" in {node.op for node in load_graph(str(folder / "net_int8.pb")).node}  # excluded by the entry


def test_a_detector_keeps_each_images_size_and_is_judged_by_coco(folder: Path) -> None:
    result = convert(folder, "detector", "--evaluate", "--report", folder / "report.json")
    assert result.exit_code == 0, result.stderr
    report = json.loads((folder / "report.json").read_text())
    assert (report["metric"], report["fp32"], report["num_examples"]) == ("coco_map", pytest.approx(1), COUNT - 8)
    assert report["blessed"] and report["facts"]["boxes"] == report["facts"]["matched"] == COUNT - 8


def test_a_loss_beyond_what_is_accepted_is_not_blessed(folder: Path) -> None:
    models = json.loads((folder / "models.json").read_text())
    models[0]["DIRECT_CALIBRATION_PARAMS"]["METRIC"] = "similarity"
    (folder / "models.json").write_text(json.dumps(models))
    result = convert(folder, "net", "--evaluate", "--max_drop", 0, "--out_graph", folder / "out.pb")
    assert result.exit_code == 3 and "NOT BLESSED" in result.stdout and (folder / "out.pb").exists()


def test_wrong_use_is_told(folder: Path) -> None:
    result = run("--model", "resnet5", "--in_graph", folder / "net.pb", "--data_location", folder / "records")
    assert result.exit_code == 2 and "did you mean 'resnet50'" in result.stderr
    models = json.loads((folder / "models.json").read_text())
    del models[0]["DIRECT_CALIBRATION_PARAMS"]
    (folder / "models.json").write_text(json.dumps(models))
    result = convert(folder, "net", "--evaluate")
    assert result.exit_code == 2 and "model 'net' has no metric" in result.stderr
    listed = CliRunner().invoke(cli, ["model-zoo", "--list"]).stdout
    assert len(listed.splitlines()) == 9 and listed.startswith("resnet50: input -> predict (top1)")
    own = run("--list", "--registry", folder / "models.json")
    assert own.exit_code == 0 and own.stdout.startswith("net: ") and "(no metric)" in own.stdout
    for option in ("--model", "--in_graph", "--data_location"):
        given = {"--model": "net", "--in_graph": folder / "net.pb", "--data_location": folder / "records"}
        del given[option]
        result = run(*(word for pair in given.items() for word in pair))
        assert result.exit_code == 2 and f"Missing option '{option}'" in result.stderr


def test_messages_name_the_options_that_there_are(folder: Path) -> None:
    result = convert(folder, "net", "--report", folder / "report.json")
    assert result.exit_code == 2 and "--report needs --evaluation_data or --evaluate" in result.stderr
    (folder / "net_int8.pb").write_bytes(b"mine")
    result = convert(folder, "net")
    assert result.exit_code == 2 and "--out_graph: " in result.stderr and "exists already" in result.stderr


def test_classes_of_folders_count_from_0_and_those_of_records_as_the_entry_says(folder: Path) -> None:
    models = json.loads((folder / "models.json").read_text())
    preprocess = models[0]["DIRECT_CALIBRATION_PARAMS"]["PREPROCESS"]
    models[0]["DIRECT_CALIBRATION_PARAMS"]["PREPROCESS"] = {**preprocess, "label_offset": -1}
    (folder / "models.json").write_text(json.dumps(models))
    for name in ("images/a", "images/b"):
        (folder / name).mkdir(parents=True)
        (folder / name / "0.png").write_bytes(b"png")
    common = {"model": "net", "in_graph": "net.pb", "out_graph": None, "models_zoo_location": None}
    common |= {"models_source_dir": None, "num_calibration_examples": None, "evaluate": False, "metric": None}
    common |= {"image_size": None, "registry": str(folder / "models.json"), "evaluation_data": None}
    images, records = str(folder / "images"), str(folder / "records")
    for data, labels, given, wanted in (
        (images, None, None, 0),
        (images, "labels.csv", None, None),
        (images, None, 7, 7),
        (records, None, None, None),
    ):
        request = request_of(**common, data_location=data, labels=labels, label_offset=given)
        assert request.label_offset == wanted


#: A stand-in for the zoo's launcher: it takes the same arguments, and runs a graph on images of its data.
LAUNCHER = """
import argparse, json, os
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy as np
import tensorflow as tf
parser = argparse.ArgumentParser()
for name in ("model-name", "framework", "precision", "mode", "batch-size", "in-graph", "data-location"):
    parser.add_argument("--" + name, required=True)
parser.add_argument("--model-source-dir")
parser.add_argument("--accuracy-only", action="store_true", required=True)
parser.add_argument("passed", nargs="*")
options = parser.parse_args()
with open(os.path.join(os.path.dirname(__file__), "seen.json"), "w") as file:
    json.dump(vars(options), file)
graph_def = tf.compat.v1.GraphDef.FromString(open(options.in_graph, "rb").read())
with tf.Graph().as_default() as graph:
    tf.import_graph_def(graph_def, name="")
    with tf.compat.v1.Session() as session:
        for record in tf.compat.v1.io.tf_record_iterator(options.data_location):
            png = tf.train.Example.FromString(record).features.feature["image/encoded"].bytes_list.value[0]
            image = session.run(tf.io.decode_png(png))[None]
            session.run("classes:0", {"image_tensor:0": image})
"""


def test_the_zoos_own_script_calibrates(folder: Path) -> None:
    models = json.loads((folder / "models.json").read_text())
    launch = models[0]["LAUNCH_BENCHMARK_PARAMS"]
    launch |= {"MODEL_SOURCE_DIR": "--model-source-dir={}", "DIRECT_PASS_PARAMS_TO_MODEL": ["input_height=16"]}
    (folder / "models.json").write_text(json.dumps(models))
    (folder / "zoo" / "benchmarks").mkdir(parents=True)
    (folder / "zoo" / "benchmarks" / "launch_benchmark.py").write_text(LAUNCHER)
    options = ["--registry", folder / "models.json", "--model", "net", "--in_graph", folder / "net.pb"]
    options += ["--data_location", folder / "records", "--models_zoo_location", folder / "zoo"]
    result = run(*options)
    assert result.exit_code == 2 and "'net' needs --models_source_dir" in result.stderr
    options += ["--models_source_dir", folder]
    result = run(*options, "--evaluate")
    assert result.exit_code == 2 and "--evaluate does not go with --models_zoo_location" in result.stderr
    result = run(*options, "--json")
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["calibration_examples"] == COUNT and facts["by_op"]["Conv2D"] == [2, 2]
    seen = json.loads((folder / "zoo" / "benchmarks" / "seen.json").read_text())
    assert seen["model_name"] == "resnet50" and seen["data_location"] == str(folder / "records")
    assert seen["model_source_dir"] == str(folder) and seen["passed"] == ["input_height=16"]
    assert seen["in_graph"] != str(folder / "net.pb")
