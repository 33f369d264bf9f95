"""MLServer on a SavedModel, as examples/mlserver runs it, and a client of it that is plain ``urllib``."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.helpers.servers import free_port, running

ROOT = Path(__file__).resolve().parent.parent.parent
#: As the page on TFX tells it: run from the checkout's root.
COMMAND = (".cache/mlserver/bin/mlserver", "start", "examples/mlserver")


def why_no_mlserver() -> str:
    """Returns why MLServer cannot be run here, or "" if it can."""
    installed = ROOT / COMMAND[0]
    if (installed.parents[1] / ".ready").exists():
        return ""
    return "MLServer is not installed: run `make mlserver`"


@contextlib.contextmanager
def mlserver(saved_model: str, folder: Path) -> Iterator[str]:
    """Runs MLServer in ``folder`` on a SavedModel; gives the address of its model, once that is ready."""
    http, grpc, metrics = free_port(), free_port(), free_port()
    # The runtime has to ask for oneDNN itself, and needs nothing of this checkout.
    environment = {
        name: value for name, value in os.environ.items() if name not in ("TF_ENABLE_ONEDNN_OPTS", "PYTHONPATH")
    }
    environment.update(
        MLSERVER_MODEL_URI=saved_model,
        MLSERVER_HOST="127.0.0.1",
        MLSERVER_HTTP_PORT=str(http),
        MLSERVER_GRPC_PORT=str(grpc),
        MLSERVER_METRICS_PORT=str(metrics),
    )
    address = f"http://127.0.0.1:{http}/v2/models/model"
    program, verb, models = COMMAND
    command = [str(ROOT / program), verb, str(ROOT / models)]
    with running(command, http, environment, folder, lambda: _answers(f"{address}/ready")):
        yield address


def as_input(examples: Sequence[bytes]) -> dict[str, Any]:
    """Returns serialized examples as an input of the V2 protocol's JSON."""
    return {
        "name": "examples",
        "shape": [len(examples)],
        "datatype": "BYTES",
        "parameters": {"content_type": "base64"},
        "data": [base64.b64encode(example).decode() for example in examples],
    }


def infer(address: str, *inputs: dict[str, Any]) -> list[dict[str, Any]]:
    """Posts one request; returns its outputs.

    Raises:
      urllib.error.HTTPError: the server refused it.
    """
    body = json.dumps({"inputs": inputs}).encode()
    request = urllib.request.Request(f"{address}/infer", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)["outputs"]


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=10):
        return True
    return False
