"""The benchmark of kernels between floats: its layers are what it says, and planning judges them as its table does."""

from __future__ import annotations

import numpy as np
import pytest

import quantizer_core as qc
from benchmarks import kernels
from benchmarks.kernels import Layer
from quantizer_core.calibration.observer import Observer


@pytest.mark.parametrize(
    ("layer", "op", "few"),
    [
        (Layer("1×1", 1, 8), "Conv2D", "4 products a value"),
        (Layer("3×3", 3, 8), "Conv2D", "36 products a value"),
        (Layer("depthwise", 3, 8, depthwise=True), "DepthwiseConv2dNative", "4 products a value"),
        (Layer("matrix", 0, 8), "MatMul", "4 products a value"),
        (Layer("matrices in a chain", 0, 8, chained=True), "MatMul", "come out, 256 products in all"),
        (Layer("in a chain", 3, 8, chained=True, count=2, side=4), "Conv2D", "come out, 18,432 products in all"),
    ],
)
def test_layers_make_the_products_that_planning_counts(
    monkeypatch: pytest.MonkeyPatch, layer: Layer, op: str, few: str
) -> None:
    monkeypatch.setattr("quantizer_core.planning.make.has_vnni", lambda: False)  # with it, 36 are enough
    graph_def = kernels.network(layer)
    assert sum(node.op == op for node in graph_def.node) == layer.count
    config = qc.QuantizationConfig(outputs=("y",))
    prepared = qc.prepare(graph_def, config)
    shape = prepared.inputs[0].shape or ()
    with Observer(prepared, 1) as observer:
        statistics = observer.observe([{"x": np.ones(shape[1:], np.float32)}])
    nodes = qc.make_plan(prepared, statistics, config).computing()
    assert [f"{few} are few" in node.reason for node in nodes] == [True] * layer.count
    assert layer.chained or f"{int(layer.products + 0.01)} products" in few


def test_the_table_has_a_row_a_layer_and_batch() -> None:
    text = kernels.markdown([(kernels.CASES[0], 16, kernels.Measured(1.5, 0.5, 0.4, 0.6, False))], "a machine")
    assert "Measured on a machine, one thread" in text
    assert text.splitlines()[-1] == "| depthwise 3×3 | 4 | 28×28 | 128 | 4 | 16 | 1.50 | 0.50 × (0.40–0.60) | FP32 |"
