"""How every pipeline here ends: a Pusher behind a blessing, and the whole as one pipeline."""

from __future__ import annotations

from collections.abc import Sequence

from tfx import v1 as tfx
from tfx.dsl.components.base.base_node import BaseNode
from tfx.types import BaseChannel


def ending_with_push(
    nodes: Sequence[BaseNode],
    model: BaseChannel,
    blessing: BaseChannel,
    serving_root: str,
    pipeline_name: str,
    pipeline_root: str,
    metadata_connection_config: object | None,
    beam_pipeline_args: Sequence[str] | None,
) -> tfx.dsl.Pipeline:
    """Returns the pipeline of ``nodes`` and a Pusher of the model that one of them makes, if it is blessed.

    Args:
      nodes: what comes before the Pusher, in any order.
      model: the channel of the model to push.
      blessing: the channel of the verdict that the Pusher heeds.
      serving_root: directory into which a blessed model is pushed.
      pipeline_name: name in ML Metadata: lower-case letters, digits and dashes, as Kubeflow asks for.
      pipeline_root: directory for the artifacts.
      metadata_connection_config: where ML Metadata lies; the runner's own if None.
      beam_pipeline_args: options of every Beam pipeline.
    """
    pusher = tfx.components.Pusher(
        model=model,
        model_blessing=blessing,
        push_destination=tfx.proto.PushDestination(
            filesystem=tfx.proto.PushDestination.Filesystem(base_directory=serving_root)
        ),
    )
    return tfx.dsl.Pipeline(
        pipeline_name=pipeline_name,
        pipeline_root=pipeline_root,
        components=[*nodes, pusher],
        enable_cache=True,
        metadata_connection_config=metadata_connection_config,
        beam_pipeline_args=list(beam_pipeline_args or ()),
    )
