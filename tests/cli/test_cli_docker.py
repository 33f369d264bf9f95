"""``quantizer docker``: the command that it runs, and what it refuses."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from quantizer_core.cli.main import cli

USER = f"{os.getuid()}:{os.getgid()}"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("data", "zoo", "sources", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "net.pb").write_bytes(b"")
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    return tmp_path


def dry(*arguments: object) -> tuple[int, list[str], str]:
    result = CliRunner().invoke(cli, ["docker", "--dry-run", *map(str, arguments)])
    return result.exit_code, shlex.split(result.stdout), result.stderr


def mount(source: Path, target: str, *, readonly: bool = True) -> list[str]:
    return ["--mount", f"type=bind,source={source},target=/workspace/{target}" + (",readonly" if readonly else "")]


def test_a_model_of_the_zoo_gets_its_files_and_proxies(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://name:secret@proxy:3128")
    code, line, _ = dry(
        *("--docker-image", "quantization:latest", "--in_graph", files / "net.pb", "--out_graph", files / "out/x.pb"),
        *("--data_location", files / "data", "--model_name", "rfcn", "--models_zoo", files / "zoo"),
        *("--models_source_dir", files / "sources", "--intermediate"),
    )
    assert code == 0
    assert line == [
        *("docker", "run", "--rm", "--user", USER, "--workdir", "/workspace"),
        *mount(files / "net.pb", "pretrained_model/net.pb"),
        *mount(files / "data", "dataset"),
        *mount(files / "zoo", "models", readonly=False),
        *mount(files / "sources", "models_source", readonly=False),
        *mount(files / "out", "output", readonly=False),
        *("--env", "https_proxy", "quantization:latest"),
        *("model-zoo", "--model", "rfcn", "--in_graph", "/workspace/pretrained_model/net.pb"),
        *("--out_graph", "/workspace/output/x.pb", "--data_location", "/workspace/dataset"),
        *("--models_zoo_location", "/workspace/models", "--models_source_dir", "/workspace/models_source", "--debug"),
    ]


def test_options_behind_the_dashes_are_those_of_model_zoo(files: Path) -> None:
    given = ("--in_graph", files / "net.pb", "--data_location", files / "data", "--model_name", "rfcn")
    code, line, _ = dry(*given, "--", "--evaluate", "--overwrite")
    assert code == 0 and line[-4:] == ["--data_location", "/workspace/dataset", "--evaluate", "--overwrite"]


def test_debug_opens_a_shell_and_any_command_goes_behind_the_dashes(files: Path) -> None:
    code, line, _ = dry("--in_graph", files / "net.pb", "--debug")
    assert code == 0 and line[-5:] == ["--interactive", "--tty", "--entrypoint", "/bin/bash", "tfx-quantizer:latest"]
    assert mount(files, "output", readonly=False)[1] in line  # beside the graph
    code, line, _ = dry("--in_graph", files / "net.pb", "--", "summarize-graph", "--in_graph", "/workspace/x.pb")
    assert code == 0 and line[-4:] == ["tfx-quantizer:latest", "summarize-graph", "--in_graph", "/workspace/x.pb"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--in_graph", "{}/none.pb", "--debug"], "none.pb' does not exist"),
        (["--in_graph", "{}/data", "--debug"], "data' is not a file"),
        (["--in_graph", "{}/net.pb", "--data_location", "{}/nothing", "--debug"], "--data_location"),
        (["--in_graph", "{}/net.pb", "--out_graph", "{}/missing/o.pb", "--debug"], "missing' does not exist"),
        (["--in_graph", "{}/net.pb"], "give --model_name, a COMMAND behind --, or --debug"),
        (["--in_graph", "{}/net.pb", "--model_name", "rfcn"], "--model_name needs --data_location"),
        (["--in_graph", "{}/net.pb", "--model_name", "rfcn", "--data_location", "{}/data", "x"], "not both"),
        (["--in_graph", "{}/net.pb", "--intermediate", "doctor"], "--intermediate goes with --model_name"),
    ],
)
def test_what_cannot_be_is_refused(files: Path, arguments: list[str], message: str) -> None:
    code, line, error = dry(*(argument.replace("{}", str(files)) for argument in arguments))
    assert code == 2 and line == [] and message in error


def test_docker_is_run_and_its_exit_code_is_ours(files: Path) -> None:
    """Against a stand-in for docker on the PATH, which prints what it gets."""
    fake = files / "bin" / "docker"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nprintf "%s|" "$@"\nexit 3\n')
    fake.chmod(0o755)
    command = [sys.executable, "-m", "quantizer_core.cli.main", "docker", "--in_graph", str(files / "net.pb"), "doctor"]
    environment = {**os.environ, "PATH": f"{fake.parent}:{os.environ['PATH']}"}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 3 and done.stdout.startswith("run|--rm|") and done.stdout.endswith(":latest|doctor|")
    environment["PATH"] = str(files / "data")
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "docker is not on the PATH" in done.stderr


def test_unknown_options_are_wrong_use_and_those_of_the_command_its_own(files: Path) -> None:
    code, _, said = dry("--in_graph", files / "net.pb", "--dataloc", "x", "doctor")
    assert code == 2 and "No such option '--dataloc'" in said
    for dashes in ([], ["--"]):
        code, line, said = dry("--in_graph", files / "net.pb", *dashes, "convert", "--input_graph", "x", "--debug")
        assert code == 0, said
        assert line[-4:] == ["convert", "--input_graph", "x", "--debug"]
