"""A small store of ML Metadata, written as TFX writes it, for tests that need no pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_metadata as mlmd
from ml_metadata.proto import metadata_store_pb2 as proto


class Store:
    """Writes artifacts and executions into an SQLite file."""

    def __init__(self, path: Path):
        config = proto.ConnectionConfig()
        config.sqlite.filename_uri = str(path)
        config.sqlite.connection_mode = proto.SqliteMetadataSourceConfig.READWRITE_OPENCREATE
        self._store = mlmd.MetadataStore(config)
        self._contexts = {kind: self._context(kind, name) for kind, name in (("pipeline", "p"), ("pipeline_run", "r1"))}

    def _context(self, kind: str, name: str) -> int:
        type_id = self._store.put_context_type(proto.ContextType(name=kind))
        return self._store.put_contexts([proto.Context(type_id=type_id, name=name)])[0]

    def artifact(self, kind: str, uri: str, **properties: Any) -> int:
        type_id = self._store.put_artifact_type(proto.ArtifactType(name=kind))
        artifact = proto.Artifact(type_id=type_id, uri=uri, state=proto.Artifact.LIVE)
        _set(artifact.custom_properties, properties)
        return self._store.put_artifacts([artifact])[0]

    def step(
        self,
        component: str,
        inputs: Mapping[str, Sequence[int]],
        outputs: Mapping[str, Sequence[int]],
        state: int = proto.Execution.COMPLETE,
        node: str = "",
        **parameters: Any,
    ) -> int:
        """Records a run of a component; its parameters are custom properties, as TFX has them."""
        type_id = self._store.put_execution_type(proto.ExecutionType(name=f"some.module.{component}"))
        execution = proto.Execution(type_id=type_id, last_known_state=state)
        _set(execution.custom_properties, parameters)
        (id_,) = self._store.put_executions([execution])
        contexts = [*self._contexts.values(), self._node(node or component)]
        self._store.put_attributions_and_associations(
            [], [proto.Association(execution_id=id_, context_id=context) for context in contexts]
        )
        kinds = ((inputs, proto.Event.INPUT), (outputs, proto.Event.OUTPUT))
        self._store.put_events([
            proto.Event(
                execution_id=id_,
                artifact_id=artifact,
                type=kind,
                path=proto.Event.Path(steps=[proto.Event.Path.Step(key=key), proto.Event.Path.Step(index=index)]),
            )
            for channels, kind in kinds
            for key, artifacts in channels.items()
            for index, artifact in enumerate(artifacts)
        ])  # fmt: skip
        return id_

    def _node(self, name: str) -> int:
        found = self._store.get_context_by_type_and_name("node", f"p.{name}")
        return found.id if found is not None else self._context("node", f"p.{name}")


def _set(properties: Any, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        kind = {str: "string_value", int: "int_value", float: "double_value"}[type(value)]
        setattr(properties[key], kind, value)
