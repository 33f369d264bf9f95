"""``quantizer convert`` from its options to its files and exit codes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner, Result

from quantizer_core.cli.conversion import _place
from quantizer_core.cli.convert import _beside
from quantizer_core.cli.load import LoadedGraph
from quantizer_core.cli.main import cli
from quantizer_core.data import read_examples, tensor_example, write_tfrecords
from quantizer_core.graph.files import load_graph
from quantizer_core.planning.plan import QuantizationPlan

COUNT = 24


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


class Workspace:
    """A folder with a small graph, class folders of images, and TFRecords whose labels are what FP32 answers."""

    def __init__(self, root: Path):
        self.root = root
        self.graph = root / "float.pb"
        self.output = root / "int8.pb"
        rng = np.random.default_rng(0)
        with tf.Graph().as_default() as graph:
            x = tf.compat.v1.placeholder(tf.float32, [None, 8, 8, 3], name="image")
            net = tf.nn.conv2d(x, tf.constant(rng.normal(size=(3, 3, 3, 8)).astype(np.float32)), 1, "SAME")
            net = tf.nn.relu(tf.nn.bias_add(net, tf.constant(rng.normal(size=8).astype(np.float32))))
            net = tf.reshape(net, [-1, 512])
            logits = tf.matmul(net, tf.constant(rng.normal(size=(512, 3)).astype(np.float32)), name="logits")
            with tf.compat.v1.Session() as session:
                images = rng.integers(0, 256, (COUNT, 8, 8, 3), np.uint8)
                classes = session.run(logits, {x: images / np.float32(255)}).argmax(1)
        self.graph.write_bytes(graph.as_graph_def().SerializeToString())
        for number, (image, label) in enumerate(zip(images, classes, strict=True)):
            folder = root / "images" / "abc"[label]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:03}.png").write_bytes(tf.io.encode_png(image).numpy())
        records = [
            tensor_example({"image": image / np.float32(255)}, label)
            for image, label in zip(images, classes, strict=True)
        ]
        write_tfrecords(records, str(root / "records.gz"))
        self.before = sorted(root.iterdir())

    def convert(self, *options: object, images: bool = True) -> Result:
        data = ("images", "--preprocess", "unit", "--classes", "a,b,c") if images else ("records.gz",)
        paths = ["--input_graph", self.graph, "--output_graph", self.output, "--calibration_data", self.root / data[0]]
        return run("convert", *paths, *data[1:], "--only_faster", "false", *options)

    def made(self) -> list[str]:
        return [path.name for path in sorted(self.root.iterdir()) if path not in self.before]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def test_images_in_and_all_outputs_out(workspace: Workspace) -> None:
    root = workspace.root
    result = workspace.convert(
        *("--num_calibration_examples", 16, "--evaluate_rest", "--max_drop", 0.5),
        *("--plan", root / "plan.json", "--report", root / "report.json", "--saved_model", root / "served"),
    )
    assert result.exit_code == 0, result.stderr
    assert workspace.made() == ["int8.pb", "plan.json", "report.json", "served"]
    ops = {node.op for node in load_graph(workspace.output).node}
    assert "QuantizeV2" in ops and not ops & {"Conv2D", "MatMul"}
    plan = QuantizationPlan.from_json((root / "plan.json").read_text())
    assert plan.quantized == plan.candidates == 2
    report = json.loads((root / "report.json").read_text())
    assert report["num_examples"] == COUNT - 16 and report["fp32"] == 1.0 and report["metric"] == "top1"
    assert "2 of 2 nodes in INT8: Conv2D 1/1, MatMul 1/1" in result.stdout
    assert "calibrated on 16 examples" in result.stdout and "blessed:" in result.stdout
    assert "Calibrating: 16 examples" in result.stderr
    served = tf.saved_model.load(str(root / "served")).signatures["serving_default"]
    examples = list(read_examples(root / "images"))
    assert served(examples=tf.constant(examples))["logits"].shape == (COUNT, 3)


def test_json_goes_to_stdout_alone(workspace: Workspace) -> None:
    result = workspace.convert("--json", "--evaluation_data", workspace.root / "records.gz", "--label_key", "label",
                               "--max_drop", 1, images=False)  # fmt: skip
    assert result.exit_code == 0 and result.stderr == ""
    facts = json.loads(result.stdout)
    assert facts["quantized"] == 2 and facts["calibration_examples"] == COUNT
    assert facts["evaluation"]["blessed"] is True and facts["evaluation"]["num_examples"] == COUNT


def test_the_same_bytes_each_time_and_from_images_or_their_tfrecords(workspace: Workspace) -> None:
    assert workspace.convert().exit_code == 0
    first = workspace.output.read_bytes()
    records = workspace.root / "images.gz"
    assert run("make-tfrecords", "--images", workspace.root / "images", "--output", records).exit_code == 0
    options = ("convert", "--input_graph", workspace.graph, "--output_graph", workspace.output, "--preprocess", "unit",
               "--only_faster", "false")  # fmt: skip
    assert run(*options, "--calibration_data", records, "--overwrite").exit_code == 0
    assert workspace.output.read_bytes() == first


def test_what_is_not_blessed_is_written_and_ends_with_3(workspace: Workspace) -> None:
    # INT8's outputs are never just those of FP32.
    result = workspace.convert(
        *("--num_calibration_examples", 16, "--evaluate_rest", "--metric", "similarity", "--max_drop", 0)
    )
    assert result.exit_code == 3, result.stdout + result.stderr
    assert "NOT BLESSED: " in result.stdout and workspace.made() == ["int8.pb"]


def test_a_saved_model_is_taken_with_its_signature_keys(workspace: Workspace) -> None:
    class Model(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = tf.Variable(np.random.default_rng(0).normal(size=(192, 4)).astype(np.float32))

        @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3], tf.float32, name="image")])
        def __call__(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"scores": tf.matmul(tf.reshape(image, [-1, 192]), self.kernel)}

    model = Model()
    tf.saved_model.save(model, str(workspace.root / "model"), signatures=model.__call__)
    arguments = ("convert", "--input_graph", workspace.root / "model", "--output_graph", workspace.output,
                 "--calibration_data", workspace.root / "records.gz")  # fmt: skip
    result = run(*arguments, "--inputs", "image", "--outputs", "scores", "--metric", "agreement")
    assert result.exit_code == 0, result.stderr
    result = run(*arguments, "--overwrite", "--signature", "other")
    assert result.exit_code in (1, 2) and "other" in result.stderr


def test_a_key_may_be_that_of_an_input_and_of_an_output() -> None:
    """As that of a model that makes images of images."""
    graph = LoadedGraph(tf.compat.v1.GraphDef(), ("in",), ("out",), {"image": "in"}, {"image": "out"})
    assert graph.input_names(["image"]) == graph.input_names([]) == ("in",)
    assert graph.output_names(["image"]) == graph.output_names([]) == ("out",)
    assert graph.output_names(["other"]) == ("other",)


def test_options_go_before_the_config_file(workspace: Workspace) -> None:
    config = workspace.root / "config.json"
    options = {"excluded_ops": ["Conv2D"], "per_channel": False, "outputs": ["logits"], "only_faster": False}
    config.write_text(json.dumps(options))
    result = workspace.convert("--config", config, "--json")
    assert json.loads(result.stdout)["by_op"] == {"Conv2D": [0, 1], "MatMul": [1, 1]}
    result = workspace.convert("--config", config, "--excluded_ops", "MatMul", "--overwrite", "--json")
    assert json.loads(result.stdout)["by_op"]["Conv2D"] == [1, 1]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--input_graph", "none.pb"], 1, "none.pb' does not exist"),
        (["--inputs", "imgae"], 1, "no node 'imgae'; did you mean 'image'"),
        (["--outputs", "logit"], 1, "no node 'logit'; did you mean 'logits'"),
        (["--excluded_nodes", "logit"], 1, "no node 'logit'; did you mean 'logits'"),
        (["--excluded_ops", "Conv2d"], 2, "knows no op 'Conv2d'; did you mean 'Conv2D'"),
        (["--calibration_data", "nowhere"], 1, "no examples at 'nowhere'"),
        (["--evaluation_data", "nowhere"], 1, "no examples at 'nowhere'"),
        (["--preprocess", "inceptoin"], 2, "--preprocess is 'inceptoin'; did you mean 'inception'"),
        (["--preprocess", "{"], 2, "--preprocess is no valid JSON"),
        (["--preprocess", '{"kin": 1}'], 2, "unknown option 'kin' in PreprocessConfig; did you mean 'kind'"),
        (["--preprocess", "nowhere.py"], 2, "module_file 'nowhere.py' cannot be read"),
        (["--preprocess", "tensors"], 1, "feature 'image' holds 2"),
        (["--image_size", "9,9"], 2, "image_size is [9, 9], but graph input 'image' has shape"),
        (["--image_size", "9,x"], 2, "'9,x' is neither H,W nor one number"),
        (["--config", "nowhere.json"], 2, "--config 'nowhere.json' cannot be read"),
        (["--percentile", "5"], 2, "percentile must lie in (50, 100]"),
        (["--evaluate_rest"], 2, "--evaluate_rest needs --num_calibration_examples"),
        (["--evaluate_rest", "--evaluation_data", "x"], 2, "--evaluation_data or --evaluate_rest, not both"),
        (["--report", "r.json"], 2, "--report needs --evaluation_data or --evaluate_rest"),
        (["--num_calibration_examples", "99", "--evaluate_rest"], 1, "no examples for evaluation"),
        (["--evaluation_data", "x", "--metric", "top2"], 2, "--metric is 'top2'"),
        (["--max_drop", "3"], 2, "--max_drop must lie in [0, 1]"),
        (["--plan", "nowhere/plan.json"], 2, "--plan: directory 'nowhere' does not exist"),
        (["--signature", "s"], 2, "--signature goes with a SavedModel"),
        (["--classes", "a,b"], 2, "sub-folder 'c'"),
        (["--no_such_option"], 2, "No such option"),
    ],
)
def test_wrong_use_is_one_line_and_leaves_nothing(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, options: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(workspace.root)
    result = workspace.convert(*options)
    assert result.exit_code == code, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.lower().startswith("error: ")]
    assert message in line
    assert workspace.made() == []


def test_labels_are_of_the_examples_compared_on(workspace: Workspace) -> None:
    """The photos to calibrate with need none, and TFRecords could not take them."""
    root = workspace.root
    (root / "val").mkdir()
    for path in (root / "images").rglob("*.png"):
        (root / "val" / path.name).write_bytes(path.read_bytes())
    rows = [f"{path.name},{'abc'.index(path.parent.name)}" for path in (root / "images").rglob("*.png")]
    (root / "val.csv").write_text("\n".join(["name,label", *rows]))
    (root / "plain").mkdir()
    for number, path in enumerate(sorted((root / "val").iterdir())[:8]):
        (root / "plain" / f"other{number}.png").write_bytes(path.read_bytes())
    for data in ("plain", "images.gz"):
        if data == "images.gz":
            write_tfrecords(read_examples(root / "plain"), str(root / data))
        result = run(
            *("convert", "--input_graph", workspace.graph, "--output_graph", root / "int8.pb", "--overwrite"),
            *("--calibration_data", root / data, "--evaluation_data", root / "val", "--labels", root / "val.csv"),
            *("--preprocess", "unit", "--max_drop", 0.5, "--only_faster", "false", "--json"),
        )
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["evaluation"]["fp32"] == 1.0


def test_what_a_comparison_lacks_is_said_before_the_work(workspace: Workspace) -> None:
    root = workspace.root
    (root / "val").mkdir()
    (root / "val" / "one.png").write_bytes(next((root / "images").rglob("*.png")).read_bytes())
    for options, message in (
        (["--evaluation_data", root / "val", "--classes", ""], "--labels FILE.csv for a folder"),
        (["--evaluation_data", root / "val", "--labels", root / "none.csv"], "none.csv"),
        (["--evaluation_data", root / "none"], "no examples at"),
        (["--num_calibration_examples", COUNT, "--evaluate_rest"], "no examples for evaluation"),
        (["--evaluation_data", root / "images", "--metric", "boxes"], "the graph has no output 'detection_boxes'"),
        (["--evaluation_data", root / "images", "--metric", "coco_map"], "have no objects (feature 'image/object/bbox"),
    ):
        result = workspace.convert(*options)
        assert result.exit_code == 1 and message in result.stderr, result.stderr
        assert "Calibrating" not in result.stderr


def test_a_metric_without_labels_does_without_them_whatever_the_choices_name(workspace: Workspace) -> None:
    plain = workspace.root / "plain"
    plain.mkdir()
    for path in (workspace.root / "images").rglob("*.png"):
        (plain / path.name).write_bytes(path.read_bytes())
    given = ("--evaluation_data", plain, "--label_key", "image/class/label", "--classes", "", "--json")
    result = workspace.convert(*given, "--metric", "agreement", "--calibration_data", plain, "--max_drop", 0.5)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["evaluation"]["num_examples"] == COUNT
    data = ("--input_graph", workspace.graph, "--int8_graph", workspace.output, "--preprocess", "unit")
    result = run("evaluate", *data, *given, "--metric", "similarity", "--max_drop", 0.5)
    assert result.exit_code == 0 and json.loads(result.stdout)["num_examples"] == COUNT, result.stderr


def test_outputs_that_cannot_be_written_stop_the_run_before_any_work(workspace: Workspace) -> None:
    root = workspace.root
    (root / "folder").mkdir()
    (root / "link").symlink_to(root, target_is_directory=True)
    for options, message in (
        (["--saved_model", root / "folder", "--overwrite"], "folder' exists and is no SavedModel, so it is not"),
        (["--plan", f"{root}/new/"], "new/' names a directory; give the name of a file"),
        (["--plan", root / "folder", "--overwrite"], "folder' is a directory"),
        (["--saved_model", workspace.graph, "--overwrite"], "--saved_model and --input_graph are the same path"),
        (
            ["--output_graph", root / "link" / "float.pb", "--overwrite"],
            "--output_graph and --input_graph are the same",
        ),
    ):
        result = workspace.convert(*options)
        assert result.exit_code == 2 and message in result.stderr, result.stderr
        assert "Calibrating" not in result.stderr
    report = ("--report", root / "folder", "--overwrite", "--int8_graph", workspace.graph)
    result = run("evaluate", "--input_graph", workspace.graph, "--evaluation_data", root / "images", *report)
    assert result.exit_code == 2 and "--report" in result.stderr and "is a directory" in result.stderr


def test_the_default_output_lies_beside_the_input(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the input is the directory of a SavedModel, whatever dots are in its name."""
    data = ("--calibration_data", workspace.root / "images", "--preprocess", "unit")
    result = run("convert", "--input_graph", workspace.graph, *data)
    assert result.exit_code == 0 and workspace.made() == ["float_int8.pb"], result.stderr
    model = workspace.root / "net_1.0_224"
    model.mkdir()
    monkeypatch.chdir(model)
    for given in (str(model), f"{model}/", "."):
        assert _beside(given) == str(workspace.root / "net_1.0_224_int8.pb")
    assert _beside("gs://b/net.pb") == "gs://b/net_int8.pb"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("gs://b/x/", "gs://b/x", True),
        ("gs://b//x", "gs://b/x", True),
        ("gs://b/x", "s3://b/x", False),
        (".", "./", True),
    ],
)
def test_places_are_the_same_however_they_are_spelled(one: str, other: str, same: bool) -> None:
    assert (_place(one) == _place(other)) == same


