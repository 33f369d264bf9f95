"""Prism, Beam's portable runner in Go, and pools of Beam workers, started for a while and gone afterwards."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
_START_SECONDS = 300
_STOP_SECONDS = 10
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def prism_path() -> Path:
    """Returns where ``make prism`` puts Prism: its version is that of Beam in constraints.in."""
    pins = (ROOT / "constraints.in").read_text(encoding="utf-8")
    (version,) = re.findall(r"^apache-beam==(\S+)$", pins, re.MULTILINE)
    return ROOT / ".cache" / "prism" / version / "prism"


def why_no_prism() -> str:
    """Returns why Prism cannot be run here, or "" if it can."""
    if prism_path().exists():
        return ""
    if shutil.which("go") or Path("/usr/local/go/bin/go").exists():
        return "Prism is not built: run `make prism`"
    return "Prism, Beam's portable runner, is built with Go, and Go is not on this machine"


@contextlib.contextmanager
def prism() -> Iterator[str]:
    """Runs Prism; gives the endpoint of its job service, ``localhost:PORT``."""
    port = _free_port()
    command = [str(prism_path()), f"--job_port={port}", "--serve_http=false", "--log_level=warn"]
    with _running(command, port, os.environ):
        yield f"localhost:{port}"


@contextlib.contextmanager
def worker_pool(pythonpath: Sequence[str | Path] = (ROOT,), warm: int = 0) -> Iterator[str]:
    """Runs a pool of Python workers, one process a worker; gives its endpoint, ``localhost:PORT``.

    Args:
      pythonpath: where the workers find the project's packages. They start in ``/``, as on another machine.
      warm: 0: Beam's own pool, which starts a worker when one is asked for; else a pool of so many workers that wait,
        several of which may serve one job on Prism (see ``warm_pool.py``).
    """
    port = _free_port()
    # Beam's pool starts its workers with the `python` that it finds first.
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join(map(str, pythonpath)),
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    if warm:
        command = [sys.executable, "-m", "tests.helpers.warm_pool", str(port), str(warm)]
    else:
        command = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={port}"]
    with _running(command, port, environment):
        yield f"localhost:{port}"


def portable_options(job_endpoint: str, pool: str | None = None) -> list[str]:
    """Returns the arguments of a pipeline on a portable runner: its workers are those of ``pool``, else this process.

    The image is named for TFX, which else builds a source distribution of itself for every component.
    """
    arguments = [
        "--runner=PortableRunner",
        f"--job_endpoint={job_endpoint}",
        "--job_server_timeout=600",  # seconds that a job may take in all
        "--sdk_container_image=unused",
    ]
    if pool is None:
        return [*arguments, "--environment_type=LOOPBACK"]
    return [*arguments, "--environment_type=EXTERNAL", f"--environment_config={pool}"]


@contextlib.contextmanager
def _running(command: Sequence[str], port: int, environment: Mapping[str, str]) -> Iterator[subprocess.Popen]:
    """Runs a server in a process group of its own until the block ends; then nothing of the group is left."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            cwd="/",
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        try:
            _wait(process, port, log)
            yield process
        finally:
            _stop(process)


def _die_with_parent() -> None:
    """Should this process be killed, no code of its own can clean up: the system ends the child."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait(process: subprocess.Popen, port: int, log: object) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection(("localhost", port), 1):
            return
        time.sleep(0.05)
    log.seek(0)  # type: ignore[attr-defined]
    text = log.read().decode(errors="replace")  # type: ignore[attr-defined]
    raise RuntimeError(f"{Path(process.args[0]).name} does not listen on port {port}:\n{text}")  # type: ignore[index]


def _stop(process: subprocess.Popen) -> None:
    group = process.pid
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + _STOP_SECONDS
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, number)
            while time.monotonic() < deadline:
                process.poll()
                os.killpg(group, 0)  # raises once the group is empty
                time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]
