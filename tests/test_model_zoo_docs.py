"""docs/model_zoo.md names commands, options and files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import click

from quantizer_core.cli.main import cli

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "model_zoo.md").read_text(encoding="utf-8")


def options(command: str) -> set[str]:
    return {name for each in cli.commands[command].params if isinstance(each, click.Option) for name in each.opts}


def test_the_commands_take_what_they_are_shown_with() -> None:
    blocks = "\n".join(re.findall(r"```\n(.*?)```", TEXT, re.DOTALL)).replace("\\\n", " ")
    lines = [line for line in blocks.splitlines() if line.startswith("quantizer ")]
    assert len(lines) >= 2
    for line in lines:
        command = line.split()[1]
        assert set(re.findall(r" (--[\w-]+)", line)) <= options(command), line


def test_the_flags_of_2020_are_taken() -> None:
    rows = re.findall(r"\| `\w+\.py ([^`]*)` \| `quantizer ([\w-]+)`", TEXT)
    assert [command for _, command in rows] == ["convert", "model-zoo", "summarize-graph", "docker"]
    for flags, command in rows:
        assert set(flags.split()) <= options(command), command


def test_files_that_are_named_exist() -> None:
    for path in re.findall(r"`((?:examples|quantizer_core|docker)/[\w/.]+)`", TEXT):
        assert (ROOT / path).exists(), path
    for page in re.findall(r"\]\((\w+\.md)\)", TEXT):
        assert (ROOT / "docs" / page).exists(), page