def test_a_name_that_is_no_utf8_is_one_line() -> None:
    name = os.fsdecode(b"caf\xe9.pb")
    result = run("summarize-graph", "--in_graph", name)
    assert result.exit_code == 2 and result.stderr.startswith("error: a name is no UTF-8, rename it: b'caf\\xe9.pb'")


def test_a_command_gets_a_binary_graph_though_the_stages_are_text(workspace: Workspace) -> None:
    script = workspace.root / "infer.py"
    script.write_text(
        "import sys\nimport numpy as np\nimport tensorflow.compat.v1 as tf\n"
        "g = tf.GraphDef.FromString(open(sys.argv[1], 'rb').read())\n"
        "with tf.Graph().as_default(), tf.Session() as session:\n"
        "    logits, = tf.import_graph_def(g, return_elements=['logits:0'])\n"
        "    for seed in range(4):\n"
        "        image = np.random.default_rng(seed).random((1, 8, 8, 3), np.float32)\n"
        "        session.run(logits, {'import/image:0': image})\n"
    )
    result = run(
        *("convert", "--input_graph", workspace.graph, "--output_graph", workspace.root / "int8.pbtxt", "--debug"),
        *("--callback", f"{sys.executable} {script} {{}}", "--only_faster", "false", "--outputs", "logits"),
    )
    assert result.exit_code == 0, result.stderr
    assert "int8_instrumented.pbtxt" in workspace.made()


