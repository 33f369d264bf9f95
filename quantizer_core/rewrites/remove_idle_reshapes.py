"""Remove reshapes to the shape that a layer's result has already, which old code writes behind biases."""

from __future__ import annotations

from collections.abc import Sequence

from quantizer_core.graph.graph import Graph, NodeDef, canonical
from quantizer_core.graph.infer import infer_shapes
from quantizer_core.rewrites.ops import near_control_flow

_IMAGE_OPS = frozenset(
    {"Conv2D", "DepthwiseConv2dNative", "MaxPool", "AvgPool", "FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"}
)
#: Ops whose result has the shape of their first input.
_KEEP_SHAPE = frozenset({"BiasAdd", "Relu", "Relu6", "Identity"})


def remove_idle_reshapes(graph: Graph, inputs: Sequence[str], outputs: Sequence[str]) -> list[str]:
    """Makes the readers of ``Reshape(BiasAdd(Conv2D(x)), shape)`` read the bias, where the shape is the convolution's.

    Such a Reshape would keep a bias from its Relu, and floats between convolutions. It goes where its shape is that of
    the Conv2D, MatMul or pool before it: a constant whose sizes are those that are known, with one -1 at most; or
    ``Shape`` of that very tensor. One that is an output stays.

    Returns:
      The names of the nodes removed.
    """
    kept = set(outputs)
    found: list[tuple[NodeDef, list[int] | None]] = []
    for node in graph:
        if node.op != "Reshape" or node.name in kept or near_control_flow(graph, node):
            continue
        if graph.control_inputs(node) or graph.control_inputs(graph.producer(node, 1)):
            continue
        shape = graph.constant(node.input[1])
        layer = _layer(graph, node.input[0])
        if layer is None:
            continue
        if shape is None and _is_shape_of(graph, node.input[1], node.input[0]):
            found.append((node, None))
        elif shape is not None and len(shape.reshape(-1)) == (2 if layer.op == "MatMul" else 4):
            found.append((node, [int(size) for size in shape]))
    if not found:
        return []
    known = infer_shapes(graph.part(node.input[0] for node, sizes in found if sizes is not None))
    changed = []
    for node, sizes in found:
        if sizes is None or _same(known.get(canonical(node.input[0])), sizes):
            graph.redirect(node.name, node.input[0])
            graph.remove(node.name)
            changed.append(node.name)
    if changed:
        graph.prune([*inputs, *outputs])
    return changed


def _layer(graph: Graph, tensor: str) -> NodeDef | None:
    """Returns the layer that a tensor has the shape of, through biases and activations; None if there is none."""
    node = graph.node(tensor)
    while node.op in _KEEP_SHAPE:
        tensor = node.input[0]
        node = graph.node(tensor)
    first = canonical(tensor) == node.name  # a batch normalisation has other results too
    return node if first and (node.op in _IMAGE_OPS or node.op == "MatMul") else None


def _is_shape_of(graph: Graph, shape: str, tensor: str) -> bool:
    source = graph.node(shape)
    if source.op != "Shape":
        return False
    wanted = canonical(source.input[0])
    while canonical(tensor) != wanted:
        node = graph.node(tensor)
        if node.op not in _KEEP_SHAPE:
            return False
        tensor = node.input[0]
    return True


def _same(shape: tuple[int, ...] | None, sizes: Sequence[int]) -> bool:
    """Tells whether a reshape to ``sizes`` gives back a tensor of a static shape (-1: not known), whatever it holds."""
    if shape is None or len(shape) != len(sizes) or list(sizes).count(-1) > 1:
        return False
    # The size that -1 stands for follows from the others, if none of them is 0.
    return all(size == -1 or (size == known and size > 0) for size, known in zip(sizes, shape, strict=True))
