"""All rules together: trained graphs, Keras models and random networks compute the same, in fewer kinds of nodes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from quantizer_core.graph.files import load_graph
from quantizer_core.graph.graph import Graph
from quantizer_core.graph.summarize import find_inputs, find_outputs
from quantizer_core.rewrites import RULES, apply_rewrites
from tests.helpers.random_graphs import (
    BATCH_NORMS,
    LayerCase,
    Values,
    batch_norm,
    bias_add,
    feed,
    linear,
    ops_of,
    placeholder,
    relative_error,
    run,
    sample_of,
    weights,
)

GraphDef = tf.compat.v1.GraphDef

#: Control flow that no rule touches; constants need no Enter.
CONTROL_FLOW = ("Switch", "Merge", "Exit", "NextIteration", "LoopCond")

#: Op types that follow from training or from batch norms, and are gone from a rewritten convolutional network.
FOLDED = {"Mul", "Add", "Sub", "Rsqrt", "RealDiv", "FusedBatchNorm", "FusedBatchNormV3", "Dequantize"}


def images(*shape: int, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    return np.random.default_rng(0).uniform(low, high, shape).astype(np.float32)


def check(
    graph_def: GraphDef, feeds: Mapping[str, np.ndarray], outputs: tuple[str, ...], bound: float = 1e-5
) -> GraphDef:
    """Asserts equal outputs, an unchanged argument, the same bytes for the same graph, and that a second time does
    nothing; returns the rewritten graph."""
    given_bytes = graph_def.SerializeToString(deterministic=True)
    result, reports = apply_rewrites(graph_def, list(feeds), outputs)
    assert graph_def.SerializeToString(deterministic=True) == given_bytes
    assert [report.rule for report in reports] == [rule.__name__ for rule in RULES]

    rewritten_bytes = result.SerializeToString(deterministic=True)
    again, _ = apply_rewrites(graph_def, list(feeds), outputs)
    assert again.SerializeToString(deterministic=True) == rewritten_bytes
    twice, second_reports = apply_rewrites(result, list(feeds), outputs)
    assert twice.SerializeToString(deterministic=True) == rewritten_bytes
    assert not [report for report in second_reports if report.nodes]

    for before, after in zip(run(graph_def, feeds, outputs), run(result, feeds, outputs, optimize=True), strict=True):
        assert relative_error(before, after) <= bound
    return result


@pytest.mark.parametrize(
    ("file", "feeds", "kept"),
    [
        ("mobilenet_v1_0.25_224_frozen.pb", {"input": images(1, 224, 224, 3, low=-1)}, set()),
        ("mobilenet_v1_0.50_160_weights8bit.pb", {"input": images(1, 160, 160, 3, low=-1)}, set()),
        ("squeezenet1.1.pb", {"input": images(2, 224, 224, 3, low=-2, high=2)}, set()),
        ("cifar10_resnet20.pb", {"input": images(3, 32, 32, 3, low=-2, high=2)}, set()),
        ("mlperf_resnet8_cifar10.pb", {"input": images(3, 32, 32, 3, high=255)}, set()),
        ("mlperf_vww_96.pb", {"input": images(3, 96, 96, 3)}, set()),
        ("yolox_nano_coco.pb", {"images": images(1, 416, 416, 3, high=255)}, {"Mul"}),
        ("ESPCN_x2.pb", {"IteratorGetNext": images(1, 20, 30, 1)}, set()),
    ],
)
def test_trained_networks_compute_the_same(
    shared_data: Path, file: str, feeds: dict[str, np.ndarray], kept: set[str]
) -> None:
    graph_def = load_graph(str(shared_data / "graphs" / file))
    feeds = dict(zip(find_inputs(graph_def), feeds.values(), strict=True))
    result = check(graph_def, feeds, find_outputs(graph_def))
    ops = ops_of(result)
    assert FOLDED & set(ops) == kept
    linear_ops = ops["Conv2D"] + ops["DepthwiseConv2dNative"] + ops["MatMul"]
    assert ops["BiasAdd"] == linear_ops
    before = ops_of(graph_def)
    for op in ("Conv2D", "DepthwiseConv2dNative", "MatMul", "Relu", "Relu6", "MaxPool", "AvgPool", "ConcatV2"):
        assert ops[op] == before[op]


@pytest.mark.parametrize("file", ["CNN_S.pb", "DNN_S.pb", "DS_CNN_S.pb", "CRNN_S.pb", "GRU_S.pb"])
def test_speech_networks_compute_the_same(shared_data: Path, file: str) -> None:
    graph_def = load_graph(str(shared_data / "graphs" / file))
    sound = sorted((shared_data / "audio_speech_commands" / "yes").glob("*.wav"))[0].read_bytes()
    result = check(graph_def, {"wav_data": np.array(sound, object)}, ("labels_softmax",))
    for op in CONTROL_FLOW:
        assert ops_of(result)[op] == ops_of(graph_def)[op]
    assert not {"FusedBatchNorm", "Rsqrt"} & set(ops_of(result))


def test_detector_with_control_flow_computes_the_same(shared_data: Path) -> None:
    graph_def = load_graph(str(shared_data / "graphs" / "mtcnn.pb"))
    feeds = {
        "input": images(90, 120, 3, high=255),
        "min_size": np.float32(40),
        "thresholds": np.array([0.05, 0.0, 0.0], np.float32),  # low enough for boxes to pass every stage
        "factor": np.float32(0.7),
    }
    # Three networks in a row; what a kernel sums in another order, on some processors, comes to more here.
    result = check(graph_def, feeds, ("prob", "landmarks", "box"), bound=2e-4)
    assert run(result, feeds, ["box"])[0].shape[0] > 0
    for op in set(CONTROL_FLOW) - {"Switch"}:
        assert ops_of(result)[op] == ops_of(graph_def)[op]
    graph = Graph(result)
    assert not [node.name for node in graph if node.op == "Switch" and graph.producer(node, 0).op == "Const"]
    assert ops_of(result)["Switch"] < ops_of(graph_def)["Switch"]  # weights went into the branches


def test_keras_batch_normalisation_is_folded() -> None:
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    layers = tf.keras.layers
    tf.keras.utils.set_random_seed(1)
    model = tf.keras.Sequential(
        [
            layers.Input((12, 12, 3)),
            layers.Conv2D(8, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(6.0),
            layers.ZeroPadding2D(1),
            layers.Conv2D(8, 3, strides=2, padding="valid"),
            layers.BatchNormalization(scale=False),
            layers.ReLU(),
            layers.DepthwiseConv2D(3, padding="same"),
            layers.BatchNormalization(center=False),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dropout(0.3),
            layers.Dense(6),
            layers.BatchNormalization(),
            layers.Dense(5, activation="softmax"),
        ]
    )
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 2, values.shape) for values in layer.get_weights()])
    function = tf.function(lambda x: model(x, training=False)).get_concrete_function(
        tf.TensorSpec([None, 12, 12, 3], tf.float32, "x")
    )
    graph_def = convert_variables_to_constants_v2(function).graph.as_graph_def()
    result = check(graph_def, {"x": images(2, 12, 12, 3, low=-1)}, find_outputs(graph_def))
    ops = ops_of(result)
    assert not {"Mul", "AddV2", "Sub", "Rsqrt", "Pad", "Reshape"} & set(ops)
    assert (ops["Conv2D"], ops["DepthwiseConv2dNative"], ops["MatMul"], ops["BiasAdd"]) == (2, 1, 2, 5)


@settings(max_examples=15)
@given(
    layers=st.lists(
        st.tuples(
            st.sampled_from(["Conv2D", "DepthwiseConv2dNative"]),
            st.sampled_from(["plain", "pad", "identity", "residual"]),
            st.sampled_from(["", "BiasAdd", *BATCH_NORMS[:-1]]),
            st.sampled_from(["", "Relu", "Relu6"]),
            st.booleans(),
        ),
        min_size=1,
        max_size=5,
    ),
    seed=st.integers(0, 999),
)
def test_random_networks_compute_the_same(layers: list[tuple[str, str, str, str, bool]], seed: int) -> None:
    outputs: list[str] = []

    def build() -> None:
        values = Values(seed)
        case = LayerCase(channels=(4, 4), seed=seed)
        x = placeholder(case)
        for number, (kind, shape, norm, activation, fetched) in enumerate(layers):
            multiplier = 1 if kind == "DepthwiseConv2dNative" else 4
            case = LayerCase(
                kind, False, (4, multiplier), 3, 1, "VALID" if shape == "pad" else "SAME", seed=seed + number
            )
            y = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]) if shape == "pad" else x
            y = linear(case, tf.identity(y) if shape == "identity" else y, weights(case, values), f"layer{number}")
            if norm == "BiasAdd":
                y = bias_add(case, y, values.normal(4), f"bias{number}")
            elif norm:
                y = batch_norm(case, y, 4, norm, values, f"norm{number}")
            y = tf.raw_ops.AddN(inputs=[x, y]) if shape == "residual" else y
            y = getattr(tf.raw_ops, activation)(features=y) if activation else y
            x = tf.identity(y, name=f"stage{number}")
            if fetched or number == len(layers) - 1:
                outputs.append(f"stage{number}")

    sample = sample_of(build, (), {"input": feed(LayerCase(channels=(4, 4)))})
    # Each layer multiplies its input by about six, so that what a Relu6 at the end cuts to six had roundings of numbers
    # in the thousands. A wrong fold shows in the first digits.
    result = check(sample.graph_def, sample.feeds, tuple(outputs), bound=1e-3)
    assert not {"Rsqrt", "Sub", "AddN", "Reshape"} & set(ops_of(result))
