"""Compiles the digits pipeline for Kubeflow: ``python -m pipelines.digits.kubeflow_runner --help``."""

from __future__ import annotations

import click

from pipelines.kubeflow_options import Target, kubeflow_options
from pipelines.quiet import quiet


@click.command()
@kubeflow_options
@click.option("--data_root", required=True, help="Directory with the digits, which every step can read.")
@click.option("--write_data", is_flag=True, help="Write the digits into --data_root first, if they are not there.")
@click.option("--train_steps", default=600, show_default=True, help="Training steps of 32 images.")
@click.option("--max_drop", default=0.01, show_default=True, help="Largest loss of accuracy that is blessed.")
def main(target: Target, data_root: str, write_data: bool, train_steps: int, max_drop: float) -> str:
    """Compile the digits pipeline (train, freeze, quantize, push) into pipeline.yaml, to be uploaded to Kubeflow."""
    quiet()
    from pipelines.digits import make_data
    from pipelines.digits.pipeline import create_pipeline

    if write_data:
        make_data.write_digits(data_root)
    return target.compile(create_pipeline, data_root=data_root, train_steps=train_steps, max_drop=max_drop)


if __name__ == "__main__":
    main()
