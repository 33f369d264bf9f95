"""The Freezer's contract: a trained ``Model`` in, a ``FrozenGraph`` out."""

from __future__ import annotations

from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import BaseChannel, Channel, standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.artifacts import FrozenGraph
from components.freezer import executor
from components.outputs import CORE_VERSION
from quantizer_core.version import VERSION


class FreezerSpec(ComponentSpec):
    """Inputs, outputs and parameters of the Freezer."""

    PARAMETERS = {
        executor.SIGNATURE: ExecutionParameter(type=str),
        CORE_VERSION: ExecutionParameter(type=str),
    }
    INPUTS = {executor.MODEL: ChannelParameter(type=standard_artifacts.Model)}
    OUTPUTS = {executor.FROZEN_GRAPH: ChannelParameter(type=FrozenGraph)}


class Freezer(base_component.BaseComponent):
    """Freezes one signature of a trained model: variables become constants, functions are inlined.

    Component ``outputs`` contains ``frozen_graph``: a channel of type ``FrozenGraph``.
    """

    SPEC_CLASS = FreezerSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(self, model: BaseChannel, signature: str = "serving_default", core_version: str = VERSION):
        """Makes a Freezer.

        Args:
          model: a channel of type ``Model``, usually a Trainer's; its ``Format-Serving`` SavedModel is frozen.
          signature: the signature to freeze. Choose one on tensors: what a signature on serialized examples does
            to parse them would become part of the graph.
          core_version: part of the cache key, so that a new version of the product is not served old results.
        """
        frozen_graph = Channel(type=FrozenGraph)
        super().__init__(
            spec=FreezerSpec(model=model, signature=signature, core_version=core_version, frozen_graph=frozen_graph)
        )
