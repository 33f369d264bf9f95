"""Compiles the frozen graph pipeline for Kubeflow: ``python -m pipelines.frozen_graph.kubeflow_runner --help``."""

from __future__ import annotations

from typing import Any

import click

from pipelines.frozen_graph.options import pipeline_arguments, pipeline_options
from pipelines.kubeflow_options import Target, kubeflow_options
from pipelines.quiet import quiet


@click.command()
@kubeflow_options
@pipeline_options
@click.option(
    "--fingerprint",
    help="Stands for the contents of the graph (and of a preprocessing's module) in the cache keys: change it with "
    "them. Without it their SHA-256 is taken, for which they must be readable here.",
)
def main(target: Target, fingerprint: str | None, **options: Any) -> str:
    """Compile the frozen graph pipeline (import, quantize, push) into pipeline.yaml, to be uploaded to Kubeflow.

    --graph and --examples are where the steps find them: gs://BUCKET/PATH, or a path inside the image.
    """
    if not (options["graph"] and options["examples"]):
        raise click.UsageError("give --graph and --examples")
    quiet()
    from pipelines.frozen_graph.pipeline import create_pipeline

    return target.compile(create_pipeline, fingerprint=fingerprint, **pipeline_arguments(**options))


if __name__ == "__main__":
    main()
