"""Compiles the tabular pipeline for Kubeflow: ``python -m pipelines.tabular.kubeflow_runner --help``."""

from __future__ import annotations

from typing import Any

import click

from pipelines.kubeflow_options import Target, kubeflow_options
from pipelines.quiet import quiet


@click.command()
@kubeflow_options
@click.option("--data_root", required=True, help="Directory with the CSV file, which every step can read.")
@click.option("--write_data", is_flag=True, help="Write the rows into --data_root first, if they are not there.")
@click.option("--train_steps", default=300, show_default=True, help="Training steps of 32 rows.")
@click.option(
    "--max_drop", default=0.02, show_default=True, help="Largest loss of accuracy, against FP32, that is blessed."
)
@click.option("--min_accuracy", default=0.9, show_default=True, help="Least accuracy that TFX's Evaluator blesses.")
def main(target: Target, data_root: str, write_data: bool, **options: Any) -> str:
    """Compile the tabular pipeline (Transform, train, quantize, evaluate, push) into pipeline.yaml, for Kubeflow.

    The Evaluator compares with the run's own FP32 model. The local runner's --baseline=blessed is not offered: it takes
    a resolver, which Kubeflow's backend refuses ("resolver executors not implemented").
    """
    quiet()
    from pipelines.tabular import make_data
    from pipelines.tabular.pipeline import create_pipeline

    if write_data:
        make_data.write_rows(data_root)
    return target.compile(create_pipeline, data_root=data_root, **options)


if __name__ == "__main__":
    main()
