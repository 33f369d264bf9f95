"""Node attributes from and to plain Python values, and constants as NumPy arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tensorflow.core.framework.attr_value_pb2 import AttrValue
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow.python.framework import dtypes, op_def_registry, tensor_shape, tensor_util

#: The integers that lie in memory behind TensorFlow's quantised dtypes.
_PLAIN_DTYPES: dict[str, np.dtype] = {
    name: np.dtype(name[1:]) for name in ("qint8", "quint8", "qint16", "quint16", "qint32")
}


def set_attr(node: NodeDef, key: str, value: object) -> None:
    """Sets an attribute from a plain value; an attribute that was there is replaced.

    Args:
      node: is changed.
      key: the attribute's name.
      value: bool, int, float (NumPy's scalars too), str or bytes, tf.DType, tf.TensorShape, NumPy array (a tensor),
        AttrValue (copied), or a list or tuple of one of the first six kinds.

    Raises:
      TypeError: for any other value; the attribute is then left as it was.
    """
    attr = AttrValue()
    if isinstance(value, AttrValue):
        attr.CopyFrom(value)
    elif isinstance(value, np.ndarray):
        attr.tensor.CopyFrom(tensor_util.make_tensor_proto(value))
    elif isinstance(value, (list, tuple)):
        attr.list.SetInParent()
        for item in value:
            field, plain = _plain(item)
            if field == "shape":
                attr.list.shape.add().CopyFrom(plain)
            else:
                getattr(attr.list, field).append(plain)
    else:
        field, plain = _plain(value)
        if field == "shape":
            attr.shape.CopyFrom(plain)
        else:
            setattr(attr, field, plain)
    node.attr[key].CopyFrom(attr)


def _plain(value: object) -> tuple[str, object]:
    """Returns the name of AttrValue's field for a value, and the value as that field takes it."""
    if isinstance(value, (bool, np.bool_)):  # before int: a bool is an int too
        return "b", bool(value)
    if isinstance(value, (int, np.integer)):
        return "i", int(value)
    if isinstance(value, (float, np.floating)):
        return "f", float(value)
    if isinstance(value, (str, bytes)):
        return "s", value.encode() if isinstance(value, str) else value
    if isinstance(value, dtypes.DType):
        return "type", value.as_datatype_enum
    if isinstance(value, tensor_shape.TensorShape):
        return "shape", value.as_proto()
    raise TypeError(f"cannot make an attribute of {value!r}")


def attr_string(node: NodeDef, key: str, default: str = "") -> str:
    """Returns a string attribute (``padding``, ``data_format``…), or the default where it is missing or empty."""
    return node.attr[key].s.decode() if key in node.attr and node.attr[key].s else default


def attr_ints(node: NodeDef, key: str, default: Sequence[int] = ()) -> tuple[int, ...]:
    """Returns a list of integers (``strides``, ``dilations``, ``ksize``…), or the default if missing or empty."""
    values = tuple(int(value) for value in node.attr[key].list.i) if key in node.attr else ()
    return values or tuple(default)


def add_default_attrs(node: NodeDef) -> None:
    """Gives a node the default of every attribute that it leaves out, as ``tf.import_graph_def`` does to its argument.

    A node of an op that TensorFlow does not know is left alone.
    """
    op = op_def_registry.get(node.op)
    for attr in () if op is None else op.attr:
        if attr.HasField("default_value") and node.attr[attr.name].WhichOneof("value") is None:
            node.attr[attr.name].CopyFrom(attr.default_value)


def make_tensor(value: np.ndarray, dtype: dtypes.DType | None = None) -> TensorProto:
    """Returns a TensorProto; ``dtype`` may ask for qint8, quint8 and the like, whose codes ``value`` then holds.

    A tensor of one float32 or one code throughout is written as one, which stands for all of them.

    Raises:
      ValueError: if the codes of a quantised dtype are no whole numbers or do not fit it. They are never wrapped or
        truncated.
    """
    array = np.asarray(value)
    kind = dtypes.as_dtype(array.dtype if dtype is None else dtype)
    shape = tensor_shape.TensorShape(array.shape).as_proto()
    if not kind.is_quantized:
        if kind == dtypes.float32 and array.dtype == np.float32 and _is_uniform(array.view(np.int32)):
            return TensorProto(dtype=kind.as_datatype_enum, tensor_shape=shape, float_val=[array.flat[0]])
        return tensor_util.make_tensor_proto(array, dtype=kind)
    plain = _PLAIN_DTYPES[kind.name]
    limits = np.iinfo(plain)
    fits = array.dtype == plain  # the usual case, and the check costs more than all the rest
    if (
        not fits
        and array.size
        and (array.min() < limits.min or array.max() > limits.max or np.any(array != np.rint(array)))
    ):
        raise ValueError(f"the codes of a {kind.name} tensor must be whole numbers in [{limits.min}, {limits.max}]")
    proto = TensorProto(dtype=kind.as_datatype_enum, tensor_shape=shape)
    codes = array.astype(plain, copy=False)
    if _is_uniform(codes):
        proto.int_val.append(int(codes.flat[0]))
    else:
        proto.tensor_content = codes.tobytes()
    return proto


def _is_uniform(codes: np.ndarray) -> bool:
    """Tells whether an array of integers holds one number several times; most do not, which is seen at once."""
    return codes.size > 1 and codes.flat[0] == codes.flat[-1] and bool(np.all(codes == codes.flat[0]))


def tensor_value(proto: TensorProto) -> np.ndarray:
    """Returns a TensorProto's value; the codes of a quantised dtype come as plain integers."""
    array = tensor_util.MakeNdarray(proto)
    kind = dtypes.as_dtype(proto.dtype)
    return array.view(_PLAIN_DTYPES[kind.name]) if kind.is_quantized else array


def make_const(name: str, value: np.ndarray, dtype: dtypes.DType | None = None) -> NodeDef:
    """Returns a Const node; arguments and errors as ``make_tensor``."""
    proto = make_tensor(value, dtype)
    node = NodeDef(op="Const", name=name)
    node.attr["dtype"].type = proto.dtype
    node.attr["value"].tensor.CopyFrom(proto)
    return node
