"""The command-line options that the Kubeflow runners share, and what they say as checked data."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import click

from pipelines.errors import errors_told
from quantizer_core.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Target:
    """Where a pipeline is to run.

    Attributes:
      image: the container image of every step.
      pipeline_root: directory for the artifacts.
      serving_root: directory into which blessed models are pushed.
      cpu, memory: node → limit, see ``pipelines.kubeflow.compile_pipeline``.
      beam: flags of every Beam pipeline.
      output: directory for the compiled file.
    """

    image: str
    pipeline_root: str
    serving_root: str
    cpu: Mapping[str, float]
    memory: Mapping[str, float]
    beam: Sequence[str]
    output: str

    def compile(self, create_pipeline: Callable[..., Any], **arguments: Any) -> str:
        """Compiles a pipeline into ``OUTPUT/NAME/pipeline.yaml`` and returns that path.

        Args:
          create_pipeline: makes the pipeline from ``arguments`` and what is said here.
          **arguments: what else it is made from.

        Raises:
          QuantizerError: if an argument will not do.
        """
        from pipelines.kubeflow import compile_pipeline

        pipeline = create_pipeline(
            pipeline_root=self.pipeline_root,
            serving_root=self.serving_root,
            beam_pipeline_args=list(self.beam),
            **arguments,
        )
        path = os.path.join(self.output, pipeline.pipeline_info.pipeline_name, "pipeline.yaml")
        compile_pipeline(pipeline, path, self.image, cpu=self.cpu, memory=self.memory)
        return path


def kubeflow_options(command: Callable[..., str]) -> Callable[..., None]:
    """Gives a command the options of a ``Target`` and passes it on as ``target``; prints the path that it returns."""

    @functools.wraps(command)
    def with_target(cpu: Sequence[str], memory: Sequence[str], **options: Any) -> None:
        plain = {name: options.pop(name) for name in ("image", "pipeline_root", "serving_root", "beam", "output")}
        with errors_told():
            target = Target(cpu=parse_limits(cpu), memory=parse_limits(memory), **plain)
            click.echo(f"Compiled {command(target=target, **options)}")

    decorated: Callable[..., None] = with_target
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


_OPTIONS = [
    click.option("--image", required=True, help="The container image of every step (see docker/Dockerfile)."),
    click.option("--pipeline_root", required=True, help="Where runs put their artifacts, as gs://BUCKET/PATH."),
    click.option("--serving_root", required=True, help="Where blessed models are pushed."),
    click.option(
        "--cpu", multiple=True, metavar="[NODE=]N", help="Most processors of every node or of one; repeatable."
    ),
    click.option("--memory", multiple=True, metavar="[NODE=]GB", help="The same for memory, in GB of 10^9 bytes."),
    click.option("--beam", multiple=True, metavar="FLAG", help="A flag of every Beam pipeline; repeatable."),
    click.option("--output", default="build/kubeflow", show_default=True, help="Directory for NAME/pipeline.yaml."),
]


def parse_limits(options: Iterable[str]) -> dict[str, float]:
    """Reads limits of the form ``LIMIT`` (of every node) and ``NODE=LIMIT``; the last of a node counts.

    Raises:
      ConfigError: if a limit is not a number.
    """
    limits = {}
    for option in options:
        node, _, number = option.rpartition("=")
        try:
            limits[node] = float(number)
        except ValueError:
            raise ConfigError(f"{option!r} is no limit; give NUMBER or NODE=NUMBER, for example Quantizer=4") from None
    return limits
