"""docs/kubeflow.md: its lines compile what they say, its targets, options, files and calls of kfp exist."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
from pathlib import Path
from unittest import mock

import click
import kfp
import pytest
from click.testing import CliRunner

from pipelines.kubeflow import deployment, read_spec
from tests.conftest import REPO_ROOT
from tests.test_readme import blocks

TEXT = (REPO_ROOT / "docs" / "kubeflow.md").read_text(encoding="utf-8")
LINES = [
    shlex.split(line) for block in blocks("shell", TEXT) for line in block.replace("\\\n", " ").strip().splitlines()
]
IMAGE = "registry.example.com/tfx-quantizer:1"


def lines(*start: str) -> list[list[str]]:
    found = [line[len(start) :] for line in LINES if tuple(line[: len(start)]) == start]
    assert found, start
    return found


def modules() -> dict[str, list[str]]:
    """Returns module → arguments of the lines that run one."""
    return {module: arguments for module, *arguments in lines("python", "-m")}


def test_no_line_is_left_unchecked() -> None:
    assert len(LINES) == len(lines("docker")) + len(lines("make")) + len(lines("python", "-m")) == 6
    assert set(modules()) == {
        "pipelines.frozen_graph.kubeflow_runner",
        "pipelines.digits.kubeflow_runner",
        "pipelines.rehearsal",
    }


@pytest.mark.parametrize("module", [name for name in modules() if name.endswith("kubeflow_runner")])
def test_runner_s_line_compiles(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = importlib.import_module(module)
    monkeypatch.setattr(runner, "quiet", lambda: None)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(runner.main, modules()[module], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (path,) = tmp_path.rglob("pipeline.yaml")
    executors = deployment(read_spec(str(path))).executors
    if "frozen_graph" in module:
        limits = executors["Quantizer_executor"].container.resources
        assert (limits.cpu_limit, limits.memory_limit) == (8, 16)
        assert executors["Pusher_executor"].container.resources.cpu_limit == 2
        assert "--direct_num_workers=4" in executors["Quantizer_executor"].container.args
        assert executors["Pusher_executor"].container.image == IMAGE
    else:
        assert (tmp_path / modules()["pipelines.rehearsal"][0]) == path
        assert list((tmp_path / "build" / "rehearsal" / "data").iterdir())


def test_rehearsal_s_line_is_understood() -> None:
    command = importlib.import_module("pipelines.rehearsal").main
    values, rest, _ = command.make_parser(click.Context(command)).parse_args(list(modules()["pipelines.rehearsal"]))
    assert not rest and values["root"] == "build/rehearsal/runs"


def test_make_line_reaches_every_runner() -> None:
    (arguments,) = lines("make")
    makefile = (REPO_ROOT / "Makefile").read_text(encoding="utf-8")
    named = re.findall(r"`([A-Z]+(?:_[A-Z]+)*)`", TEXT.split("## Compile")[1].split("## Run")[0])
    for variable in {*named, *(word.partition("=")[0] for word in arguments[1:])} - {"FROM", "NODE"}:
        assert re.search(rf"^{variable} \?=", makefile, re.MULTILINE), variable
    shown = subprocess.run(
        ["make", "--dry-run", "-o", "setup", *arguments], cwd=REPO_ROOT, capture_output=True, text=True, check=True
    ).stdout
    commands = [shlex.split(line) for line in shown.replace("\\\n", " ").splitlines() if "kubeflow_runner" in line]
    runners = {path.parent.name for path in (REPO_ROOT / "pipelines").glob("*/kubeflow_runner.py")}
    assert {command[2].split(".")[1] for command in commands} == runners == {"digits", "tabular", "frozen_graph"}
    for command in commands:
        assert command[command.index("--image") + 1] == IMAGE
        assert command[command.index("--pipeline_root") + 1] == "gs://my-bucket/quantizer"
        assert command[command.index("--output") + 1] == "build/kubeflow"
        main = importlib.import_module(command[2]).main
        main.make_context(command[2], command[3:])  # complains of an option that is not there, or is missing


def test_image_is_built_as_the_dockerfile_says() -> None:
    build, push = lines("docker")
    assert build == ["build", "--file", "docker/Dockerfile", "--tag", IMAGE, "."]
    assert push == ["push", IMAGE]
    assert "docker build --file docker/Dockerfile " in (REPO_ROOT / "docker" / "Dockerfile").read_text()


def test_run_is_what_the_client_offers() -> None:
    (code,) = blocks("python", TEXT)
    client = mock.create_autospec(kfp.Client)
    with mock.patch.object(kfp, "Client", client):
        exec(compile(code, "kubeflow.md", "exec"), {})
    asked = client.return_value
    (package,) = asked.create_run_from_pipeline_package.call_args.args
    assert package == "build/kubeflow/digits/pipeline.yaml"
    asked.wait_for_run_completion.assert_called_once()


def test_files_and_links_exist() -> None:
    for path in re.findall(r"`((?:tests|docker|pipelines)/[\w/.]*)`", TEXT):
        assert (REPO_ROOT / path).exists(), path
    for target in re.findall(r"\]\(([\w.]+)\)", TEXT):
        assert (REPO_ROOT / "docs" / target).exists(), target
    for target in re.findall(r"`make ([a-z-]+)`", TEXT):
        assert re.search(rf"^{target}:", (REPO_ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), target
