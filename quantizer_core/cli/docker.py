"""``quantizer docker``: the same command line in a container, with files mounted where the 2020 tool had them."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import click

from quantizer_core.errors import ConfigError, MachineError
from quantizer_core.graph.names import path_beside

#: Where things lie in the container, as in 2020.
WORKSPACE = "/workspace"
#: Passed on by name, so that no password in a proxy's address is shown or stored.
_KINDS = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy")
PROXIES = (*_KINDS, *(name.upper() for name in _KINDS))


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--docker-image", "--docker_image", "image", default="tfx-quantizer:latest", show_default=True,
              metavar="NAME[:TAG]", help="The image, built from docker/Dockerfile.")  # fmt: skip
@click.option("--in_graph", required=True, metavar="FILE", help="The FP32 graph.")
@click.option("--out_graph", metavar="FILE", help="The INT8 graph to write. [default: in_graph's name with _int8]")
@click.option("--data_location", metavar="PATH", help="The data to calibrate and evaluate on.")
@click.option("--model_name", "--model-name", "model", metavar="NAME", help="A model that model-zoo knows.")
@click.option("--models_zoo", metavar="DIR", help="A checkout of the Model Zoo, to calibrate by its own script.")
@click.option("--models_source_dir", metavar="DIR", help="The model's sources, where the zoo's script wants them.")
@click.option("--intermediate", is_flag=True, help="Keep the graphs between FP32 and INT8 beside out_graph.")
@click.option("--debug", is_flag=True, help="Open a shell in the container instead.")
@click.option("--dry-run", "--dry_run", is_flag=True, help="Print the exact command and run nothing.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def docker(ctx: click.Context, dry_run: bool, **options: Any) -> None:
    """Run model-zoo, or any COMMAND of quantizer, in a container.

    With --model_name, options behind -- are model-zoo's.

    In the container the graph is /workspace/pretrained_model/NAME, data /workspace/dataset, and what is written to
    /workspace/output lands beside --out_graph. Files belong to the caller, proxies are passed on.

    \b
    quantizer docker --in_graph resnet50.pb --out_graph resnet50_int8.pb --data_location imagenet/ \\
        --model_name resnet50 -- --evaluate --overwrite
    quantizer docker --in_graph net.pb --data_location photos/ -- convert --input_graph \\
        /workspace/pretrained_model/net.pb --output_graph /workspace/output/net_int8.pb \\
        --calibration_data /workspace/dataset --preprocess unit
    """
    line = docker_command(**options, environment=os.environ, user=f"{os.getuid()}:{os.getgid()}")
    if dry_run:
        click.echo(shlex.join(line))
        return
    if shutil.which("docker") is None:
        raise MachineError("docker is not on the PATH: install Docker, or see the command by --dry-run")
    ctx.exit(subprocess.run(line, check=False).returncode)


def docker_command(
    *,
    image: str,
    in_graph: str,
    out_graph: str | None,
    data_location: str | None,
    model: str | None,
    models_zoo: str | None,
    models_source_dir: str | None,
    intermediate: bool,
    debug: bool,
    command: Sequence[str],
    environment: Mapping[str, str],
    user: str,
) -> list[str]:
    """Returns the command line of docker.

    Args:
      image: name of the image.
      in_graph, out_graph, data_location, models_zoo, models_source_dir: paths on this machine.
      model: a model that ``quantizer model-zoo`` knows.
      intermediate: keep the graphs between FP32 and INT8.
      debug: a shell instead of the command.
      command: more options of ``model-zoo``, or the command of ``quantizer`` in its place.
      environment: that of the caller; the proxies named in it are passed on.
      user: ``UID:GID`` in the container.

    Raises:
      ConfigError: for a path that does not exist, or options that do not go together.
    """
    if sum((model is not None, bool(command), debug)) == 0:
        raise ConfigError("give --model_name, a COMMAND behind --, or --debug for a shell")
    if model is not None and command and not command[0].startswith("-"):
        raise ConfigError("give --model_name or a COMMAND, not both (options of model-zoo may stand behind --)")
    if out_graph is None:
        out_graph = path_beside(in_graph, "int8")
    if model is not None and data_location is None:
        raise ConfigError("--model_name needs --data_location")
    target = os.path.dirname(os.path.abspath(out_graph))
    mounts = [
        _mount("in_graph", in_graph, f"{WORKSPACE}/pretrained_model/{os.path.basename(in_graph)}", file=True),
        _mount("data_location", data_location, f"{WORKSPACE}/dataset"),
        # The zoo's scripts write logs into their checkout, and patch and build sources.
        _mount("models_zoo", models_zoo, f"{WORKSPACE}/models", read_only=False),
        _mount("models_source_dir", models_source_dir, f"{WORKSPACE}/models_source", read_only=False),
        _mount("out_graph's folder", target, f"{WORKSPACE}/output", read_only=False),
    ]
    line = ["docker", "run", "--rm", "--user", user, "--workdir", WORKSPACE]
    for mount in mounts:
        line += ["--mount", mount] if mount else []
    for name in PROXIES:
        line += ["--env", name] if environment.get(name) else []
    if debug:
        return [*line, "--interactive", "--tty", "--entrypoint", "/bin/bash", image]
    inner = list(command)
    if model is not None:
        inner = ["model-zoo", "--model", model]
        inner += ["--in_graph", f"{WORKSPACE}/pretrained_model/{os.path.basename(in_graph)}"]
        inner += ["--out_graph", f"{WORKSPACE}/output/{os.path.basename(out_graph)}"]
        inner += ["--data_location", f"{WORKSPACE}/dataset"]
        inner += ["--models_zoo_location", f"{WORKSPACE}/models"] if models_zoo else []
        inner += ["--models_source_dir", f"{WORKSPACE}/models_source"] if models_source_dir else []
        inner += [*(["--debug"] if intermediate else []), *command]
    elif intermediate:
        raise ConfigError("--intermediate goes with --model_name: give --debug behind your COMMAND instead")
    return [*line, image, *inner]


def _mount(option: str, path: str | None, target: str, *, file: bool = False, read_only: bool = True) -> str:
    """Returns docker's ``--mount`` value of a path, "" for none."""
    if path is None:
        return ""
    path = os.path.abspath(path)
    if not os.path.exists(path):
        raise ConfigError(f"--{option}: {path!r} does not exist")
    if file and not os.path.isfile(path):
        raise ConfigError(f"--{option}: {path!r} is not a file")
    if "," in path:
        raise ConfigError(f"--{option}: docker cannot mount {path!r}, whose name has a comma")
    return f"type=bind,source={path},target={target}" + (",readonly" if read_only else "")
