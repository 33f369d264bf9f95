"""What the local runners share: one folder that holds everything that a run makes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from tfx import v1 as tfx


def run_locally(create_pipeline: Callable[..., tfx.dsl.Pipeline], output: str, **arguments: Any) -> None:
    """Runs a pipeline on this machine: its artifacts, ML Metadata and the pushed model go under ``output``.

    Args:
      create_pipeline: makes the pipeline from ``arguments``, ``pipeline_root``, ``serving_root`` and
        ``metadata_connection_config``.
      output: the folder.
      **arguments: what else the pipeline is made from.
    """
    pipeline = create_pipeline(
        pipeline_root=os.path.join(output, "pipeline"),
        serving_root=os.path.join(output, "serving"),
        metadata_connection_config=tfx.orchestration.metadata.sqlite_metadata_connection_config(metadata_path(output)),
        **arguments,
    )
    tfx.orchestration.LocalDagRunner().run(pipeline)


def metadata_path(output: str) -> str:
    """Returns the SQLite file of ML Metadata of the runs under ``output``."""
    return os.path.join(output, "metadata.db")
