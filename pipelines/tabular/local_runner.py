"""Runs the tabular pipeline on this machine: ``python -m pipelines.tabular.local_runner``."""

from __future__ import annotations

import os
import time
from typing import Any

import click
from rich.console import Console

from pipelines.errors import errors_told
from pipelines.quiet import quiet


@click.command()
@click.option("--output", default="build/tabular", show_default=True, help="Directory for everything the run makes.")
@click.option("--train_steps", default=300, show_default=True, help="Training steps of 32 rows.")
@click.option("--max_drop", default=0.02, show_default=True, help="Largest loss of accuracy that is blessed.")
@click.option(
    "--baseline",
    type=click.Choice(["fp32", "blessed"]),
    default="fp32",
    show_default=True,
    help="What the Evaluator compares with: this run's FP32 model, or the INT8 model that was blessed last.",
)
def main(output: str, **options: Any) -> None:
    """Train a classifier of breast cancer data behind Transform, quantize it, let TFX's Evaluator judge it, push it."""
    quiet()
    console = Console()
    output = os.path.abspath(output)
    console.print("Running CsvExampleGen → Transform → Trainer → Freezer → Quantizer → Evaluator → Pusher …")
    started = time.monotonic()
    with errors_told():
        run(output, **options)
    report(console, output)
    console.print(f"Done in {time.monotonic() - started:.0f} s. Run it again: every step comes from the cache.")


def run(output: str, **options: Any) -> None:
    """Runs the pipeline with everything under ``output``; ``options`` are ``create_pipeline``'s."""
    from pipelines.local import run_locally
    from pipelines.tabular import make_data
    from pipelines.tabular.pipeline import create_pipeline

    data_root = os.path.join(output, "data")
    make_data.write_rows(data_root)
    run_locally(create_pipeline, output, data_root=data_root, **options)


def report(console: Console, output: str) -> None:
    """Prints the table of the latest run, the Evaluator's verdict, and some of the BulkInferrer's answers."""
    from pipelines.local import metadata_path
    from pipelines.record import latest_run
    from pipelines.report import print_report
    from pipelines.tabular import pipeline
    from pipelines.tabular.predictions import read_predictions

    record = latest_run(metadata_path(output), pipeline.PIPELINE_NAME)
    print_report(console, record, "Breast cancer: FP32 → INT8")
    blessed = record.steps["Evaluator"]["blessing"].properties.get("blessed")
    console.print(f"TFX's Evaluator {'blessed' if blessed else 'did not bless'} the INT8 model.")
    predictions = read_predictions(record.steps["BulkInferrer"]["inference_result"].uri)[:12]
    if predictions:
        console.print("The BulkInferrer's answers with it:")
        console.print("  labels ", *(prediction.label for prediction in predictions))
        console.print("  answers", *(int(prediction.logits.argmax()) for prediction in predictions))


if __name__ == "__main__":
    main()
