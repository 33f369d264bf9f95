"""What all benchmarks share: where they are run from, the shared data, and processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent


def python_child(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with these arguments in a process of its own, from the checkout, TensorFlow quiet."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "QUANTIZER_SHARED_DATA": str(shared_data().resolve())}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, env=environment)


def output_of(*arguments: str) -> str:
    """Does the same and returns all that it prints; raises ClickException with its last word if it fails."""
    done = python_child(*arguments)
    if done.returncode:
        raise click.ClickException(f"{' '.join(arguments)}: {last_word(done)}")
    return done.stdout


def child(*arguments: str) -> str:
    """Does the same and returns the last line that it prints."""
    return last_line(output_of(*arguments))


def last_word(done: subprocess.CompletedProcess[str]) -> str:
    """Returns why a process failed, as the last line of its errors says."""
    return last_line(done.stderr) or f"the process ended with {done.returncode}"


def last_line(text: str) -> str:
    """Returns the last line of a text that holds more than blanks, or ""."""
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


def zoo_graph(name: str, path: Path) -> Path:
    """Makes the FP32 graph of a Model Zoo entry by the shared data's script, unless ``path`` holds it; returns that.

    Raises:
      ClickException: if the script fails.
    """
    zoo = shared_data() / "zoo"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        child(str(zoo / "materialize.py"), str(zoo / f"{name}.pb.xz"), str(path))
    return path


def shared_data() -> Path:
    """Returns the folder of graphs and images: ``QUANTIZER_SHARED_DATA``, else ``../shared/data``."""
    return Path(os.environ.get("QUANTIZER_SHARED_DATA") or ROOT.parent / "shared" / "data")
