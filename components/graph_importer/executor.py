"""The GraphImporter's work: a graph file → ``graph.pb`` and ``meta.json``."""

from __future__ import annotations

import json
import logging
from typing import Any

from tfx.dsl.components.base import base_executor
from tfx.types import Artifact

from components.artifacts import GraphMeta, write_frozen_graph
from components.outputs import fresh_outputs
from quantizer_core.graph.files import check_frozen, load_graph
from quantizer_core.graph.graph import Graph
from quantizer_core.graph.summarize import find_inputs, find_outputs

FROZEN_GRAPH = "frozen_graph"
GRAPH_PATH = "graph_path"
INPUTS = "inputs"
OUTPUTS = "outputs"
FINGERPRINT = "fingerprint"

_logger = logging.getLogger(__name__)


class Executor(base_executor.BaseExecutor):
    """Executor of the GraphImporter."""

    def Do(  # noqa: N802 - TFX's name
        self,
        input_dict: dict[str, list[Artifact]],
        output_dict: dict[str, list[Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Imports a frozen graph.

        Args:
          input_dict: empty.
          output_dict: ``frozen_graph``: the graph with its inputs and outputs.
          exec_properties: ``graph_path``, ``inputs`` and ``outputs`` (JSON lists), ``fingerprint`` and
            ``core_version``, see ``GraphImporter``.

        Raises:
          GraphError: if the file cannot be read, or the outputs depend on variables or tables behind the inputs.
          UnknownNodeError: if an input or output is not in the graph.
        """
        del input_dict
        path = exec_properties[GRAPH_PATH]
        inputs, outputs = json.loads(exec_properties[INPUTS]), json.loads(exec_properties[OUTPUTS])
        graph_def = load_graph(path)
        graph = Graph(graph_def)
        for name in [*inputs, *outputs]:
            graph.node(name)
        meta = GraphMeta(inputs or find_inputs(graph_def), outputs or find_outputs(graph_def), path)
        check_frozen(graph_def, meta.inputs, meta.outputs)
        with fresh_outputs(output_dict, exec_properties) as artifacts:
            uri = artifacts[FROZEN_GRAPH].uri
            write_frozen_graph(uri, graph_def, meta)
        _logger.info("imported %s into %s", path, uri)
