"""The consumer index stays true under any edits, and edits keep what they must keep."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from quantizer_core.errors import GraphError, UnknownNodeError
from quantizer_core.graph.graph import Edge, Graph, GraphDef, NodeDef, canonical, node_of, port_of


def make(*nodes: tuple[str, ...]) -> GraphDef:
    """``("c", "Op", "a", "b:1", "^d")`` is a node, its op and its inputs."""
    graph_def = GraphDef()
    for name, op, *inputs in nodes:
        graph_def.node.add(name=name, op=op, input=inputs)
    return graph_def


def edges(graph: Graph, tensor: str) -> list[tuple[str, int, int]]:
    return sorted((edge.consumer.name, edge.index, edge.port) for edge in graph.consumers(tensor))


def from_scratch(graph: Graph, name: str) -> list[tuple[str, int, int]]:
    """All uses of a node, read off the nodes' inputs without an index."""
    found = []
    for node in graph:
        for index, tensor in enumerate(node.input):
            if node_of(tensor) == name:
                found.append((node.name, -1 if tensor.startswith("^") else index, port_of(tensor)))
    return sorted(found)


def check(graph: Graph) -> None:
    names = set(graph.names())
    assert [node.name for node in graph] == graph.names()
    for node in graph:
        kinds = [tensor.startswith("^") for tensor in node.input]
        assert kinds == sorted(kinds), "control inputs come last"
        assert all(node_of(tensor) in names for tensor in node.input)
        assert all(not tensor.endswith(":0") for tensor in node.input)
    for name in names:
        assert edges(graph, name) == from_scratch(graph, name)
    rebuilt = Graph(graph.to_graph_def())
    assert {name: edges(rebuilt, name) for name in names} == {name: edges(graph, name) for name in names}


@st.composite
def graphs(draw: st.DrawFn) -> GraphDef:
    graph_def = GraphDef()
    for number in range(draw(st.integers(2, 9))):
        node = graph_def.node.add(name=f"n{number}", op="Op")
        if number:
            sources = st.integers(0, number - 1)
            for source in draw(st.lists(sources, max_size=3)):
                node.input.append(f"n{source}" + draw(st.sampled_from(["", ":1", ":2"])))
            node.input.extend(f"^n{source}" for source in draw(st.lists(sources, max_size=2, unique=True)))
    return graph_def


def edit(data: st.DataObject, graph: Graph) -> None:
    names = st.sampled_from(graph.names())
    ports = st.sampled_from(["", ":0", ":1"])
    kind = data.draw(st.integers(0, 9), label="edit")
    if kind == 0:
        graph.add_node("New", "n0", [data.draw(names) + data.draw(ports), "^" + data.draw(names)])
    elif kind == 1:
        keep = data.draw(st.sets(names), label="edges kept")
        graph.redirect(
            data.draw(names) + data.draw(ports),
            data.draw(names) + data.draw(ports),
            where=lambda edge: edge.consumer.name not in keep,
            control=data.draw(st.booleans()),
        )
    elif kind == 2:
        node = graph.node(data.draw(names))
        graph.set_inputs(node, ["^" + data.draw(names), data.draw(names), data.draw(names) + ":1", data.draw(names)])
    elif kind == 3:
        node = graph.node(data.draw(names))
        if node.input:
            graph.set_input(node, data.draw(st.integers(0, len(node.input) - 1)), data.draw(names))
    elif kind == 4:
        graph.insert_after(data.draw(names) + data.draw(ports), "Spliced", "spliced")
    elif kind == 5:
        name = data.draw(names)
        uses = graph.consumers(name)
        data_inputs = graph.data_inputs(graph.node(name))
        source = node_of(data_inputs[0]) if data_inputs else name
        if source != name and all(e.port <= 0 and e.consumer.name not in (name, source) for e in uses):
            graph.bypass(name)
            assert name not in graph
    elif kind == 6:
        name = data.draw(names)
        graph.replace_node(NodeDef(name=name, op="Other", input=[data.draw(names), "^" + data.draw(names)]))
    elif kind == 7:
        graph.prune(data.draw(st.lists(names, min_size=1)))
    elif kind == 8:
        name = data.draw(names)
        if len(graph) > 1 and all(edge.consumer.name == name for edge in graph.consumers(name)):
            graph.remove(name)
    else:
        node = graph.node(data.draw(names))
        if graph.data_inputs(node):
            graph.insert_before(node, 0, "Spliced", "before")


@settings(max_examples=100, deadline=None)
@given(graphs(), st.data())
def test_random_edits_keep_the_index(graph_def: GraphDef, data: st.DataObject) -> None:
    before = graph_def.SerializeToString(deterministic=True)
    graph = Graph(graph_def)
    for _ in range(data.draw(st.integers(1, 8), label="edits")):
        edit(data, graph)
        check(graph)
    assert graph_def.SerializeToString(deterministic=True) == before, "the GraphDef given is not changed"


