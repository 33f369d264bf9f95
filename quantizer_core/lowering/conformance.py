"""Runs INT8 kernels on this machine and measures how far their codes are from the exact result.

``quick_check`` covers each kernel that lowering emits in seconds, for ``quantizer doctor``; the tests go through every
combination with the same functions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import graph_pb2, node_def_pb2

from quantizer_core.errors import QuantizerError
from quantizer_core.graph.graph import Graph
from quantizer_core.lowering.kernels import LEVELS, QINT8, QUINT8, Emitter, IntTensor
from quantizer_core.lowering.weights import QuantizedWeights, quantize_weights
from quantizer_core.runtime import GraphSession, has_vnni
from quantizer_core.types import TensorSpec

#: Half a step of the output's codes, and what float32 arithmetic adds to it.
HALF_STEP = 0.502


@dataclasses.dataclass(frozen=True)
class ConvCase:
    """A fused convolution over random codes, [batch, 9, 11, channels]; the fields are as ``Emitter.convolution``'s."""

    op: str
    source: str
    result: str
    relu: bool = False
    sums: bool = False
    per_channel: bool = True
    padding: str = "SAME"
    kernel: int = 3
    stride: int = 1
    dilation: int = 1
    batch: int = 2
    channels: int = 24
    outputs: int = 40
    wide_stride: int = 0  # stride along the width if it is another

    @property
    def depthwise(self) -> bool:
        return self.op == "DepthwiseConv2dNative"

    @property
    def strides(self) -> tuple[int, int, int, int]:
        return 1, self.stride, self.wide_stride or self.stride, 1

    @property
    def name(self) -> str:
        flags = [
            self.op,
            f"{self.source}->{self.result}",
            self.padding,
            f"k{self.kernel}s{self.stride}d{self.dilation}",
        ]
        flags += [flag for flag in ("relu", "sums", "per_channel") if getattr(self, flag)]
        flags += [f"w{self.wide_stride}"] if self.wide_stride else []
        flags += [f"c{self.channels}-{self.outputs}"] if (self.channels, self.outputs) != (24, 40) else []
        return "|".join([*flags, f"b{self.batch}"])


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """A kernel that was tried: its error in steps of the output's codes (infinite if it failed), and the bound."""

    name: str
    error: float
    bound: float
    reason: str = ""

    @property
    def passed(self) -> bool:
        return self.error <= self.bound


