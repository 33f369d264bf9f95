"""Does a Dockerfile's steps one by one in a clean folder, without Docker and without root.

The folder stands for the image's root: absolute paths in the steps get it in front. All stages share it, and the
interpreter that runs here stands for the base image's. What only a container has is left out: the base image with its
packages, ``apt-get``, and the change of user.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.helpers.dockerfile import Image, copy, network_variables, read_dockerfile, set_variables

_ABSOLUTE_PATH = re.compile(r"(?<![\w.$*/])/(?=\w)")
_PIP = "python -m pip install "


@dataclasses.dataclass(frozen=True)
class Built:
    """What came of a Dockerfile.

    Attributes:
      image: its last stage.
      left_out: the ``RUN`` commands that were not run.
    """

    image: Image
    left_out: tuple[str, ...]


def build_in_folder(dockerfile: Path, context: Path, root: Path, uv: Path | None = None) -> Built:
    """Does the steps of a Dockerfile.

    Args:
      dockerfile: the file.
      context: the folder that ``COPY`` copies from, through its ``.dockerignore``.
      root: a folder, empty or missing, that becomes the image's root.
      uv: installs the lock in place of pip, from its cache of unpacked packages; the same hashes are asked for.

    Raises:
      subprocess.CalledProcessError: if a ``RUN`` fails, with what it printed.
      ValueError: if an instruction cannot be done so.
    """
    base = Image(root, {"PATH": f"{sys.base_prefix}/bin:/usr/local/bin:/usr/bin:/bin"})
    image, left_out = base, []
    root.mkdir(parents=True, exist_ok=True)
    for instruction in read_dockerfile(dockerfile):
        name, value = instruction.name, instruction.value
        if name == "ARG":
            continue  # the base image's name
        if name == "FROM":
            image = base
        elif name == "RUN" and value.startswith("apt-get "):
            left_out.append(value)
        elif name == "RUN":
            _run_step(image, _with_uv(_rooted(value, root), uv))
        elif name == "COPY" and value.startswith("--from="):
            source, target = value.split()[1:]
            if source != target:
                raise ValueError(f"COPY {value}: the stages share one folder, so that a copy keeps its place")
        elif name == "COPY":
            copy(image, value, context)
        elif name == "ENV":
            image = dataclasses.replace(image, environment=set_variables(image.environment, _rooted(value, root)))
        elif name == "WORKDIR":
            (root / value.lstrip("/")).mkdir(parents=True, exist_ok=True)
            image = dataclasses.replace(image, directory=value)
        elif name == "USER":
            image = dataclasses.replace(image, user=value)
        elif name == "ENTRYPOINT":
            image = dataclasses.replace(image, entry_point=json.loads(value))
        elif name == "CMD":
            image = dataclasses.replace(image, command=json.loads(value))
        else:
            raise ValueError(f"{dockerfile}: {name} is not known here")
    return Built(image, tuple(left_out))


def run_in_folder(image: Image, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs a command with the image's environment and no other, in its working directory, as the calling user."""
    return subprocess.run(
        # `env` looks the name up on the image's PATH, where subprocess would take its own.
        ["/usr/bin/env", *command],
        cwd=image.root / image.directory.lstrip("/"),
        env=dict(image.environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _run_step(image: Image, command: str) -> None:
    home = {"HOME": os.path.expanduser("~")}  # with the settings and caches of pip and uv
    variables = {**home, **network_variables(), **image.environment}
    finished = run_in_folder(dataclasses.replace(image, environment=variables), ["/bin/sh", "-c", command])
    if finished.returncode:
        raise subprocess.CalledProcessError(finished.returncode, f"RUN {command}", finished.stdout)


def _with_uv(command: str, uv: Path | None) -> str:
    if uv is None or not (command.startswith(_PIP) and "--require-hashes" in command):
        return command
    # uv builds by PEP 517 always.
    options = command.removeprefix(_PIP).replace("--no-cache-dir ", "").replace("--use-pep517 ", "")
    return f'{uv} pip install --quiet --python "$(command -v python)" {options}'


def _rooted(text: str, root: Path) -> str:
    return _ABSOLUTE_PATH.sub(f"{root}/", text)
