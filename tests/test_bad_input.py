"""Whatever is wrong with what the user gives: an error that names it, nothing left behind, nothing overwritten.

Every case runs twice: through the Python API and through the shell command.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner

from quantizer_core import runtime
from quantizer_core.calibration.run import calibrate
from quantizer_core.cli.main import cli
from quantizer_core.config import PreprocessConfig, QuantizationConfig
from quantizer_core.data import read_examples, tensor_example, write_tfrecords
from quantizer_core.errors import (
    ConfigError,
    DataError,
    GraphError,
    MachineError,
    QuantizerError,
    UnknownNodeError,
)
from quantizer_core.evaluation.run import evaluate
from quantizer_core.export import export_saved_model
from quantizer_core.graph.files import freeze_saved_model, load_graph, save_graph
from quantizer_core.graph.graph import GraphDef
from quantizer_core.graph.summarize import input_specs
from quantizer_core.prepare import prepare
from quantizer_core.quantize import quantize

v1 = tf.compat.v1
REPO_ROOT = Path(__file__).resolve().parent.parent


def small_graph() -> GraphDef:
    """A convolution, the logarithm of it (infinite at zero, not a number below), and another convolution."""
    rng = np.random.default_rng(0)
    with tf.Graph().as_default() as graph:
        image = v1.placeholder(tf.float32, [None, 4, 4, 3], name="image")
        kernel = np.abs(rng.normal(size=(3, 3, 3, 8))).astype(np.float32)
        first = tf.nn.conv2d(image, kernel, 1, "SAME", name="first")
        logarithm = tf.math.log(first, name="logarithm")
        tf.nn.conv2d(logarithm, rng.normal(size=(1, 1, 8, 4)).astype(np.float32), 1, "SAME", name="scores")
        return graph.as_graph_def()


def example(seed: int, **features: Any) -> bytes:
    rng = np.random.default_rng(seed)
    return tensor_example(features or {"image": rng.uniform(0.1, 1, (4, 4, 3)).astype(np.float32)})


@dataclasses.dataclass
class House:
    """A directory with all that a conversion needs, and the options of the conversion.

    ``config`` goes to both ways of running, ``shell`` only to the command.
    """

    path: Path
    config: dict[str, Any] = dataclasses.field(default_factory=lambda: {"only_faster": False})
    shell: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.graph = self.path / "graph.pb"
        self.examples = self.path / "examples.tfrecord"
        self.output = self.path / "int8.pb"

    def write_examples(self, *examples: bytes) -> None:
        with tf.io.TFRecordWriter(str(self.examples)) as writer:
            for serialized in examples:
                writer.write(serialized)

    def listing(self) -> dict[str, str]:
        """Every file and directory, hidden ones too, with a digest of what it holds."""
        return {
            str(path.relative_to(self.path)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "/"
            for path in self.path.rglob("*")
        }


@pytest.fixture
def house(tmp_path: Path) -> House:
    house = House(tmp_path)
    save_graph(small_graph(), house.graph)
    house.write_examples(*(example(seed) for seed in range(4)))
    return house


def by_python(house: House) -> None:
    config = QuantizationConfig(**house.config)
    conversion = quantize(load_graph(house.graph), read_examples(house.examples), config)
    save_graph(conversion.graph_def, house.output)


def by_shell(house: House) -> None:
    """Raises the error's class again, told by the exit code, with what the command printed."""
    options = {"input_graph": house.graph, "output_graph": house.output, "calibration_data": house.examples}
    given = {key: ",".join(value) if isinstance(value, tuple) else value for key, value in house.config.items()}
    arguments = [part for key, value in (options | given | house.shell).items() for part in (f"--{key}", str(value))]
    result = CliRunner().invoke(cli, ["convert", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Traceback" not in result.output
    if result.exit_code:
        assert "error: " in result.output
        raise {1: QuantizerError, 2: ConfigError}[result.exit_code](result.output)


WAYS = pytest.mark.parametrize("run", [by_python, by_shell])


def truncate(house: House) -> None:
    data = house.graph.read_bytes()
    house.graph.write_bytes(data[: len(data) // 2])


def cut_between_nodes(house: House) -> None:
    graph_def = small_graph()
    del graph_def.node[0]
    house.graph.write_bytes(graph_def.SerializeToString())


def put_variable(house: House) -> None:
    with tf.Graph().as_default() as graph:
        image = v1.placeholder(tf.float32, [None, 4, 4, 3], name="image")
        kernel = v1.get_variable("kernel", [1, 1, 3, 2], use_resource=False)
        tf.nn.conv2d(image, kernel, 1, "SAME", name="scores")
    house.graph.write_bytes(graph.as_graph_def().SerializeToString())


def put_resource_variable(house: House) -> None:
    with tf.Graph().as_default() as graph:
        image = v1.placeholder(tf.float32, [None, 4, 4, 3], name="image")
        kernel = v1.get_variable("kernel", [1, 1, 3, 2], use_resource=True)
        tf.nn.conv2d(image, kernel, 1, "SAME", name="scores")
    house.graph.write_bytes(graph.as_graph_def().SerializeToString())


def nothing_to_quantize(house: House) -> None:
    with tf.Graph().as_default() as graph:
        tf.nn.relu(v1.placeholder(tf.float32, [None, 4, 4, 3], name="image"), name="y")
    house.graph.write_bytes(graph.as_graph_def().SerializeToString())


def option(**config: Any) -> Callable[[House], None]:
    return lambda house: house.config.update(config)


def examples(*serialized: bytes) -> Callable[[House], None]:
    return lambda house: house.write_examples(*serialized)


def pixels(*values: float, shape: tuple[int, ...] = (4, 4, 3)) -> bytes:
    return example(0, image=np.resize(np.array(values, np.float32), shape))


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    spoil: Callable[[House], None]
    error: type[QuantizerError]
    texts: tuple[str, ...]


CASES = (
    Case("missing graph", lambda h: h.graph.unlink(), GraphError, ("graph.pb", "does not exist")),
    Case("truncated graph", truncate, GraphError, ("graph.pb", "truncated")),
    Case("graph cut between nodes", cut_between_nodes, GraphError, ("graph.pb", "truncated", "'image'")),
    Case("empty graph file", lambda h: h.graph.write_bytes(b""), GraphError, ("graph.pb", "empty")),
    Case("garbage", lambda h: h.graph.write_bytes(bytes(range(256))), GraphError, ("graph.pb", "no GraphDef")),
    Case("variable", put_variable, GraphError, ("'kernel'", "not frozen", "freeze")),
    Case("resource variable", put_resource_variable, GraphError, ("'kernel'", "not frozen", "freeze")),
    Case("no layer", nothing_to_quantize, GraphError, ("Conv2D", "MatMul")),
    Case("input", option(inputs=("imagee",)), UnknownNodeError, ("'imagee'", "did you mean 'image'")),
    Case("output", option(outputs=("score",)), UnknownNodeError, ("'score'", "did you mean 'scores'")),
    Case("excluded", option(excluded_nodes=("fist",)), UnknownNodeError, ("'fist'", "did you mean 'first'")),
    Case("excluded op", option(excluded_ops=("Conv2d",)), ConfigError, ("'Conv2d'", "did you mean 'Conv2D'")),
    Case("missing examples", lambda h: h.examples.unlink(), DataError, ("examples.tfrecord", "no such file")),
    Case("empty examples", examples(), DataError, ("no examples", "calibration")),
    Case("missing feature", examples(example(0, picture=np.ones(3, np.float32))), DataError, ("'image'", "picture")),
    Case("wrong size", examples(pixels(1, shape=(4, 4, 2))), DataError, ("'image'", "32 floats", "[4, 4, 3]")),
    Case("wrong kind", examples(example(0, image=b"text!")), DataError, ("'image'", "5 raw bytes", "float32")),
    Case("no example", examples(b"\xff\xfegarbage"), DataError, ("no serialized tf.Example",)),
    Case("damaged file", lambda h: h.examples.write_bytes(b"x" * 99), DataError, ("examples.tfrecord", "record 0")),
    Case("not a number", examples(pixels(-1)), DataError, ("'logarithm'", "NaN in 1 of 1 examples")),
    Case("infinite", examples(pixels(1), pixels(0)), DataError, ("'logarithm'", "-infinity in 1 of 2 examples")),
    Case("NaN given", examples(pixels(1, np.nan)), DataError, ("NaN in 1 of 1 examples", "check the preprocessing")),
)


@WAYS
def test_the_unspoiled_house_works(house: House, run: Callable[[House], None]) -> None:
    before = house.listing()
    run(house)
    assert {node.op for node in load_graph(house.output).node} & {"_FusedQuantizedConv2D", "QuantizeV2"}
    after = house.listing()
    assert after.pop("int8.pb")
    assert after == before


@WAYS
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_bad_input(house: House, case: Case, run: Callable[[House], None]) -> None:
    case.spoil(house)
    before = house.listing()
    with pytest.raises(QuantizerError) as caught:
        run(house)
    if run is by_python:
        assert type(caught.value) is case.error
    else:
        assert isinstance(caught.value, ConfigError) == issubclass(case.error, ConfigError), "the exit code"
    for text in case.texts:
        assert text in str(caught.value)
    assert house.listing() == before


@WAYS
def test_more_bad_records_than_allowed(house: House, run: Callable[[House], None]) -> None:
    house.write_examples(*(example(seed) for seed in range(9)), b"\xffgarbage")
    before = house.listing()
    with pytest.raises(QuantizerError, match=r"1 of 10 examples .* max_bad_fraction=0.01"):
        run(house)
    assert house.listing() == before


@WAYS
def test_a_machine_without_avx2(
    house: House,
    run: Callable[[House], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    cpuinfo = tmp_path_factory.mktemp("proc") / "cpuinfo"
    cpuinfo.write_text("processor : 0\nflags\t\t: fpu sse sse2 ssse3 sse4_1 sse4_2 avx\n")
    monkeypatch.setattr(runtime, "_CPUINFO", str(cpuinfo))
    before = house.listing()
    with pytest.raises(QuantizerError, match="AVX2") as caught:
        run(house)
    assert run is by_shell or type(caught.value) is MachineError
    assert house.listing() == before


def test_onednn_switched_off(house: House) -> None:
    before = house.listing()
    arguments = ["--input_graph", house.graph, "--output_graph", house.output, "--calibration_data", house.examples]
    finished = subprocess.run(
        [sys.executable, "-m", "quantizer_core.cli.main", "convert", *map(str, arguments)],
        cwd=REPO_ROOT,
        env={**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 1
    assert "error: oneDNN is switched off (TF_ENABLE_ONEDNN_OPTS=0)" in finished.stderr
    assert "unset the variable" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert house.listing() == before


@WAYS
def test_an_output_that_exists(house: House, run: Callable[[House], None]) -> None:
    house.output.write_text("precious")
    before = house.listing()
    with pytest.raises(QuantizerError, match=r"int8\.pb.*exists"):
        run(house)
    assert house.listing() == before


@WAYS
def test_an_output_in_a_directory_that_does_not_exist(house: House, run: Callable[[House], None]) -> None:
    house.output = house.path / "nowhere" / "int8.pb"
    before = house.listing()
    with pytest.raises(QuantizerError, match="nowhere' does not exist"):
        run(house)
    assert house.listing() == before


@pytest.mark.parametrize("name", ["plan", "saved_model"])
def test_other_outputs_that_exist(house: House, name: str) -> None:
    path = house.path / name
    if name == "saved_model":
        path.mkdir()
        (path / "precious").write_text("x")
    else:
        path.write_text("precious")
    house.shell[name] = str(path)
    before = house.listing()
    with pytest.raises(ConfigError, match=f"--{name}.*exists"):
        by_shell(house)
    assert house.listing() == before


def test_an_output_that_is_the_input(house: House) -> None:
    house.shell["output_graph"] = str(house.graph)
    before = house.listing()
    with pytest.raises(ConfigError, match="the same path"):
        by_shell(house)
    assert house.listing() == before


def test_if_the_last_output_fails_none_is_left(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    from quantizer_core.cli import conversion

    def fail(*args: object, **kwargs: object) -> None:
        raise GraphError("disk full")

    monkeypatch.setattr(conversion, "save_graph", fail)
    house.shell.update(plan=str(house.path / "plan.json"), saved_model=str(house.path / "saved"))
    before = house.listing()
    with pytest.raises(QuantizerError, match="disk full"):
        by_shell(house)
    assert house.listing() == before


def test_a_saved_model_in_the_way(house: House) -> None:
    target = house.path / "saved"
    target.mkdir()
    before = house.listing()
    specs = input_specs(small_graph(), ["image"])
    for overwrite in (False, True):  # an empty directory is no SavedModel that may be replaced
        with pytest.raises(GraphError, match="saved.*exists"):
            export_saved_model(small_graph(), specs, ["scores"], PreprocessConfig(), target, overwrite)
    assert house.listing() == before


def test_a_saved_model_without_the_signature(house: House, tmp_path_factory: pytest.TempPathFactory) -> None:
    class Model(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
        def double(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"y": 2.0 * x}

    model = Model()
    path = str(tmp_path_factory.mktemp("saved") / "model")
    tf.saved_model.save(model, path, signatures={"serve_double": model.double})
    house.shell.update(input_graph=path, signature="serve_doubles")
    before = house.listing()
    with pytest.raises(ConfigError, match="'serve_doubles'; did you mean 'serve_double'"):
        by_shell(house)
    with pytest.raises(ConfigError, match=r"'serving_default'.*it has serve_double"):
        freeze_saved_model(path)
    with pytest.raises(GraphError, match="freeze_saved_model"):
        load_graph(path)
    assert house.listing() == before


def test_nothing_to_evaluate() -> None:
    graph_def = small_graph()
    with pytest.raises(DataError, match="no examples for evaluation"):
        evaluate(graph_def, graph_def, input_specs(graph_def, ["image"]), ["scores"], [], QuantizationConfig())


def test_a_label_that_is_missing(house: House) -> None:
    house.shell.update(evaluation_data=str(house.examples), label_key="kind")
    before = house.listing()
    with pytest.raises(QuantizerError, match="no label feature 'kind'"):
        by_shell(house)
    assert house.listing() == before


def test_values_that_the_graph_cannot_take() -> None:
    graph_def = small_graph()
    spec = input_specs(graph_def, ["image"])
    with runtime.GraphSession(graph_def, spec, ["scores"]) as session:
        with pytest.raises(DataError, match=r"'image' takes shape \(None, 4, 4, 3\), not \[1, 4, 4, 2\]"):
            session.run({"image": np.ones((1, 4, 4, 2), np.float32)})
        with pytest.raises(DataError, match="refuses"):
            session.run({"image": np.full((1, 4, 4, 3), "text")})
        with pytest.raises(DataError, match="no value for the graph input 'image'; given: picture"):
            session.run({"picture": np.ones((1, 4, 4, 3), np.float32)})
    with pytest.raises(UnknownNodeError, match="'scoers'; did you mean 'scores'"):
        runtime.GraphSession(graph_def, spec, ["scoers"])


def test_bad_input_changes_nothing_in_memory() -> None:
    graph_def = small_graph()
    before = graph_def.SerializeToString(deterministic=True)
    prepared = prepare(graph_def, QuantizationConfig())
    with pytest.raises(DataError):
        calibrate(prepared, [pixels(-1)], QuantizationConfig())
    with pytest.raises(UnknownNodeError):
        prepare(graph_def, QuantizationConfig(outputs=("x",)))
    assert graph_def.SerializeToString(deterministic=True) == before


def test_writing_no_examples(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no examples"):
        write_tfrecords([], str(tmp_path / "out.tfrecord"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"per_channel": "false"}', "per_channel must be true or false, not 'false'"),
        ('{"only_faster": 1}', "only_faster must be true or false, not 1"),
        ('{"percentile": "99"}', "percentile must be a number, not '99'"),
        ('{"max_bad_fraction": true}', "max_bad_fraction must be a number, not True"),
        ('{"inputs": 5}', "inputs must be a list of names, not 5"),
        ('{"inputs": "a"}', "inputs must be a list of names, not 'a'"),
        ('{"preprocess": "image"}', "PreprocessConfig must be a JSON object, not str"),
        ('{"preprocess": {"image_size": 224}}', "image_size must be a list of integers, not 224"),
        ('{"preprocess": {"features": []}}', "features must be a JSON object, not []"),
        ('{"preprocess": {"label_key": null}}', "label_key must be a string, not None"),
    ],
)
def test_a_config_of_the_wrong_types_names_the_option(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        QuantizationConfig.from_json(text)
