"""Other quantisers, each in a virtual environment of its own: how to install them and how to run one on a graph.

A driver (a file of this folder) runs in the peer's environment, imports nothing of ours, and is given a folder with
``case.json``, ``calibration.npy`` and maybe ``evaluation.npy`` (see ``benchmarks.accuracy.write_arrays`` and
``benchmarks.speed_cases.make_case``). It writes the INT8 model (``neural_compressor.pb`` or ``openvino.xml``), for the
images to evaluate ``int8.npy`` (int64 [images], classes), and prints the seconds of calibration and conversion last.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
#: Seconds that a peer may take for one graph.
TIMEOUT = 1800


@dataclasses.dataclass(frozen=True)
class Peer:
    """Another quantiser: what tables call it, what pip installs, and its driver's file name."""

    title: str
    requirements: tuple[str, ...]
    driver: str


PEERS = {
    "neural_compressor": Peer(
        "Neural Compressor 2.6",
        ("neural-compressor==2.6", "tensorflow==2.15.1", "setuptools<80", "numpy<2"),
        "neural_compressor_driver.py",
    ),
    "openvino": Peer("OpenVINO/NNCF", ("openvino", "nncf", "setuptools<80"), "openvino_driver.py"),
}


def install(peer: Peer, folder: Path) -> Path:
    """Makes the peer's environment unless it is there, and returns its Python.

    Raises:
      RuntimeError: if it cannot be made; the reason is the installer's last line.
    """
    python = folder / "bin" / "python"
    ready = folder / ".ready"
    wanted = "\n".join(peer.requirements)
    if ready.exists() and ready.read_text(encoding="utf-8") == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _run(["python3.10", "-m", "venv", str(folder)])
    uv = sorted(ROOT.glob(".cache/uv/*/bin/uv"))
    if uv:
        _run([str(uv[-1]), "pip", "install", "--quiet", "--python", str(python), *peer.requirements])
    else:
        _run([str(python), "-m", "pip", "install", "--quiet", *peer.requirements])
    ready.write_text(wanted, encoding="utf-8")
    return python


def install_all(names: Sequence[str], folder: Path, console: Console) -> dict[str, Path]:
    """Makes the environments of these peers; returns the Python of those that could be made, and says which not."""
    installed = {}
    for name in names:
        try:
            with console.status(f"{PEERS[name].title}: installing"):
                installed[name] = install(PEERS[name], folder / name)
        except RuntimeError as error:
            console.print(f"{PEERS[name].title} is left out, it cannot be installed: {error}")
    return installed


def run(peer: Peer, python: Path, folder: Path) -> float:
    """Runs the peer's driver on a case and returns the seconds that calibration and conversion took.

    Raises:
      RuntimeError: if it fails, with the last line of what it says.
    """
    return script(python, peer.driver, folder)


def script(python: Path, name: str, folder: Path, *arguments: object) -> float:
    """Runs a file of this folder in a peer's environment on a case; returns the number that it prints last.

    Raises:
      RuntimeError: if it fails, with the last line of what it says.
    """
    found = _run([str(python), str(HERE / name), str(folder), *map(str, arguments)], cwd=folder)
    return float(found.strip().splitlines()[-1])


def _run(command: Sequence[str], cwd: Path | None = None) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment["TF_CPP_MIN_LOG_LEVEL"] = "3"
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=TIMEOUT)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(str(error)) from None
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise RuntimeError(lines[-1] if lines else f"{command[0]} ended with {done.returncode}")
    return done.stdout