def random_input(rng: np.random.Generator, shape: tuple[int, ...], dtype: str, limit: float) -> np.ndarray:
    """Returns float32 values that are codes of ``dtype``, the extreme ones among them."""
    top = LEVELS[dtype]
    codes = rng.integers(0 if dtype == QUINT8 else -top, top, shape, endpoint=True)
    codes.reshape(-1)[: max(1, codes.size // 4)] = top  # long runs of the largest code: sums as large as they can get
    return (codes * (limit / top)).astype(np.float32)


def new_graph(**inputs: tuple[int, ...]) -> tuple[Graph, Emitter]:
    """Returns a graph of float32 Placeholders with these names and shapes, and an Emitter into it."""
    graph = Graph(graph_pb2.GraphDef())
    for name, shape in inputs.items():
        node = node_def_pb2.NodeDef(op="Placeholder", name=name)
        node.attr["dtype"].type = tf.float32.as_datatype_enum
        node.attr["shape"].shape.CopyFrom(tf.TensorShape(shape).as_proto())
        graph.add(node)
    return graph, Emitter(graph)


def run(graph: Graph, fetch: str, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """Returns the value of one tensor in a session of its own."""
    specs = [TensorSpec(name, "float32", value.shape) for name, value in feeds.items()]
    with GraphSession(graph.to_graph_def(), specs, [fetch]) as session:
        return session.run(feeds)[0]


def dequantized(weights: QuantizedWeights) -> np.ndarray:
    """Returns the filter that the codes stand for, in float64 and by other means than the product's own."""
    limits = np.asarray(weights.limits, np.float64)
    if limits.ndim and weights.codes.shape[-1] != limits.size:
        limits = limits.reshape(weights.codes.shape[-2:])
    return weights.codes.astype(np.float64) * limits / 127


def extreme_neighbours(largest: float, shape: tuple[int, ...]) -> np.ndarray:
    """Returns weights [..., up to 4 input channels, outputs] that overflow 16 bits first, in two forms by turns.

    All as large as can be; and only the second and third, which share no 16-bit sum, so that they may be larger.
    """
    pattern = np.array([[1, 0], [1, 1], [1, 1], [1, 0]], np.float32)[: shape[-2]]
    return np.broadcast_to(largest * np.resize(pattern.T, (shape[-1], shape[-2])).T, shape)


def reference(case: ConvCase, values: np.ndarray, filters: np.ndarray, pads: list[int]) -> np.ndarray:
    """Returns the case's convolution in float64."""
    padding: str | list[list[int]] = case.padding
    if case.padding == "EXPLICIT":
        padding = [[pads[2 * axis], pads[2 * axis + 1]] for axis in range(4)]
    values = values.astype(np.float64)
    if case.depthwise:
        # A depthwise convolution is one whose other weights are zero; Conv2D in float64 takes strides as they come.
        full = np.zeros((*filters.shape[:2], case.channels, case.channels))
        full[:, :, np.arange(case.channels), np.arange(case.channels)] = filters[..., 0]
        filters = full
    return tf.nn.conv2d(values, filters, list(case.strides), padding, dilations=case.dilation).numpy()


def convolution_error(case: ConvCase, bits: int) -> float:
    """Returns the largest distance, in output codes, between the kernel and the clipped float64 result."""
    rng = np.random.default_rng(7)
    limit = 3.0
    shape = (case.batch, 9, 11, case.channels)
    size = (case.kernel, case.kernel, case.channels, 1 if case.depthwise else case.outputs)
    raw = rng.normal(size=size).astype(np.float32)
    raw[..., :4, :] = extreme_neighbours(np.abs(raw).max(), raw[..., :4, :].shape)
    if case.depthwise and case.source == QUINT8:
        bits = 8
    weights = quantize_weights(
        raw, depthwise=case.depthwise, per_channel=case.per_channel, bits=bits, even=case.source == QINT8
    )
    bias = rng.normal(size=size[2] if case.depthwise else size[3]).astype(np.float32)
    values = random_input(rng, shape, case.source, limit)
    pads = [0, 0, 1, 2, 2, 1, 0, 0] if case.padding == "EXPLICIT" else []
    exact = reference(case, values, dequantized(weights), pads) + bias
    graph, emitter = new_graph(x=shape, **({"y": exact.shape} if case.sums else {}))
    feeds = {"x": values}
    summand = None
    if case.sums:
        other = random_input(rng, exact.shape, QUINT8, 5.0)
        feeds["y"] = other
        summand = _carried(emitter, "y", exact.shape[-1])
        exact = exact + other
    if case.relu:
        exact = np.maximum(exact, 0)
    top = max(float(np.abs(exact).max()) * 0.9, 1e-3)  # a little is clipped
    result = emitter.convolution(
        case.op, "conv", emitter.quantize("x", "x_int8", case.source, limit), weights, bias, dtype=case.result,
        limit=top, relu=case.relu, summand=summand, strides=case.strides, padding=case.padding,
        explicit_paddings=pads, dilations=(1, case.dilation, case.dilation, 1),
    )  # fmt: skip
    found = run(graph, emitter.dequantize(result, "out"), feeds)
    clipped = np.clip(exact, 0 if case.result == QUINT8 else -top * 128 / 127, top)  # code -128 is left in use
    return float(np.abs(found - clipped).max() / (top / LEVELS[case.result]))


def _carried(emitter: Emitter, source: str, channels: int) -> IntTensor:
    """Quantises a tensor (range 5) and sends it through a kernel, as the summands of real graphs come."""
    identity = quantize_weights(np.eye(channels, dtype=np.float32)[None, None])
    return emitter.convolution(
        "Conv2D", "summand", emitter.quantize(source, f"{source}_int8", QUINT8, 5.0), identity,
        np.zeros(channels, np.float32), dtype=QUINT8, limit=5.0,
    )  # fmt: skip


def product_error(op: str, source: str, rows: int, per_channel: bool, bits: int) -> float:
    """Returns the error of a matrix multiplication with float results over 1/255 of its largest one (none is rounded).

    Args:
      op: ``MatMul``, or ``Conv2D`` for a 1×1 convolution over ``rows`` images of 3×4.
      source: dtype of what it reads.
      rows: rows, or images.
      per_channel: a weight scale for each output.
      bits: width of the weights.
    """
    rng = np.random.default_rng(3)
    pointwise = op == "Conv2D"
    values = random_input(rng, (rows, 3, 4, 48) if pointwise else (rows, 48), source, 2.0)
    raw = (rng.normal(size=(48, 10)) * np.arange(1, 11)).astype(np.float32)
    raw[:4] = extreme_neighbours(1.0, raw[:4].shape) * np.abs(raw).max(0)
    weights = quantize_weights(raw, per_channel=per_channel, bits=bits)
    bias = rng.normal(size=10).astype(np.float32)
    exact = values.astype(np.float64) @ dequantized(weights) + bias
    graph, emitter = new_graph(x=values.shape)
    if pointwise:
        weights = dataclasses.replace(weights, codes=weights.codes[None, None])
    multiply = emitter.pointwise if pointwise else emitter.matmul
    out = multiply("product", emitter.quantize("x", "q", source, 2.0), weights, bias)
    return float(np.abs(run(graph, out, {"x": values}) - exact).max() / (np.abs(exact).max() / 255))


def matmul_as_convolution_error(rows: int, source: str, result: str, bits: int, inputs: int = 48) -> float:
    """Returns the error, in output codes, of a matrix multiplication run as a 1×1 convolution of one image."""
    rng = np.random.default_rng(4)
    values = random_input(rng, (rows, inputs), source, 2.0)
    raw = (rng.normal(size=(inputs, 10)) * np.arange(1, 11)).astype(np.float32)
    raw[:4] = extreme_neighbours(1.0, raw[:4].shape) * np.abs(raw).max(0)
    weights = quantize_weights(raw, bits=bits, even=source == QINT8)
    exact = np.maximum(values.astype(np.float64) @ dequantized(weights), 0 if result == QUINT8 else -np.inf)
    top = max(float(np.abs(exact).max()), 1e-3)
    graph, emitter = new_graph(x=values.shape)
    image = emitter.reshape(emitter.quantize("x", "q", source, 2.0), (1, -1, 1, inputs), "rows")
    weights = dataclasses.replace(weights, codes=weights.codes[None, None])
    out = emitter.convolution("Conv2D", "conv", image, weights, np.zeros(10, np.float32), dtype=result, limit=top)
    back = emitter.reshape(out, (-1, 10), "back")
    return float(np.abs(run(graph, emitter.dequantize(back, "d"), {"x": values}) - exact).max() * LEVELS[result] / top)


def pool_error(op: str, dtype: str, padding: str, size: int, stride: int) -> float:
    """Returns the error, in codes, of a square ``MaxPool`` or ``AvgPool``."""
    values = random_input(np.random.default_rng(5), (2, 9, 8, 16), dtype, 3.0)
    graph, emitter = new_graph(x=values.shape)
    pooled = emitter.pool(
        op, "pool", emitter.quantize("x", "q", dtype, 3.0), ksize=(1, size, size, 1),
        strides=(1, stride, stride, 1), padding=padding,
    )  # fmt: skip
    found = run(graph, emitter.dequantize(pooled, "d"), {"x": values})
    exact = tf.nn.pool(values, (size, size), op[:3].upper(), (stride, stride), padding).numpy()
    return float(np.abs(found - exact).max() * LEVELS[dtype] / 3.0)


def average_error(source: str, result: str, window: tuple[int, int], channels: int = 24, stride: int = 1) -> float:
    """Returns the error, in output codes, of means over windows with a range of their own and scales by channel."""
    values = random_input(np.random.default_rng(6), (2, window[0] + stride, window[1] + stride, channels), source, 3.0)
    scales = np.linspace(1.0, 2.0, channels)
    exact = tf.nn.pool(values.astype(np.float64), window, "AVG", (stride, stride), "VALID").numpy() * scales
    if result == QUINT8:
        exact = np.maximum(exact, 0)
    top = float(np.abs(exact).max())
    graph, emitter = new_graph(x=values.shape)
    mean = emitter.average(
        "mean", emitter.quantize("x", "q", source, 3.0), (*window, channels), scales=scales, dtype=result, limit=top,
        strides=(1, stride, stride, 1),
    )  # fmt: skip
    found = run(graph, emitter.dequantize(mean, "d"), {"x": values})
    return float(np.abs(found - exact).max() * LEVELS[result] / top)


def concat_error(dtype: str, axis: int) -> float:
    """Returns the error, in codes, of a concatenation of three tensors of one range."""
    rng = np.random.default_rng(2)
    values = {name: random_input(rng, (2, 5, 5, 8), dtype, 3.0) for name in "abc"}
    graph, emitter = new_graph(**{name: value.shape for name, value in values.items()})
    sources = [emitter.quantize(name, f"{name}_int8", dtype, 3.0) for name in values]
    found = run(graph, emitter.dequantize(emitter.concat("concat", sources, axis), "d"), values)
    return float(np.abs(found - np.concatenate(list(values.values()), axis)).max() * LEVELS[dtype] / 3.0)


def quick_check() -> tuple[CheckResult, ...]:
    """Tries each kernel once or twice, with the weights' width that this machine gets; takes a few seconds.

    Kernels that cannot run at all are results with an infinite error; nothing is raised.
    """
    bits = 8 if has_vnni() else 7
    conv, depthwise = "Conv2D", "DepthwiseConv2dNative"
    convolutions = (
        ConvCase(conv, QUINT8, QUINT8, relu=True),
        ConvCase(conv, QINT8, QINT8, padding="EXPLICIT", stride=2),
        ConvCase(conv, QUINT8, QINT8, per_channel=False, kernel=1),
        ConvCase(conv, QUINT8, QUINT8, relu=True, sums=True),
        ConvCase(conv, QINT8, QUINT8, relu=True, sums=True, kernel=1),
        ConvCase(depthwise, QUINT8, QUINT8, relu=True, padding="EXPLICIT", stride=2),
        ConvCase(depthwise, QINT8, QINT8),
    )
    checks: list[tuple[str, float, Callable[[], float]]] = [
        (case.name, HALF_STEP, partial(convolution_error, case, bits)) for case in convolutions
    ]
    as_convolution = partial(matmul_as_convolution_error, 5, QINT8, QINT8, bits)
    checks += [
        ("MatMul|quint8->float32", 0.01, partial(product_error, "MatMul", QUINT8, 5, True, bits)),
        ("Conv2D|qint8->float32|as matrix product", 0.01, partial(product_error, conv, QINT8, 5, True, bits)),
        ("MatMul|qint8->qint8|as convolution", HALF_STEP, as_convolution),
        ("MaxPool|qint8", 0.01, partial(pool_error, "MaxPool", QINT8, "SAME", 3, 2)),
        ("AvgPool|quint8", HALF_STEP, partial(pool_error, "AvgPool", QUINT8, "SAME", 3, 2)),
        ("Mean|quint8", HALF_STEP, partial(average_error, QUINT8, QUINT8, (7, 7))),
        ("ConcatV2|quint8", 0.01, partial(concat_error, QUINT8, 3)),
    ]
    results = []
    for name, bound, measure in checks:
        try:
            results.append(CheckResult(name, measure(), bound))
        except (QuantizerError, tf.errors.OpError) as error:
            results.append(CheckResult(name, float("inf"), bound, str(error)))
    return tuple(results)
