"""Convolutions and matrix multiplications with a constant filter, and the folding of per-channel steps into them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
from tensorflow.core.framework import types_pb2

from quantizer_core.graph.attrs import attr_string, make_const, make_tensor
from quantizer_core.graph.graph import Graph, NodeDef, set_attr
from quantizer_core.rewrites.affine import Layout, Step, compose, read_step
from quantizer_core.rewrites.ops import flag, is_float32

LINEAR_OPS = frozenset({"Conv2D", "DepthwiseConv2dNative", "MatMul"})


@dataclasses.dataclass(frozen=True)
class Linear:
    """A float32 Conv2D, DepthwiseConv2dNative or MatMul whose second input is a Const.

    Attributes:
      node: the node itself.
      shape: of the filter.
      output: channels of the result.
      input: channels of the first operand; of a grouped convolution, those of one group.
    """

    node: NodeDef
    shape: tuple[int, ...]
    output: Layout
    input: Layout

    @property
    def data_format(self) -> str:
        return attr_string(self.node, "data_format", "NHWC") if self.node.op != "MatMul" else "NHWC"


def read_linear(graph: Graph, node: NodeDef) -> Linear | None:
    """Returns a node as a Linear, or None if it is none (or has a data format other than NHWC and NCHW)."""
    if node.op not in LINEAR_OPS or not is_float32(node):
        return None
    if graph.producer(node, 1).op != "Const":
        return None
    shape = graph.constant_shape(node.input[1])
    assert shape is not None
    if node.op == "MatMul":
        rows, columns = reversed(shape) if flag(node, "transpose_b") else shape
        return Linear(node, shape, Layout(2, -1, columns), Layout(2, -2 if flag(node, "transpose_a") else -1, rows))
    data_format = attr_string(node, "data_format", "NHWC")
    if data_format not in ("NHWC", "NCHW"):
        return None
    axis = -1 if data_format == "NHWC" else -3
    channels = shape[2] * shape[3] if node.op == "DepthwiseConv2dNative" else shape[3]
    return Linear(node, shape, Layout(4, axis, channels), Layout(4, axis, shape[2]))


def filter_of(graph: Graph, linear: Linear) -> np.ndarray:
    """Returns the filter's values, float32 in its own shape."""
    values = graph.constant(linear.node.input[1])
    assert values is not None
    return values


