"""Artifact types of the TFX components, and the files inside a FrozenGraph.

They carry their figures in custom properties and declare no ``PROPERTIES``: Kubeflow's compiler takes a type of
one's own only in that form, and only if ``TYPE_NAME`` is its import path with one top-level module.
"""

from __future__ import annotations

import dataclasses
import json
import os

import tensorflow as tf
from tensorflow.core.framework import graph_pb2
from tfx.types.artifact import Artifact

from quantizer_core.errors import GraphError
from quantizer_core.graph.files import save_graph
from quantizer_core.whole_file import write_text

#: The file of a FrozenGraph with the binary GraphDef.
GRAPH_FILE = "graph.pb"
#: The file of a FrozenGraph that names its inputs and outputs.
META_FILE = "meta.json"
#: The file of a QuantizationEvaluation with the comparison of the two graphs.
EVALUATION_FILE = "evaluation.json"


class FrozenGraph(Artifact):
    """A directory with ``graph.pb``, an FP32 GraphDef without variables, and ``meta.json`` (see ``GraphMeta``)."""

    TYPE_NAME = "components.FrozenGraph"


class CalibrationRanges(Artifact):
    """A directory with ``calibration.ranges``: what calibration saw, to convert again without the data.

    See ``quantizer_core.calibration.saved``. It holds a bounded sample of the examples.
    """

    TYPE_NAME = "components.CalibrationRanges"


class QuantizationEvaluation(Artifact):
    """A directory with ``evaluation.json``; its figures are custom properties too, so that ML Metadata can be asked."""

    TYPE_NAME = "components.QuantizationEvaluation"


@dataclasses.dataclass(frozen=True)
class GraphMeta:
    """The contents of ``meta.json``.

    Attributes:
      inputs: node names of the graph's inputs, in the order of the signature.
      outputs: node names of its outputs.
      source: what the graph was made from (a SavedModel and its signature, or a file).
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    source: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", tuple(self.inputs))
        object.__setattr__(self, "outputs", tuple(self.outputs))


def graph_path(uri: str) -> str:
    """Returns where a FrozenGraph at ``uri`` keeps its GraphDef."""
    return os.path.join(uri, GRAPH_FILE)


def write_frozen_graph(uri: str, graph_def: graph_pb2.GraphDef, meta: GraphMeta) -> None:
    """Writes the files of a FrozenGraph into a directory that holds none.

    Raises:
      GraphError: if the graph cannot be written.
    """
    save_graph(graph_def, graph_path(uri))
    write_meta(uri, meta)


def write_meta(uri: str, meta: GraphMeta) -> None:
    """Writes ``meta.json`` of a FrozenGraph, replacing the one that a former attempt may have left."""
    write_text(os.path.join(uri, META_FILE), json.dumps(dataclasses.asdict(meta), indent=2, sort_keys=True) + "\n")


def read_meta(uri: str) -> GraphMeta:
    """Reads ``meta.json`` of a FrozenGraph.

    Raises:
      GraphError: if it is missing or damaged.
    """
    path = os.path.join(uri, META_FILE)
    try:
        with tf.io.gfile.GFile(path, "r") as file:
            return GraphMeta(**json.loads(file.read()))
    except (tf.errors.NotFoundError, ValueError, TypeError) as error:
        raise GraphError(
            f"{path} is missing or damaged ({error}); a FrozenGraph is made by the Freezer or the GraphImporter"
        ) from None
