"""What rounding is predicted to cost, against what it does cost, and the layers that are left FP32 for it."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf

from quantizer_core.graph.graph import Graph
from quantizer_core.lowering.kernels import Emitter
from quantizer_core.planning import make_plan, mixed
from quantizer_core.planning.sensitivity import sensitivity
from quantizer_core.quantize import convert
from tests.helpers.nets import Net, build, data_for, everything, prepared_of, run_graph, statistics_of

CONFIG = everything(equalization=False)


def classifier(net: Net, x: tf.Tensor, softmax: bool = True) -> tf.Tensor:
    """A network whose work grows from layer to layer; the first rounds coarsely what all others read."""
    x = net.conv(x, 4, relu="relu")
    for _ in range(11):
        x = net.conv(x, 32, relu="relu")
    x = tf.reshape(tf.reduce_mean(x, [1, 2]), [-1, 32])
    x = 6 * net.dense(x, 10)
    return tf.nn.softmax(x) if softmax else x


def setting(softmax: bool = True):
    graph_def, outputs = build(lambda net, x: classifier(net, x, softmax))
    prepared = prepared_of(graph_def, outputs, CONFIG)
    statistics = statistics_of(prepared, data_for(prepared, 32))
    examples = [{"x": row} for row in data_for(prepared, 32)]
    return prepared, statistics, make_plan(prepared, statistics, CONFIG), examples


def rounded_graph(prepared, plan, tensors):
    """Returns the FP32 graph with some tensors rounded as planned."""
    graph = Graph(prepared.graph_def)
    emitter = Emitter(graph)
    for name in tensors:
        codes, reader = emitter.quantize_as(name, f"{name}/codes", plan.tensors[name])
        value = emitter.dequantize_as(codes, f"{name}/value", plan.tensors[name])
        graph.redirect(name, value, where=lambda edge, reader=reader: edge.consumer.name != reader)
    return graph.to_graph_def()


@pytest.mark.parametrize("softmax", [True, False])
def test_the_predicted_divergence_is_the_one_that_rounding_makes(softmax):
    prepared, _, plan, examples = setting(softmax)
    found = sensitivity(prepared, plan, examples)
    assert found is not None
    data = data_for(prepared, 256, seed=5)

    def probabilities(graph_def):
        scores = run_graph(graph_def, prepared, data)[0].astype(np.float64)
        if softmax:
            return scores
        scores = np.exp(scores - scores.max(1, keepdims=True))
        return scores / scores.sum(1, keepdims=True)

    exact = probabilities(prepared.graph_def)
    whole = sorted(found.divergence, key=lambda name: -found.divergence[name])
    for names in (whole[:1], whole):
        other = probabilities(rounded_graph(prepared, plan, names))
        measured = float((exact * np.log(exact / other)).sum(1).mean())
        predicted = sum(found.divergence[name] for name in names)
        assert 0.5 * measured < predicted < 2 * measured, (names, measured, predicted)


def test_products_are_counted_for_one_example():
    prepared, _, plan, examples = setting()
    found = sensitivity(prepared, plan, examples)
    shapes = {node.name: Graph(prepared.graph_def).constant_shape(Graph(prepared.graph_def).node(node.name).input[1])
              for node in plan.nodes if node.op in ("Conv2D", "MatMul")}  # fmt: skip
    height, width = data_for(prepared, 1).shape[1:3]
    for name, shape in shapes.items():
        positions = 1 if len(shape) == 2 else height * width
        assert found.products[name] == positions * np.prod(shape)


def test_nothing_is_told_of_outputs_without_classes_or_ops_without_a_gradient():
    def broken(net, x):  # no gradient comes through the bits
        return tf.nn.softmax(tf.reshape(tf.cast(tf.bitcast(net.conv(x, 8), tf.int32), tf.float32), [-1, 8]))

    for define, told in ((lambda net, x: net.conv(x, 8), False), (broken, True)):
        graph_def, outputs = build(define)
        prepared = prepared_of(graph_def, outputs, CONFIG)
        plan = make_plan(prepared, statistics_of(prepared, data_for(prepared, 4)), CONFIG)
        found = sensitivity(prepared, plan, [{"x": row} for row in data_for(prepared, 4)])
        assert (found is not None) == told and (found is None or not sum(found.divergence.values()))


def test_the_first_layers_stay_fp32_where_they_make_much_of_the_loss(monkeypatch):
    prepared, statistics, plan, examples = setting()
    assert mixed.first_in_float(prepared, statistics, plan, examples, CONFIG) == {}  # little is lost
    monkeypatch.setattr(mixed, "TOLERATED", 0.0)
    monkeypatch.setattr(mixed, "WORTH", 0.0)
    kept = mixed.first_in_float(prepared, statistics, plan, examples, CONFIG)
    kernels = [node.name for node in plan.nodes if node.op in ("Conv2D", "MatMul")]
    assert list(kept) == kernels[:1] and len(kernels) == 13  # a tenth at the most
    other = make_plan(prepared, statistics, CONFIG, kept)
    assert {node.name: node.reason for node in other.nodes if not node.quantized} == kept
    assert "predicted loss" in kept[kernels[0]]
    monkeypatch.setattr(mixed, "MOST_PRODUCTS", 0.0)
    assert mixed.first_in_float(prepared, statistics, plan, examples, CONFIG) == {}


def test_it_is_a_choice(monkeypatch):
    monkeypatch.setattr(mixed, "TOLERATED", 0.0)
    monkeypatch.setattr(mixed, "WORTH", 0.0)
    prepared, statistics, _, examples = setting()
    sample = [_serialized(example["x"]) for example in examples]
    plans = {
        on: convert(prepared, statistics, dataclasses.replace(CONFIG, mixed_precision=on), sample).plan
        for on in (True, False)
    }
    assert plans[False].quantized == plans[False].candidates == plans[True].quantized + 1
    assert json.loads(plans[True].to_json())["nodes"][0]["reason"].startswith("in INT8 the first layers")


def _serialized(values: np.ndarray) -> bytes:
    feature = tf.train.Feature(float_list=tf.train.FloatList(value=values.ravel()))
    return tf.train.Example(features=tf.train.Features(feature={"x": feature})).SerializeToString()
