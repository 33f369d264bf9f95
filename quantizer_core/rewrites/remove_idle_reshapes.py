"""Remove reshapes to the shape that a layer's result has already, which old code writes behind biases."""

from __future__ import annotations

from collections.abc import Sequence

from quantizer_core.graph.graph import Graph, NodeDef, canonical
from quantizer_core.graph.infer import infer_shapes
from quantizer_core.rewrites.ops import near_control_flow

_LAYER_OPS = frozenset(
    {
        "Conv2D", "DepthwiseConv2dNative", "MatMul", "MaxPool", "AvgPool", "FusedBatchNorm", "FusedBatchNormV2",
        "FusedBatchNormV3",
    }
)  # fmt: skip
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
    kept = graph.protected.union(outputs)
    found: list[tuple[NodeDef, list[int] | None]] = []
    for node in graph:
        if node.op != "Reshape" or node.name in kept or near_control_flow(graph, node):
            continue
        if graph.control_inputs(node) or graph.control_inputs(graph.producer(node, 1)):
            continue
        shape = graph.constant(node.input[1])
        tensors = _of_one_shape(graph, node.input[0])
        layer = graph.node(tensors[-1])
        # By another port of a batch normalisation comes no image.
        if layer.op not in _LAYER_OPS or layer.name != tensors[-1]:
            continue
        source = graph.producer(node, 1)
        if source.op == "Shape" and canonical(source.input[0]) in tensors:
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


def _of_one_shape(graph: Graph, tensor: str) -> list[str]:
    """Returns a tensor and those that it has the shape of, through biases and activations, up to the layer's."""
    found = [canonical(tensor)]
    while (node := graph.node(found[-1])).op in _KEEP_SHAPE:
        found.append(canonical(node.input[0]))
    return found


def _same(shape: tuple[int, ...] | None, sizes: Sequence[int]) -> bool:
    """Tells whether a reshape to ``sizes`` gives back a tensor of a static shape (-1: not known), whatever it holds."""
    if shape is None or len(shape) != len(sizes) or list(sizes).count(-1) > 1:
        return False
    # The size that -1 stands for follows from the others, if none of them is 0.
    return all(size == -1 or (size == known and size > 0) for size, known in zip(sizes, shape, strict=True))
