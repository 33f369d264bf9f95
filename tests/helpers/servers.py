"""Servers in processes of their own, started for a while and gone afterwards."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

_START_SECONDS = 300
_STOP_SECONDS = 10
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


@contextlib.contextmanager
def running(
    command: Sequence[str],
    port: int,
    environment: Mapping[str, str],
    folder: str | Path = "/",
    is_ready: Callable[[], bool] = lambda: True,
) -> Iterator[subprocess.Popen]:
    """Runs a server in a process group of its own until the block ends; then nothing of the group is left.

    The block starts once the server listens on the port and ``is_ready``.

    Raises:
      RuntimeError: the server ended, or took too long; with what it printed.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        try:
            _wait(process, port, is_ready, log)
            yield process
        finally:
            _stop(process)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def _die_with_parent() -> None:
    """Should this process be killed, no code of its own can clean up: the system ends the child."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait(process: subprocess.Popen, port: int, is_ready: Callable[[], bool], log: IO[bytes]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if _listens(port) and is_ready():
            return
        time.sleep(0.05)
    log.seek(0)
    text = log.read().decode(errors="replace")
    fault = "is not ready" if _listens(port) else "does not listen"
    raise RuntimeError(f"{Path(process.args[0]).name} {fault} on port {port}:\n{text}")  # type: ignore[index]


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("localhost", port), 1):
        return True
    return False


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
