"""The Freezer's work: SavedModel → ``graph.pb`` and ``meta.json``."""

from __future__ import annotations

import logging
from typing import Any

from tfx.dsl.components.base import base_executor
from tfx.types import Artifact, artifact_utils
from tfx.utils import path_utils

from components.artifacts import GraphMeta, write_frozen_graph
from components.outputs import fresh_outputs
from quantizer_core.graph.files import freeze_saved_model

MODEL = "model"
FROZEN_GRAPH = "frozen_graph"
SIGNATURE = "signature"

_logger = logging.getLogger(__name__)


class Executor(base_executor.BaseExecutor):
    """Executor of the Freezer."""

    def Do(  # noqa: N802 - TFX's name
        self,
        input_dict: dict[str, list[Artifact]],
        output_dict: dict[str, list[Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Freezes one signature of a model.

        Args:
          input_dict: ``model``: the trained model.
          output_dict: ``frozen_graph``: its frozen graph.
          exec_properties: ``signature`` and ``core_version``, see ``Freezer``.

        Raises:
          ConfigError: if the model has no such signature.
          GraphError: if it cannot be frozen.
        """
        signature = exec_properties[SIGNATURE]
        model = artifact_utils.get_single_instance(input_dict[MODEL])
        directory = path_utils.serving_model_path(model.uri, path_utils.is_old_model_artifact(model))
        frozen = freeze_saved_model(directory, signature=signature)
        with fresh_outputs(output_dict, exec_properties) as outputs:
            artifact = outputs[FROZEN_GRAPH]
            meta = GraphMeta(frozen.inputs, frozen.outputs, f"{directory}:{signature}")
            write_frozen_graph(artifact.uri, frozen.graph_def, meta)
            artifact.set_string_custom_property(SIGNATURE, signature)
        _logger.info("froze signature %s of %s into %s", signature, directory, artifact.uri)