@settings(max_examples=60, deadline=None)
@given(graphs(), st.data())
def test_sorting_is_stable_and_complete(graph_def: GraphDef, data: st.DataObject) -> None:
    order = [node.name for node in graph_def.node]
    assert [node.name for node in Graph(graph_def).to_graph_def().node] == order, "a sorted graph keeps its order"
    shuffled = GraphDef()
    shuffled.node.extend(data.draw(st.permutations(list(graph_def.node))))
    result = Graph(shuffled).to_graph_def()
    place = {node.name: number for number, node in enumerate(result.node)}
    assert sorted(place) == sorted(order)
    assert all(place[node_of(t)] < place[node.name] for node in result.node for t in node.input)
    assert Graph(result).to_graph_def() == result


def test_names_of_tensors() -> None:
    assert [node_of(t) for t in ("a", "a:0", "a:12", "^a", "s/a:b")] == ["a", "a", "a", "a", "s/a:b"]
    assert [port_of(t) for t in ("a", "a:0", "a:12", "^a")] == [0, 0, 12, -1]
    assert [canonical(t) for t in ("a:0", "a:10", "^a", "a")] == ["a", "a:10", "^a", "a"]


def test_consumers_by_node_port_and_control() -> None:
    graph = Graph(make(("a", "A"), ("b", "B", "a", "a:1", "a", "^a"), ("c", "C", "b", "a:1")))
    assert edges(graph, "a") == [("b", -1, -1), ("b", 0, 0), ("b", 1, 1), ("b", 2, 0), ("c", 1, 1)]
    assert edges(graph, "a:0") == [("b", 0, 0), ("b", 2, 0)]
    assert edges(graph, "a:1") == [("b", 1, 1), ("c", 1, 1)]
    assert edges(graph, "^a") == [("b", -1, -1)]
    assert graph.consumers("c") == []
    assert graph.sole_consumer("b") is graph.node("c")
    assert graph.sole_consumer("a") is None


def test_inputs_replaced_where_a_producer_is_read_twice() -> None:
    graph = Graph(make(("a", "A"), ("b", "B"), ("c", "C", "a", "a", "^a")))
    graph.set_input("c", 0, "b:0")
    assert list(graph.node("c").input) == ["b", "a", "^a"]
    assert edges(graph, "a") == [("c", -1, -1), ("c", 1, 0)]
    graph.set_inputs("c", graph.node("c").input)  # its own list
    assert list(graph.node("c").input) == ["b", "a", "^a"]
    graph.set_inputs("c", ["^a", "b", "^a", "b"])
    assert list(graph.node("c").input) == ["b", "b", "^a"]


def test_a_control_edge_is_no_input_number() -> None:
    graph = Graph(make(("a", "A"), ("b", "B", "a", "^a")))
    with pytest.raises(IndexError, match="'b' has 2 inputs, no number -1"):
        graph.set_input("b", -1, "a")


def test_redirect_moves_one_port_and_the_control_edges() -> None:
    graph = Graph(make(("a", "A"), ("n", "N", "a", "^a"), ("b", "B", "a", "a:1", "^a"), ("c", "C", "^a", "^n")))
    assert graph.redirect("a", "n") == 3
    assert list(graph.node("n").input) == ["a", "^a"], "the new tensor keeps its own use of the old one"
    assert list(graph.node("b").input) == ["n", "a:1", "^n"]
    assert list(graph.node("c").input) == ["^n"]


def test_redirect_can_leave_control_edges_and_chosen_consumers() -> None:
    graph = Graph(make(("a", "A"), ("n", "N"), ("b", "B", "a", "^a"), ("c", "C", "a")))
    seen: list[Edge] = []
    assert graph.redirect("a", "n", where=lambda e: bool(seen.append(e)) or e.consumer.name != "c", control=False) == 1
    assert [(edge.consumer.name, edge.index) for edge in seen] == [("b", 0), ("c", 0)]
    assert list(graph.node("b").input) == ["n", "^a"]
    assert list(graph.node("c").input) == ["a"]


def test_redirect_between_ports_of_one_node() -> None:
    graph = Graph(make(("a", "A"), ("b", "B", "a", "a:1", "^a")))
    assert graph.redirect("a:1", "a:0") == 1
    assert list(graph.node("b").input) == ["a", "a", "^a"]


def test_redirect_to_a_missing_tensor_changes_nothing() -> None:
    graph = Graph(make(("alpha", "A"), ("b", "B", "alpha")))
    with pytest.raises(UnknownNodeError, match="no node 'alpa'; did you mean 'alpha'"):
        graph.redirect("alpha", "alpa")
    with pytest.raises(UnknownNodeError, match="'alpa'"):
        graph.redirect("alpa", "b")
    assert list(graph.node("b").input) == ["alpha"]