def test_what_is_left_out_is_told_with_its_file(workspace: Workspace) -> None:
    folder = next(path for path in (workspace.root / "images").iterdir())
    (folder / "bad.png").write_bytes(b"no image at all")
    result = workspace.convert()
    assert result.exit_code == 1 and "allows" in result.stderr and f"(file '{folder.name}/bad.png')" in result.stderr
    result = workspace.convert("--max_bad_fraction", 0.1)
    assert result.exit_code == 0, result.stderr
    assert "warning: calibration: 1 of 25 examples skipped, for example: image feature" in result.stderr
    evaluation = ("--evaluation_data", workspace.root / "images", "--max_drop", 0.9, "--max_bad_fraction", 0.1)
    result = workspace.convert(*evaluation, "--overwrite", "--json")
    assert json.loads(result.stdout)["evaluation"]["facts"]["evaluation_skipped_bad_image"] == 1


def test_images_without_a_way_to_prepare_them_are_noticed(workspace: Workspace) -> None:
    result = workspace.convert("--preprocess", "tensors", "--image_key", "image")
    assert result.exit_code == 1
    assert "it is an encoded image: say how to prepare it (--preprocess" in result.stderr


def test_stages_of_a_run_that_failed_are_no_obstacle(workspace: Workspace) -> None:
    options = ("--debug", "--preprocess", "tensors")
    assert workspace.convert(*options).exit_code == 1
    assert workspace.made() == ["int8_fp32_optimized.pb", "int8_instrumented.pb"]
    result = workspace.convert("--debug")
    assert result.exit_code == 0, result.stderr


