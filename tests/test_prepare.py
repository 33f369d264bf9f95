"""Preparing a graph: names are checked, what calibration must watch is chosen, and it all survives a round trip."""

from __future__ import annotations

import pytest
import tensorflow.compat.v1 as tf

from quantizer_core.calibration.run import calibrate
from quantizer_core.config import QuantizationConfig
from quantizer_core.data import tensor_example
from quantizer_core.errors import ConfigError, GraphError, UnknownNodeError
from quantizer_core.prepare import load_prepared, prepare, save_prepared
from quantizer_core.quantize import convert
from tests.helpers.nets import build, data_for, everything


def net(net, x):
    y = net.conv(x, 8, relu="relu", name="first")
    return net.conv(tf.nn.max_pool2d(y, 2, 2, "SAME"), 8, name="second")


def test_round_trip(tmp_path):
    graph_def, outputs = build(net)
    prepared = prepare(graph_def, QuantizationConfig())
    assert prepared.outputs == outputs and [spec.name for spec in prepared.inputs] == ["x"]
    assert {tensor.name for tensor in prepared.observed} >= {"x", *outputs}
    save_prepared(prepared, str(tmp_path / "prepared"))
    save_prepared(prepared, str(tmp_path / "prepared"))  # an earlier one is replaced
    assert load_prepared(str(tmp_path / "prepared")) == prepared


def test_calibrating_and_converting_leave_the_prepared_graph_as_it_was():
    def define(made, x):
        y = made.depthwise(net(made, x), relu="relu6")
        y = made.dense(tf.reshape(tf.nn.avg_pool2d(y, 2, 2, "VALID"), [-1, 3 * 3 * 8]), 4, relu="relu")
        return made.dense(y, 4, transpose=True)

    graph_def, _ = build(define)
    for node in graph_def.node:  # as frozen graphs come: without attributes that have their defaults
        for name in ("dilations", "explicit_paddings", "data_format", "use_cudnn_on_gpu"):
            node.attr.pop(name, None)
    bare = graph_def.SerializeToString(deterministic=True)
    config = everything()
    prepared = prepare(graph_def, config)
    before = prepared.graph_def.SerializeToString(deterministic=True)
    run = calibrate(prepared, [tensor_example({"x": image}) for image in data_for(prepared, 8)], config)
    for sample in (run.sample, ()):
        first = convert(prepared, run.statistics, config, sample)
        assert first.plan.quantized == first.plan.candidates == 7
        assert prepared.graph_def.SerializeToString(deterministic=True) == before
        again = convert(prepared, run.statistics, config, sample)
        assert again.graph_def == first.graph_def
    assert graph_def.SerializeToString(deterministic=True) == bare


def test_concatenations_are_watched_where_a_kernel_may_read_their_codes():
    def joined(net, x):
        one, two = net.conv(x, 8, relu="relu", name="one"), net.conv(x, 8, relu="relu", name="two")
        moved = tf.transpose(tf.concat([one, two], 3, name="wanted"), [0, 2, 1, 3])
        result = net.conv(moved, 8, name="last")
        corners = tf.concat([result, result + 1], 3, name="floats")  # boxes, say, that float ops alone read
        return tf.exp(corners)

    graph_def, outputs = build(joined)
    prepared = prepare(graph_def, QuantizationConfig())
    wanted, floats = (set(prepared.graph.node(name).input[:2]) for name in ("wanted", "floats"))
    watched = {tensor.name for tensor in prepared.observed}
    assert wanted <= watched and len(floats - watched) == 1 and outputs[0] not in watched
    excluded = prepare(graph_def, QuantizationConfig(excluded_nodes=["one", "wanted"]))
    watched = {tensor.name for tensor in excluded.observed}
    assert len(wanted - watched) == 1  # the result of "two", as a kernel's own, is watched all the same


def test_unknown_names_are_errors_that_name_the_nearest():
    graph_def, _ = build(net)
    for option, value in (("inputs", "X1"), ("outputs", "BiasAdd_7"), ("excluded_nodes", "fist")):
        with pytest.raises(UnknownNodeError, match=f"{option}.*{value}.*did you mean" if value != "X1" else value):
            prepare(graph_def, QuantizationConfig(**{option: [value]}))
    with pytest.raises(ConfigError, match="Conv2d.*'Conv2D'"):
        prepare(graph_def, QuantizationConfig(excluded_ops=["Conv2d"]))
    prepare(graph_def, QuantizationConfig(excluded_ops=["ConcatV2"]))  # an op of TensorFlow that is not there is fine


def test_nothing_to_quantise_is_an_error():
    graph_def, _ = build(lambda net, x: tf.nn.relu(x))
    with pytest.raises(GraphError, match="INT8"):
        prepare(graph_def, QuantizationConfig())
    graph_def, _ = build(net)
    with pytest.raises(GraphError, match="INT8"):
        prepare(graph_def, QuantizationConfig(excluded_ops=["Conv2D"]))


def test_a_damaged_directory_is_an_error(tmp_path):
    graph_def, _ = build(net)
    save_prepared(prepare(graph_def, QuantizationConfig()), str(tmp_path))
    (tmp_path / "prepared.json").write_text("{}")
    with pytest.raises(GraphError, match="prepared"):
        load_prepared(str(tmp_path))
