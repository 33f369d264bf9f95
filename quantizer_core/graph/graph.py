"""A GraphDef that one can ask (producers, consumers, constants) and edit without breaking it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from tensorflow.core.framework import graph_pb2, node_def_pb2
from tensorflow.python.framework import tensor_util

from quantizer_core.errors import GraphError, UnknownNodeError, nearest

NodeDef = node_def_pb2.NodeDef
GraphDef = graph_pb2.GraphDef

#: Ops that hand their first input on unchanged.
IDENTITY_OPS = frozenset({"Identity", "StopGradient", "PreventGradient", "Snapshot"})


class Edge(NamedTuple):
    """One use of a node's output: input number ``index`` of ``consumer`` (-1 for a control edge)."""

    consumer: NodeDef
    index: int
    port: int


def node_of(tensor: str) -> str:
    """Returns the node part of an input string or tensor name: ``^a``, ``a``, ``a:0`` and ``a:1`` all give ``a``."""
    tensor = tensor[1:] if tensor.startswith("^") else tensor
    name, colon, port = tensor.rpartition(":")
    return name if colon and port.isdigit() else tensor


def port_of(tensor: str) -> int:
    """Returns the output number of an input string: 0 for ``a`` and ``a:0``, -1 for the control input ``^a``."""
    if tensor.startswith("^"):
        return -1
    _, colon, port = tensor.rpartition(":")
    return int(port) if colon and port.isdigit() else 0


def canonical(tensor: str) -> str:
    """Returns the spelling that GraphDefs use: ``a:0`` becomes ``a``; control inputs and other ports stay."""
    return tensor[:-2] if tensor.endswith(":0") else tensor