def test_outputs_that_exist_stop_the_run_before_any_work(workspace: Workspace) -> None:
    workspace.output.write_bytes(b"mine")
    result = workspace.convert()
    assert result.exit_code == 2 and "int8.pb' exists already; remove it or give --overwrite" in result.stderr
    assert "Loading" not in result.stderr and workspace.output.read_bytes() == b"mine"
    result = workspace.convert("--output_graph", workspace.graph, "--overwrite")
    assert result.exit_code == 2 and "--output_graph and --input_graph are the same path" in result.stderr
    result = workspace.convert("--overwrite", "--plan", workspace.root / "images")
    assert result.exit_code == 2 and "is a directory" in result.stderr


def test_ctrl_c_leaves_nothing(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    for step in ("steps.calibrate", "conversion.save_graph"):  # in the middle of the work, and after two of three files
        with monkeypatch.context() as patch:
            patch.setattr(f"quantizer_core.cli.{step}", interrupted)
            root = workspace.root
            result = workspace.convert("--plan", root / "plan.json", "--saved_model", root / "served")
        assert result.exit_code == 1 and "Aborted" in result.stderr
        assert workspace.made() == []


@pytest.mark.slow
def test_mobilenet_converts_from_the_shell(shared_data: Path, tmp_path: Path) -> None:
    photos = shared_data / "images" / "nips2017_dev"
    result = run(
        *("convert", "--input_graph", shared_data / "graphs" / "mobilenet_v1_0.25_224_frozen.pb"),
        *("--output_graph", tmp_path / "int8.pb", "--outputs", "MobilenetV1/Predictions/Reshape_1"),
        *("--calibration_data", photos, "--labels", f"{photos}/images.csv:ImageId:TrueLabel:-1"),
        *("--preprocess", "inception", "--label_offset", 1, "--num_calibration_examples", 128, "--evaluate_rest"),
        *("--max_drop", 0.03, "--json"),
    )
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    # The first of each stay FP32: their results lose most when rounded (mixed_precision).
    assert facts["by_op"]["Conv2D"] == [14, 15] and facts["by_op"]["DepthwiseConv2dNative"] == [12, 13]
    assert facts["evaluation"]["num_examples"] == 272


@pytest.mark.slow
def test_keyword_spotting_converts_from_a_folder_of_sounds(shared_data: Path, tmp_path: Path) -> None:
    result = run(
        *("convert", "--input_graph", shared_data / "graphs" / "DS_CNN_S.pb", "--output_graph", tmp_path / "int8.pb"),
        *("--calibration_data", shared_data / "audio_speech_commands"),
        *("--classes", "_silence_,_unknown_,yes,no,up,down,left,right,on,off,stop,go"),
        *("--num_calibration_examples", 120, "--evaluate_rest", "--max_drop", 0.05, "--json"),
    )
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["evaluation"]["fp32"] > 0.8