def test_bypass_hands_control_inputs_on() -> None:
    graph = Graph(make(("w", "W"), ("a", "A"), ("i", "Identity", "a:1", "^w"), ("b", "B", "i", "i"), ("c", "C", "^i")))
    graph.bypass("i")
    assert list(graph.node("b").input) == ["a:1", "a:1", "^w"]
    assert list(graph.node("c").input) == ["^a", "^w"]
    assert graph.names() == ["w", "a", "b", "c"]


def test_bypass_refuses_a_second_output() -> None:
    graph = Graph(make(("a", "A"), ("s", "Split", "a"), ("b", "B", "s:1")))
    with pytest.raises(GraphError, match="'s' cannot be bypassed: 'b' reads output 1"):
        graph.bypass("s")


def test_splicing_after_a_tensor_and_before_an_input() -> None:
    graph = Graph(make(("a", "A"), ("b", "B", "a", "^a"), ("c", "C", "a", "a:1")))
    name = graph.insert_after("a", "Relu", "b", where=lambda edge: edge.consumer.name == "c", T=tf.float32)
    assert name == "b_1"
    assert list(graph.node("c").input) == ["b_1", "a:1"]
    assert list(graph.node("b").input) == ["a", "^a"]
    assert graph.insert_before("c", 1, "Abs", "abs") == "abs"
    assert list(graph.node("c").input) == ["b_1", "abs"]
    assert list(graph.node("abs").input) == ["a:1"]
    assert [node.name for node in graph.to_graph_def().node] == ["a", "b", "b_1", "abs", "c"]


def test_removing_what_is_still_read() -> None:
    graph = Graph(make(("a", "A"), ("b", "B", "^a")))
    with pytest.raises(GraphError, match="'a' cannot be removed: 'b' still reads it"):
        graph.remove("a")
    graph.remove("b")
    graph.remove("a")
    assert len(graph) == 0
    assert graph.to_graph_def() == GraphDef()


def test_prune_and_ancestors_follow_control_edges() -> None:
    graph = Graph(make(("a", "A"), ("w", "W"), ("b", "B", "a", "^w"), ("c", "C", "b:1"), ("d", "D", "a")))
    assert graph.ancestors(["c:0"]) == {"a", "w", "b", "c"}
    assert graph.ancestors(["c"], stop=["b:1"]) == {"b", "c"}
    assert graph.prune(["b"]) == ["c", "d"]
    assert edges(graph, "a") == [("b", 0, 0)]
    with pytest.raises(UnknownNodeError):
        graph.prune(["x"])


def test_replacing_a_node_keeps_its_consumers() -> None:
    graph = Graph(make(("a", "A"), ("b", "B", "a"), ("c", "C", "b")))
    node = NodeDef(name="b", op="Other", input=["a:1", "a"], device="/cpu:0")
    node.attr["k"].i = 3
    graph.replace_node(node)
    assert graph.node("b") == node
    assert edges(graph, "b") == [("c", 0, 0)]
    live = graph.node("b")
    graph.replace_node(live)  # itself: nothing lost
    assert graph.node("b") == node


def test_adding_checks_names_and_inputs() -> None:
    graph = Graph(make(("a", "A"), ("a_1", "A")))
    assert graph.add_node("B", "a", ["a:0"]) == "a_2"
    assert graph.unique_name("a") == "a_3"
    graph.remove("a_1")
    assert graph.unique_name("a") not in graph.names()
    with pytest.raises(GraphError, match="'a' exists already"):
        graph.add(NodeDef(name="a", op="B"))
    with pytest.raises(UnknownNodeError, match="no node 'zz'"):
        graph.add(NodeDef(name="q", op="B", input=["zz"]))
    assert "q" not in graph


def test_damaged_graphs_are_refused() -> None:
    with pytest.raises(GraphError, match="'a' occurs twice"):
        Graph(make(("a", "A"), ("a", "B")))
    with pytest.raises(GraphError, match="'b' reads 'x:1'"):
        Graph(make(("a", "A"), ("b", "B", "x:1")))


def test_constants_through_identities() -> None:
    graph = Graph(make(("p", "Placeholder")))
    graph.add_const("c", np.arange(6, dtype=np.float32).reshape(2, 3))
    graph.add_node("Identity", "i", ["c", "^p"])
    graph.add_node("Snapshot", "s", ["i"])
    np.testing.assert_array_equal(graph.constant("s:0"), np.arange(6, dtype=np.float32).reshape(2, 3))
    assert graph.constant_shape("s") == (2, 3)
    assert graph.constant("p") is None
    assert graph.constant_shape("p") is None
    with pytest.raises(UnknownNodeError):
        graph.constant("nothing")


