"""Reads a lineage from an SQLite file of ML Metadata.

Needs the package ml-metadata (extra ``lineage``), which is imported when a store is read and not before.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from quantizer_core.errors import ConfigError, DataError, QuantizerError, nearest
from quantizer_core.lineage.records import PUSHED_MODEL, Artifact, Lineage, Step

_SQLITE_MAGIC = b"SQLite format 3\x00"


def trace(store_path: str, model: str) -> Lineage:
    """Reads the lineage of an artifact from an SQLite file of ML Metadata, which is not changed.

    Args:
      store_path: the file.
      model: the directory of a pushed model (or anything inside it), an artifact's URI, or its id.

    Raises:
      QuantizerError: if the package ml-metadata is missing.
      ConfigError: if the file is missing, or the store records no such artifact; what is near is named.
      DataError: if the file is no store of ML Metadata.
    """
    records = _read_store(store_path)
    asked = _find(records.artifacts, model, store_path)
    steps: dict[int, Step] = {}
    makers: dict[int, int] = {}
    queue = [asked]
    while queue:
        id_ = queue.pop()
        maker = records.maker(id_)
        if id_ in makers or maker is None:
            continue
        makers[id_] = maker
        if maker not in steps:
            steps[maker] = records.step(maker)
            queue.extend(parent for ids in steps[maker].inputs.values() for parent in ids)
    named = {id_ for step in steps.values() for ids in (*step.inputs.values(), *step.outputs.values()) for id_ in ids}
    kept = {id_: records.artifacts[id_] for id_ in sorted({asked, *named} & records.artifacts.keys())}
    return Lineage(asked, kept, dict(sorted(steps.items())), makers)


@dataclasses.dataclass(frozen=True)
class _Records:
    """The store's rows, as far as they are needed."""

    store: Any
    artifacts: Mapping[int, Artifact]

    def maker(self, artifact: int) -> int | None:
        """Returns the execution that made an artifact: not one that took it from the cache, nor imported it again.

        An import that was to be made anew gave what it found an id of its own: then it is who made the first artifact
        of the same type at the same place.
        """
        own = self._made_by(artifact)
        if own is None or not self._imported(own):
            return own
        asked = self.artifacts[artifact]
        for id_, other in sorted(self.artifacts.items()):
            if id_ < artifact and (other.type, _place(other.uri)) == (asked.type, _place(asked.uri)):
                made = self._made_by(id_)
                if made is not None and not self._imported(made):
                    return made
        return own

    def _imported(self, execution: int) -> bool:
        (found,) = self.store.get_executions_by_id([execution])
        return _component(found) == "Importer"

    def _made_by(self, artifact: int) -> int | None:
        from ml_metadata.proto import metadata_store_pb2 as proto

        made = (proto.Event.OUTPUT, proto.Event.DECLARED_OUTPUT)
        events = self.store.get_events_by_artifact_ids([artifact])
        ids = sorted({event.execution_id for event in events if event.type in made})
        complete = {
            each.id
            for each in self.store.get_executions_by_id(ids)
            if each.last_known_state == proto.Execution.COMPLETE
        }
        return next((id_ for id_ in ids if id_ in complete), ids[0] if ids else None)

    def step(self, execution: int) -> Step:
        from ml_metadata.proto import metadata_store_pb2 as proto

        (found,) = self.store.get_executions_by_id([execution])
        contexts = {context.type: context.name for context in self.store.get_contexts_by_execution(execution)}
        channels: dict[str, dict[str, list[tuple[int, int]]]] = {
            "inputs": defaultdict(list),
            "outputs": defaultdict(list),
        }
        for event in self.store.get_events_by_execution_ids([execution]):
            path = list(event.path.steps)
            key = path[0].key if path else ""
            index = path[1].index if len(path) > 1 else 0
            read = event.type in (proto.Event.INPUT, proto.Event.DECLARED_INPUT)
            if event.artifact_id in self.artifacts:
                channels["inputs" if read else "outputs"][key].append((index, event.artifact_id))
        inputs, outputs = (
            {key: tuple(id_ for _, id_ in sorted(found)) for key, found in sorted(channels[side].items())}
            for side in ("inputs", "outputs")
        )
        component = _component(found)
        pipeline = contexts.get("pipeline", "")
        return Step(
            id=found.id,
            component=component,
            node=contexts.get("node", component).removeprefix(f"{pipeline}."),
            pipeline=pipeline,
            run=contexts.get("pipeline_run", ""),
            finished=datetime.datetime.fromtimestamp(
                found.last_update_time_since_epoch / 1000, datetime.timezone.utc
            ).isoformat(timespec="seconds"),
            parameters=_values(found),
            inputs=inputs,
            outputs=outputs,
        )


def _component(execution: Any) -> str:
    return str(execution.type.rpartition(".")[2])


def _read_store(path: str) -> _Records:
    try:
        import ml_metadata
        from ml_metadata.proto import metadata_store_pb2 as proto
    except ImportError as error:
        raise QuantizerError(
            f"lineage is read from ML Metadata, whose package ml-metadata cannot be imported ({error}): "
            "pip install 'tfx-quantizer[lineage]'"
        ) from None
    try:
        with open(path, "rb") as file:
            magic = file.read(len(_SQLITE_MAGIC))
    except OSError as error:
        raise ConfigError(f"--metadata {path!r} cannot be read: {error.strerror}") from None
    if magic != _SQLITE_MAGIC:
        raise DataError(f"--metadata {path!r} is no SQLite file, so no store of ML Metadata")
    config = proto.ConnectionConfig()
    config.sqlite.filename_uri = path
    config.sqlite.connection_mode = proto.SqliteMetadataSourceConfig.READONLY
    try:
        store = ml_metadata.MetadataStore(config)
        artifacts = {
            found.id: Artifact(found.id, found.type, found.uri, _values(found)) for found in store.get_artifacts()
        }
    except (ml_metadata.errors.StatusError, RuntimeError) as error:
        raise DataError(f"--metadata {path!r} is no store of ML Metadata that can be read: {error}") from None
    return _Records(store, artifacts)


def _values(record: Any) -> dict[str, Any]:
    values = {}
    for key, value in sorted([*record.properties.items(), *record.custom_properties.items()]):
        kind = value.WhichOneof("value")
        if kind in ("int_value", "double_value", "string_value", "bool_value"):
            values[key] = getattr(value, kind)
    return values


def _find(artifacts: Mapping[int, Artifact], model: str, store_path: str) -> int:
    """Returns the id of the artifact that a user named; of several at one place, the latest."""
    if model.isdecimal() and int(model) in artifacts:
        return int(model)
    places: dict[str, int] = {}
    for id_, artifact in sorted(artifacts.items()):
        places[_place(artifact.uri)] = id_
    for id_, artifact in sorted(artifacts.items()):  # a push goes before the artifact that happens to lie there
        if artifact.type == PUSHED_MODEL and artifact.properties.get("pushed_destination"):
            places[_place(artifact.properties["pushed_destination"])] = id_
    place = _place(model)
    while place not in places and os.path.dirname(place) not in ("", place):
        place = os.path.dirname(place)
    if places.get(place):
        return places[place]
    pushed = [str(a.properties["pushed_destination"]) for a in artifacts.values()
              if a.properties.get("pushed_destination")]  # fmt: skip
    known = f"it records models pushed to {', '.join(pushed[-5:])}" if pushed else "it records no pushed model"
    raise ConfigError(f"{store_path!r} records no artifact {model!r}{nearest(model, pushed)}; {known}")


def _place(uri: str) -> str:
    return uri.rstrip("/") if "://" in uri else os.path.realpath(uri)
