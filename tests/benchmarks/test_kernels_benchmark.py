"""The benchmark of kernels between floats: its layers are what it says, and planning judges them as its table does."""

from __future__ import annotations

import numpy as np
import pytest

import quantizer_core as qc
from benchmarks import kernels
from benchmarks.kernels import Layer
from quantizer_core.calibration.observer import Observer


@pytest.mark.parametrize(
    ("layer", "products", "op"),
    [
        (Layer("1×1", 1, 8), 4, "Conv2D"),
        (Layer("3×3", 3, 8), 36, "Conv2D"),
        (Layer("depthwise", 3, 8, depthwise=True), 4.5, "DepthwiseConv2dNative"),
        (Layer("matrix", 0, 8), 4, "MatMul"),
        (Layer("matrices in a chain", 0, 8, chained=True), 4, "MatMul"),
    ],
)
def test_layers_make_the_products_that_planning_counts(
    monkeypatch: pytest.MonkeyPatch, layer: Layer, products: float, op: str
) -> None:
    monkeypatch.setattr("quantizer_core.planning.make.has_vnni", lambda: False)  # with it, 36 are enough
    assert layer.products == products
    graph_def = kernels.network(layer)
    assert sum(node.op == op for node in graph_def.node) == kernels.LAYERS
    config = qc.QuantizationConfig(outputs=("y",))
    prepared = qc.prepare(graph_def, config)
    shape = prepared.inputs[0].shape or ()
    with Observer(prepared, 1) as observer:
        statistics = observer.observe([{"x": np.ones(shape[1:], np.float32)}])
    nodes = qc.make_plan(prepared, statistics, config).computing()
    few = (
        "come out, 256 products in all are few" if layer.chained else f"{int(products + 0.01)} products a value are few"
    )
    assert [few in node.reason for node in nodes] == [True] * kernels.LAYERS


def test_the_table_has_a_row_a_layer_and_batch() -> None:
    text = kernels.markdown([(kernels.CASES[0], 16, (1.5, 0.5, 0.4, 0.6))], "a machine")
    assert "Measured on a machine, one thread" in text
    assert text.splitlines()[-1] == "| depthwise 3×3 | 128 | 4 | 16 | 1.50 | 0.50 × (0.40–0.60) |"
