"""Give each part of a recurrent cell's input a matrix multiplication, and so a range, of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from quantizer_core.graph.attrs import make_const
from quantizer_core.graph.control_flow import innermost_frames
from quantizer_core.graph.graph import Graph, NodeDef, canonical
from quantizer_core.graph.infer import infer_shapes
from quantizer_core.rewrites.ops import flag, is_float32


def split_matmul_of_concat(graph: Graph, inputs: Sequence[str], outputs: Sequence[str]) -> list[str]:
    """Turns ``MatMul(ConcatV2(x, h), W)`` inside a while loop into ``MatMul(x, W₁) + MatMul(h, W₂)``.

    A recurrent cell joins its input, of any size, with its state between -1 and 1. In one range of 8 bits the state
    would keep a few codes only, and its rounding would grow from step to step.

    Returns:
      The names of the matrix multiplications.
    """
    found = [node for node in graph if _is_candidate(graph, node)]
    if found:
        framed = graph.remembered(innermost_frames)
        found = [node for node in found if node.name in framed]
    if not found:
        return []
    shapes = infer_shapes(graph.part(node.input[0] for node in found))
    changed = []
    for node in found:
        parts = [canonical(tensor) for tensor in graph.data_inputs(graph.producer(node, 0))[:-1]]
        weights = np.asarray(graph.constant(node.input[1]))
        axis = 1 if flag(node, "transpose_b") else 0
        sizes = _sizes([_columns(graph, part, shapes) for part in parts], weights.shape[axis])
        if sizes is None or graph.control_inputs(node):
            continue
        _split(graph, node, parts, np.split(weights, np.cumsum(sizes)[:-1], axis))
        changed.append(node.name)
    if changed:
        graph.prune([*inputs, *outputs])
    return changed


def _is_candidate(graph: Graph, node: NodeDef) -> bool:
    if (
        node.op != "MatMul"
        or not is_float32(node)
        or flag(node, "transpose_a")
        or graph.constant_shape(node.input[1]) is None
    ):
        return False
    concat = graph.producer(node, 0)
    if concat.op != "ConcatV2" or concat.name in graph.protected or graph.control_inputs(concat):
        return False
    axis = graph.constant(graph.data_inputs(concat)[-1])
    return axis is not None and int(axis) in (1, -1) and concat.attr["N"].i > 1


def _sizes(sizes: list[int], total: int) -> list[int] | None:
    """Returns the columns of each part; one that is not known (-1) is what the others leave."""
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = total - sum(size for size in sizes if size >= 0)
    return sizes if all(size > 0 for size in sizes) and sum(sizes) == total else None


def _columns(graph: Graph, tensor: str, shapes: Mapping[str, tuple[int, ...] | None]) -> int:
    """Returns how many columns a matrix has, or -1.

    TensorFlow gives up the shape of a loop's variable. That it enters the loop with the columns that it keeps is taken
    for granted: it is joined to a fixed number.
    """
    shape = shapes.get(canonical(tensor))
    if shape is not None and len(shape) == 2 and shape[1] > 0:
        return shape[1]
    node = graph.node(tensor)
    if node.op in ("Identity", "Switch", "Enter"):
        return _columns(graph, node.input[0], shapes)
    if node.op == "Merge":
        enters = [source for source in graph.data_inputs(node) if graph.node(source).op == "Enter"]
        return _columns(graph, enters[0], shapes) if enters else -1
    if node.op in ("Mul", "Add", "AddV2", "Sub"):
        return max(_columns(graph, source, shapes) for source in graph.data_inputs(node))
    return -1


def _split(graph: Graph, node: NodeDef, parts: Sequence[str], weights: Sequence[np.ndarray]) -> None:
    waits = graph.control_inputs(graph.producer(node, 1))
    names = []
    for index, (part, values) in enumerate(zip(parts, weights, strict=True)):
        const = make_const(graph.unique_name(f"{node.name}/part_{index}/weights"), np.ascontiguousarray(values))
        const.input.extend(waits)
        product = NodeDef()
        product.CopyFrom(node)
        product.name = graph.unique_name(f"{node.name}/part_{index}")
        del product.input[:]
        product.input.extend([part, graph.add(const)])
        names.append(graph.add(product))
    total = NodeDef(op="AddN" if len(names) > 2 else "AddV2", name=node.name, input=names, device=node.device)
    total.attr["T"].CopyFrom(node.attr["T"])
    if total.op == "AddN":
        total.attr["N"].i = len(names)
    graph.replace_node(total)
