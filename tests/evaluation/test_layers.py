"""Layer by layer: the figures are those of a plain computation, and looking on does not disturb a fused sum."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from quantizer_core.config import QuantizationConfig
from quantizer_core.data import tensor_example
from quantizer_core.errors import ConfigError, DataError, GraphError
from quantizer_core.evaluation.layers import LayerReport, bounds, compare_layers, instrument, sqnr_db
from quantizer_core.graph.graph import Graph
from quantizer_core.planning.plan import QuantizationPlan, TensorPlan
from quantizer_core.quantize import Conversion
from quantizer_core.runtime import GraphSession
from quantizer_core.types import PreparedGraph
from tests.helpers.nets import Net, build, int8_of

ROOT = Path(__file__).resolve().parents[2]


def plain(net: Net, x: tf.Tensor) -> tf.Tensor:
    """Two convolutions, signed and unsigned tensors, and a matrix multiplication with a float32 result."""
    y = net.conv(net.conv(x, 16, relu="relu", name="first"), 12, stride=2)
    return net.dense(tf.reshape(tf.nn.relu(y), [-1, 6 * 6 * 12]), 5, name="scores")


def residual(net: Net, x: tf.Tensor) -> tf.Tensor:
    x = net.conv(x, 8, relu="relu")
    for _ in range(2):
        x = tf.nn.relu(net.conv(net.conv(x, 8, relu="relu"), 8) + x)
    x = tf.nn.relu(net.conv(net.conv(x, 16, stride=2, relu="relu"), 16) + net.conv(x, 16, 1, 2))  # signed summand
    return net.conv(x, 4, 1)


def examples_of(data: np.ndarray) -> list[bytes]:
    return [tensor_example({"x": row}) for row in data]


def report_of(
    prepared: PreparedGraph, conversion: Conversion, data: np.ndarray, batch_size: int = 3
) -> LayerReport:  # fmt: skip
    config = QuantizationConfig(batch_size=batch_size)
    return compare_layers(prepared, conversion.graph_def, conversion.plan, examples_of(data), config)


def fetch(graph_def: tf.GraphDef, prepared: PreparedGraph, names: list[str], data: np.ndarray) -> list[np.ndarray]:
    with GraphSession(graph_def, prepared.inputs, names, optimize=False) as session:
        return session.run({"x": data})


def test_ratios_have_their_limits() -> None:
    assert sqnr_db(100.0, 1.0) == pytest.approx(20)
    assert sqnr_db(1.0, 0.0) == sqnr_db(0.0, 0.0) == math.inf
    assert sqnr_db(0.0, 1.0) == -math.inf
    assert bounds(TensorPlan("a", "quint8", 4.0)) == (0, 4)
    assert bounds(TensorPlan("a", "qint8", 4.0)) == (-4, 4)
    assert bounds(TensorPlan("a", "quint8", 4.0, 1.5)) == (-1.5, 2.5)


def test_figures_are_those_of_the_codes_themselves() -> None:
    """Seven examples of which four calibrated, in batches of three: the last batch is filled up, and values clip."""
    prepared, conversion, data = int8_of(*build(plain))
    rng = np.random.default_rng(7)
    data = np.concatenate([data, 2 * rng.normal(size=(3, *data.shape[1:])).astype(np.float32)])
    report = report_of(prepared, conversion, data)
    assert report.reads.read == 7 and report.unmeasured == ()
    layers = {layer.tensor: layer for layer in report.layers}
    assert set(layers) == {*conversion.plan.tensors, prepared.outputs[0]}
    for name, planned in conversion.plan.tensors.items():
        held = {node.name for node in conversion.graph_def.node}
        integer = f"{name}/int8" if f"{name}/int8" in held else f"{name}/quantize"
        (codes,) = fetch(conversion.graph_def, prepared, [integer], data)
        (exact,) = fetch(prepared.graph_def, prepared, [name], data)
        codes, exact = codes.astype(np.float64), exact.astype(np.float64)
        step = planned.limit / (255 if planned.dtype == "quint8" else 127)
        low, high = bounds(planned)
        found = codes * step / planned.scales - planned.offset
        expected = 10 * np.log10(np.sum(exact**2) / np.sum((exact - found) ** 2))
        layer = layers[name]
        assert layer.sqnr_db == pytest.approx(expected, abs=0.01) and 15 < expected < 60
        outside = (exact * planned.scales > high + step / 2) | (exact * planned.scales < low - step / 2)
        assert layer.clipped == pytest.approx(np.mean(outside), abs=1e-4)
        assert layer.codes - layer.unused_codes == len(np.unique(codes))
        assert (layer.dtype, layer.low, layer.high) == (planned.dtype, low, high)
    assert max(layer.clipped for layer in report.layers) > 0.001
    assert [layer.sqnr_db for layer in report.layers] == sorted(layer.sqnr_db for layer in report.layers)


def test_rows_say_what_computes_the_tensor() -> None:
    prepared, conversion, data = int8_of(*build(plain))
    layers = {layer.node: layer for layer in report_of(prepared, conversion, data).layers}
    assert layers["first"].op == "Conv2D" and layers["first"].kernel == "_FusedQuantizedConv2D"
    assert (layers["first"].source_dtype, layers["first"].dtype) == ("qint8", "quint8")
    scores = layers["scores"]
    assert scores.dtype == "float32" and math.isnan(scores.low) and scores.codes == 0 and scores.sqnr_db > 20
    entries = [layer for layer in report_of(prepared, conversion, data).layers if not layer.node]
    assert {layer.kernel for layer in entries} == {"QuantizeV2"} and "x" in {layer.tensor for layer in entries}


def test_a_graph_of_fixed_batch_gives_the_same_figures() -> None:
    free, free_conversion, data = int8_of(*build(residual, (None, 12, 12, 8)))
    fixed, conversion, _ = int8_of(*build(residual, (1, 12, 12, 8)))
    expected = {layer.tensor: layer for layer in report_of(free, free_conversion, data).layers}
    for layer in report_of(fixed, conversion, data, batch_size=16).layers:
        assert layer.sqnr_db == pytest.approx(expected[layer.tensor].sqnr_db, abs=0.2)


def test_tensors_that_are_not_the_first_output_of_their_node() -> None:
    """Of two splits, whose second outputs and names are easily taken for each other."""

    def define(net: Net, x: tf.Tensor) -> tf.Tensor:
        first, second = tf.split(x, 2, 3, name="split")
        third, _ = tf.split(3 * x, 2, 3, name="split_1")
        return tf.concat([net.conv(each, 4, relu="relu") for each in (first, second, third)], 3)

    prepared, conversion, data = int8_of(*build(define))
    report = report_of(prepared, conversion, data)
    layers = {layer.tensor: layer for layer in report.layers}
    assert report.unmeasured == () and {"split", "split:1", "split_1"} <= set(layers)
    assert all(layer.sqnr_db > 30 for layer in report.layers if layer.tensor.startswith("split"))


def test_fused_sums_stay_fused_and_give_their_values() -> None:
    prepared, conversion, data = int8_of(*build(residual))
    sums = [node for node in conversion.plan.nodes if node.summand]
    assert len(sums) == 3 and any(conversion.plan.tensors[node.summand].offset for node in sums)
    graph_def, watched, unmeasured = instrument(conversion.graph_def, conversion.plan)
    graph = Graph(graph_def)
    assert unmeasured == ()
    for node in sums:
        kernel = graph.node(f"{node.output}/int8")
        assert kernel.op == "PartitionedCall" and kernel.attr["f"].func.name.startswith("int8_sum")
    names = [each.found for each in watched]
    alone = fetch(conversion.graph_def, prepared, [prepared.outputs[0]], data)[0]
    *seen_values, output = fetch(graph_def, prepared, [*names, prepared.outputs[0]], data)
    assert np.array_equal(output, alone)
    measured = {layer.tensor: layer.sqnr_db for layer in report_of(prepared, conversion, data, batch_size=4).layers}
    for each, value in zip(watched, seen_values, strict=True):
        exact = fetch(prepared.graph_def, prepared, [each.tensor], data)[0].astype(np.float64)
        assert measured[each.tensor] == pytest.approx(sqnr_db(np.sum(exact**2), np.sum((exact - value) ** 2)), abs=0.01)


def test_while_loops_of_both_graphs_run_side_by_side() -> None:
    def define(net: Net, x: tf.Tensor) -> tf.Tensor:
        x = net.conv(x, 8, relu="relu")
        tf.disable_control_flow_v2()
        try:
            x = tf.while_loop(lambda i, _: i < 3, lambda i, y: (i + 1, y * 0.5 + 1), [tf.constant(0), x])[1]
        finally:
            tf.enable_control_flow_v2()
        return net.conv(x, 4, 1)

    prepared, conversion, data = int8_of(*build(define))
    assert {"Enter", "Exit"} <= {node.op for node in conversion.graph_def.node}
    report = report_of(prepared, conversion, data)
    assert report.reads.read == len(data) and len(report.layers) == 4 and report.layers[0].sqnr_db > 20


@pytest.mark.slow
def test_looking_on_never_ends_the_process() -> None:
    """Random networks full of residuals, every integer tensor watched: in a process of its own, as it might crash."""
    code = """
