"""Reads a Dockerfile and does its COPY and ENV steps in a folder, as far as ours uses them."""

from __future__ import annotations

import dataclasses
import fnmatch
import os
import re
import shutil
import string
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

#: What a build sees of the caller's environment, as with ``docker build --build-arg``: the way to the registries.
_NETWORK_VARIABLE = re.compile(r"(?:PIP|UV)_.*|.*_proxy|.*CERT_FILE|.*CA_BUNDLE", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile, for example ``RUN`` with its command; lines that go on are joined."""

    name: str
    value: str


@dataclasses.dataclass(frozen=True)
class Image:
    """A built stage: its files, and what a container that is made from it starts with."""

    root: Path
    environment: Mapping[str, str]
    user: str = "0:0"
    directory: str = "/"
    entry_point: Sequence[str] = ()
    command: Sequence[str] = ()


def read_dockerfile(path: Path) -> list[Instruction]:
    """Returns the instructions of a Dockerfile."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = re.sub(r"\\\n", " ", "\n".join(lines))
    pairs = (line.split(None, 1) for line in text.splitlines() if line.strip())
    return [Instruction(name.upper(), value.strip()) for name, value in pairs]


def sent_files(context: Path) -> list[Path]:
    """Returns the files that ``.dockerignore`` lets through, relative to ``context``."""
    lines = (line.strip() for line in (context / ".dockerignore").read_text().splitlines())
    patterns = [line for line in lines if line and not line.startswith("#")]
    files = []
    for folder, names, found in os.walk(context):
        relative = Path(folder).relative_to(context)
        names[:] = [name for name in names if name != ".git" and not os.path.islink(os.path.join(folder, name))]
        files.extend(relative / name for name in found if not _ignored(relative / name, patterns))
    return sorted(files)


def _ignored(path: Path, patterns: Sequence[str]) -> bool:
    names = [str(path), *(str(parent) for parent in path.parents if str(parent) != ".")]
    ignored = False
    for pattern in patterns:
        plain = pattern.removeprefix("!")
        tail = plain.removeprefix("**/")
        hit = any(fnmatch.fnmatchcase(name, plain) or (tail != plain and Path(name).name == tail) for name in names)
        ignored = pattern == plain if hit else ignored
    return ignored


def copy(image: Image, value: str, context: Path, stages: Mapping[str, Image] | None = None) -> None:
    """Does a ``COPY`` into the image: from the context, through its ``.dockerignore``, or from another stage."""
    words = value.split()
    if words[0].startswith("--from="):
        source, target = words[1:]
        copied = (stages or {})[words[0].removeprefix("--from=")].root / source.lstrip("/")
        subprocess.run(["cp", "--archive", "--reflink=auto", copied, image.root / target.lstrip("/")], check=True)
        return
    *sources, target = words
    folder = image.root / os.path.join(image.directory, target).lstrip("/")
    files = sent_files(context)
    for source in sources:
        chosen = [path for path in files if path == Path(source) or Path(source) in path.parents]
        if not chosen:
            raise ValueError(f"COPY {value}: {source} is not sent; see .dockerignore")
        for path in chosen:
            # A folder's contents are copied, a file goes into the folder.
            inside = path.relative_to(source) if path != Path(source) else Path(path.name)
            (folder / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(context / path, folder / inside)


def network_variables() -> dict[str, str]:
    """Returns what a build sees of the caller's environment."""
    return {name: value for name, value in os.environ.items() if _NETWORK_VARIABLE.fullmatch(name)}


def set_variables(environment: Mapping[str, str], value: str) -> dict[str, str]:
    """Returns an environment after an ``ENV`` instruction."""
    pairs = (pair.split("=", 1) for pair in value.split())
    return {**environment, **{name: string.Template(text).substitute(environment) for name, text in pairs}}
