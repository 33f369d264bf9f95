"""Which nodes keep state (variables, tables): a frozen graph has none that its outputs need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from tensorflow.core.framework import types_pb2
from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.core.framework.node_def_pb2 import NodeDef

from quantizer_core.errors import GraphError, UnknownNodeError, nearest
from quantizer_core.graph.names import node_of

VARIABLE_OPS = frozenset(
    {
        "Variable", "VariableV2", "AutoReloadVariable", "TemporaryVariable", "VarHandleOp", "_VarHandlesOp",
        "ReadVariableOp", "_ReadVariablesOp", "ResourceGather", "ResourceGatherNd", "VarIsInitializedOp",
    }
)  # fmt: skip

TABLE_OPS = frozenset(
    {
        "HashTable", "HashTableV2", "MutableHashTable", "MutableHashTableV2", "MutableHashTableOfTensors",
        "MutableHashTableOfTensorsV2", "MutableDenseHashTable", "MutableDenseHashTableV2", "AnonymousHashTable",
        "AnonymousMutableHashTable", "AnonymousMutableHashTableOfTensors", "AnonymousMutableDenseHashTable",
        "LookupTableFind", "LookupTableFindV2", "LookupTableSize", "LookupTableSizeV2",
    }
)  # fmt: skip

STATE_OPS = VARIABLE_OPS | TABLE_OPS


class State(NamedTuple):
    """A node that keeps state, and words saying in which function it is (empty: in the graph itself)."""

    node: NodeDef
    where: str

    @property
    def is_table(self) -> bool:
        return self.node.op in TABLE_OPS


def find_state(graph_def: GraphDef, inputs: Sequence[str] = (), outputs: Sequence[str] = ()) -> State | None:
    """Returns the first table, else the first variable, that a graph's results depend on; None if it is frozen.

    Args:
      graph_def: any graph; the functions that its nodes call are looked into too.
      inputs: nodes that will be fed: what lies above them does not matter.
      outputs: nodes that will be fetched: only what they need matters. Empty: the whole graph matters.

    Raises:
      UnknownNodeError: if an output is not in the graph.
    """
    nodes = list(graph_def.node)
    if outputs:
        needed = _needed(graph_def, inputs, outputs)
        nodes = [node for node in nodes if node.name in needed]
    fed = {node_of(name) for name in inputs}
    variable = None
    for node, where in _with_functions(graph_def, [node for node in nodes if node.name not in fed]):
        if node.op in TABLE_OPS:
            return State(node, where)
        if variable is None and (node.op in VARIABLE_OPS or _is_resource(node)):
            variable = State(node, where)
    return variable


def check_frozen(graph_def: GraphDef, inputs: Sequence[str] = (), outputs: Sequence[str] = ()) -> None:
    """Checks that what a graph computes depends on no variable and no lookup table; arguments as ``find_state``.

    Raises:
      UnknownNodeError: if an output is not in the graph.
      GraphError: naming the node, and how to freeze the graph.
    """
    state = find_state(graph_def, inputs, outputs)
    if state is None:
        return
    if state.is_table:
        raise GraphError(
            f"node {state.node.name!r} ({state.node.op}){state.where} uses a lookup table, which a frozen graph cannot "
            "hold; cut the graph behind it by naming the node that reads the looked-up values as an input"
        )
    raise GraphError(
        f"node {state.node.name!r} ({state.node.op}){state.where} is a variable: the graph is not frozen; freeze the "
        "SavedModel that it comes from with freeze_saved_model(), or a checkpoint with TensorFlow's freeze_graph"
    )


def _is_resource(node: NodeDef) -> bool:
    return node.op == "Placeholder" and "dtype" in node.attr and node.attr["dtype"].type == types_pb2.DT_RESOURCE


def _needed(graph_def: GraphDef, inputs: Sequence[str], outputs: Sequence[str]) -> set[str]:
    nodes = {node.name: node for node in graph_def.node}
    fed = {node_of(name) for name in inputs}
    found: set[str] = set()
    stack = [node_of(name) for name in outputs]
    while stack:
        name = stack.pop()
        if name in found:
            continue
        if name not in nodes:
            raise UnknownNodeError(f"the graph holds no node {name!r}{nearest(name, nodes)}")
        found.add(name)
        if name not in fed:
            stack.extend(node_of(tensor) for tensor in nodes[name].input)
    return found


def _with_functions(graph_def: GraphDef, nodes: Iterable[NodeDef]) -> Iterator[tuple[NodeDef, str]]:
    """Yields the nodes, then those of every function that they call, with words saying where each one is."""
    functions = {function.signature.name: function for function in graph_def.library.function}
    called: dict[str, None] = {}
    for node in nodes:
        if functions:
            called.update(dict.fromkeys(function_names(node)))
        yield node, ""
    done: set[str] = set()
    while queue := [name for name in called if name in functions and name not in done]:
        for name in queue:
            done.add(name)
            for node in functions[name].node_def:
                called.update(dict.fromkeys(function_names(node)))
                yield node, f" in function {name!r}"


def function_names(node: NodeDef) -> list[str]:
    """Returns the names of the functions that a node calls: its op type (which may be one), then its attributes'."""
    names = [node.op]
    for key in sorted(node.attr):
        value = node.attr[key]
        if value.HasField("func"):
            names.append(value.func.name)
        names.extend(function.name for function in value.list.func)
    return names
