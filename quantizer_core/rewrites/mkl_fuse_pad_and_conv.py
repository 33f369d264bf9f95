"""Let a convolution pad its input itself, so that no padded copy is made (and quantised)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quantizer_core.graph.attrs import attr_string
from quantizer_core.graph.graph import Graph, NodeDef, set_attr
from quantizer_core.rewrites.ops import is_float32


def mkl_fuse_pad_and_conv(graph: Graph, inputs: Sequence[str], outputs: Sequence[str]) -> list[str]:
    """Turns ``Conv2D(Pad(x), padding=VALID)`` into ``Conv2D(x, padding=EXPLICIT)`` with ``explicit_paddings``.

    Every convolution that reads a Pad takes it over; the Pad goes away with its last reader. A Pad before a
    DepthwiseConv2dNative stays: TensorFlow 2.16 accepts EXPLICIT there, but aborts the process once it fuses the
    convolution with a BiasAdd. Lowering can take it over, see ``padding_before``.

    Returns:
      The names of the convolutions.
    """
    changed = []
    for node in graph:
        if node.op != "Conv2D":
            continue
        padding = padding_before(graph, node)
        if padding is None:
            continue
        graph.set_input(node, 0, graph.producer(node, 0).input[0])
        if any(padding):
            set_attr(node, "padding", "EXPLICIT")
            set_attr(node, "explicit_paddings", padding)
        changed.append(node.name)
    if changed:
        graph.prune([*inputs, *outputs])
    return changed


def padding_before(graph: Graph, node: NodeDef) -> list[int] | None:
    """Returns the padding that a VALID Conv2D or DepthwiseConv2dNative could do itself in place of the Pad before it.

    Eight numbers in the order of ``explicit_paddings`` and ``padding_list`` (before and after, for each axis of the
    node's data format), or None: no Pad with constant zeros and non-negative constant widths over height and width
    alone, another padding than VALID, or another dtype than float32.
    """
    if not is_float32(node) or attr_string(node, "padding") != "VALID":
        return None
    pad = graph.producer(node, 0)
    if pad.op not in ("Pad", "PadV2") or pad.name in graph.protected or graph.control_inputs(pad):
        return None
    if pad.op == "PadV2":
        value = graph.constant(pad.input[2])
        if value is None or np.any(value != 0):
            return None
    if graph.constant_shape(pad.input[1]) != (4, 2):
        return None
    widths = np.asarray(graph.constant(pad.input[1]))
    channel = 1 if attr_string(node, "data_format", "NHWC") == "NCHW" else 3
    if np.any(widths < 0) or np.any(widths[[0, channel]]):
        return None
    return [int(width) for width in widths.reshape(-1)]
