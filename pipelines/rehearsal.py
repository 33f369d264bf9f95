"""Runs a compiled Kubeflow spec without a cluster: ``python -m pipelines.rehearsal pipeline.yaml --root DIR``.

Does what Kubeflow's driver and launcher do around a container: tasks go in the order of what they need, ``{{$}}``
becomes the task's ExecutorInput, the container's command runs as the spec says it, in a process of its own, and what it
writes about its artifacts goes on to the tasks that read them. A rehearsal on small data finds what an upload would
find: a class that is not in the image, a parameter that does not come through, a model that is not blessed.

As on Kubeflow, nothing runs before a command: an ExampleGen's driver, which would choose its newest span, does not.
What needs a cluster is refused: resolvers (which ask for former runs) and conditions.
"""

from __future__ import annotations

import graphlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import click
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2 as kfp_pb2

from pipelines.kubeflow import deployment, read_spec
from quantizer_core.errors import ConfigError, QuantizerError
from quantizer_core.onednn import onednn_environment

#: Output key → artifact, of one task.
Artifacts = Mapping[str, kfp_pb2.RuntimeArtifact]

#: Runs a container's command to its end; returns its exit code and what it printed.
Launcher = Callable[[Sequence[str]], "tuple[int, str]"]

_EXECUTOR_INPUT = "{{$}}"
#: Tells that a task's folder was made by a rehearsal.
_MARKER = ".rehearsal"
_SHOWN_CHARACTERS = 4000


def rehearse(spec: kfp_pb2.PipelineSpec, root: str, launch: Launcher) -> dict[str, Artifacts]:
    """Runs every task of a spec.

    Args:
      spec: the compiled pipeline.
      root: stands for the pipeline root: the artifacts go under it, by task.
      launch: runs a command.

    Returns:
      Task → its artifacts, with what the command said about them.

    Raises:
      ConfigError: if the spec asks for what only a cluster has.
      QuantizerError: if a command fails, with the end of what it printed.
    """
    executors = deployment(spec).executors
    tasks = spec.root.dag.tasks
    outputs: dict[str, Artifacts] = {}
    for name in _in_order(tasks):
        task = tasks[name]
        component = spec.components[task.component_ref.name]
        executor = executors[component.executor_label]
        if task.trigger_policy.condition or executor.WhichOneof("spec") not in ("container", "importer"):
            raise ConfigError(f"task {name} has a condition or is a resolver: only a cluster can run it")
        if executor.HasField("importer"):
            outputs[name] = _import(name, component, executor.importer)
            continue
        executor_input = _executor_input(name, task, component, outputs, root)
        given = json_format.MessageToJson(executor_input)
        container = executor.container
        command = [word.replace(_EXECUTOR_INPUT, given) for word in (*container.command, *container.args)]
        _renew(os.path.dirname(executor_input.outputs.output_file), executors.values())
        code, printed = launch(command)
        if code:
            raise QuantizerError(f"task {name} ended with exit code {code}:\n{printed[-_SHOWN_CHARACTERS:]}")
        outputs[name] = _merged(executor_input)
    return outputs


def _renew(folder: str, executors: Iterable[kfp_pb2.PipelineDeploymentConfig.ExecutorSpec]) -> None:
    """Makes a task's folder, in place of that of a rehearsal before: a cluster gives each run new ones."""
    for executor in executors:
        if os.path.abspath(executor.importer.artifact_uri.constant.string_value or "/").startswith(f"{folder}{os.sep}"):
            raise ConfigError(f"an importer names what a rehearsal before left in {folder}: give another --root")
    marker = os.path.join(folder, _MARKER)
    if os.path.exists(marker):
        shutil.rmtree(folder)
    os.makedirs(folder, exist_ok=True)
    with open(marker, "w", encoding="utf-8"):
        pass


def launch_here(command: Sequence[str]) -> tuple[int, str]:
    """Runs a command as it stands, with ``python`` being the interpreter that runs now.

    oneDNN is asked for, unless the caller's environment says otherwise: the image does it for its commands.
    """
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    return launch(command, {**onednn_environment(), "PATH": path}, os.getcwd())


