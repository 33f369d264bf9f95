"""Prism and worker pools that tests start are gone afterwards, however the test ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.helpers.prism import ROOT, prism, worker_pool
from tests.helpers.servers import free_port, running


def listens(endpoint: str) -> bool:
    host, _, port = endpoint.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except OSError:
        return False
    return True


def test_prism_is_gone_when_its_block_ends_even_by_an_error(prism_endpoint: str) -> None:
    with prism() as endpoint:
        assert endpoint != prism_endpoint and listens(endpoint) and listens(prism_endpoint)
    assert not listens(endpoint)
    with pytest.raises(ZeroDivisionError), prism() as endpoint:
        raise ZeroDivisionError
    assert not listens(endpoint) and listens(prism_endpoint)


def test_prism_is_gone_when_its_parent_is_killed(prism_endpoint: str) -> None:
    code = "import time\nfrom tests.helpers.prism import prism\nwith prism() as p: print(p, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        endpoint = parent.stdout.readline().strip()
        assert listens(endpoint)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while listens(endpoint) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not listens(endpoint)


def test_a_server_that_does_not_start_says_why() -> None:
    port = free_port()
    command = [sys.executable, "-c", "raise SystemExit('no such luck')"]
    with pytest.raises(RuntimeError, match="does not listen on port \\d+:\nno such luck"):
        running(command, port, os.environ).__enter__()


@pytest.mark.slow
def test_no_worker_of_a_pool_is_left() -> None:
    """A worker that a job started, and that no one stopped, goes with its pool."""
    import grpc
    from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc, endpoints_pb2

    nowhere = endpoints_pb2.ApiServiceDescriptor(url=f"localhost:{free_port()}")
    with worker_pool() as pool:
        service = beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub(grpc.insecure_channel(pool))
        service.StartWorker(
            beam_fn_api_pb2.StartWorkerRequest(worker_id="left", control_endpoint=nowhere, logging_endpoint=nowhere)
        )
        assert "left" in processes()
    assert "left" not in processes()


def processes() -> str:
    """Returns the command lines of the workers that run."""
    found = ""
    for number in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{number}/cmdline", encoding="utf-8", errors="replace") as file:
                line = file.read()
        except OSError:
            continue
        found += line if "SdkHarness" in line else ""
    return found
