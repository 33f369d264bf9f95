"""Freezing SavedModels: the same function, readable names, the same bytes each time."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from quantizer_core.errors import ConfigError, GraphError
from quantizer_core.graph.files import FrozenModel, freeze_saved_model
from quantizer_core.graph.summarize import summarize_graph

RNG = np.random.default_rng(7)


def run(frozen: FrozenModel, feeds: Mapping[str, object]) -> dict[str, np.ndarray]:
    """Feeds by input key, returns by output key; the graph alone is used, nothing of the SavedModel."""
    with tf.Graph().as_default():
        tf.import_graph_def(frozen.graph_def, name="")
        with tf.compat.v1.Session() as session:
            fetches = {key: f"{name}:0" for key, name in frozen.output_keys.items()}
            return session.run(fetches, {f"{frozen.input_keys[key]}:0": value for key, value in feeds.items()})


def layers(graph: FrozenModel) -> set[str]:
    return {node.op for node in graph.graph_def.node}


def spec(shape: list[int | None], dtype: tf.DType, name: str) -> tf.TensorSpec:
    return tf.TensorSpec(shape, dtype, name=name)


def saved(module: tf.Module, path: Path, **signatures: Callable[..., object]) -> str:
    tf.saved_model.save(module, str(path), signatures=signatures)
    return str(path)


class Loop(tf.Module):
    """A loop over a variable, a branch, one output that is an input, and names that clash."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = tf.Variable(RNG.normal(size=(3, 2)).astype(np.float32), name="kernel")
        self.state = tf.Variable(RNG.normal(size=(2, 2)).astype(np.float32), name="state")

    @tf.function(input_signature=[spec([None, 3], tf.float32, "x"), spec([], tf.int32, "times")])
    def call(self, x: tf.Tensor, times: tf.Tensor) -> dict[str, tf.Tensor]:
        y = x @ self.kernel
        for _ in tf.range(times):
            y = tf.tanh(y @ self.state)
        if tf.reduce_sum(y) > 0:
            y = tf.nn.relu(y @ self.state)
        else:
            y = y - 1.0
        return {"result/2:b": y, "x": x}

    @tf.function(input_signature=[spec([None, 3], tf.float32, "x")])
    def checked(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        tf.debugging.assert_positive(x)
        return {"y": x @ self.kernel}


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Loop, str]:
    module = Loop()
    path = tmp_path_factory.mktemp("loop") / "model"
    return module, saved(module, path, serving_default=module.call, checked=module.checked)


@pytest.fixture(scope="module")
def keras_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[keras.Model, str]:
    """Exported as Keras 3 does it, with batch normalisation, a nested model and an LSTM."""
    keras.utils.set_random_seed(3)
    stem = keras.Sequential([keras.layers.Input((8, 6, 3)), keras.layers.Conv2D(4, 3, strides=2), keras.layers.ReLU()])
    image = keras.layers.Input((8, 6, 3), name="image")
    after = keras.layers.BatchNormalization()(stem(image))
    series = keras.layers.Reshape((3, 8))(after)
    output = keras.layers.Dense(3, activation="softmax")(keras.layers.LSTM(5)(series))
    model = keras.Model({"image": image}, {"classes": output})
    model.layers[2].moving_mean.assign([0.1, -0.2, 0.3, 0.0])
    path = str(tmp_path_factory.mktemp("keras") / "model")
    model.export(path, verbose=False)
    return model, path


def test_keras_exports(keras_model: tuple[keras.Model, str]) -> None:
    model, path = keras_model
    frozen = freeze_saved_model(path)
    assert frozen.inputs == ("image",)
    assert frozen.outputs == ("classes",)
    images = RNG.normal(size=(5, 8, 6, 3)).astype(np.float32)
    expected = model({"image": images})["classes"].numpy()
    np.testing.assert_allclose(run(frozen, {"image": images})["classes"], expected, rtol=1e-5, atol=1e-6)
    names = {node.name for node in frozen.graph_def.node}
    assert any(re.search(r"conv2d(_\d+)?/kernel$", name) for name in names), "constants are named by their variables"
    assert not any("PartitionedCall" in name or name.startswith("Func/") or name.isdigit() for name in names)
    assert layers(frozen).isdisjoint({"PartitionedCall", "StatefulPartitionedCall", "ReadVariableOp", "NoOp"})
    [convolution] = [node for node in frozen.graph_def.node if node.op == "Conv2D"]
    assert convolution.input[0] == "image", "no Identity is left of the calls"
    summary = summarize_graph(frozen.graph_def)
    assert summary.state == ()
    assert summary.outputs == ("classes",)
    assert summary.inputs[0].shape == (-1, 8, 6, 3)


def test_two_freezes_give_the_same_bytes(keras_model: tuple[keras.Model, str], loop: tuple[Loop, str]) -> None:
    for path in (keras_model[1], loop[1]):
        first, second = (freeze_saved_model(path).graph_def for _ in range(2))
        assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


