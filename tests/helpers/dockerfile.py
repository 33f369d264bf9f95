"""Builds and runs an image without Docker: a Dockerfile's steps one by one in a ``chroot``, as far as ours uses them.

Stands in for ``docker build`` and ``docker run`` on Linux machines that have no Docker engine. Needs root. What it
leaves out: layers and their cache, the registry (``FROM`` takes a folder that holds the base image's files), and
limits on memory and processors.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import os
import re
import shutil
import string
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: What a build sees of the caller's environment, as with ``docker build --build-arg``: the way to the registries.
_NETWORK_VARIABLE = re.compile(r"(?:PIP|UV)_.*|.*_proxy|.*CERT_FILE|.*CA_BUNDLE", re.IGNORECASE)
_CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"


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


def build(dockerfile: Path, context: Path, base: Path, work: Path) -> Image:
    """Builds the last stage of a Dockerfile.

    Args:
      dockerfile: the file.
      context: the folder that ``COPY`` copies from, through its ``.dockerignore``.
      base: the files of the base image, the same for every ``FROM``.
      work: a folder for the stages.

    Raises:
      subprocess.CalledProcessError: if a ``RUN`` fails.
      ValueError: if an instruction is none of those that are known here.
    """
    stages: dict[str, Image] = {}
    image = Image(base, {})
    for instruction in read_dockerfile(dockerfile):
        name, value = instruction.name, instruction.value
        if name == "ARG":
            continue  # only the base image's name, for which the folder stands
        if name == "FROM":
            stage = value.split(" AS ")[1] if " AS " in value else f"stage-{len(stages)}"
            image = Image(work / stage, {"PATH": _PATH})
            subprocess.run(["cp", "--archive", "--reflink=auto", base, image.root], check=True)
        elif name == "RUN":
            _run_step(image, value)
        elif name == "COPY":
            copy(image, value, context, stages)
        elif name == "ENV":
            image = dataclasses.replace(image, environment=set_variables(image.environment, value))
        elif name == "WORKDIR":
            (image.root / value.lstrip("/")).mkdir(parents=True, exist_ok=True)
            image = dataclasses.replace(image, directory=value)
        elif name == "USER":
            image = dataclasses.replace(image, user=value)
        elif name == "ENTRYPOINT":
            image = dataclasses.replace(image, entry_point=json.loads(value))
        elif name == "CMD":
            image = dataclasses.replace(image, command=json.loads(value))
        else:
            raise ValueError(f"{dockerfile}: {name} is not known here")
        stages[stage] = image
    return image


def run(
    image: Image,
    command: Sequence[str],
    mounts: Sequence[Path] = (),
    network: bool = False,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs a command in a container: its own files, processes and, unless ``network``, a network without anything.

    Args:
      image: what to run.
      command: the whole command, the entry point in front.
      mounts: folders that the container sees under their own names.
      network: whether it may use the machine's network.
      environment: variables on top of the image's.

    Returns:
      Exit code and what it printed, standard error included.
    """
    root = image.root
    variables = {**image.environment, **(environment or {})}
    setup = ['mount --make-rprivate /; mount --rbind /dev "$0/dev"; mount -t proc proc "$0/proc"']
    for mount in mounts:
        (root / str(mount).lstrip("/")).mkdir(parents=True, exist_ok=True)
        setup.append(f'mount --bind "{mount}" "$0{mount}"')
    script = "; ".join(setup) + '; exec chroot --userspec="$1" "$0" /usr/bin/env -i -C "$2" "${@:3}"'
    isolation = ["unshare", "--mount", "--pid", "--fork", *([] if network else ["--net"])]
    settings = [f"{name}={value}" for name, value in variables.items()]
    return subprocess.run(
        [*isolation, "bash", "-ec", script, str(root), image.user, image.directory, *settings, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


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


def _run_step(image: Image, command: str) -> None:
    for name in ("etc/resolv.conf", _CERTIFICATES):
        if os.path.exists(f"/{name}"):
            shutil.copyfile(f"/{name}", image.root / name)
    finished = run(image, ["/bin/sh", "-c", command], network=True, environment=network_variables())
    if finished.returncode:
        raise subprocess.CalledProcessError(finished.returncode, f"RUN {command}", finished.stdout)
