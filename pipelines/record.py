"""What ML Metadata says of a pipeline's latest run."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping

import ml_metadata as mlmd
from ml_metadata.proto import metadata_store_pb2
from tfx import v1 as tfx
from tfx.dsl.components.base.base_node import BaseNode


@dataclasses.dataclass(frozen=True)
class Output:
    """An output of a step: where it lies, and its custom properties."""

    uri: str
    properties: Mapping[str, int | float | str]


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """A run of a pipeline.

    Attributes:
      states: component class → ``COMPLETE``, ``CACHED`` or ``FAILED``; empty if the run was interactive.
      outputs: output key → artifact; where several steps have an output of that name, the first step's.
      steps: step (its id in the pipeline) → output key → artifact.
    """

    states: Mapping[str, str]
    outputs: Mapping[str, Output]
    steps: Mapping[str, Mapping[str, Output]]


def latest_run(metadata_path: str, pipeline_name: str) -> RunRecord:
    """Reads the latest run of a pipeline from an SQLite ML Metadata file.

    Raises:
      LookupError: if the pipeline never ran.
    """
    if not os.path.exists(metadata_path):
        raise LookupError(f"no pipeline has run: there is no {metadata_path}")
    store = mlmd.MetadataStore(tfx.orchestration.metadata.sqlite_metadata_connection_config(metadata_path))
    pipeline = store.get_context_by_type_and_name("pipeline", pipeline_name)
    runs = store.get_children_contexts_by_context(pipeline.id) if pipeline else []
    runs = [run for run in runs if run.type == "pipeline_run"]
    if not runs:
        raise LookupError(f"{metadata_path} records no run of the pipeline {pipeline_name!r}")
    executions = store.get_executions_by_context(max(runs, key=lambda run: run.id).id)
    executions.sort(key=lambda execution: execution.id)
    names = {execution.id: _step(store, execution, pipeline_name) for execution in executions}
    steps: dict[str, dict[str, Output]] = {name: {} for name in names.values()}
    events = [
        event
        for event in store.get_events_by_execution_ids(list(names))
        if event.type == metadata_store_pb2.Event.OUTPUT
    ]
    artifacts = {a.id: a for a in store.get_artifacts_by_id([event.artifact_id for event in events])}
    for event in events:
        artifact = artifacts[event.artifact_id]
        steps[names[event.execution_id]][event.path.steps[0].key] = Output(artifact.uri, _properties(artifact))
    return RunRecord(
        states={
            execution.type.rpartition(".")[2]: metadata_store_pb2.Execution.State.Name(execution.last_known_state)
            for execution in executions
        },
        outputs=_first_of_each(steps),
        steps=steps,
    )


def record_of(nodes: Iterable[BaseNode]) -> RunRecord:
    """Returns what nodes made that an ``InteractiveContext`` ran, in their order; of one that did not run, nothing."""
    steps = {
        node.id: {
            key: Output(artifact.uri, _properties(artifact.mlmd_artifact))
            for key, channel in node.outputs.items()
            for artifact in list(channel.get())[:1]
        }
        for node in nodes
    }
    return RunRecord(states={}, outputs=_first_of_each(steps), steps=steps)


def _first_of_each(steps: Mapping[str, Mapping[str, Output]]) -> dict[str, Output]:
    outputs: dict[str, Output] = {}
    for of_step in steps.values():
        outputs = {**of_step, **outputs}
    return outputs


def _step(store: mlmd.MetadataStore, execution: metadata_store_pb2.Execution, pipeline_name: str) -> str:
    """Returns the id of the step that an execution is of: TFX puts it behind the pipeline's in a context's name."""
    (node,) = (c for c in store.get_contexts_by_execution(execution.id) if c.type == "node")
    return node.name.removeprefix(f"{pipeline_name}.")


def _properties(artifact: metadata_store_pb2.Artifact) -> dict[str, int | float | str]:
    values = {}
    for key, value in artifact.custom_properties.items():
        kind = value.WhichOneof("value")
        if kind in ("int_value", "double_value", "string_value"):
            values[key] = getattr(value, kind)
    return values
