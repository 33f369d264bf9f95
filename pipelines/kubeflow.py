"""Compiles a pipeline for Kubeflow Pipelines v2: one YAML file in the form 2.1, which its user interface uploads.

TFX's own runner does the compiling. What it leaves out is put in here: the pipeline root (its YAML has no place for the
run's settings) and the limits of nodes that read files, for which it passes over ``with_platform_config``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2
from tfx import v1 as tfx
from tfx.dsl.components.common import resolver

from quantizer_core.errors import ConfigError, nearest

#: The node of a limit that names none: it holds for every node without one of its own.
EVERY_NODE = ""

#: TFX's runner names the executor of a node so.
_EXECUTOR = "{}_executor"


def compile_pipeline(
    pipeline: tfx.dsl.Pipeline,
    path: str,
    image: str,
    cpu: Mapping[str, float] | None = None,
    memory: Mapping[str, float] | None = None,
) -> pipeline_spec_pb2.PipelineSpec:
    """Writes the pipeline's spec as YAML; an existing file is replaced.

    Args:
      pipeline: the pipeline; its root becomes the spec's default one.
      path: the file.
      image: the container image of every node: ``docker/Dockerfile``'s, or another that holds the packages here.
      cpu: node → the most processors that it may use; ``EVERY_NODE`` for the others.
      memory: node → the most memory that it may use, in GB (10⁹ bytes); ``EVERY_NODE`` for the others.

    Returns:
      What was written.

    Raises:
      ConfigError: if a limit is not a positive number or names a node that the pipeline does not have, or a node is a
        resolver, which no container runs.
    """
    nodes = [node.id for node in pipeline.components]
    for node in pipeline.components:
        if isinstance(node, resolver.Resolver):
            raise ConfigError(
                f"node {node.id!r} is a resolver, which Kubeflow's backend does not run: leave it out, or give its "
                "artifact by an Importer"
            )
    config = tfx.orchestration.experimental.KubeflowV2DagRunnerConfig(default_image=image, use_pipeline_spec_2_1=True)
    job = tfx.orchestration.experimental.KubeflowV2DagRunner(config).run(pipeline, write_out=False)
    document = job["pipelineSpec"]
    document["defaultPipelineRoot"] = pipeline.pipeline_info.pipeline_root
    executors = document["deploymentSpec"]["executors"]
    # Importers have none: Kubeflow's backend does their work itself.
    containers = {node: executors[_EXECUTOR.format(node)].get("container") for node in nodes}
    for field, limits in (("cpuLimit", cpu or {}), ("memoryLimit", memory or {})):
        for node, limit in _by_node(limits, [node for node in nodes if containers[node]], field).items():
            containers[node].setdefault("resources", {})[field] = limit
    # Through the message and back: a misspelt field fails here and not on the cluster.
    spec = json_format.ParseDict(document, pipeline_spec_pb2.PipelineSpec())
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    partial = f"{path}.partial"
    with open(partial, "w", encoding="utf-8") as file:
        yaml.safe_dump(json_format.MessageToDict(spec), file, sort_keys=True)
    os.replace(partial, path)
    return spec


def read_spec(path: str) -> pipeline_spec_pb2.PipelineSpec:
    """Reads a compiled spec.

    Raises:
      ConfigError: if it is none.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return json_format.ParseDict(yaml.safe_load(file), pipeline_spec_pb2.PipelineSpec())
    except (OSError, yaml.YAMLError, json_format.ParseError) as error:
        raise ConfigError(f"{path} is no compiled pipeline: {error}") from None


def deployment(spec: pipeline_spec_pb2.PipelineSpec) -> pipeline_spec_pb2.PipelineDeploymentConfig:
    """Returns how each executor of a spec is run: its container, or what is imported."""
    document = json_format.MessageToDict(spec.deployment_spec)
    return json_format.ParseDict(document, pipeline_spec_pb2.PipelineDeploymentConfig())


def _by_node(limits: Mapping[str, float], nodes: list[str], field: str) -> dict[str, float]:
    for node, limit in limits.items():
        if node != EVERY_NODE and node not in nodes:
            raise ConfigError(f"there is no node {node!r} to limit{nearest(node, nodes)}; there are {', '.join(nodes)}")
        if not (limit > 0 and math.isfinite(limit)):
            raise ConfigError(f"{field} of {node or 'every node'} must be more than 0, not {limit}")
    found = {node: limits.get(node, limits.get(EVERY_NODE)) for node in nodes}
    return {node: limit for node, limit in found.items() if limit is not None}
