"""The GraphImporter's contract: the path of a ``.pb`` in, a ``FrozenGraph`` out."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tfx.dsl.components.base import base_component, executor_spec
from tfx.orchestration import data_types
from tfx.types import Channel
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.artifacts import FrozenGraph
from components.fingerprint import fingerprint as fingerprint_of
from components.graph_importer import executor
from components.outputs import CORE_VERSION
from quantizer_core.errors import ConfigError
from quantizer_core.version import VERSION


class GraphImporterSpec(ComponentSpec):
    """Outputs and parameters of the GraphImporter."""

    PARAMETERS = {
        executor.GRAPH_PATH: ExecutionParameter(type=str),
        executor.INPUTS: ExecutionParameter(type=str),
        executor.OUTPUTS: ExecutionParameter(type=str),
        executor.FINGERPRINT: ExecutionParameter(type=str),
        CORE_VERSION: ExecutionParameter(type=str),
    }
    INPUTS: dict[str, ChannelParameter] = {}
    OUTPUTS = {executor.FROZEN_GRAPH: ChannelParameter(type=FrozenGraph)}


class GraphImporter(base_component.BaseComponent):
    """Checks a frozen graph file and copies it into the pipeline, with the names of its inputs and outputs.

    Component ``outputs`` contains ``frozen_graph``: a channel of type ``FrozenGraph``.
    """

    SPEC_CLASS = GraphImporterSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self,
        graph_path: str,
        inputs: Sequence[str] = (),
        outputs: Sequence[str] = (),
        fingerprint: str | None = None,
        core_version: str = VERSION,
    ):
        """Makes a GraphImporter.

        Args:
          graph_path: a binary or text GraphDef at any path that TensorFlow can read.
          inputs: node names of the inputs; empty: all Placeholders.
          outputs: node names of the outputs; empty: the nodes that no one reads.
          fingerprint: part of the cache key; None takes the file's SHA-256 now, so that a changed file is imported
            anew. Give one where the file cannot be read when the pipeline is compiled.
          core_version: part of the cache key.

        Raises:
          ConfigError: if ``fingerprint`` is None and the file cannot be read, or its path is not known here.
        """
        if fingerprint is None and isinstance(graph_path, data_types.RuntimeParameter):
            raise ConfigError("graph_path is a RuntimeParameter, whose file is not known here: give its fingerprint")
        spec = GraphImporterSpec(
            graph_path=graph_path,
            inputs=json.dumps(list(inputs)),
            outputs=json.dumps(list(outputs)),
            fingerprint=fingerprint_of(graph_path) if fingerprint is None else fingerprint,
            core_version=core_version,
            frozen_graph=Channel(type=FrozenGraph),
        )
        super().__init__(spec=spec)
