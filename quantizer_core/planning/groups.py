"""Finds the groups of FP32 nodes that one INT8 kernel computes: convolution or MatMul, bias, sum, Relu."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping

import numpy as np

from quantizer_core.graph.control_flow import sporadic_nodes
from quantizer_core.graph.graph import Graph, NodeDef, canonical, node_of
from quantizer_core.lowering.safe import MOST_TAPS
from quantizer_core.rewrites.mkl_fuse_pad_and_conv import padding_before

ANCHOR_OPS = frozenset({"Conv2D", "DepthwiseConv2dNative", "MatMul"})
ADD_OPS = frozenset({"Add", "AddV2", "AddN"})
RELU_OPS = frozenset({"Relu", "Relu6"})


@dataclasses.dataclass(frozen=True)
class Residual:
    """A sum with Relu after it that a convolution may take in.

    Attributes:
      add: name of the Add node.
      relu: name of the Relu or Relu6 node that alone reads it.
      summand: the other tensor that is added.
    """

    add: str
    relu: str
    summand: str


@dataclasses.dataclass(frozen=True)
class Group:
    """An anchor (Conv2D, DepthwiseConv2dNative or MatMul over a constant filter) and what follows it.

    Attributes:
      anchor: name of the anchor node.
      op: its op type.
      source: the tensor it reads.
      filter: the tensor with its weights.
      bias: name of the BiasAdd that alone reads it, or "".
      relu: name of the Relu or Relu6 that alone reads the biased result, or "".
      pad: name of the Pad before the anchor that its kernel takes over, or ""; ``source`` is then the Pad's input.
      padding: the eight widths of that Pad, in the order of ``explicit_paddings``.
      residual: the sum and Relu that follow the biased result instead of a plain Relu, or None.
    """

    anchor: str
    op: str
    source: str
    filter: str
    bias: str = ""
    relu: str = ""
    pad: str = ""
    padding: tuple[int, ...] = ()
    residual: Residual | None = None

    @property
    def stem(self) -> str:
        """The biased result, before any sum or Relu."""
        return self.bias or self.anchor

    @property
    def output(self) -> str:
        """The result where no sum is fused."""
        return self.relu or self.stem


def is_product(graph: Graph, group: Group) -> bool:
    """Tells whether a convolution is a matrix product of its positions: 1×1, nothing skipped, nothing padded.

    Where floats alone read its result, the kernel for matrix products gives them unrounded, as fast.
    """
    anchor = graph.node(group.anchor)
    shape = graph.constant_shape(anchor.input[1]) or ()
    return (
        group.op == "Conv2D"
        and tuple(shape[:2]) == (1, 1)
        and set(anchor.attr["strides"].list.i) == {1}
        and anchor.attr["padding"].s in (b"SAME", b"VALID")
        and not group.padding
    )


class Matcher:
    """Matches groups in one prepared graph."""

    def __init__(self, graph: Graph, outputs: Collection[str], excluded: Collection[str]):
        """``excluded`` holds the names of nodes that must stay FP32 exactly."""
        self._graph = graph
        self.outputs = frozenset(outputs)
        self.excluded = frozenset(excluded)
        self.sporadic = graph.remembered(sporadic_nodes)

    def refusal(self, node: NodeDef) -> str:
        """Returns why an anchor cannot run in INT8, or "" if it can."""
        graph = self._graph
        if node.name in self.excluded:
            return "excluded by the configuration"
        if node.attr["T"].type != 1:
            return "not float32"
        weights = graph.constant(node.input[1])
        if weights is None:
            return "its weights are not a constant"
        if not np.all(np.isfinite(weights)):
            return "its weights hold NaN or infinity"
        if node.op == "MatMul":
            return "its first operand is transposed" if node.attr["transpose_a"].b else ""
        if node.attr["data_format"].s not in (b"", b"NHWC"):
            return "data_format NCHW: the INT8 kernels take NHWC"
        if node.op == "DepthwiseConv2dNative" and weights.shape[3] != 1:
            return "depth multiplier above 1: the INT8 kernel takes 1"
        if node.op == "DepthwiseConv2dNative" and math.prod(weights.shape[:2]) > MOST_TAPS:
            size = "×".join(map(str, weights.shape[:2]))
            return f"a depthwise filter of {size}: the INT8 kernel is safe up to {MOST_TAPS} taps"
        return ""

    def group(self, node: NodeDef) -> Group:
        """Returns the group of an anchor that ``refusal`` lets through."""
        graph = self._graph
        result = Group(node.name, node.op, canonical(node.input[0]), canonical(node.input[1]))
        padding = padding_before(graph, node) if node.op != "MatMul" else None
        if padding is not None and node_of(node.input[0]) not in self.excluded:
            pad = graph.producer(node, 0)
            source = canonical(pad.input[0])
            result = dataclasses.replace(result, source=source, pad=pad.name, padding=tuple(padding))
        after = self._next(node.name)
        if after is not None and after.op == "BiasAdd" and node_of(after.input[0]) == node.name:
            bias = graph.constant(after.input[1])
            if bias is not None and after.attr["data_format"].s in (b"", b"NHWC"):
                result = dataclasses.replace(result, bias=after.name)
                after = self._next(after.name)
        if after is None:
            return result
        if after.op in RELU_OPS:
            return dataclasses.replace(result, relu=after.name)
        if after.op in ADD_OPS and node.op != "MatMul" and node.name not in self.sporadic:
            operands = [canonical(tensor) for tensor in graph.data_inputs(after)]
            relu = self._next(after.name)
            if len(operands) == 2 and operands[0] != operands[1] and relu is not None and relu.op in RELU_OPS:
                other = operands[1] if node_of(operands[0]) == result.stem else operands[0]
                return dataclasses.replace(result, residual=Residual(after.name, relu.name, other))
        return result

    def _next(self, name: str) -> NodeDef | None:
        """Returns the node that alone reads this one, if the two may be fused."""
        if name in self.outputs:
            return None
        after = self._graph.sole_consumer(name)
        if after is None or after.name in self.excluded or self._graph.control_inputs(after):
            return None
        return after


def find_groups(graph: Graph, matcher: Matcher) -> tuple[dict[str, Group], dict[str, str]]:
    """Returns the groups by anchor name, and for each anchor that makes none the reason.

    A sum of two convolutions is offered to one of them only.
    """
    groups: dict[str, Group] = {}
    refused: dict[str, str] = {}
    claimed: set[str] = set()
    for node in graph:
        if node.op not in ANCHOR_OPS:
            continue
        reason = matcher.refusal(node)
        if reason:
            refused[node.name] = reason
            continue
        group = matcher.group(node)
        residual = group.residual
        if residual is not None and residual.add in claimed:
            group = dataclasses.replace(group, residual=None)
        elif residual is not None:
            claimed.add(residual.add)
        groups[node.name] = group
    return groups, refused


def ordered(graph: Graph, groups: Mapping[str, Group]) -> list[NodeDef]:
    """Returns the nodes, producers before consumers, and every summand before the convolution that may take it in.

    Both hold at once because all that comes between such a convolution and its Add is read by nothing else: a depth
    first walk from the sinks that enters an Add by its summand meets the convolution only afterwards. What comes after
    a while loop comes after its whole body; inside, the body's nodes come before the Merge that they are fed back to.
    """
    residuals = [group.residual for group in groups.values() if group.residual is not None]
    first = {residual.add: node_of(residual.summand) for residual in residuals}
    nodes = {node.name: node for node in graph}
    done: set[str] = set()
    begun: set[str] = set()
    result: list[NodeDef] = []
    sinks = [name for name in nodes if not graph.consumers(name)]
    for root in [*sinks, *nodes]:
        stack = [root]
        while stack:
            name = stack[-1]
            if name in done or name in begun:
                stack.pop()
                if name not in done:
                    done.add(name)
                    result.append(nodes[name])
                continue
            begun.add(name)
            needed = dict.fromkeys(node_of(tensor) for tensor in nodes[name].input)
            if name in first:
                needed = dict.fromkeys([first[name], *needed])
            stack.extend(n for n in reversed(needed) if n not in begun)
    return result