class Graph:
    """A mutable copy of a GraphDef with an index of consumers.

    Only top-level nodes are indexed and edited; the function library, versions and every node that no one touches
    pass through unchanged. Node order is kept, new nodes come last; ``to_graph_def`` sorts topologically where the
    graph is acyclic (TensorFlow 1 while loops are cycles and keep their order).

    Never mutate ``node.input`` directly: use the methods, which keep the index true. Attributes may be mutated.
    """

    def __init__(self, graph_def: GraphDef):
        self._rest = GraphDef()
        if graph_def.HasField("library"):
            self._rest.library.CopyFrom(graph_def.library)
        if graph_def.HasField("versions"):
            self._rest.versions.CopyFrom(graph_def.versions)
        self._nodes: dict[str, NodeDef] = {}
        self._uses: dict[str, dict[str, None]] = defaultdict(dict)  # producer name -> consumer names, in order
        for node in graph_def.node:
            if node.name in self._nodes:
                raise GraphError(f"node name {node.name!r} occurs twice; the GraphDef is damaged")
            copy = NodeDef()
            copy.CopyFrom(node)
            self._nodes[node.name] = copy
        for node in self._nodes.values():
            for tensor in node.input:
                if node_of(tensor) not in self._nodes:
                    raise GraphError(
                        f"node {node.name!r} reads {tensor!r}, which the graph does not hold; the GraphDef is damaged"
                    )
                self._uses[node_of(tensor)][node.name] = None

    # --- asking ---------------------------------------------------------------------------------------------------

    def __contains__(self, name: str) -> bool:
        return name in self._nodes

    def __iter__(self) -> Iterator[NodeDef]:
        """Iterates over a snapshot of the nodes, so that the graph may be edited meanwhile."""
        return iter(list(self._nodes.values()))

    def __len__(self) -> int:
        return len(self._nodes)

    def names(self) -> list[str]:
        return list(self._nodes)

    def node(self, tensor: str) -> NodeDef:
        """Returns the node that a node name, tensor name or input string belongs to.

        Raises:
          UnknownNodeError: if there is none; the message names the nearest.
        """
        name = node_of(tensor)
        try:
            return self._nodes[name]
        except KeyError:
            raise UnknownNodeError(f"the graph holds no node {name!r}{nearest(name, self._nodes)}") from None

    def data_inputs(self, node: NodeDef) -> list[str]:
        """Returns the node's inputs without its control inputs (which GraphDefs put last)."""
        return [tensor for tensor in node.input if not tensor.startswith("^")]

    def control_inputs(self, node: NodeDef) -> list[str]:
        return [tensor for tensor in node.input if tensor.startswith("^")]

    def producer(self, node: NodeDef, index: int) -> NodeDef:
        """Returns the node behind data input ``index``."""
        return self._nodes[node_of(node.input[index])]

    def consumers(self, tensor: str) -> list[Edge]:
        """Returns every use of a node (given ``a``: all ports and control edges) or of one tensor (given ``a:1``).

        A name without a port means the whole node; write ``a:0`` for the first output alone.
        """
        name = node_of(tensor)
        only = port_of(tensor) if tensor != name else None
        edges = []
        for consumer in self._uses.get(name, ()):
            node = self._nodes[consumer]
            for index, source in enumerate(node.input):
                if node_of(source) != name:
                    continue
                port = port_of(source)
                if only is None or port == only:
                    edges.append(Edge(node, -1 if port < 0 else index, port))
        return edges

    def sole_consumer(self, tensor: str) -> NodeDef | None:
        """Returns the only consumer of a node's outputs if exactly one edge (control edges count) leaves it."""
        edges = self.consumers(node_of(tensor))
        return edges[0].consumer if len(edges) == 1 and edges[0].index >= 0 else None

    def constant(self, tensor: str) -> np.ndarray | None:
        """Returns the value of a tensor that is a Const, looking through identities; None if it is not constant."""
        node = self._nodes[node_of(tensor)]
        while node.op in IDENTITY_OPS:
            node = self._nodes[node_of(node.input[0])]
        if node.op != "Const":
            return None
        return tensor_util.MakeNdarray(node.attr["value"].tensor)

    def ancestors(self, tensors: Iterable[str]) -> set[str]:
        """Returns the names of all nodes that the given tensors need, themselves and control inputs included."""
        found: set[str] = set()
        stack = [node_of(tensor) for tensor in tensors]
        while stack:
            name = stack.pop()
            if name in found:
                continue
            found.add(name)
            stack.extend(node_of(tensor) for tensor in self.node(name).input)
        return found

    def topological(self) -> list[NodeDef] | None:
        """Returns the nodes with producers before consumers, ties in graph order; None if the graph has a cycle."""
        missing = {name: len({node_of(t) for t in node.input}) for name, node in self._nodes.items()}
        ready = [name for name, count in missing.items() if count == 0]
        order: list[NodeDef] = []
        position = 0
        while position < len(ready):
            name = ready[position]
            position += 1
            order.append(self._nodes[name])
            for consumer in self._uses.get(name, ()):
                missing[consumer] -= 1
                if missing[consumer] == 0:
                    ready.append(consumer)
        return order if len(order) == len(self._nodes) else None

    # --- editing --------------------------------------------------------------------------------------------------

    def unique_name(self, base: str) -> str:
        """Returns ``base``, or ``base_1``, ``base_2``… if that is taken."""
        if base not in self._nodes:
            return base
        number = 1
        while f"{base}_{number}" in self._nodes:
            number += 1
        return f"{base}_{number}"

    def add(self, node: NodeDef) -> str:
        """Adds a node whose inputs exist and whose name is free; returns its name."""
        if node.name in self._nodes:
            raise GraphError(f"node {node.name!r} exists already")
        for tensor in node.input:
            self.node(tensor)
        copy = NodeDef()
        copy.CopyFrom(node)
        self._nodes[node.name] = copy
        for tensor in node.input:
            self._uses[node_of(tensor)][node.name] = None
        return node.name

    def add_node(self, op: str, name: str, inputs: Sequence[str] = (), device: str = "", **attrs: object) -> str:
        """Adds a node under a unique form of ``name``; attributes are AttrValues or plain Python values.

        Plain values are converted by ``set_attr``. Returns the name that was given.
        """
        node = NodeDef(op=op, name=self.unique_name(name), input=[canonical(t) for t in inputs], device=device)
        for key, value in attrs.items():
            set_attr(node, key, value)
        return self.add(node)

    def add_const(self, name: str, value: np.ndarray, dtype: object | None = None) -> str:
        """Adds a Const under a unique form of ``name``; ``dtype`` (a tf.DType) may ask for qint8 or quint8."""
        from tensorflow.python.framework import dtypes

        array = np.asarray(value)
        kind = dtypes.as_dtype(dtype if dtype is not None else array.dtype)
        node = NodeDef(op="Const", name=self.unique_name(name))
        node.attr["dtype"].type = kind.as_datatype_enum
        if kind.is_quantized:
            proto = node.attr["value"].tensor
            proto.dtype = kind.as_datatype_enum
            for size in array.shape:
                proto.tensor_shape.dim.add().size = size
            plain = {"qint8": np.int8, "quint8": np.uint8, "qint32": np.int32}[kind.name]
            proto.tensor_content = np.ascontiguousarray(array, dtype=plain).tobytes()
        else:
            node.attr["value"].tensor.CopyFrom(tensor_util.make_tensor_proto(array, dtype=kind))
        return self.add(node)

    def set_inputs(self, node: NodeDef | str, inputs: Sequence[str]) -> None:
        """Replaces all inputs of a node (data first, then control)."""
        target = self.node(node if isinstance(node, str) else node.name)
        old = [node_of(t) for t in target.input]
        for tensor in inputs:
            self.node(tensor)
        del target.input[:]
        target.input.extend(canonical(t) for t in inputs)
        for name in old:
            self._uses[name].pop(target.name, None)
        for tensor in inputs:
            self._uses[node_of(tensor)][target.name] = None

    def set_input(self, node: NodeDef | str, index: int, tensor: str) -> None:
        """Replaces one input of a node."""
        target = self.node(node if isinstance(node, str) else node.name)
        inputs = list(target.input)
        inputs[index] = tensor
        self.set_inputs(target, inputs)

    def redirect(
        self, old: str, new: str, where: Callable[[Edge], bool] | None = None, control: bool = True
    ) -> int:
        """Makes the consumers of tensor ``old`` read ``new`` instead; returns how many inputs changed.

        Args:
          old: a tensor (``a``, ``a:0`` or ``a:1``).
          new: the tensor to read instead. ``new``'s own use of ``old`` is kept.
          where: keeps an edge as it is where this returns False.
          control: also turn ``^old`` into ``^new`` (needed if the old node is to be removed).
        """
        changed = 0
        port, skip = port_of(old), node_of(new)
        for edge in self.consumers(node_of(old)):
            if edge.consumer.name == skip or (where is not None and not where(edge)):
                continue
            if edge.index >= 0 and edge.port == port:
                self.set_input(edge.consumer, edge.index, new)
                changed += 1
            elif edge.index < 0 and control:
                control_inputs = ["^" + skip if node_of(t) == node_of(old) else t for t in self.control_inputs(edge.consumer)]
                self.set_inputs(edge.consumer, [*self.data_inputs(edge.consumer), *dict.fromkeys(control_inputs)])
                changed += 1
        return changed

    def replace_node(self, node: NodeDef) -> None:
        """Puts ``node`` in the place of the node of the same name; consumers are not touched."""
        old = self.node(node.name)
        for tensor in node.input:
            self.node(tensor)
        inputs = list(node.input)
        old.CopyFrom(NodeDef(name=node.name, op=node.op, device=node.device, input=old.input))
        for key in node.attr:
            old.attr[key].CopyFrom(node.attr[key])
        self.set_inputs(old, inputs)

    def remove(self, name: str) -> None:
        """Removes a node that no one consumes.

        Raises:
          GraphError: if something still reads it.
        """
        node = self.node(name)
        users = [edge.consumer.name for edge in self.consumers(name) if edge.consumer.name != name]
        if users:
            raise GraphError(f"node {name!r} cannot be removed: {users[0]!r} still reads it")
        for tensor in node.input:
            self._uses[node_of(tensor)].pop(name, None)
        self._uses.pop(name, None)
        del self._nodes[name]

    def prune(self, keep: Iterable[str]) -> list[str]:
        """Removes every node that none of the tensors in ``keep`` needs; returns the removed names."""
        needed = self.ancestors(keep)
        gone = [name for name in self._nodes if name not in needed]
        for name in gone:
            for tensor in self._nodes[name].input:
                self._uses[node_of(tensor)].pop(name, None)
            self._uses.pop(name, None)
        for name in gone:
            del self._nodes[name]
        return gone

    def to_graph_def(self) -> GraphDef:
        """Returns a new GraphDef: topologically sorted if acyclic, else in insertion order; same bytes for same edits."""
        result = GraphDef()
        result.CopyFrom(self._rest)
        result.node.extend(self.topological() or self._nodes.values())
        return result


