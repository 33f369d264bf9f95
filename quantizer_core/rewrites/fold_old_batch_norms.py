"""Fold a batch norm that stands before a convolution or matrix multiplication into its weights and a bias."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from quantizer_core.graph.attrs import attr_ints, attr_string, make_const
from quantizer_core.graph.graph import Graph, NodeDef, node_of, port_of, set_attr
from quantizer_core.graph.infer import lazy_shapes
from quantizer_core.rewrites.affine import Layout, Step, compose, may_broadcast, read_step
from quantizer_core.rewrites.linear import (
    LINEAR_OPS,
    Linear,
    add_bias,
    filter_of,
    read_linear,
    response,
    scale_inputs,
    set_filter,
)

#: Largest scale of a channel over the smallest for which a norm of what no kernel makes is folded.
_ALIKE = 4.0
#: Ops that hand on what a kernel makes, its channels as they are.
_HANDING_ON = frozenset({"BiasAdd", "Relu", "Relu6", "Identity", "MaxPool", "AvgPool", "Pad"})
_Shapes = Callable[[str], "tuple[int, ...] | None"]


def fold_old_batch_norms(graph: Graph, inputs: Sequence[str], outputs: Sequence[str]) -> list[str]:
    """Folds ``linear(scale · x + shift)`` where every reader of the batch norm is such a node.

    Batch norms are those of ``fold_batch_norms``, and any chain of constant additions and multiplications with at
    least one multiplication. The scale goes into the weights' input channels. The shift becomes a bias if the node does
    not pad (VALID, a 1x1 kernel, MatMul): padding puts zeros after the shift. Elsewhere ``x + shift / scale`` is left
    of the batch norm, one addition for all readers that need it.

    The node then reads in INT8 what the batch norm has not made alike: in one range, channels of small values would
    keep few codes. What a kernel makes gets scales by channel in planning; elsewhere, and where a shift is left before,
    a norm whose scales differ by more than ``_ALIKE`` stays (features in units of their own, say).

    Returns:
      The names of the batch norms' nodes.
    """
    # As they are now, for the tensors that are read; what is folded meanwhile changes no shape.
    shapes = lazy_shapes(lambda: graph.part(node.input[0] for node in graph if node.op in LINEAR_OPS))
    changed: list[str] = []
    done: set[str] = set()
    for node in graph:
        linear = read_linear(graph, node) if node.name in graph else None
        if linear is None or node.input[0] in done:
            continue
        done.add(node.input[0])
        readers = _linear_readers(graph, node.input[0], linear.input, outputs)
        steps = _steps_before(graph, node.input[0], linear.input, outputs, shapes) if readers else []
        if any(step.kind in "mdn" for step in steps) and _fold(graph, readers, steps, outputs):
            changed += [step.node.name for step in steps]
    if changed:
        graph.prune([*inputs, *outputs])
    return changed


def _linear_readers(graph: Graph, tensor: str, layout: Layout, outputs: Sequence[str]) -> list[Linear]:
    """Returns all readers of a tensor, or none if one of them is not a Linear over the same channels."""
    if port_of(tensor) != 0 or node_of(tensor) in outputs:
        return []
    readers = []
    for edge in graph.consumers(node_of(tensor)):
        linear = read_linear(graph, edge.consumer) if edge.index == 0 else None
        if linear is None or linear.input != layout or layout.axis == -2:
            return []
        readers.append(linear)
    return readers


def _steps_before(graph: Graph, tensor: str, layout: Layout, outputs: Sequence[str], shapes: _Shapes) -> list[Step]:
    steps: list[Step] = []
    while port_of(tensor) == 0:
        node = graph.node(tensor)
        if steps and (node.name in outputs or graph.sole_consumer(node.name) is None):
            break
        step = read_step(graph, node, layout) if not graph.control_inputs(node) else None
        if step is None or (may_broadcast(graph, step) and not _has_layout(shapes(step.source), layout)):
            break
        steps.insert(0, step)
        tensor = step.source
    return steps


def _has_layout(shape: tuple[int, ...] | None, layout: Layout) -> bool:
    return shape is not None and len(shape) == layout.rank and shape[layout.axis] == layout.channels


def _fold(graph: Graph, readers: Sequence[Linear], steps: Sequence[Step], outputs: Sequence[str]) -> bool:
    layout = readers[0].input
    scale, shift = compose(steps, layout.channels)
    with np.errstate(all="ignore"):
        left = (shift / scale).astype(np.float32)
    keeps_shift = [bool(np.any(shift)) and _pads(reader) for reader in readers]
    if any(keeps_shift) and not np.isfinite(left).all():
        return False
    alike = np.abs(scale).max() <= _ALIKE * np.abs(scale).min()
    if not alike and (any(keeps_shift) or not _of_a_kernel(graph, steps[0].source)):
        return False
    weights = [filter_of(graph, reader) for reader in readers]
    scaled = [scale_inputs(reader, values, scale) for reader, values in zip(readers, weights, strict=True)]
    biases = [response(reader, values, shift) for reader, values in zip(readers, weights, strict=True)]
    if not all(np.isfinite(values).all() for values in (*scaled, *(bias.astype(np.float32) for bias in biases))):
        return False
    source = steps[0].source
    shifted = _left_over(graph, steps[-1].node, source, left, readers[0]) if any(keeps_shift) else source
    for reader, keeps, values, bias in zip(readers, keeps_shift, scaled, biases, strict=True):
        set_filter(graph, reader, values, outputs)
        graph.set_input(reader.node, 0, shifted if keeps else source)
        if not keeps and np.any(shift):
            add_bias(graph, reader, bias, outputs)
    return True


def _of_a_kernel(graph: Graph, tensor: str) -> bool:
    node = graph.node(tensor)
    while node.op in _HANDING_ON:
        node = graph.producer(node, 0)
    return node.op in LINEAR_OPS


def _pads(linear: Linear) -> bool:
    """Whether zeros may be put around the input; a kernel of one pixel with SAME never pads."""
    padding = attr_string(linear.node, "padding")
    if linear.node.op == "MatMul" or padding == "VALID":
        return False
    if padding == "EXPLICIT":
        return any(attr_ints(linear.node, "explicit_paddings"))
    return linear.shape[:2] != (1, 1)


def _left_over(graph: Graph, last: NodeDef, source: str, values: np.ndarray, reader: Linear) -> str:
    if np.all(values == values[0]):
        values = values[0]  # TensorFlow adds one number thirty times as fast as three to the channels of an image
    else:
        values = values.reshape(-1, *[1] * (-1 - reader.input.axis))
    const = make_const(graph.unique_name(f"{last.name}/shift"), values)
    # Inside a TensorFlow 1 loop or branch a constant belongs there by what it waits for: follow the filter.
    const.input.extend(graph.control_inputs(graph.producer(reader.node, 1)))
    inputs = [source, graph.add(const)]
    added = NodeDef(op="AddV2", name=graph.unique_name(f"{last.name}/shifted"), input=inputs)
    set_attr(added, "T", last.attr["T"])
    return graph.add(added)
