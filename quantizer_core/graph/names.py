"""How GraphDefs spell nodes, tensors and control inputs, and how files of graphs are called after others."""

from __future__ import annotations

import functools
import os


@functools.lru_cache(1 << 18)  # every rule asks it of every input
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


def with_port(tensor: str) -> str:
    """Returns the spelling that sessions use: ``a`` becomes ``a:0``; what names a port stays."""
    return tensor if ":" in tensor else f"{tensor}:0"


def as_node(tensor: str) -> str:
    """Returns a name for nodes made for a tensor, another for each: ``a`` stays, ``a:1`` becomes ``a/port_1``.

    (TensorFlow itself calls a second node of the name ``a`` ``a_1``.)
    """
    name = canonical(tensor)
    return name.replace(":", "/port_")


def path_beside(graph: str, word: str) -> str:
    """Returns the path of a graph made from another and beside it: ``a/b.pb`` gives ``a/b_word.pb``."""
    root, extension = os.path.splitext(graph)
    return f"{root}_{word}{extension or '.pb'}"
