"""SavedModels give, in another process, the bits that the GraphDef gives here, for any number of examples."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import graph_pb2

from quantizer_core.config import PreprocessConfig, QuantizationConfig
from quantizer_core.data import tensor_example
from quantizer_core.data.examples import bytes_feature, serialize
from quantizer_core.errors import ConfigError, GraphError, UnknownNodeError
from quantizer_core.export import export_saved_model, signature_keys
from quantizer_core.graph.summarize import input_specs
from quantizer_core.preprocessing import ExampleDecoder
from quantizer_core.quantize import quantize
from quantizer_core.runtime import GraphSession, batch_limit, stack_batch
from quantizer_core.types import TensorSpec

COUNT = 6
TENSORS = PreprocessConfig()

#: Loads every SavedModel of a folder and asks both signatures with the values that lie beside it.
_SERVER = """
import sys
import numpy as np, tensorflow as tf
for directory in sys.argv[1:]:
    values = dict(np.load(directory + ".npz", allow_pickle=True))
    signatures = tf.saved_model.load(directory).signatures
    assert sorted(signatures) == ["serving_default", "serving_tensors"], sorted(signatures)
    (examples,) = signatures["serving_default"].structured_input_signature[1].items()
    assert examples[0] == "examples" and examples[1].dtype == tf.string, examples
    results = {}
    for count in (6, 1, 0):
        examples = tf.constant(values["examples"][:count].tolist(), tf.string, [count])
        asked = signatures["serving_default"](examples=examples)
        results |= {f"examples/{count}/{key}": value.numpy() for key, value in asked.items()}
        feeds = {key[6:]: tf.constant(value[:count]) for key, value in values.items() if key.startswith("feeds/")}
        asked = signatures["serving_tensors"](**feeds)
        results |= {f"tensors/{count}/{key}": value.numpy() for key, value in asked.items()}
    np.savez(directory + ".results.npz", **results)