@pytest.mark.parametrize("times", [0, 3])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_loops_branches_and_clashing_names(loop: tuple[Loop, str], times: int, sign: float) -> None:
    module, path = loop
    frozen = freeze_saved_model(path)
    assert frozen.input_keys == {"times": "times", "x": "x"}
    assert frozen.output_keys == {"result/2:b": "result/2_b", "x": "x_1"}
    assert frozen.inputs == ("times", "x")
    assert frozen.outputs == ("result/2_b", "x_1")
    x = sign * np.ones((4, 3), np.float32)
    expected = module.call(tf.constant(x), tf.constant(times))
    found = run(frozen, {"x": x, "times": times})
    np.testing.assert_allclose(found["result/2:b"], expected["result/2:b"], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found["x"], x)


def test_an_assertion_still_stops_the_graph(loop: tuple[Loop, str]) -> None:
    module, path = loop
    frozen = freeze_saved_model(path, "checked")
    x = np.full((2, 3), 0.5, np.float32)
    np.testing.assert_allclose(run(frozen, {"x": x})["y"], x @ module.kernel.numpy(), rtol=1e-5)
    with pytest.raises(tf.errors.InvalidArgumentError, match="x > 0"):
        run(frozen, {"x": -x})


@pytest.mark.parametrize("resource", [False, True])
def test_tensorflow_1_models(tmp_path: Path, resource: bool) -> None:
    v1 = tf.compat.v1
    path = str(tmp_path / "model")
    kernel = RNG.normal(size=(3, 4)).astype(np.float32)
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 3], name="in/x")
        unused = v1.placeholder(tf.float32, [], name="unused_placeholder")
        halved = tf.multiply(v1.placeholder_with_default(np.float32(0.5), []), x, name="halved")
        product = tf.matmul(halved, v1.get_variable("w", initializer=kernel, use_resource=resource), name="product")
        values, indices = tf.math.top_k(product, k=2)
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(
            session,
            path,
            {"x": x, "unused": unused},
            {"values": values, "indices": indices, "product": product},
        )
        signature = {"h": v1.saved_model.build_tensor_info(halved)}, {"p": v1.saved_model.build_tensor_info(product)}
        builder = v1.saved_model.Builder(path + "_inner")
        definition = v1.saved_model.build_signature_def(*signature)
        builder.add_meta_graph_and_variables(session, ["serve"], {"inner": definition})
        builder.save()
    frozen = freeze_saved_model(path)
    assert frozen.input_keys == {"unused": "unused", "x": "x"}
    assert frozen.output_keys == {"indices": "indices", "product": "product", "values": "values"}
    feed = RNG.normal(size=(2, 3)).astype(np.float32)
    found = run(frozen, {"x": feed})
    np.testing.assert_allclose(found["product"], 0.5 * feed @ kernel, rtol=1e-5)
    np.testing.assert_array_equal(found["indices"], np.argsort(-found["product"], axis=1)[:, :2])
    assert all(node.op != "Placeholder" or node.name in frozen.inputs for node in frozen.graph_def.node)
    summary = summarize_graph(frozen.graph_def, path, None, frozen.inputs, frozen.outputs)
    assert set(summary.outputs) == {"indices", "product", "values"}  # one of them is read by the others
    assert "--outputs indices,product,values" in summary.command

    inner = freeze_saved_model(path + "_inner", "inner")  # an input in the middle of the graph
    assert [node.name for node in inner.graph_def.node if node.op == "Placeholder"] == ["h"]
    np.testing.assert_allclose(run(inner, {"h": feed})["p"], feed @ kernel, rtol=1e-5)


def test_lookup_tables_are_named(tmp_path: Path) -> None:
    class Table(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            pairs = tf.lookup.KeyValueTensorInitializer(["a", "b"], [1.0, 2.0])
            self.table = tf.lookup.StaticHashTable(pairs, 0.0)

        @tf.function(input_signature=[spec([None], tf.string, "words")])
        def look_up(self, words: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"values": self.table.lookup(words)}

        @tf.function(input_signature=[spec([None], tf.float32, "x")])
        def add(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"y": x + 1.0}

    module = Table()
    path = saved(module, tmp_path / "model", look_up=module.look_up, add=module.add)
    with pytest.raises(GraphError, match=r"node '.*LookupTableFindV2' \(LookupTableFindV2\) uses a lookup table"):
        freeze_saved_model(path, "look_up")
    assert run(freeze_saved_model(path, "add"), {"x": [1.0]})["y"] == [2.0]


def test_unknown_signatures_and_tags(loop: tuple[Loop, str]) -> None:
    path = loop[1]
    with pytest.raises(ConfigError, match="no signature 'serving_defualt'; did you mean 'serving_default'"):
        freeze_saved_model(path, "serving_defualt")
    with pytest.raises(ConfigError, match=r"no graph with the tags 'train'; it has: serve"):
        freeze_saved_model(path, tags=["train"])


def test_directories_that_are_no_saved_model(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="missing' is not a directory"):
        freeze_saved_model(tmp_path / "missing")
    with pytest.raises(GraphError, match=r"holds no saved_model\.pb"):
        freeze_saved_model(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"\0garbage")
    with pytest.raises(GraphError, match="cannot be read"):
        freeze_saved_model(tmp_path)


def test_missing_variables_are_an_error(loop: tuple[Loop, str], tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes((Path(loop[1]) / "saved_model.pb").read_bytes())
    with pytest.raises(GraphError, match="cannot freeze signature 'serving_default' of .*variables"):
        freeze_saved_model(tmp_path)
