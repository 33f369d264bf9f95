"""Writes reference.md from what the code says of itself: ``python docs/reference.py > docs/reference.md``."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import quantizer_core
from quantizer_core.calibration.run import CalibrationRun
from quantizer_core.cli.main import cli
from quantizer_core.evaluation.detectors import DETECTION_METRICS
from quantizer_core.evaluation.judge import METRICS, EvaluationResult
from quantizer_core.planning.plan import NodePlan, QuantizationPlan, TensorPlan
from quantizer_core.quantize import Conversion

#: What conversions take, what they make, and the files that hold it.
DATA = (
    (quantizer_core.QuantizationConfig, "the JSON of `--config` and of the Quantizer's `quantization_config`"),
    (quantizer_core.PreprocessConfig, "`preprocess` in it; `--preprocess`"),
    (CalibrationRun, "what `calibrate` returns"),
    (Conversion, "what `convert` and `quantize` return"),
    (QuantizationPlan, "`plan.json`, `convert --plan`"),
    (NodePlan, "a row of its `nodes`"),
    (TensorPlan, "a row of its `tensors`"),
    (EvaluationResult, "`evaluation.json`, `--report`"),
)


def main() -> None:
    print("# Reference\n")
    print("Made of the code's own words by `python docs/reference.py > docs/reference.md`; a test compares.\n")
    print("## Python\n")
    print("`import quantizer_core as qc`; `help(qc.NAME)` says more.\n\n| name | what |\n|---|---|")
    for name in sorted(quantizer_core.__all__):
        thing = getattr(quantizer_core, name)
        if inspect.isclass(thing) or inspect.isroutine(thing):
            print(f"| `{_called(name, thing)}` | {_cell(_first(thing))} |")
    metrics = ", ".join(f"`{name}`" for name in (*METRICS, *DETECTION_METRICS))
    print(f"\nMetrics (`judge`, `--metric`; the last two of detectors): {metrics}.\n\n## Data and files\n")
    for kind, where in DATA:
        print(f"### {kind.__name__}\n\n{_cell(_first(kind))} ({where})\n\n| field | default | what |\n|---|---|---|")
        said = _attributes(kind)
        for field in dataclasses.fields(kind):
            print(f"| `{field.name}` | {_default(field)} | {_cell(said.get(field.name, ''))} |")
        print()
    print("## Commands\n")
    for name in sorted(cli.commands):
        _command(name, cli.commands[name])


def _command(name: str, command: click.Command) -> None:
    said = inspect.cleandoc(command.help or "").split("\n\n")[0]
    words = "".join(f" {each.human_readable_name}" for each in command.params if isinstance(each, click.Argument))
    print(f"### quantizer {name}{words}\n\n{_cell(' '.join(said.split()))}\n\n| option | what |\n|---|---|")
    for option in command.params:
        if isinstance(option, click.Option):
            names = ", ".join(f"`{name}`" for name in option.opts)
            shown = option.get_help_record(click.Context(command))
            print(f"| {names} | {_cell(shown[1] if shown else '')} |")
    print()


def _called(name: str, thing: object) -> str:
    if inspect.isclass(thing):
        return name
    parameters = [
        ("*" if each.kind is each.VAR_POSITIONAL else "") + each.name
        for each in inspect.signature(thing).parameters.values()  # type: ignore[arg-type]
    ]
    return f"{name}({', '.join(parameters)})"


def _first(thing: object) -> str:
    """Returns the first paragraph of a docstring on one line."""
    return " ".join(inspect.cleandoc(thing.__doc__ or "").split("\n\n")[0].split())


def _attributes(kind: type) -> dict[str, str]:
    """Returns what the section ``Attributes`` of a class says of each."""
    text = inspect.cleandoc(kind.__doc__ or "") + "\n"
    part = re.search(r"^Attributes:\n((?:  .*\n|\n)+)", text, re.MULTILINE)
    found: dict[str, str] = {}
    names: list[str] = []
    for line in (part[1] if part else "").splitlines():
        heading = re.match(r"  ([a-z_0-9, ]+): ?(.*)", line)
        if heading and not line.startswith("   "):
            names = heading[1].split(", ")
            found |= dict.fromkeys(names, heading[2])
        else:
            found |= {name: f"{found[name]} {line.strip()}".strip() for name in names}
    return found


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
        return "its defaults" if dataclasses.is_dataclass(value) else f"`{value!r}`"
    return "`{}`" if field.default_factory is dict else "" if field.default_factory is dataclasses.MISSING else "empty"


def _cell(text: str) -> str:
    return re.sub(r"``(.+?)``", r"`\1`", text).replace("|", "\\|")


if __name__ == "__main__":
    main()
