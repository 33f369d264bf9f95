"""A GraphDef that one can ask (producers, consumers, constants) and edit without breaking it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from tensorflow.core.framework.function_pb2 import FunctionDef, FunctionDefLibrary
from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.core.framework.node_def_pb2 import NodeDef

from quantizer_core.errors import GraphError, UnknownNodeError, nearest
from quantizer_core.graph.attrs import make_const, set_attr, tensor_value
from quantizer_core.graph.names import canonical, node_of, port_of

__all__ = ["IDENTITY_OPS", "Edge", "Graph", "GraphDef", "NodeDef", "canonical", "node_of", "port_of", "set_attr"]

#: Ops that hand their first input on unchanged.
IDENTITY_OPS = frozenset({"Identity", "StopGradient", "PreventGradient", "Snapshot"})

_Answer = TypeVar("_Answer")

_NEXT_ITERATION_OPS = frozenset({"NextIteration", "RefNextIteration"})
_MERGE_OPS = frozenset({"Merge", "RefMerge"})


class Edge(NamedTuple):
    """One use of a node's output: input number ``index`` of ``consumer`` (-1 for a control edge)."""

    consumer: NodeDef
    index: int  # type: ignore[assignment]  # hides tuple.index, which no one needs here
    port: int


class Graph:
    """A mutable copy of a GraphDef with an index of consumers.

    Only top-level nodes are indexed and edited; the function library, versions and every node that no one touches
    pass through unchanged. ``to_graph_def`` keeps the order of a graph that is sorted already and puts each new node
    right before its first consumer.

    Never mutate ``node.input`` or ``node.name`` directly: use the methods, which keep the index true. Attributes and
    devices may be mutated.

    Args:
      graph_def: any graph.
      copy: False for a graph that is only asked: it shares the GraphDef's nodes, and editing raises ``TypeError``.

    Attributes:
      protected: names of nodes that no rewrite rule may fold into a kernel, let a kernel take over or write as another
        op that has a kernel. (Constants are folded, and what does nothing in inference goes, all the same.)

    Raises:
      GraphError: if a name occurs twice, or a node reads one that the graph does not hold.
    """

    def __init__(self, graph_def: GraphDef, copy: bool = True):
        self.protected: frozenset[str] = frozenset()
        self._rest = GraphDef()
        for field, value in graph_def.ListFields():
            if field.name == "node":
                continue
            if field.type == field.TYPE_MESSAGE:
                getattr(self._rest, field.name).CopyFrom(value)
            else:
                setattr(self._rest, field.name, value)
        self._nodes: dict[str, NodeDef] = {}
        self._uses: dict[str, dict[str, None]] = defaultdict(dict)  # producer name -> consumer names, in order
        self._numbers: dict[str, int] = {}  # base name -> last number that unique_name tried
        self._answers: dict[Callable[[Graph], Any], Any] = {}  # to questions asked since the last edit
        self._editable = copy
        for node in graph_def.node:
            if node.name in self._nodes:
                raise GraphError(f"node name {node.name!r} occurs twice; the GraphDef is damaged")
            own = node
            if copy:
                own = NodeDef()
                own.CopyFrom(node)
            self._nodes[node.name] = own
        for name, node in self._nodes.items():
            for tensor in node.input:
                producer = node_of(tensor)
                if producer not in self._nodes:
                    raise GraphError(
                        f"node {name!r} reads {tensor!r}, which the graph does not hold; the GraphDef is damaged"
                    )
                self._uses[producer][name] = None

    # --- asking ---------------------------------------------------------------------------------------------------

    def __contains__(self, name: str) -> bool:
        return name in self._nodes

    def __iter__(self) -> Iterator[NodeDef]:
        """Iterates over a snapshot of the nodes, so that the graph may be edited meanwhile."""
        return iter(list(self._nodes.values()))

    def __len__(self) -> int:
        return len(self._nodes)

    @property
    def library(self) -> FunctionDefLibrary:
        """The function library; it changes through ``add_function`` alone."""
        return self._rest.library

    def names(self) -> list[str]:
        """Returns the names of all nodes: those of the GraphDef in its order, then new ones as they were added."""
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
        """Returns the node's control inputs, each spelled ``^name``."""
        return [tensor for tensor in node.input if tensor.startswith("^")]

    def producer(self, node: NodeDef, index: int) -> NodeDef:
        """Returns the node behind input ``index``."""
        return self._nodes[node_of(node.input[index])]

    def consumers(self, tensor: str) -> list[Edge]:
        """Returns every use of a node (given ``a``: all ports and control edges) or of one tensor (given ``a:1``).

        A name without a port means the whole node; write ``a:0`` for the first output alone and ``^a`` for the
        control edges alone. A consumer that reads the tensor several times gives as many edges. A name that the graph
        does not hold has no consumers.
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
        """Returns the value of a tensor that is a Const, looking through identities; None if it is not constant.

        The codes of a quantised dtype come as plain integers. The array is the caller's own.
        """
        node = self.node(tensor)
        while node.op in IDENTITY_OPS:
            node = self.node(node.input[0])
        return tensor_value(node.attr["value"].tensor) if node.op == "Const" else None

    def constant_shape(self, tensor: str) -> tuple[int, ...] | None:
        """Returns the shape of ``constant``'s value without copying it; None if the tensor is not constant."""
        node = self.node(tensor)
        while node.op in IDENTITY_OPS:
            node = self.node(node.input[0])
        if node.op != "Const":
            return None
        return tuple(int(dim.size) for dim in node.attr["value"].tensor.tensor_shape.dim)

    def ancestors(self, tensors: Iterable[str], stop: Iterable[str] = ()) -> set[str]:
        """Returns the names of all nodes that the given tensors need, themselves and control inputs included.

        Nodes named in ``stop`` (fed inputs, for example) are included, but not what they need.
        """
        ends = {node_of(tensor) for tensor in stop}
        found: set[str] = set()
        stack = [node_of(tensor) for tensor in tensors]
        while stack:
            name = stack.pop()
            if name in found:
                continue
            node = self.node(name)
            found.add(name)
            if name not in ends:
                stack.extend(node_of(tensor) for tensor in node.input)
        return found

    def remembered(self, question: Callable[[Graph], _Answer]) -> _Answer:
        """Returns ``question(self)``, which is asked once between two edits; the answer must not be mutated.

        The question may look at nodes, edges and op types, not at attributes that callers change.
        """
        if question not in self._answers:
            self._answers[question] = question(self)
        return self._answers[question]

    def topological(self) -> list[NodeDef] | None:
        """Returns the nodes with producers before consumers; None if the graph has a cycle.

        The order is stable: a graph that is sorted stays as it is, and otherwise a node comes right before its first
        consumer. The edge that closes a TensorFlow 1 while loop (NextIteration to Merge) does not count, so loops
        have an order too.
        """
        done: set[str] = set()
        entered: set[str] = set()
        order: list[NodeDef] = []
        for start, node in self._nodes.items():
            if start in done:
                continue
            entered.add(start)
            stack = [(node, iter(self._needs(node)))]
            while stack:
                node, needs = stack[-1]
                for name in needs:
                    if name in done:
                        continue
                    if name in entered:
                        return None
                    entered.add(name)
                    producer = self._nodes[name]
                    stack.append((producer, iter(self._needs(producer))))
                    break
                else:
                    stack.pop()
                    done.add(node.name)
                    order.append(node)
        return order

    def _needs(self, node: NodeDef) -> list[str]:
        names = [node_of(tensor) for tensor in node.input]
        if node.op in _MERGE_OPS:
            return [name for name in names if self._nodes[name].op not in _NEXT_ITERATION_OPS]
        return names

    # --- editing --------------------------------------------------------------------------------------------------

    def unique_name(self, base: str) -> str:
        """Returns ``base``, or ``base_1``, ``base_2``… if that is taken."""
        if base not in self._nodes:
            return base
        number = self._numbers.get(base, 0) + 1
        while f"{base}_{number}" in self._nodes:
            number += 1
        self._numbers[base] = number - 1  # all below are taken
        return f"{base}_{number}"

    def add(self, node: NodeDef) -> str:
        """Adds a copy of a node whose inputs exist and whose name is free; returns its name.

        Raises:
          GraphError: if the name is taken.
          UnknownNodeError: if an input does not exist.
        """
        if node.name in self._nodes:
            raise GraphError(f"node {node.name!r} exists already")
        self._edit()
        inputs = self._checked(node.input)
        copy = NodeDef()
        copy.CopyFrom(node)
        del copy.input[:]
        self._nodes[node.name] = copy
        self._put_inputs(copy, inputs)
        return node.name

    def add_node(self, op: str, name: str, inputs: Sequence[str] = (), device: str = "", **attrs: object) -> str:
        """Adds a node under a unique form of ``name``; attributes are AttrValues or plain Python values.

        Plain values are converted by ``set_attr``. Returns the name that was given.
        """
        node = NodeDef(op=op, name=self.unique_name(name), input=inputs, device=device)
        for key, value in attrs.items():
            set_attr(node, key, value)
        return self.add(node)

    def add_const(self, name: str, value: np.ndarray, dtype: object | None = None) -> str:
        """Adds a Const under a unique form of ``name``; ``dtype`` (a tf.DType) may ask for qint8 or quint8.

        Raises:
          ValueError: if the codes of a quantised dtype are no whole numbers or do not fit it.
        """
        return self.add(make_const(self.unique_name(name), value, dtype))

    def add_function(self, function: FunctionDef) -> None:
        """Adds a copy of a function to the library, unless one of its name is there."""
        if all(known.signature.name != function.signature.name for known in self._rest.library.function):
            self._rest.library.function.add().CopyFrom(function)

    def set_inputs(self, node: NodeDef | str, inputs: Sequence[str]) -> None:
        """Replaces all inputs of a node; control inputs are put last, as GraphDefs want it, and each is kept once."""
        target = self.node(node if isinstance(node, str) else node.name)
        self._put_inputs(target, self._checked(inputs))

    def protect_as(self, name: str, other: str) -> None:
        """Protects a node that takes a protected one's part under another name."""
        if name in self.protected:
            self.protected |= {other}

    def set_input(self, node: NodeDef | str, index: int, tensor: str) -> None:
        """Replaces one input of a node.

        Raises:
          IndexError: if the node has no input of that number (a control edge's -1 is none).
        """
        target = self.node(node if isinstance(node, str) else node.name)
        if not 0 <= index < len(target.input):
            raise IndexError(f"node {target.name!r} has {len(target.input)} inputs, no number {index}")
        inputs = list(target.input)
        inputs[index] = tensor
        self.set_inputs(target, inputs)

    def add_control_inputs(self, node: NodeDef | str, names: Iterable[str]) -> None:
        """Makes a node wait for others (``a`` or ``^a``) besides those that it waits for already."""
        target = self.node(node if isinstance(node, str) else node.name)
        self.set_inputs(target, [*target.input, *(f"^{node_of(name)}" for name in names)])

    def redirect(self, old: str, new: str, where: Callable[[Edge], bool] | None = None, control: bool = True) -> int:
        """Makes the consumers of tensor ``old`` read ``new`` instead; returns how many inputs changed.

        Args:
          old: a tensor (``a``, ``a:0`` or ``a:1``).
          new: the tensor to read instead. ``new``'s own use of ``old`` is kept.
          where: keeps an edge as it is where this returns False.
          control: also turn ``^old`` into ``^new`` (needed if the old node is to be removed).

        Raises:
          UnknownNodeError: if the graph does not hold ``old`` or ``new``; nothing is changed then.
        """
        self.node(old)
        self.node(new)
        changed = 0
        port, source, target = port_of(old), node_of(old), node_of(new)
        for name in list(self._uses.get(source, ())):
            if name == target:
                continue
            consumer = self._nodes[name]
            inputs = list(consumer.input)
            for index, tensor in enumerate(inputs):
                if node_of(tensor) != source:
                    continue
                at = port_of(tensor)
                wanted = at == port or (at < 0 and control and target != source)
                if not wanted or (where is not None and not where(Edge(consumer, -1 if at < 0 else index, at))):
                    continue
                inputs[index] = f"^{target}" if at < 0 else new
                changed += 1
            self._put_inputs(consumer, inputs)
        return changed

    def insert_after(
        self, tensor: str, op: str, name: str, where: Callable[[Edge], bool] | None = None, **attrs: object
    ) -> str:
        """Splices a node into a tensor: it reads ``tensor``, and the tensor's consumers read it; returns its name.

        Control edges stay on the old node. ``where`` keeps an edge as it is where it returns False.
        """
        added = self.add_node(op, name, [tensor], device="", **attrs)
        self.redirect(tensor, added, where, control=False)
        return added

    def insert_before(self, node: NodeDef | str, index: int, op: str, name: str, **attrs: object) -> str:
        """Splices a node into one edge: it reads what input ``index`` read, which reads it; returns its name."""
        target = self.node(node if isinstance(node, str) else node.name)
        added = self.add_node(op, name, [target.input[index]], device="", **attrs)
        self.set_input(target, index, added)
        return added

    def bypass(self, name: str, index: int = 0) -> None:
        """Removes a node with one output by having its consumers read its input ``index`` instead.

        What the node waited for (its control inputs), its consumers wait for from now on.

        Raises:
          GraphError: if something reads another output than the first.
        """
        node = self.node(name)
        edges = self.consumers(name)
        for edge in edges:
            if edge.port > 0:
                raise GraphError(f"node {name!r} cannot be bypassed: {edge.consumer.name!r} reads output {edge.port}")
        source = node.input[index]
        waits = self.control_inputs(node)
        self.redirect(name, source)
        for consumer in dict.fromkeys(edge.consumer.name for edge in edges):
            if waits and consumer != node_of(source):
                self.add_control_inputs(consumer, waits)
        self.remove(name)

    def replace_node(self, node: NodeDef) -> None:
        """Puts a copy of ``node`` in the place of the node of the same name; consumers are not touched."""
        self._edit()
        old = self.node(node.name)
        new = NodeDef()
        new.CopyFrom(node)
        inputs = self._checked(new.input)
        del new.input[:]
        new.input.extend(old.input)  # what the index knows; replaced below
        old.CopyFrom(new)
        self._put_inputs(old, inputs)

    def remove(self, name: str) -> None:
        """Removes a node that no one consumes.

        Raises:
          GraphError: if something still reads it.
        """
        node = self.node(name)
        users = [consumer for consumer in self._uses.get(node.name, ()) if consumer != node.name]
        if users:
            raise GraphError(f"node {name!r} cannot be removed: {users[0]!r} still reads it")
        self._put_inputs(node, [])
        self._uses.pop(node.name, None)
        del self._nodes[node.name]

    def prune(self, keep: Iterable[str]) -> list[str]:
        """Removes every node that none of the tensors in ``keep`` needs; returns the removed names."""
        needed = self.ancestors(keep)
        gone = [name for name in self._nodes if name not in needed]
        for name in gone:
            self._put_inputs(self._nodes[name], [])
        for name in gone:
            self._uses.pop(name, None)
            del self._nodes[name]
        return gone

    def to_graph_def(self) -> GraphDef:
        """Returns a new GraphDef in ``topological`` order (insertion order if there is a cycle).

        Wishes to lie on the device of a node that is gone (``_class``) are dropped: TensorFlow refuses them. The same
        edits of the same graph give the same GraphDef.
        """
        order = self.remembered(Graph.topological)
        return self._graph_def(order or list(self._nodes.values()))

    def part(self, tensors: Iterable[str]) -> GraphDef:
        """Returns a new GraphDef of the nodes alone that some tensors need, in the graph's order.

        Raises:
          UnknownNodeError: if the graph does not hold one of them.
        """
        needed = self.ancestors(tensors)
        return self._graph_def([node for name, node in self._nodes.items() if name in needed])

    def _graph_def(self, nodes: Collection[NodeDef]) -> GraphDef:
        result = GraphDef()
        result.CopyFrom(self._rest)
        result.node.extend(nodes)
        names = {node.name for node in nodes}
        for node in result.node:
            if "_class" in node.attr:
                classes = [s for s in node.attr["_class"].list.s if s.decode().removeprefix("loc:@") in names]
                if classes:
                    node.attr["_class"].list.s[:] = classes
                else:
                    del node.attr["_class"]
        return result

    def _edit(self) -> None:
        """Every edit begins here."""
        if not self._editable:
            raise TypeError("this graph shares its nodes with a GraphDef: it cannot be edited")
        self._answers.clear()

    # --- the index ------------------------------------------------------------------------------------------------

    def _checked(self, inputs: Iterable[str]) -> list[str]:
        """Returns inputs as GraphDefs spell and order them, once all of them are known to exist."""
        data: list[str] = []
        control: dict[str, None] = {}
        for tensor in inputs:
            self.node(tensor)
            if tensor.startswith("^"):
                control[tensor] = None
            else:
                data.append(canonical(tensor))
        return [*data, *control]

    def _put_inputs(self, node: NodeDef, inputs: Sequence[str]) -> None:
        self._edit()
        for tensor in node.input:
            self._uses[node_of(tensor)].pop(node.name, None)
        del node.input[:]
        node.input.extend(self._checked(inputs))
        for tensor in node.input:
            self._uses[node_of(tensor)][node.name] = None
