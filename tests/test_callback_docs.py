"""docs/callback.md stays true: its commands and its Python run as printed, and so do the examples that it names."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import quantizer_core as qc
from quantizer_core.calibration.command import GRAPH_FLAGS
from quantizer_core.data import read_examples
from quantizer_core.graph_converter import ALGORITHMS
from quantizer_core.stages import STAGES, stage_paths
from tests.test_readme import ROOT, blocks, run_shell, workplace

__all__ = ["workplace"]

TEXT = (ROOT / "docs" / "callback.md").read_text(encoding="utf-8")
CONVERT, KEEP = blocks("shell", TEXT)
(PYTHON,) = blocks("python", TEXT)


@pytest.fixture
def scripted(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The workplace with inference.py in it, and ``python`` on the PATH."""
    shutil.copy(ROOT / "examples" / "inference.py", workplace)
    (workplace / "bin").mkdir()
    (workplace / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (workplace / "bin" / "python").chmod(0o755)
    monkeypatch.setenv("PATH", str(workplace / "bin"), prepend=os.pathsep)
    return workplace


@pytest.mark.slow
def test_commands_and_python_run_as_printed_and_equal_direct_calibration(scripted: Path) -> None:
    """The whole way with a real script of another process, on the MobileNet file and the shared images."""
    run_shell(CONVERT, scripted)
    run_shell(KEEP, scripted)
    exec(compile(PYTHON, "callback.md", "exec"), {"__name__": "docs"})
    assert all((scripted / name).exists() for name in stage_paths("mobilenet_kept.pb").values())
    mobilenet = qc.load_graph("mobilenet.pb")
    for name, method in (("mobilenet_int8.pb", "mse"), ("mobilenet_direct.pb", "minmax")):
        preprocess = qc.PreprocessConfig(kind="image", normalize="inception")
        config = qc.QuantizationConfig(calibration_method=method, preprocess=preprocess)
        direct = qc.quantize(mobilenet, read_examples("photos/"), config)
        assert qc.load_graph(name) == direct.graph_def, name
    assert (scripted / "mobilenet_minmax.pb").read_bytes() == (scripted / "mobilenet_direct.pb").read_bytes()


@pytest.mark.slow
def test_the_example_of_the_python_api_runs(workplace: Path) -> None:
    def example(*words: str) -> str:
        run = subprocess.run(
            [sys.executable, ROOT / "examples" / "quantize_python.py", "--input_graph", "mobilenet.pb", *words],
            cwd=workplace,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stderr

    told = example("--data_location", "photos/", "--output_graph", "by_command.pb", "--debug")
    assert told.count(".png: class ") == 8 and "by_command.pb: 27 of 29 nodes in INT8" in told
    assert all((workplace / name).exists() for name in stage_paths("by_command.pb").values())
    assert "mobilenet_int8.pb: 2" in example("--random_feeds", "4", "--algo", "KL")


def test_tables_name_what_exists() -> None:
    rows = [re.findall(r"`(\w+)`", row) for row in re.findall(r"^\| (.*?) \|", TEXT, re.MULTILINE)]
    given = inspect.signature(qc.GraphConverter).parameters
    attributes = {"gen_calib_data_cmds", "calibration_feeds", "timeout", "debug"}
    assert {*given, *attributes} <= {name for row in rows for name in row}
    assert attributes <= vars(qc.GraphConverter(ROOT / "none.pb", None)).keys()
    assert all(f"`NAME_{stage}.pb`" in TEXT for stage in STAGES)
    assert all(f"`{algo}`" in TEXT for algo in ALGORITHMS) and all(f"`{flag}`" in TEXT for flag in GRAPH_FLAGS)
    for path in re.findall(r"\]\(\.\./([^)]*)\)", TEXT):
        assert (ROOT / path).exists(), path