def set_attr(node: NodeDef, key: str, value: object) -> None:
    """Sets an attribute from a plain value: bool, int, float, str/bytes, tf.DType, tf.TensorShape, AttrValue or lists."""
    from tensorflow.core.framework import attr_value_pb2
    from tensorflow.python.framework import dtypes

    attr = node.attr[key]
    attr.Clear()
    if isinstance(value, attr_value_pb2.AttrValue):
        attr.CopyFrom(value)
    elif isinstance(value, bool):
        attr.b = value
    elif isinstance(value, (int, np.integer)):
        attr.i = int(value)
    elif isinstance(value, float):
        attr.f = value
    elif isinstance(value, (str, bytes)):
        attr.s = value.encode() if isinstance(value, str) else value
    elif isinstance(value, dtypes.DType):
        attr.type = value.as_datatype_enum
    elif isinstance(value, (list, tuple)):
        attr.list.SetInParent()
        for item in value:
            if isinstance(item, bool):
                attr.list.b.append(item)
            elif isinstance(item, (int, np.integer)):
                attr.list.i.append(int(item))
            elif isinstance(item, float):
                attr.list.f.append(item)
            elif isinstance(item, dtypes.DType):
                attr.list.type.append(item.as_datatype_enum)
            else:
                attr.list.s.append(item.encode() if isinstance(item, str) else item)
    else:
        raise TypeError(f"cannot make an attribute of {value!r}")
