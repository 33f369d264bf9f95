"""Which ops carry integers through: pools and concatenations with INT8 kernels, and ops that only move data."""

from __future__ import annotations

from quantizer_core.graph.graph import Graph, NodeDef, canonical

POOL_OPS = frozenset({"MaxPool", "AvgPool"})
CONCAT_OPS = frozenset({"ConcatV2"})
#: Ops that move data and have kernels for quint8 and qint8 themselves.
QUANTIZED_MOVES = frozenset({"Reshape", "Squeeze", "ExpandDims", "Identity", "StridedSlice", "Slice"})
#: Ops that move data and have kernels for uint8 and int8: the codes are handed through a Bitcast, which copies nothing.
#: (Pad has one for quint8 too, which takes sixteen times as long.)
PLAIN_MOVES = frozenset({"Pad", "Transpose", "GatherV2", "Tile", "SpaceToBatchND", "BatchToSpaceND"})
MOVE_OPS = QUANTIZED_MOVES | PLAIN_MOVES
PASSIVE_OPS = POOL_OPS | CONCAT_OPS | MOVE_OPS


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


def concat_refusal(graph: Graph, node: NodeDef) -> str:
    """Returns why a concatenation cannot run in INT8 whatever it reads, or ""."""
    axis = graph.constant(graph.data_inputs(node)[-1])
    return "" if axis is not None and axis.ndim == 0 else "its axis is not a constant"