def test_unsorted_and_cyclic_graphs() -> None:
    graph = Graph(make(("c", "C", "b"), ("b", "B", "a"), ("a", "A")))
    assert [node.name for node in graph.topological()] == ["a", "b", "c"]
    cyclic = make(("a", "A", "b"), ("b", "B", "a"))
    assert Graph(cyclic).topological() is None
    assert Graph(cyclic).to_graph_def() == cyclic
    loop = make(("e", "Enter"), ("m", "Merge", "e", "n"), ("n", "NextIteration", "m"), ("x", "Exit", "m"))
    assert [node.name for node in Graph(loop).topological()] == ["e", "m", "n", "x"]


def test_wishes_for_the_device_of_a_removed_node_are_dropped() -> None:
    graph_def = make(("a", "A"), ("b", "B"), ("c", "C", "a"))
    graph_def.node[2].attr["_class"].list.s.extend([b"loc:@a", b"loc:@b"])
    graph_def.node[0].attr["_class"].list.s.append(b"loc:@b")
    graph = Graph(graph_def)
    graph.remove("b")
    result = graph.to_graph_def()
    assert list(result.node[1].attr["_class"].list.s) == [b"loc:@a"]
    assert "_class" not in result.node[0].attr


def test_a_graph_to_ask_shares_its_nodes_and_cannot_be_edited() -> None:
    graph_def = make(("a", "Op"), ("b", "Op", "a"))
    before = graph_def.SerializeToString(deterministic=True)
    graph = Graph(graph_def, copy=False)
    assert graph.node("b") is graph_def.node[1]
    assert edges(graph, "a") == [("b", 0, 0)]
    refused: list[Callable[[], object]] = [
        lambda: graph.add(NodeDef(name="c", op="Op")),
        lambda: graph.replace_node(NodeDef(name="b", op="Other")),
        lambda: graph.set_inputs("b", []),
        lambda: graph.redirect("a", "a:1"),
        lambda: graph.remove("b"),
        lambda: graph.prune(["a"]),
    ]
    for edit in refused:
        with pytest.raises(TypeError, match="cannot be edited"):
            edit()
    assert graph_def.SerializeToString(deterministic=True) == before
    assert Graph(graph_def, copy=True).node("b") is not graph_def.node[1]


@given(graphs(), st.data())
def test_answers_are_remembered_until_the_next_edit(graph_def: GraphDef, data: st.DataObject) -> None:
    graph = Graph(graph_def)
    asked = []

    def names(of: Graph) -> list[tuple[str, str, tuple[str, ...]]]:
        asked.append(None)
        return [(node.name, node.op, tuple(node.input)) for node in of]

    for _ in range(4):
        edit = data.draw(st.sampled_from(["add", "set", "replace", "redirect", "remove", "prune"]))
        graph.remembered(names)
        name = data.draw(st.sampled_from(graph.names()))
        unread = [node.name for node in graph if not graph.consumers(node.name)]
        if edit == "add":
            graph.add_node("Op", "new", [name])
        elif edit == "set":
            graph.set_inputs(name, graph.node(name).input[1:])
        elif edit == "replace":
            graph.replace_node(NodeDef(name=name, op="Other"))
        elif edit == "redirect":
            graph.redirect(name, data.draw(st.sampled_from(graph.names())))
        elif edit == "remove" and unread and len(graph) > 1:
            graph.remove(unread[0])
        elif edit == "prune":
            graph.prune([name])
        known = graph.remembered(names)
        times = len(asked)
        assert graph.remembered(names) == known == names(graph)
        assert len(asked) == times + 1, "asked anew without an edit"


def test_a_part_holds_what_its_tensors_need_and_no_wish_for_what_is_left_out() -> None:
    graph_def = make(("a", "Op"), ("c", "Op", "^a"), ("b", "Op", "a:1"), ("d", "Op", "b", "^c"))
    graph_def.versions.producer = 7
    graph_def.node[2].attr["_class"].list.s.extend([b"loc:@a", b"loc:@d"])
    graph_def.node[1].attr["_class"].list.s.append(b"loc:@d")
    graph = Graph(graph_def, copy=False)
    part = graph.part(["b:0", "c"])
    assert [node.name for node in part.node] == ["a", "c", "b"] and part.versions.producer == 7
    assert list(part.node[2].attr["_class"].list.s) == [b"loc:@a"] and "_class" not in part.node[1].attr
    assert len(graph_def.node) == 4 and len(graph_def.node[2].attr["_class"].list.s) == 2
    with pytest.raises(UnknownNodeError, match="'e'"):
        graph.part(["e"])
