"""Steps that scale and shift each channel by constants: what they are called, and by how much they do it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from quantizer_core.graph.attrs import attr_string
from quantizer_core.graph.graph import Graph, NodeDef, canonical
from quantizer_core.rewrites.ops import flag, is_float32

#: One letter a kind, so that a chain of steps is a word and a rule is a regular expression over such words.
BIAS, SHIFT, MUL, DIV, NORM = "b", "s", "m", "d", "n"

_NORMS = frozenset({"FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"})
_OLD_NORM = "BatchNormWithGlobalNormalization"
_BINARY = {"Add": SHIFT, "AddV2": SHIFT, "Sub": SHIFT, "Mul": MUL, "RealDiv": DIV, "Div": DIV}
_COMMUTATIVE = frozenset({"Add", "AddV2", "Mul"})


class Layout(NamedTuple):
    """Where the channels of a tensor are: its rank, the channel axis counted from the end, and their number."""

    rank: int
    axis: int
    channels: int


class Step(NamedTuple):
    """``output = scale · input + shift`` for each channel.

    Attributes:
      node: the node that does it.
      kind: BIAS (BiasAdd), SHIFT (an addition or subtraction), MUL, DIV or NORM (a batch norm op).
      source: the tensor that is scaled and shifted.
      scale: float64 [channels].
      shift: float64 [channels].
    """

    node: NodeDef
    kind: str
    source: str
    scale: np.ndarray
    shift: np.ndarray


def read_step(graph: Graph, node: NodeDef, layout: Layout, source: str | None = None) -> Step | None:
    """Returns the step that a node is, or None if it is none or may not be folded.

    Args:
      graph: holds the node.
      node: any node.
      layout: of the tensor that is scaled; the constants must not broadcast it to another shape.
      source: the tensor that must be the scaled one; by default whichever operand is not constant.
    """
    if not is_float32(node) or node.name in graph.protected:
        return None
    if node.op in _BINARY:
        return _binary(graph, node, layout, source)
    if source is not None and canonical(node.input[0]) != canonical(source):
        return None
    if node.op in ("BiasAdd", "BiasAddV1"):
        return _bias(graph, node, layout)
    if node.op in _NORMS:
        return _fused_batch_norm(graph, node, layout)
    if node.op == _OLD_NORM:
        return _old_batch_norm(graph, node, layout)
    return None


def compose(steps: Sequence[Step], channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns scale and shift (float64 [channels]) of steps done one after the other."""
    scale, shift = np.ones(channels), np.zeros(channels)
    with np.errstate(all="ignore"):
        for step in steps:
            scale, shift = scale * step.scale, shift * step.scale + step.shift
    return scale, shift


def may_broadcast(graph: Graph, step: Step) -> bool:
    """Whether the step may turn a tensor of another shape into one of the layout (elementwise with a non-scalar)."""
    return step.node.op in _BINARY and all(graph.constant_shape(tensor) != () for tensor in step.node.input[:2])


def _binary(graph: Graph, node: NodeDef, layout: Layout, source: str | None) -> Step | None:
    orders = ((0, 1), (1, 0)) if node.op in _COMMUTATIVE else ((0, 1),)
    for data, other in orders:
        if source is not None and canonical(node.input[data]) != canonical(source):
            continue
        values = _per_channel(graph, node.input[other], layout)
        if values is None or (source is None and graph.constant_shape(node.input[data]) is not None):
            continue
        kind = _BINARY[node.op]
        ones, zeros = np.ones(layout.channels), np.zeros(layout.channels)
        if kind == SHIFT:
            return Step(node, kind, node.input[data], ones, -values if node.op == "Sub" else values)
        with np.errstate(divide="ignore"):
            return Step(node, kind, node.input[data], values if kind == MUL else 1 / values, zeros)
    return None


def _bias(graph: Graph, node: NodeDef, layout: Layout) -> Step | None:
    if not _same_axis(node, layout):
        return None
    values = _vectors(graph, node, (1,), layout)
    if values is None:
        return None
    kind = BIAS if node.op == "BiasAdd" else SHIFT
    return Step(node, kind, node.input[0], np.ones(layout.channels), values[0])


def _fused_batch_norm(graph: Graph, node: NodeDef, layout: Layout) -> Step | None:
    """Inference form: ``(x - mean) · gamma / sqrt(variance + epsilon) + beta``; the other outputs must be unread."""
    if flag(node, "is_training", True) or layout.rank != 4 or not _same_axis(node, layout):
        return None
    if any(edge.port > 0 for edge in graph.consumers(node.name)):
        return None
    values = _vectors(graph, node, (1, 2, 3, 4), layout)
    if values is None:
        return None
    gamma, beta, mean, variance = values
    epsilon = node.attr["epsilon"].f if "epsilon" in node.attr else 1e-4
    return _norm(node, gamma, beta, mean, variance + epsilon)


def _old_batch_norm(graph: Graph, node: NodeDef, layout: Layout) -> Step | None:
    """Inputs are t, mean, variance, beta, gamma; gamma counts only if ``scale_after_normalization``."""
    values = _vectors(graph, node, (1, 2, 3, 4), layout)
    if values is None or layout.rank != 4 or layout.axis != -1:
        return None
    mean, variance, beta, gamma = values
    gamma = gamma if flag(node, "scale_after_normalization") else np.ones(layout.channels)
    return _norm(node, gamma, beta, mean, variance + node.attr["variance_epsilon"].f)


def _norm(node: NodeDef, gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> Step:
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(variance)
        return Step(node, NORM, node.input[0], scale, beta - mean * scale)


def _same_axis(node: NodeDef, layout: Layout) -> bool:
    """A BiasAdd or batch norm of a tensor with fewer than 4 axes has its channels last or second: the same for two."""
    if layout.rank == 2:
        return True
    return (attr_string(node, "data_format", "NHWC") == "NCHW") == (layout.axis == -3)


def _vectors(graph: Graph, node: NodeDef, indices: Sequence[int], layout: Layout) -> list[np.ndarray] | None:
    if any(graph.constant_shape(node.input[index]) != (layout.channels,) for index in indices):
        return None
    return [np.asarray(graph.constant(node.input[index]), np.float64) for index in indices]


def _per_channel(graph: Graph, tensor: str, layout: Layout) -> np.ndarray | None:
    """Returns a constant as one float64 value a channel, if adding it would leave the tensor's shape as it is."""
    shape = graph.constant_shape(tensor)
    if shape is None or len(shape) > layout.rank:
        return None
    for axis, size in enumerate(shape, start=-len(shape)):
        if size != 1 and not (axis == layout.axis and size == layout.channels):
            return None
    values = np.asarray(graph.constant(tensor), np.float64).reshape(-1)
    return np.broadcast_to(values, (layout.channels,))
