"""``quantizer lineage``: where a pushed model comes from, as a tree or as JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.tree import Tree

    from quantizer_core.lineage import Artifact, Lineage, Step

#: Longer values of parameters are cut in the tree; --json has them whole.
_LONGEST = 120


@click.command()
@click.option("--metadata", required=True, metavar="STORE", help="The SQLite file of the pipeline's ML Metadata.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a tree.")
@click.argument("model", metavar="MODEL")
def lineage(metadata: str, model: str, as_json: bool) -> None:
    """Show what a quantized MODEL was made from, and how.

    MODEL is the directory that a Pusher wrote, the URI of an artifact, or an artifact's id. The answer goes back to the
    FP32 model and what made it, the examples and splits, the config, the core's version, the machine, the calibration
    ranges, the evaluation and the verdict.

    \b
    quantizer lineage --metadata build/digits/metadata.db build/digits/serving/1718000000
    """
    from quantizer_core.lineage import answers, trace

    found = trace(metadata, model)
    answer = answers(found)  # complains of what no Quantizer made
    click.echo(json.dumps(answer, indent=2, sort_keys=True) if as_json else as_text(found))


def as_text(found: Lineage) -> str:
    """Returns the tree: each artifact with the step that made it, and that with what it read."""
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

    from quantizer_core.cli.tables import width

    asked = found.artifacts[found.asked]
    tree = Tree(Text(_title(asked)))
    _grow(tree, found, asked, set())
    text = io.StringIO()
    Console(file=text, width=width(), color_system=None).print(tree, soft_wrap=True)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def _grow(branch: Tree, found: Lineage, artifact: Artifact, seen: set[int]) -> None:
    """Adds the step that made an artifact, and what the step read; what was told above is not told again."""
    from rich.text import Text

    from quantizer_core.lineage import quantizer_answers

    step = found.steps.get(found.makers.get(artifact.id, -1))
    if step is None:
        branch.add(Text("no recorded step made it"))
        return
    quantizer = found.is_quantizer(step)
    made = branch.add(Text(f"by {step.node}, {step.finished}{_called(step) if not quantizer else ''}"))
    if step.id in seen:
        made.add(Text("told above"))
        return
    seen.add(step.id)
    for line in _quantizer_lines(quantizer_answers(found, step)) if quantizer else ():
        made.add(Text(line))
    for channel, ids in step.inputs.items():
        for id_ in ids:
            source = found.artifacts[id_]
            again = source.id in found.makers and found.makers[source.id] in seen
            child = made.add(Text(f"{channel}: {_title(source)}{' (told above)' if again else ''}"))
            if not again:
                _grow(child, found, source, seen)


def _title(artifact: Artifact) -> str:
    place = artifact.properties.get("pushed_destination") or artifact.uri
    return f"{artifact.type.removeprefix('components.')} {artifact.id}: {place}"


def _called(step: Step) -> str:
    parts = []
    for name, value in step.parameters.items():
        text = " ".join(str(value).split()).replace("{ ", "{").replace(" }", "}").replace("[ ", "[").replace(" ]", "]")
        if text in ("", "null", "{}", "[]"):
            continue
        parts.append(f"{name}={text if len(text) <= _LONGEST else text[:_LONGEST] + '…'}")
    return f" ({', '.join(parts)})" if parts else ""


def _quantizer_lines(answer: Mapping[str, Any]) -> list[str]:
    figures = (answer["evaluation"] or {}).get("properties", {})
    verdict = (answer["blessing"] or {}).get("properties", {})
    blessed = "blessed" if verdict.get("blessed") else "NOT BLESSED"
    lines = [f"{blessed}: {verdict.get('blessing_message', 'no reason recorded')}"]
    if answer["evaluation"] is not None:
        names = ("metric", "fp32", "int8", "drop", "max_drop", "agreement", "divergence", "evaluation_examples")
        told = ", ".join(f"{name} {figures[name]}" for name in names if name in figures)
        split = answer["evaluation_split"]
        lines.append(f"evaluation {answer['evaluation']['id']} on split {split}: {told}: {answer['evaluation']['uri']}")
    calibration, ranges = answer["calibration"], answer["calibration"]["ranges"]
    if ranges is not None:
        saw = f"{ranges['properties'].get('examples', '?')} examples of {calibration['split']}"
        by = f", handed on from step {calibration['by_step'] or 'of another store'}" if calibration["reused"] else ""
        lines.append(f"calibration ranges {ranges['id']}: {saw}{by}: {ranges['uri']}")
    lines.append(f"core version: {answer['core_version']}")
    machine = answer["machine"] or {}
    told = ", ".join(f"{name} {value}" for name, value in sorted(machine.items()))
    lines.append(f"machine: {told or 'not recorded'}")
    return [*lines, f"config: {_config(answer['config'])}"]


def _config(config: Any) -> str:
    """Returns the choices that are not the defaults."""
    import dataclasses

    from quantizer_core.config import QuantizationConfig

    if not isinstance(config, dict):
        return str(config)
    usual = json.loads(json.dumps(dataclasses.asdict(QuantizationConfig())))
    chosen = {}
    for name, value in config.items():
        default = usual.get(name)
        if isinstance(value, dict) and isinstance(default, dict):
            value = {key: each for key, each in value.items() if each != default.get(key)}
            default = {}
        if value != default:
            chosen[name] = value
    return json.dumps(chosen, sort_keys=True) if chosen else "all defaults"