def launch(command: Sequence[str], environment: Mapping[str, str], directory: str) -> tuple[int, str]:
    """Runs a command as it stands, its name looked up on the ``PATH`` of ``environment``."""
    finished = subprocess.run(
        # `env` looks the name up on the new PATH, where subprocess would take its own.
        ["/usr/bin/env", *command],
        env=dict(environment),
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return finished.returncode, finished.stdout


def _in_order(tasks: Mapping[str, kfp_pb2.PipelineTaskSpec]) -> list[str]:
    needs = {
        name: {
            *task.dependent_tasks,
            *(source.task_output_artifact.producer_task for source in task.inputs.artifacts.values()),
        }
        for name, task in sorted(tasks.items())
    }
    return list(graphlib.TopologicalSorter(needs).static_order())


def _executor_input(
    name: str,
    task: kfp_pb2.PipelineTaskSpec,
    component: kfp_pb2.ComponentSpec,
    outputs: Mapping[str, Artifacts],
    root: str,
) -> kfp_pb2.ExecutorInput:
    given = kfp_pb2.ExecutorInput()
    for key, source in task.inputs.artifacts.items():
        produced = source.task_output_artifact
        artifact = outputs[produced.producer_task][produced.output_artifact_key]
        given.inputs.artifacts[key].artifacts.append(artifact)
    for key, parameter in task.inputs.parameters.items():
        if parameter.WhichOneof("kind") != "runtime_value":
            raise ConfigError(f"task {name} takes {key} from the run or another task; only values can be rehearsed")
        given.inputs.parameter_values[key].CopyFrom(parameter.runtime_value.constant)
    folder = os.path.join(root, name)
    for key, output in component.output_definitions.artifacts.items():
        artifact = given.outputs.artifacts[key].artifacts.add(name=f"{name}/{key}", uri=os.path.join(folder, key))
        artifact.type.CopyFrom(output.artifact_type)
        artifact.metadata.CopyFrom(output.metadata)
    given.outputs.output_file = os.path.join(folder, "executor_output.json")
    return given


def _merged(executor_input: kfp_pb2.ExecutorInput) -> Artifacts:
    """Returns a task's artifacts with the places and metadata that its command gave them."""
    said = json_format.Parse(
        Path(executor_input.outputs.output_file).read_text(encoding="utf-8"), kfp_pb2.ExecutorOutput()
    )
    artifacts = {}
    for key, planned in executor_input.outputs.artifacts.items():
        artifacts[key] = planned.artifacts[0]
        for written in said.artifacts[key].artifacts[:1]:
            artifacts[key].uri = written.uri or artifacts[key].uri
            artifacts[key].metadata.update(json_format.MessageToDict(written.metadata))
    return artifacts


def _import(
    name: str, component: kfp_pb2.ComponentSpec, importer: kfp_pb2.PipelineDeploymentConfig.ImporterSpec
) -> Artifacts:
    uri = importer.artifact_uri.constant.string_value
    if not uri:
        raise ConfigError(f"importer {name} takes its URI from the run; only values can be rehearsed")
    return {
        key: kfp_pb2.RuntimeArtifact(
            name=f"{name}/{key}", uri=uri, type=importer.type_schema, metadata=importer.metadata
        )
        for key in component.output_definitions.artifacts
    }


@click.command()
@click.argument("spec", type=click.Path(exists=True, dir_okay=False))
@click.option("--root", required=True, type=click.Path(file_okay=False), help="Stands for the pipeline root.")
def main(spec: str, root: str) -> None:
    """Run a compiled pipeline here, command by command, and print what each task made.

    The spec's own paths (data, graph, serving root) are read and written as they are: compile it with small local ones.
    """

    def told(command: Sequence[str]) -> tuple[int, str]:
        click.echo(f"Running {command[command.index('--executor_class_path') + 1]} …")
        return launch_here(command)

    try:
        outputs = rehearse(read_spec(spec), os.path.abspath(root), told)
    except QuantizerError as error:
        raise click.ClickException(str(error)) from None
    for task, artifacts in outputs.items():
        for key, artifact in artifacts.items():
            click.echo(f"{task}.{key}: {artifact.uri} {json_format.MessageToDict(artifact.metadata)}")


if __name__ == "__main__":
    main()
