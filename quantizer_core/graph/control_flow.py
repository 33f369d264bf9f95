"""TensorFlow 1 control flow: which nodes lie inside a while loop, and which run only if a condition holds.

A loop is what lies between its Enter and Exit nodes (its frame); a branch what comes after a Switch, up to the Merge
that joins it with the other one. What a frame's nodes read must belong to the frame; a branch that is not taken is
dead: its nodes do not run, and fetching their tensors fails.
"""

from __future__ import annotations

from quantizer_core.graph.graph import Graph, node_of, port_of

_ENTER, _EXIT = ("Enter", "RefEnter"), ("Exit", "RefExit")
_SWITCH, _MERGE = ("Switch", "RefSwitch"), ("Merge", "RefMerge")


def frames(graph: Graph) -> dict[str, tuple[str, ...]]:
    """Returns for each node inside a while loop the names of the loops that it lies in, outermost first.

    An Exit is counted in; what it gives lies outside.
    """
    found: dict[str, tuple[str, ...]] = {}
    if not any(node.op in _ENTER for node in graph):
        return found
    for node in graph.remembered(Graph.topological) or []:
        within: tuple[str, ...] = ()
        for tensor in node.input:
            outer = found.get(node_of(tensor), ())
            if outer and graph.node(tensor).op in _EXIT:
                outer = outer[:-1]
            within = max(within, outer, key=len)
        if node.op in _ENTER:
            within = (*within, node.attr["frame_name"].s.decode())
        if within:
            found[node.name] = within
    return found


def innermost_frames(graph: Graph) -> dict[str, str]:
    """Returns for each node whose outputs lie inside a while loop the name of the innermost one."""
    found = {}
    for name, within in graph.remembered(frames).items():
        outside = within[:-1] if graph.node(name).op in _EXIT else within
        if outside:
            found[name] = outside[-1]
    return found


def pivots(graph: Graph) -> dict[str, str]:
    """Returns for each while loop, by the name of its frame, a node that runs once in every iteration."""
    found: dict[str, str] = {}
    for node in graph:
        if node.op in _MERGE:
            enters = [graph.node(t) for t in graph.data_inputs(node) if graph.node(t).op in _ENTER]
            if enters:
                found.setdefault(enters[0].attr["frame_name"].s.decode(), node.name)
    return found


def sporadic_nodes(graph: Graph) -> frozenset[str]:
    """Returns the names of the nodes whose results may come never or several times in one run of the graph.

    They are those inside while loops and those in a branch that depends on a condition, the Switch before it included.
    """
    inside = graph.remembered(innermost_frames)
    needs: dict[str, frozenset[tuple[str, int]]] = {}  # node → conditions that must hold for it to run
    for node in graph.remembered(Graph.topological) or []:
        if node.name in inside or node.op in _EXIT:
            needs[node.name] = frozenset()
            continue
        given = []
        for tensor in node.input:
            source = graph.node(tensor)
            known = needs.get(source.name, frozenset())
            if source.op in _SWITCH and port_of(tensor) >= 0 and not tensor.startswith("^"):
                known |= {(_condition(graph, source.input[1]), port_of(tensor))}
            given.append(known)
        if not given:
            needs[node.name] = frozenset()
        elif node.op in _MERGE:
            needs[node.name] = frozenset.intersection(*given)
        else:
            needs[node.name] = frozenset.union(*given)
    return frozenset(name for name in needs if name in inside or needs[name] or graph.node(name).op in _SWITCH)


def _condition(graph: Graph, tensor: str) -> str:
    """Returns the tensor that decides, behind the Identity nodes that TensorFlow puts before it."""
    node = graph.node(tensor)
    while node.op == "Identity":
        tensor = node.input[0]
        node = graph.node(tensor)
    return tensor
