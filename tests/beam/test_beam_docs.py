"""docs/beam.md names arguments that Beam and Prism know, files and kinds of faults that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

ROOT = Path(__file__).resolve().parent.parent.parent
TEXT = (ROOT / "docs" / "beam.md").read_text(encoding="utf-8")
BLOCKS = [block.split() for block in re.findall(r"```\n(--.*?)```", TEXT, re.DOTALL)]


def test_every_runner_has_its_arguments() -> None:
    runners = [argument for block in BLOCKS for argument in block if argument.startswith("--runner=")]
    assert len(BLOCKS) == len(runners) == 7


@pytest.mark.parametrize("arguments", BLOCKS, ids=[f"{block[0][9:]}-{n}" for n, block in enumerate(BLOCKS)])
def test_beam_knows_the_arguments(arguments: list[str]) -> None:
    """Beam says nothing of an argument that it does not know: it is looked for among those that it parsed."""
    options = PipelineOptions(arguments).get_all_options()
    for argument in arguments:
        name, _, value = argument[2:].partition("=")
        found = options[name]
        assert value in (map(str, found) if isinstance(found, list) else [str(found)]), argument


def test_files_and_faults_that_are_named_exist() -> None:
    for path in re.findall(r"`((?:tests|benchmarks)/[\w/]+\.py)`", TEXT):
        assert (ROOT / path).exists(), path
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "quantizer_core").rglob("*.py"))
    (line,) = (line for line in TEXT.splitlines() if line.startswith("| `examples_skipped_KIND`"))
    named = set(re.findall(r"`(\w+)`", line.split("fault:")[1]))
    raised = set(
        re.findall(r'(?:_Finding\(\s*|reason=|reason: str = |_skip\(error, |"label feature", )"(\w+)"', sources)
    )
    assert named == raised
