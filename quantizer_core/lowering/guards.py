"""Keeps tensors without values from oneDNN's Dequantize, which ends the process on them.

No other kernel that lowering emits does: convolutions hand on a tensor without values, of the input's shape, and pools,
concatenations, matrix products and QuantizeV2 make one of the right shape.
"""

from __future__ import annotations

import tensorflow as tf

from quantizer_core.graph.graph import Graph


def not_empty(graph: Graph, tensor: str, dtype: tf.DType, one: str, name: str) -> str:
    """Returns a tensor that is ``tensor``, not copied, where it holds values; where it holds none the step fails.

    It is reshaped to its own shape with every size at least 1, which TensorFlow refuses for no values
    (InvalidArgumentError). Where all sizes are known beforehand its optimiser takes the two small nodes away.

    Args:
      graph: gets the nodes.
      tensor: any tensor.
      dtype: its dtype.
      one: a Const, int32, with 1, in the tensor's loop.
      name: what the nodes' names begin with.
    """
    shape = graph.add_node("Shape", f"{name}/shape", [tensor], T=dtype, out_type=tf.int32)
    filled = graph.add_node("Maximum", f"{name}/filled", [shape, one], T=tf.int32)
    return graph.add_node("Reshape", f"{name}/not_empty", [tensor, filled], T=dtype, Tshape=tf.int32)
