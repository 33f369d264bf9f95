"""Static shapes and dtypes of every tensor of a GraphDef, from one import into TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import tensorflow as tf
from tensorflow.core.framework import graph_pb2

from quantizer_core.errors import GraphError, UnknownNodeError, nearest
from quantizer_core.graph.names import node_of

#: Constants of these dtypes never decide a shape; large ones need not be copied into TensorFlow to know it.
_OPAQUE_DTYPES = frozenset(
    kind.as_datatype_enum
    for kind in (tf.float16, tf.bfloat16, tf.float32, tf.float64, tf.qint8, tf.quint8, tf.qint32, tf.int8, tf.uint8)
)
_LARGE = 1024  # bytes


class TensorInfo(NamedTuple):
    """What is known of a tensor without running the graph.

    ``dtype`` is a dtype name (``float32``, ``quint8``, ``string``…; references lose their ``_ref``); ``shape`` is None
    where the rank is unknown, and -1 stands for an unknown dimension.
    """

    dtype: str
    shape: tuple[int, ...] | None


def shape_tuple(shape: tf.TensorShape) -> tuple[int, ...] | None:
    """Returns a TensorShape as a tuple with -1 for an unknown dimension, or None for an unknown rank."""
    if shape.rank is None:
        return None
    return tuple(-1 if size is None else int(size) for size in shape.as_list())


def tensor_info(
    graph_def: graph_pb2.GraphDef,
    feeds_shapes: Mapping[str, Sequence[int | None] | None] | None = None,
) -> dict[str, TensorInfo]:
    """Returns dtype and static shape of every tensor, keyed in GraphDef spelling (``a`` for ``a:0``, ``a:1``).

    Args:
      graph_def: a valid graph; it is not changed.
      feeds_shapes: node name → shape to assume for its first output (-1 or None for an unknown dimension, None for an
        unknown rank). The nodes may be placeholders or anything else that is to be fed.

    Raises:
      UnknownNodeError: if ``feeds_shapes`` names a node that the graph does not hold.
      GraphError: if TensorFlow refuses the graph (an unknown op or attribute, shapes that contradict each other).
    """
    feeds = {node_of(name): shape for name, shape in (feeds_shapes or {}).items()}
    known = {node.name for node in graph_def.node}
    for name in feeds:
        if name not in known:
            raise UnknownNodeError(f"the graph holds no node {name!r}{nearest(name, known)}")
    light = _without_large_constants(graph_def)
    graph = tf.Graph()
    with graph.as_default():
        try:
            if feeds:
                for node in light.node:
                    node.attr.pop("_output_shapes", None)  # they are those of other feeds
                # Each feed becomes a placeholder of its own.
                dtypes = _dtypes(graph_def, feeds)
                stand_ins = {
                    f"{name}:0": tf.compat.v1.placeholder(dtypes[name], _static(shape), name=f"feed_{number}")
                    for number, (name, shape) in enumerate(feeds.items())
                }
                tf.import_graph_def(light, input_map=stand_ins, name="graph")
            else:
                tf.import_graph_def(light, name="")
        except (ValueError, tf.errors.OpError) as error:
            raise GraphError(f"TensorFlow {tf.__version__} cannot import the graph: {error}") from None
    prefix = "graph/" if feeds else ""
    found: dict[str, TensorInfo] = {}
    for operation in graph.get_operations():
        if not operation.name.startswith(prefix):
            continue
        name = operation.name[len(prefix) :]
        for port, tensor in enumerate(operation.outputs):
            info = TensorInfo(tensor.dtype.base_dtype.name, shape_tuple(tensor.shape))
            if port == 0 and name in feeds:
                info = TensorInfo(info.dtype, shape_tuple(_static(feeds[name])))
            found[name if port == 0 else f"{name}:{port}"] = info
    return found


def _dtypes(graph_def: graph_pb2.GraphDef, names: Collection[str]) -> dict[str, str]:
    """Returns the dtypes of the first outputs of some nodes; of other than placeholders, an import tells them."""
    fed = [node for node in graph_def.node if node.name in names]
    if all(node.op == "Placeholder" for node in fed):
        return {node.name: tf.as_dtype(node.attr["dtype"].type).base_dtype.name for node in fed}
    return {name: info.dtype for name, info in tensor_info(graph_def).items() if name in names}


def infer_shapes(
    graph_def: graph_pb2.GraphDef,
    feeds_shapes: Mapping[str, Sequence[int | None] | None] | None = None,
) -> dict[str, tuple[int, ...] | None]:
    """Returns the static shape of every tensor; arguments, keys and errors as ``tensor_info``."""
    return {name: info.shape for name, info in tensor_info(graph_def, feeds_shapes).items()}


def lazy_shapes(graph_def: Callable[[], graph_pb2.GraphDef]) -> Callable[[str], tuple[int, ...] | None]:
    """Returns a function from tensor to static shape, which infers shapes when it is first asked for one.

    Args:
      graph_def: gives the graph then, or the part of it (``Graph.part``) that will be asked for.
    """
    known: dict[str, tuple[int, ...] | None] = {}

    def shape(tensor: str) -> tuple[int, ...] | None:
        if not known:
            known.update(infer_shapes(graph_def()))
        return known.get(tensor)

    return shape


def infer_dtypes(graph_def: graph_pb2.GraphDef) -> dict[str, str]:
    """Returns the dtype name of every tensor; keys and errors as ``tensor_info``."""
    return {name: info.dtype for name, info in tensor_info(graph_def).items()}


def _static(shape: Sequence[int | None] | None) -> tf.TensorShape:
    if shape is None:
        return tf.TensorShape(None)
    return tf.TensorShape([None if size is None or size < 0 else size for size in shape])


def _without_large_constants(graph_def: graph_pb2.GraphDef) -> graph_pb2.GraphDef:
    """Returns a copy in which large constants that no shape can depend on are placeholders of the same shape."""
    light = graph_pb2.GraphDef()
    light.library.CopyFrom(graph_def.library)
    light.versions.CopyFrom(graph_def.versions)
    for node in graph_def.node:
        value = node.attr["value"].tensor if node.op == "Const" and "value" in node.attr else None
        if value is None or value.dtype not in _OPAQUE_DTYPES or value.ByteSize() <= _LARGE:
            light.node.add().CopyFrom(node)
            continue
        stand_in = light.node.add(name=node.name, op="Placeholder", device=node.device, input=node.input)
        stand_in.attr["dtype"].type = value.dtype
        stand_in.attr["shape"].shape.CopyFrom(value.tensor_shape)
    return light