"""


class Case:
    """A graph, its preprocessing and examples for it."""

    def __init__(
        self,
        build: Callable[[], None],
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        examples: Callable[[np.random.Generator], bytes],
        preprocess: PreprocessConfig = TENSORS,
        int8: bool = False,
    ):
        with tf.Graph().as_default() as graph:
            build()
        self.graph_def = graph.as_graph_def()
        self.inputs = input_specs(self.graph_def, inputs)
        self.outputs = outputs
        self.preprocess = preprocess
        rng = np.random.default_rng(1)
        self.examples = [examples(rng) for _ in range(COUNT)]
        if int8:
            config = QuantizationConfig(inputs=inputs, outputs=outputs, preprocess=preprocess, only_faster=False)
            self.graph_def = quantize(self.graph_def, self.examples, config).graph_def
            assert any(node.op.startswith(("_FusedQuantized", "Quantized")) for node in self.graph_def.node)

    def feeds(self) -> list[dict[str, np.ndarray]]:
        decoder = ExampleDecoder(self.preprocess, self.inputs)
        return [decoder.decode(example).feeds for example in self.examples]

    def expected(self, count: int, size: int) -> dict[str, np.ndarray]:
        """Runs the GraphDef itself on the first examples, ``size`` at a time."""
        feeds = self.feeds()[:count]
        rows: list[list[np.ndarray]] = []
        with GraphSession(self.graph_def, self.inputs, self.outputs) as session:
            for start in range(0, count, size):
                part = feeds[start : start + size]
                results = session.run(stack_batch(part, self.inputs, size))
                for index in range(len(part)):
                    rows.append([result[index] if result.shape[:1] == (size,) else result for result in results])
        keys = signature_keys(self.outputs)
        return {keys[name]: np.stack([row[i] for row in rows]) for i, name in enumerate(self.outputs)}


def convolutions(batch: int | None) -> Callable[[], None]:
    def build() -> None:
        rng = np.random.default_rng(0)

        def weights(*shape: int) -> tf.Tensor:
            return tf.constant(rng.normal(size=shape).astype(np.float32) / np.sqrt(np.prod(shape[:-1])))

        net = image = tf.compat.v1.placeholder(tf.float32, [batch, 8, 8, 3], name="in/image")
        for name, channels in (("a", 8), ("b", 8)):
            net = tf.nn.conv2d(net, weights(3, 3, net.shape[-1], channels), 1, "SAME", name=name)
            net = tf.nn.relu(net + weights(channels), name=f"{name}/relu")
        net = tf.nn.depthwise_conv2d(net, weights(3, 3, 8, 1), [1, 2, 2, 1], "SAME")
        net = tf.reduce_mean(tf.nn.relu(net), [1, 2])
        del image
        tf.matmul(net, weights(8, 5), name="net/logits")

    return build


def image_example(rng: np.random.Generator) -> bytes:
    image = rng.integers(0, 256, (11, 9, 3), np.uint8)
    return serialize({"image/encoded": bytes_feature([tf.io.encode_png(image).numpy()])})


def vector_example(rng: np.random.Generator) -> bytes:
    return tensor_example({"x": rng.normal(size=4).astype(np.float32)})


def quantize_and_dequantize() -> None:
    x = tf.compat.v1.placeholder(tf.float32, [None, 4], name="x")
    codes, low, high = tf.quantization.quantize(x, -3.0, 3.0, tf.qint8, mode="SCALED", round_mode="HALF_TO_EVEN")
    tf.quantization.dequantize(codes, low, high, mode="SCALED", name="y")


def scalar_and_string() -> None:
    text = tf.compat.v1.placeholder(tf.string, [], name="text")
    factor = tf.compat.v1.placeholder(tf.float32, [], name="factor")
    tf.multiply(tf.cast(tf.strings.length(text), tf.float32), factor, name="scalar")
    tf.fill([1, 2], factor, name="row")


def mixing() -> None:
    x = tf.compat.v1.placeholder(tf.float32, [None, 4], name="x")
    tf.reshape(x * 2, [-1], name="y")
    tf.reshape(x, [1, -1], name="z")


def while_loop() -> None:
    x = tf.compat.v1.placeholder(tf.float32, [1, 4], name="x")
    tf.compat.v1.disable_control_flow_v2()
    try:
        _, y = tf.compat.v1.while_loop(lambda i, _: i < 3, lambda i, y: (i + 1, y * 2 + x), [tf.constant(0), x])
    finally:
        tf.compat.v1.enable_control_flow_v2()
    tf.identity(y, name="y")


def images_of_any_size() -> None:
    x = tf.compat.v1.placeholder(tf.float32, [None, None, None, 3], name="x")
    tf.reduce_mean(tf.nn.relu(x - 3.0), [1, 2], name="y")


def control_edge_from_a_cut_input() -> None:
    x = tf.compat.v1.placeholder(tf.float32, [None, 4], name="unused")
    middle = tf.add(x, 1.0, name="middle")
    with tf.control_dependencies([middle]):
        one = tf.constant(1.0)
    tf.add(middle, one, name="y")


IMAGE = PreprocessConfig(kind="image", normalize="inception")
CASES: dict[str, Callable[[Path], Case]] = {
    "int8_free": lambda _: Case(
        convolutions(None), ("in/image",), ("net/logits", "a/relu"), image_example, IMAGE, int8=True
    ),
    "int8_one": lambda _: Case(convolutions(1), ("in/image",), ("net/logits",), image_example, IMAGE, int8=True),
    "int8_four": lambda _: Case(convolutions(4), ("in/image",), ("net/logits",), image_example, IMAGE, int8=True),
    "quantize": lambda _: Case(quantize_and_dequantize, ("x",), ("y",), vector_example),
    "scalars": lambda _: Case(
        scalar_and_string,
        ("text", "factor"),
        ("scalar", "row"),
        lambda rng: tensor_example({"text": b"\0" * rng.integers(1, 9), "factor": np.float32(rng.normal())}),
    ),
    "mixing": lambda _: Case(mixing, ("x",), ("y", "z"), vector_example),
    "loop": lambda _: Case(while_loop, ("x",), ("y",), vector_example),
    "any_size": lambda _: Case(
        images_of_any_size, ("x",), ("y",), image_example, PreprocessConfig(kind="image", image_size=(9, 7))
    ),
    "module": lambda folder: Case(quantize_and_dequantize, ("x",), ("y",), vector_example, module(folder)),
}
#: How many examples each case's graph takes at a time; None for all of them.
SIZES = {"int8_one": 1, "int8_four": 4, "scalars": 1, "mixing": 1, "loop": 1}


def module(folder: Path) -> PreprocessConfig:
    path = folder / "lookup.py"
    path.write_text(
        "import tensorflow as tf\n"
        "FEATURES = {'x': tf.io.FixedLenFeature([4], tf.float32)}\n"
        "table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer([4], [0.5]), 0.0)\n"
        "def preprocess(features):\n"
        "    return {'x': features['x'] * table.lookup(tf.size(features['x']))}\n"
    )
    return PreprocessConfig(kind="module", module_file=str(path))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Case, dict[str, np.ndarray]]]:
    """Exports every case, asks all SavedModels in one other process and returns cases with what it answered."""
    folder = tmp_path_factory.mktemp("export")
    cases = {name: make(folder) for name, make in CASES.items()}
    for name, case in cases.items():
        export_saved_model(case.graph_def, case.inputs, case.outputs, case.preprocess, folder / name)
        keys = signature_keys(spec.name for spec in case.inputs)
        feeds = case.feeds()
        stacked = {f"feeds/{keys[spec.name]}": np.stack([f[spec.name] for f in feeds]) for spec in case.inputs}
        np.savez(folder / f"{name}.npz", examples=np.array(case.examples, object), **stacked)
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == sorted(cases)
    paths = [str(folder / name) for name in cases]
    result = subprocess.run([sys.executable, "-c", _SERVER, *paths], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return {name: (case, dict(np.load(folder / f"{name}.results.npz"))) for name, case in cases.items()}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("signature", ["examples", "tensors"])
def test_another_process_gets_the_same_bits(served: dict, name: str, signature: str) -> None:
    case, results = served[name]
    for count in (COUNT, 1):
        for key, wanted in case.expected(count, SIZES.get(name, count)).items():
            np.testing.assert_array_equal(results[f"{signature}/{count}/{key}"], wanted, strict=True)


@pytest.mark.parametrize("name", CASES)
def test_no_examples_give_no_rows(served: dict, name: str) -> None:
    case, results = served[name]
    for key in signature_keys(case.outputs).values():
        assert len(results[f"examples/0/{key}"]) == len(results[f"tensors/0/{key}"]) == 0


def test_the_graph_lies_in_the_saved_model_once(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=(4, 50_000)).astype(np.float32)

    def build() -> None:
        tf.matmul(tf.compat.v1.placeholder(tf.float32, [None, 4], name="x"), tf.constant(weights), name="y")

    case = Case(build, ("x",), ("y",), vector_example)
    export_saved_model(case.graph_def, case.inputs, case.outputs, TENSORS, tmp_path / "model")
    assert weights.nbytes < (tmp_path / "model" / "saved_model.pb").stat().st_size < 1.5 * weights.nbytes


def test_an_input_may_be_any_node_and_have_control_edges(tmp_path: Path) -> None:
    config = PreprocessConfig(features={"middle": "x"})
    case = Case(control_edge_from_a_cut_input, ("middle",), ("y",), vector_example, config)
    export_saved_model(case.graph_def, case.inputs, case.outputs, case.preprocess, tmp_path / "model")
    served = tf.saved_model.load(str(tmp_path / "model")).signatures["serving_default"]
    wanted = np.stack([feeds["middle"] + 1 for feeds in case.feeds()])
    np.testing.assert_array_equal(served(examples=tf.constant(case.examples))["y"], wanted)


def test_examples_of_different_shapes_come_in_one_request(tmp_path: Path) -> None:
    def build() -> None:
        x = tf.compat.v1.placeholder(tf.float32, [1, None], name="x")
        tf.reduce_sum(x, 1, name="y")

    case = Case(build, ("x",), ("y",), lambda rng: tensor_example({"x": np.ones(rng.integers(1, 9), np.float32)}))
    export_saved_model(case.graph_def, case.inputs, case.outputs, TENSORS, tmp_path / "model")
    served = tf.saved_model.load(str(tmp_path / "model")).signatures["serving_default"]
    sizes = [feeds["x"].size for feeds in case.feeds()]
    assert len(set(sizes)) > 1
    assert served(examples=tf.constant(case.examples))["y"].numpy().tolist() == sizes


def test_keys_are_plain_and_differ() -> None:
    assert signature_keys(["a/b", "a:1", "a_b", "a.b", "c:0"]) == {
        "a/b": "a_b", "a:1": "a_1", "a_b": "a_b_1", "a.b": "a_b_2", "c:0": "c",
    }  # fmt: skip


@pytest.fixture
def case() -> Case:
    return Case(quantize_and_dequantize, ("x",), ("y",), vector_example)


def test_what_exists_is_replaced_only_if_asked_and_only_a_saved_model(tmp_path: Path, case: Case) -> None:
    arguments = (case.graph_def, case.inputs, case.outputs, TENSORS)
    export_saved_model(*arguments, tmp_path / "model")
    with pytest.raises(GraphError, match="model': it exists already"):
        export_saved_model(*arguments, tmp_path / "model")
    export_saved_model(*arguments, tmp_path / "model", overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(GraphError, match="mine': it exists and is no SavedModel"):
        export_saved_model(*arguments, tmp_path / "mine", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "model"]
    assert (tmp_path / "mine" / "letter.txt").exists() and (tmp_path / "model" / "saved_model.pb").exists()


def test_what_was_there_comes_back_if_it_cannot_be_replaced(
    tmp_path: Path, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: str, target: str, overwrite: bool = False) -> None:
        if source.endswith(".tmp"):
            raise tf.errors.ResourceExhaustedError(None, None, "no space left")
        rename(source, target, overwrite)

    arguments = (case.graph_def, case.inputs, case.outputs, TENSORS)
    export_saved_model(*arguments, tmp_path / "model")
    before = (tmp_path / "model" / "saved_model.pb").read_bytes()
    rename = tf.io.gfile.rename
    monkeypatch.setattr(tf.io.gfile, "rename", full)
    with pytest.raises(GraphError, match="model': no space left"):
        export_saved_model(*arguments, tmp_path / "model", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "saved_model.pb").read_bytes() == before


def test_a_failure_leaves_nothing_behind(tmp_path: Path, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(model: object, directory: str, signatures: object) -> None:
        del model, signatures
        tf.io.gfile.makedirs(directory)
        raise tf.errors.ResourceExhaustedError(None, None, "no space left")

    with pytest.raises(UnknownNodeError, match="no node 'z'"):
        export_saved_model(case.graph_def, case.inputs, ("z",), TENSORS, tmp_path / "model")
    with pytest.raises(ConfigError, match="not a batch of images"):
        export_saved_model(case.graph_def, case.inputs, case.outputs, IMAGE, tmp_path / "model")
    broken = graph_pb2.GraphDef()
    broken.CopyFrom(case.graph_def)
    next(node for node in broken.node if node.name == "y").op = "NoSuchOp"
    with pytest.raises(GraphError, match="TensorFlow cannot load the graph: .*NoSuchOp"):
        export_saved_model(broken, case.inputs, case.outputs, TENSORS, tmp_path / "model")
    monkeypatch.setattr(tf.saved_model, "save", full)
    with pytest.raises(GraphError, match="model': no space left"):
        export_saved_model(case.graph_def, case.inputs, case.outputs, TENSORS, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_bad_example_is_refused_with_its_feature_named(tmp_path: Path, case: Case) -> None:
    export_saved_model(case.graph_def, case.inputs, case.outputs, TENSORS, tmp_path / "model")
    served = tf.saved_model.load(str(tmp_path / "model")).signatures["serving_default"]
    with pytest.raises(tf.errors.InvalidArgumentError, match="feature .{1,2}x.{1,2} is missing in the example"):
        served(examples=tf.constant([tensor_example({"z": np.zeros(4, np.float32)})]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "output", "preprocess"),
    [
        ("mobilenet_v1_0.25_224_frozen.pb", "MobilenetV1/Predictions/Reshape_1", IMAGE),
        ("squeezenet1.1.pb", "prob", PreprocessConfig(kind="image", normalize="torch")),
    ],
)
def test_real_int8_graphs(
    shared_data: Path, tmp_path: Path, file: str, output: str, preprocess: PreprocessConfig
) -> None:
    from quantizer_core.data import read_examples
    from quantizer_core.graph.files import load_graph

    examples = list(read_examples(shared_data / "images" / "nips2017_dev"))[:24]
    graph_def = load_graph(shared_data / "graphs" / file)
    config = QuantizationConfig(inputs=("input",), outputs=(output,), preprocess=preprocess)
    int8 = quantize(graph_def, examples, config).graph_def
    inputs: tuple[TensorSpec, ...] = input_specs(graph_def, ("input",))
    export_saved_model(int8, inputs, (output,), preprocess, tmp_path / "model")
    served = tf.saved_model.load(str(tmp_path / "model")).signatures["serving_default"]
    (result,) = served(examples=tf.constant(examples)).values()
    decoder, size = ExampleDecoder(preprocess, inputs), batch_limit(inputs) or len(examples)
    feeds = [decoder.decode(example).feeds for example in examples]
    with GraphSession(int8, inputs, (output,)) as session:
        parts = [stack_batch(feeds[i : i + size], inputs, size) for i in range(0, len(feeds), size)]
        wanted = np.concatenate([session.run(part)[0] for part in parts])
    np.testing.assert_array_equal(result.numpy(), wanted)
