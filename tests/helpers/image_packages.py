"""The packages that ``docker/Dockerfile`` puts into the image, in a folder, and commands that see no others of ours."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.rehearsal import launch
from tests.helpers.dockerfile import Image, copy, read_dockerfile

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "docker" / "Dockerfile"


class ImageProcess:
    """Runs commands as the image would, in an environment with nothing of the caller's but the installed libraries.

    Attributes:
      packages: the folder with what the Dockerfile copies.
      commands: all that was run.
    """

    def __init__(self, folder: Path):
        self.packages = folder / "packages"
        self.commands: list[Sequence[str]] = []
        for instruction in read_dockerfile(DOCKERFILE):
            if instruction.name == "COPY" and not instruction.value.startswith("--from"):
                copy(Image(self.packages, {}), instruction.value, ROOT)
        self._elsewhere = folder / "elsewhere"
        self._elsewhere.mkdir()
        self._environment = {
            "PATH": f"{os.path.dirname(sys.executable)}:/usr/bin:/bin",
            "PYTHONPATH": str(self.packages),
            "HOME": str(self._elsewhere),
            "TF_ENABLE_ONEDNN_OPTS": "1",  # as the Dockerfile sets it
            # What a process has compiled the next one need not.
            "PYTHONPYCACHEPREFIX": str(folder / "bytecode"),
        }

    def __call__(self, command: Sequence[str]) -> tuple[int, str]:
        self.commands.append(command)
        return launch(command, self._environment, str(self._elsewhere))
