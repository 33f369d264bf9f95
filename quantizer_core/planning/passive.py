"""Which ops carry integers through: pools, means and concatenations with INT8 kernels, and ops that only move data."""

from __future__ import annotations

import math

from quantizer_core.graph.graph import Graph, NodeDef, canonical
from quantizer_core.lowering.safe import MOST_TAPS

POOL_OPS = frozenset({"MaxPool", "AvgPool"})
MEAN_OPS = frozenset({"Mean"})
AVERAGE_OPS = MEAN_OPS | {"AvgPool"}
CONCAT_OPS = frozenset({"ConcatV2"})
#: Ops that move data and have kernels for quint8 and qint8 themselves.
QUANTIZED_MOVES = frozenset({"Reshape", "Squeeze", "ExpandDims", "Identity", "StridedSlice", "Slice"})
#: Ops that move data and have kernels for uint8 and int8: the codes are handed through a Bitcast, which copies nothing.
#: (Pad has one for quint8 too, which takes sixteen times as long. That of MirrorPad takes four times as long for codes
#: as for floats, and ReverseV2's no less: they stay FP32.)
PLAIN_MOVES = frozenset(
    {
        "Pad", "Transpose", "GatherV2", "Tile", "SpaceToBatchND", "BatchToSpaceND", "SpaceToDepth", "DepthToSpace",
        "ResizeNearestNeighbor",
    }
)  # fmt: skip
MOVE_OPS = QUANTIZED_MOVES | PLAIN_MOVES
PASSIVE_OPS = POOL_OPS | MEAN_OPS | CONCAT_OPS | MOVE_OPS


def sources(graph: Graph, node: NodeDef) -> list[str]:
    """Returns the tensors that a passive op hands on."""
    inputs = graph.data_inputs(node)
    return [canonical(t) for t in (inputs[:-1] if node.op in CONCAT_OPS else inputs[:1])]


def pool_refusal(node: NodeDef) -> str:
    """Returns why a pool cannot run in INT8 whatever it reads, or ""."""
    if node.attr["data_format"].s not in (b"", b"NHWC"):
        return "data_format NCHW: the INT8 kernels take NHWC"
    if node.attr["padding"].s not in (b"SAME", b"VALID"):
        return "explicit padding: the INT8 kernel takes SAME or VALID"
    ksize = list(node.attr["ksize"].list.i)
    if len(ksize) != 4 or ksize[0] != 1 or ksize[3] != 1:
        return "it pools over batch or channels"
    return ""


def averages_places(graph: Graph, node: NodeDef) -> bool:
    """Tells whether a Mean is one over the height and width of an NHWC tensor, if what it reads has four axes."""
    axes = graph.constant(node.input[1])
    return axes is not None and sorted(int(axis) % 4 for axis in axes.reshape(-1)) == [1, 2]


def window(graph: Graph, node: NodeDef, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """Returns the window of a Mean or AvgPool that a depthwise convolution of equal weights computes.

    Args:
      node: a Mean, or an AvgPool that ``pool_refusal`` lets through.
      shape: static shape of what it reads.

    Returns:
      Height, width and channels; () if they are not known, the window is too large for the kernel, or it is cut at the
      edges, where a mean has fewer parts.
    """
    if shape is None or len(shape) != 4:
        return ()
    if node.op in MEAN_OPS:
        size = list(shape[1:3]) if averages_places(graph, node) else []
    else:
        strides = node.attr["strides"].list.i
        whole = node.attr["padding"].s == b"VALID" and strides[1] == strides[2]
        size = list(node.attr["ksize"].list.i[1:3]) if whole else []
    if not size or min(*size, shape[3]) < 1 or math.prod(size) > MOST_TAPS:
        return ()
    return (*size, shape[3])


def concat_refusal(graph: Graph, node: NodeDef) -> str:
    """Returns why a concatenation cannot run in INT8 whatever it reads, or ""."""
    axis = graph.constant(graph.data_inputs(node)[-1])
    return "" if axis is not None and axis.ndim == 0 else "its axis is not a constant"
