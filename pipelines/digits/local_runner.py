"""Runs the digits pipeline on this machine: ``python -m pipelines.digits.local_runner``."""

from __future__ import annotations

import os
import time

import click
from rich.console import Console

from pipelines.errors import errors_told
from pipelines.quiet import quiet


@click.command()
@click.option("--output", default="build/digits", show_default=True, help="Directory for everything the run makes.")
@click.option("--train_steps", default=600, show_default=True, help="Training steps of 32 images.")
@click.option("--max_drop", default=0.01, show_default=True, help="Largest loss of accuracy that is blessed.")
def main(output: str, train_steps: int, max_drop: float) -> None:
    """Train a small network on scikit-learn's digits, quantize it to INT8, evaluate it and push it if it is good."""
    quiet()
    console = Console()
    output = os.path.abspath(output)
    console.print("Running ImportExampleGen → Trainer → Freezer → Quantizer → Pusher …")
    started = time.monotonic()
    with errors_told():
        run(output, train_steps=train_steps, max_drop=max_drop)
    report(console, output)
    console.print(f"Done in {time.monotonic() - started:.0f} s. Run it again: every step comes from the cache.")


def run(output: str, train_steps: int = 600, max_drop: float = 0.01) -> None:
    """Runs the pipeline with everything under ``output``."""
    from pipelines.digits import make_data
    from pipelines.digits.pipeline import create_pipeline
    from pipelines.local import run_locally

    data_root = os.path.join(output, "data")
    make_data.write_digits(data_root)
    run_locally(create_pipeline, output, data_root=data_root, max_drop=max_drop, train_steps=train_steps)


def report(console: Console, output: str) -> None:
    """Prints the table of the latest run, and what the pushed model answers when it is loaded back."""
    from pipelines.digits import make_data, pipeline
    from pipelines.local import metadata_path
    from pipelines.record import latest_run
    from pipelines.report import print_report
    from pipelines.serve_back import classify, first_examples, labels

    record = latest_run(metadata_path(output), pipeline.PIPELINE_NAME)
    print_report(console, record, "Digits: FP32 → INT8")
    pushed = record.outputs["pushed_model"].properties
    if pushed.get("pushed"):
        examples = first_examples(os.path.join(record.outputs["examples"].uri, "Split-eval", "*"), 12)
        answers = classify(str(pushed["pushed_destination"]), examples).argmax(axis=1)
        console.print("The pushed model, loaded back and asked:")
        console.print("  labels ", *labels(examples, make_data.LABEL_KEY))
        console.print("  answers", *answers.tolist())


if __name__ == "__main__":
    main()
