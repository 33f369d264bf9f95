"""What is asked of a quantised model, answered from its lineage as JSON data."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from quantizer_core.lineage.records import (
    BLESSING,
    EVALUATION,
    EXAMPLES,
    FROZEN_GRAPH,
    MODEL,
    PUSHED_MODEL,
    RANGES,
    Artifact,
    Lineage,
    Step,
)

#: What the Quantizer's properties on the machine begin with.
_MACHINE = "machine_"


def answers(lineage: Lineage) -> dict[str, Any]:
    """Returns what is asked of a quantised model, as JSON data: see ``docs/calibration_and_lineage.md``.

    Raises:
      DataError: if no Quantizer made it.
    """
    asked = lineage.artifacts[lineage.asked]
    return {
        "asked": _plain(asked),
        "pushed_to": asked.properties.get("pushed_destination") if asked.type == PUSHED_MODEL else None,
        **quantizer_answers(lineage, lineage.quantizer()),
        "steps": [
            {
                **dataclasses.asdict(step),
                **{
                    side: {
                        channel: [_plain(lineage.artifacts[id_]) for id_ in ids]
                        for channel, ids in getattr(step, side).items()
                    }
                    for side in ("inputs", "outputs")
                },
            }
            for step in lineage.steps.values()
        ],
    }


def quantizer_answers(lineage: Lineage, step: Step) -> dict[str, Any]:
    """Returns what one run of a Quantizer made, from what, and how, as JSON data."""

    def first(channels: Mapping[str, Sequence[int]], kind: str) -> Artifact | None:
        return next(iter(lineage.of_type(channels, kind)), None)

    model, graph = first(step.outputs, MODEL), first(step.inputs, FROZEN_GRAPH)
    evaluation, blessing = first(step.outputs, EVALUATION), first(step.outputs, BLESSING)
    ranges = first(step.outputs, RANGES)
    calibrated_by = _calibrated_by(lineage, step)
    facts = model.properties if model is not None else {}
    machine = {name.removeprefix(_MACHINE): value for name, value in facts.items() if name.startswith(_MACHINE)}
    figures = evaluation.properties if evaluation is not None else {}
    return {
        "int8_model": _plain(model),
        "fp32": {"frozen_graph": _plain(graph), **_fp32_makers(lineage, graph)},
        "examples": [_plain(artifact) for artifact in lineage.of_type(step.inputs, EXAMPLES)],
        "evaluation_split": step.parameters.get("evaluation_split"),
        "calibration": {
            "split": figures.get("calibration_split"),
            "examples": [_plain(a) for a in lineage.of_type(calibrated_by.inputs, EXAMPLES)] if calibrated_by else [],
            "ranges": _plain(ranges),
            "by_step": calibrated_by.id if calibrated_by else None,
            "reused": calibrated_by is not step,
        },
        "config": _config(step),
        "core_version": facts.get("core_version", step.parameters.get("core_version")),
        "machine": {**machine, "weight_bits": facts.get("weight_bits")} if machine else None,
        "evaluation": _plain(evaluation),
        "blessing": _plain(blessing),
        "step": step.id,
    }


def _calibrated_by(lineage: Lineage, step: Step | None) -> Step | None:
    """Returns the run that saw the examples: of ranges that were handed on, the first; None if it is not recorded."""
    while step is not None:
        handed = lineage.of_type(step.inputs, RANGES)
        if not handed:
            return step if lineage.is_quantizer(step) else None
        step = lineage.steps.get(lineage.makers.get(handed[0].id, -1))
    return None


def _fp32_makers(lineage: Lineage, graph: Artifact | None) -> dict[str, Any]:
    """Returns the step that froze or imported the graph, the trained model it came from and the step that made that."""
    by = lineage.steps.get(lineage.makers.get(graph.id, -1)) if graph is not None else None
    model = next(iter(lineage.of_type(by.inputs, MODEL)), None) if by is not None else None
    trained = lineage.steps.get(lineage.makers.get(model.id, -1)) if model is not None else None
    return {
        "made_by": by.id if by is not None else None,
        "model": _plain(model),
        "model_made_by": trained.id if trained is not None else None,
    }


def _config(step: Step) -> Any:
    text = step.parameters.get("quantization_config", "")
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        return text


def _plain(artifact: Artifact | None) -> dict[str, Any] | None:
    return None if artifact is None else dataclasses.asdict(artifact)