import numpy as np
from tests.evaluation.test_layers import report_of
from tests.helpers.nets import build, int8_of
from tests.planning.test_random_nets import layer
rng = np.random.default_rng(0)
kinds = ("residual", "projection", "twice", "concat", "pool", "pad", "strided", "depthwise", "float")
sums = 0
for seed in range(10):
    chosen = rng.choice(kinds, 5, p=[.25, .25, .1, .08, .08, .06, .06, .06, .06])
    def define(net, x):
        for kind in chosen:
            x = layer(net, kind, x)
        return net.conv(x, 8, 1)
    prepared, conversion, data = int8_of(*build(define, (None, 10, 10, 8), seed))
    report = report_of(prepared, conversion, data)
    assert min(layer.sqnr_db for layer in report.layers) > 10, report.layers[0]
    assert report.unmeasured == ()
    sums += sum(bool(node.summand) for node in conversion.plan.nodes)
print("sums", sums)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, f"{run.returncode}: {run.stderr[-2000:]}"
    assert int(run.stdout.split()[-1]) >= 10


def test_a_report_comes_back_from_json() -> None:
    prepared, conversion, data = int8_of(*build(plain))
    report = report_of(prepared, conversion, data)
    silent = dataclasses.replace(report.layers[0], sqnr_db=-math.inf)
    exact = dataclasses.replace(report.layers[0], sqnr_db=math.inf)
    report = dataclasses.replace(report, layers=(silent, *report.layers[:-1], exact), unmeasured=("a",))
    text = report.to_json()
    assert "NaN" not in text and "Infinity" not in text
    again = LayerReport.from_json(text)
    assert again.to_json() == text and again.reads == report.reads
    assert again.layers[0] == silent and again.layers[-1] == exact
    with pytest.raises(ConfigError, match="no layer report"):
        LayerReport.from_json("[1]")


def test_what_does_not_fit_is_named() -> None:
    prepared, conversion, data = int8_of(*build(plain))
    with pytest.raises(DataError, match="no examples"):
        report_of(prepared, conversion, data[:0])
    with pytest.raises(GraphError, match="another graph"):
        report_of(prepared, dataclasses.replace(conversion, plan=QuantizationPlan((), {})), data)
