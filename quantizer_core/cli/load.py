"""Loads what ``--input_graph`` names: a GraphDef file or a SavedModel."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from tensorflow.core.framework import graph_pb2

from quantizer_core.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class LoadedGraph:
    """A frozen graph and, if it was a SavedModel, what its signature tells about inputs and outputs.

    Attributes:
      graph_def: the graph.
      inputs, outputs: node names by the signature; empty for a GraphDef file.
      input_keys, output_keys: signature key → node name, where they differ.
    """

    graph_def: graph_pb2.GraphDef
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    input_keys: Mapping[str, str] = dataclasses.field(default_factory=dict)
    output_keys: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def input_names(self, given: Sequence[str]) -> tuple[str, ...]:
        """Returns the node names for what the user wrote (node names or signature keys), or the signature's."""
        return tuple(self.input_keys.get(name, name) for name in given) or self.inputs

    def output_names(self, given: Sequence[str]) -> tuple[str, ...]:
        """The same for outputs: a key may be that of an input too."""
        return tuple(self.output_keys.get(name, name) for name in given) or self.outputs


def load(path: str, signature: str | None = None, binary: bool | None = None) -> LoadedGraph:
    """Reads a GraphDef file, or freezes a SavedModel.

    Raises:
      GraphError: if it is neither, or cannot be frozen.
      ConfigError: if a signature is named for a GraphDef file.
    """
    from quantizer_core.graph.files import freeze_saved_model, is_saved_model, load_graph

    if not is_saved_model(path):
        if signature:
            raise ConfigError(f"--signature goes with a SavedModel, which {path!r} is not")
        return LoadedGraph(load_graph(path, binary))
    frozen = freeze_saved_model(path, signature or "serving_default")
    return LoadedGraph(frozen.graph_def, frozen.inputs, frozen.outputs, frozen.input_keys, frozen.output_keys)