def scale_outputs(linear: Linear, weights: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Returns the filter (float32) that makes every output channel ``scale`` ([output channels]) times as large."""
    if linear.node.op == "DepthwiseConv2dNative":
        scale = scale.reshape(linear.shape[2:])
    elif linear.node.op == "MatMul" and flag(linear.node, "transpose_b"):
        scale = scale[:, None]
    return _product(weights, scale)


def scale_inputs(linear: Linear, weights: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Returns the filter (float32) that does to ``x`` what ``weights`` do to ``scale · x`` ([input channels])."""
    if not (linear.node.op == "MatMul" and flag(linear.node, "transpose_b")):
        scale = scale[:, None]
    return _product(weights, scale)


def response(linear: Linear, weights: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Returns what ``weights`` make of the constant input ``shift`` ([input channels]) without padding, float64."""
    weights = weights.astype(np.float64)
    if linear.node.op == "DepthwiseConv2dNative":
        return (weights.sum(axis=(0, 1)) * shift[:, None]).reshape(-1)
    if linear.node.op == "Conv2D":
        return shift @ weights.sum(axis=(0, 1))
    return weights @ shift if flag(linear.node, "transpose_b") else shift @ weights


def steps_after(graph: Graph, linear: Linear, outputs: Sequence[str]) -> list[Step]:
    """Returns the chain of per-channel steps after a node; only the last may have several readers or be an output."""
    steps: list[Step] = []
    current = linear.node
    while current.name not in outputs:
        consumer = graph.sole_consumer(current.name)
        step = read_step(graph, consumer, linear.output, current.name) if consumer is not None else None
        if step is None:
            break
        steps.append(step)
        current = step.node
    return steps


def fold_steps(graph: Graph, inputs: Sequence[str], outputs: Sequence[str], pattern: re.Pattern[str]) -> list[str]:
    """Folds, into every Linear of the graph, the steps after it whose kinds begin with ``pattern``.

    The last step's node becomes a BiasAdd under its old name, or disappears if there is nothing to add. Steps that
    would make a weight infinite or NaN stay.

    Returns:
      The names of the steps' nodes.
    """
    changed: list[str] = []
    for node in graph:
        linear = read_linear(graph, node) if node.name in graph else None
        while linear is not None:
            steps = steps_after(graph, linear, outputs)
            match = pattern.match("".join(step.kind for step in steps))
            if match is None or not _fold(graph, linear, steps[: match.end()], outputs):
                break
            changed += [step.node.name for step in steps[: match.end()]]
            linear = read_linear(graph, node)
    if changed:
        graph.prune([*inputs, *outputs])
    return changed


def set_filter(graph: Graph, linear: Linear, weights: np.ndarray, outputs: Sequence[str]) -> None:
    """Gives the node a filter of its own; a Const that anything else reads is left as it is."""
    _set_constant(graph, linear.node, 1, weights, "filter", outputs)


def add_bias(graph: Graph, linear: Linear, shift: np.ndarray, outputs: Sequence[str]) -> None:
    """Adds ``shift`` ([output channels]) to the result: into the BiasAdd after the node, or by a new one.

    The new BiasAdd is called ``<node>/bias_add``. If the node is an output, its name goes to the BiasAdd, and the node
    itself is called ``<node>/linear`` from then on.
    """
    node = linear.node
    after = steps_after(graph, linear, outputs)[:1]
    if after and after[0].kind == "b":
        total = (after[0].shift + shift).astype(np.float32)
        _set_constant(graph, after[0].node, 1, total, "bias", outputs)
        return
    bias = _bias_const(graph, node, f"{node.name}/bias", shift)
    if node.name in outputs:
        inner = NodeDef()
        inner.CopyFrom(node)
        inner.name = graph.unique_name(f"{node.name}/linear")
        graph.protect_as(node.name, inner.name)
        graph.replace_node(_bias_add(linear, node.name, graph.add(inner), bias))
    else:
        name = graph.add(_bias_add(linear, graph.unique_name(f"{node.name}/bias_add"), node.name, bias))
        graph.redirect(node.name, name, control=False)


def _fold(graph: Graph, linear: Linear, steps: Sequence[Step], outputs: Sequence[str]) -> bool:
    scale, shift = compose(steps, linear.output.channels)
    node, last = linear.node, steps[-1].node
    bias = shift.astype(np.float32)
    if np.any(scale != 1):
        weights = scale_outputs(linear, filter_of(graph, linear), scale)
        if not (np.isfinite(weights).all() and np.isfinite(bias).all()):
            return False
        set_filter(graph, linear, weights, outputs)
    waits = [wait for step in steps for wait in graph.control_inputs(step.node)]
    if any(step.kind in "bsn" for step in steps):
        added = _bias_add(linear, last.name, node.name, _bias_const(graph, node, f"{last.name}/bias", shift))
    else:
        added = NodeDef(op="Identity", name=last.name, input=[node.name])
        added.attr["T"].type = types_pb2.DT_FLOAT
    added.input.extend(dict.fromkeys(waits))
    graph.replace_node(added)
    for step in reversed(steps[:-1]):
        graph.remove(step.node.name)
    if added.op == "Identity" and last.name not in outputs and not waits:
        graph.redirect(last.name, node.name)
        graph.remove(last.name)
    return True


def _bias_const(graph: Graph, node: NodeDef, name: str, values: np.ndarray) -> str:
    const = make_const(graph.unique_name(name), values.astype(np.float32))
    # Inside a TensorFlow 1 loop or branch a constant belongs there by what it waits for: follow the filter.
    const.input.extend(graph.control_inputs(graph.producer(node, 1)))
    return graph.add(const)


def _bias_add(linear: Linear, name: str, source: str, bias: str) -> NodeDef:
    node = NodeDef(op="BiasAdd", name=name, input=[source, bias])
    node.attr["T"].type = types_pb2.DT_FLOAT
    set_attr(node, "data_format", linear.data_format)
    return node


def _set_constant(
    graph: Graph, node: NodeDef, index: int, values: np.ndarray, role: str, outputs: Sequence[str]
) -> None:
    const = graph.producer(node, index)
    if const.op == "Const" and const.name not in outputs and len(graph.consumers(const.name)) == 1:
        const.attr["value"].tensor.CopyFrom(make_tensor(values))
        return
    own = make_const(graph.unique_name(f"{node.name}/{role}"), values)
    own.input.extend(graph.control_inputs(const))
    graph.set_input(node, index, graph.add(own))


def _product(weights: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Multiplies in float64 and rounds once; overflow gives infinities, which callers check for."""
    result = np.empty(weights.shape, np.float32)
    with np.errstate(all="ignore"):
        np.multiply(weights, scale, out=result, dtype=np.float64, casting="same_kind")
    return result
