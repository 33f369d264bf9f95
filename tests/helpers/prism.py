"""Prism, Beam's portable runner in Go, and pools of Beam workers, started for a while and gone afterwards."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.helpers.servers import free_port, running

ROOT = Path(__file__).resolve().parent.parent.parent


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
    port = free_port()
    command = [str(prism_path()), f"--job_port={port}", "--serve_http=false", "--log_level=warn"]
    with running(command, port, os.environ):
        yield f"localhost:{port}"


@contextlib.contextmanager
def worker_pool(pythonpath: Sequence[str | Path] = (ROOT,), warm: int = 0) -> Iterator[str]:
    """Runs a pool of Python workers, one process a worker; gives its endpoint, ``localhost:PORT``.

    Args:
      pythonpath: where the workers find the project's packages. They start in ``/``, as on another machine.
      warm: 0: Beam's own pool, which starts a worker when one is asked for; else a pool of so many workers that wait,
        several of which may serve one job on Prism (see ``warm_pool.py``).
    """
    port = free_port()
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
    with running(command, port, environment):
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
