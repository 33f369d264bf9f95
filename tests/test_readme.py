"""README and tutorial stay true: their shell lines and Python run as printed, their names and targets exist."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def run_shell(block: str, folder: Path) -> str:
    """Runs the ``quantizer`` lines of a block one after the other in ``folder`` and returns what they print."""
    output = ""
    for line in block.replace("\\\n", " ").strip().splitlines():
        words = shlex.split(line)
        assert words[0] == "quantizer", line
        run = subprocess.run(
            [sys.executable, "-m", "quantizer_core.cli.main", *words[1:]],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert run.returncode == 0, f"{line}\n{run.stdout}{run.stderr}"
        output += run.stdout
    return output


@pytest.fixture
def workplace(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns the current directory, with the README's mobilenet.pb and photos/ in it."""
    shutil.copy(shared_data / "graphs" / "mobilenet_v1_0.25_224_frozen.pb", tmp_path / "mobilenet.pb")
    (tmp_path / "photos").mkdir()
    for image in sorted((shared_data / "images" / "nips2017_dev").rglob("*.png"))[:8]:
        shutil.copy(image, tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_python_example_runs(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = (block for block in blocks("python") if "qc.convert" in block)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert (workplace / "mobilenet_int8.pb").stat().st_size < (workplace / "mobilenet.pb").stat().st_size / 2
    assert "QuantizedConv2D" in capsys.readouterr().out


@pytest.mark.slow
def test_shell_example_runs(workplace: Path) -> None:
    (block,) = (block for block in blocks("shell") if block.startswith("quantizer convert"))
    run_shell(block, workplace)
    assert (workplace / "mobilenet_int8.pb").stat().st_size < (workplace / "mobilenet.pb").stat().st_size / 2


@pytest.mark.slow
def test_tutorial_runs(workplace: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = shared_data / "images" / "nips2017_dev"
    shutil.rmtree(workplace / "photos")
    (workplace / "photos").symlink_to(photos / "images")
    (workplace / "photos.csv").symlink_to(photos / "images.csv")
    (workplace / "examples").mkdir()
    summary, convert, benchmark, evaluate, tfrecords = blocks("shell", TUTORIAL)
    assert "15 Conv2D, 13 DepthwiseConv2dNative, 1 AvgPool" in run_shell(summary, workplace)
    converted = run_shell(convert, workplace)
    assert "27 of 29 nodes in INT8" in converted
    shorter = " --threads 1 --repeats 1 --seconds 0.01"
    assert "_FusedQuantizedConv2D" in run_shell(benchmark.rstrip() + shorter, workplace)
    (verdict,) = (line for line in converted.splitlines() if line.startswith("blessed: "))
    assert verdict in run_shell(evaluate, workplace).splitlines()
    run_shell(tfrecords, workplace)
    assert sorted(path.name for path in (workplace / "examples").iterdir()) == [
        "calibration.tfrecord.gz",
        "evaluation.tfrecord.gz",
    ]
    (code,) = blocks("python", TUTORIAL)
    exec(compile(code, "tutorial.md", "exec"), {"__name__": "tutorial"})
    assert len(capsys.readouterr().out.splitlines()) == 29


def test_pipeline_example_names_what_exists() -> None:
    (code,) = (block for block in blocks("python") if "Freezer(" in block)
    compile(code, "README.md", "exec")
    names: dict[str, object] = {}
    exec("\n".join(line for line in code.splitlines() if line.startswith("from ")), names)
    quantizer_arguments = re.findall(r"^    (\w+)=", code.split("Quantizer(\n")[1].split("\n)")[0], re.MULTILINE)
    assert len(quantizer_arguments) >= 5
    parameters = names["Quantizer"].__init__.__code__.co_varnames  # type: ignore[misc]
    assert set(quantizer_arguments) <= set(parameters)


def test_targets_and_files_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"`?make ([a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for path in re.findall(r"\]\((?:\.\./)?([^)#:]+)[^)]*\)", README + TUTORIAL) + re.findall(
        r"^\| `(\w+/)`", README, re.MULTILINE
    ):
        assert (ROOT / path).exists() or (ROOT / "docs" / path).exists(), path
