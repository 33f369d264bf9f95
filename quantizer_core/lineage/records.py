"""What ML Metadata tells of a model, as plain data: artifacts, and the steps that read and made them."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from quantizer_core.errors import DataError

#: Type names of ``components.artifacts``, which this package does not import, and of TFX's own artifacts.
FROZEN_GRAPH = "components.FrozenGraph"
EVALUATION = "components.QuantizationEvaluation"
RANGES = "components.CalibrationRanges"
PUSHED_MODEL, MODEL, BLESSING, EXAMPLES = "PushedModel", "Model", "ModelBlessing", "Examples"


@dataclasses.dataclass(frozen=True)
class Artifact:
    """Something that a step made or read: its id in the store, type, place, and properties of both kinds."""

    id: int
    type: str
    uri: str
    properties: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Step:
    """A run of a component.

    Attributes:
      id: of the execution in the store.
      component: the component's class.
      node: its id in the pipeline.
      pipeline, run: names of the pipeline and of its run; empty if not recorded.
      finished: when it was last heard of, in UTC, as ISO 8601.
      parameters: what it was called with.
      inputs, outputs: channel → ids of artifacts.
    """

    id: int
    component: str
    node: str
    pipeline: str
    run: str
    finished: str
    parameters: Mapping[str, Any]
    inputs: Mapping[str, tuple[int, ...]]
    outputs: Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Lineage:
    """An artifact and everything that it was made from.

    Attributes:
      asked: the artifact's id.
      artifacts: id → artifact: what the steps read and made.
      steps: id → step, oldest first.
      makers: artifact id → id of the step that made it.
    """

    asked: int
    artifacts: Mapping[int, Artifact]
    steps: Mapping[int, Step]
    makers: Mapping[int, int]

    def of_type(self, channels: Mapping[str, Sequence[int]], kind: str) -> list[Artifact]:
        """Returns the artifacts of a type among a step's inputs or outputs."""
        found = (self.artifacts[id_] for ids in channels.values() for id_ in ids)
        return [artifact for artifact in found if artifact.type == kind]

    def is_quantizer(self, step: Step) -> bool:
        return bool(self.of_type(step.outputs, EVALUATION))

    def quantizer(self) -> Step:
        """Returns the Quantizer's run behind the artifact, the nearest if there are several.

        Raises:
          DataError: if there is none.
        """
        for id_ in self.ancestors(self.asked):
            step = self.steps.get(self.makers.get(id_, -1))
            if step is not None and self.is_quantizer(step):
                return step
        asked = self.artifacts[self.asked]
        made_by = ", ".join(step.node for step in self.steps.values())
        raise DataError(
            f"artifact {asked.id} ({asked.type} at {asked.uri}) was not made by a Quantizer, but by: "
            f"{made_by or 'no recorded step'}"
        )

    def ancestors(self, artifact: int) -> Iterator[int]:
        """Yields an artifact and what it was made from, the nearest first."""
        queue, seen = deque([artifact]), {artifact}
        while queue:
            id_ = queue.popleft()
            yield id_
            step = self.steps.get(self.makers.get(id_, -1))
            # What a model was only compared with comes last.
            inputs = [] if step is None else sorted(step.inputs.items(), key=lambda item: item[0] == "baseline_model")
            for parent in (each for _, ids in inputs for each in ids):
                if parent not in seen:
                    seen.add(parent)
                    queue.append(parent)
