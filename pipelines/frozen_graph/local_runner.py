"""Runs the frozen graph pipeline on this machine: ``python -m pipelines.frozen_graph.local_runner --help``."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import click
from rich.console import Console

from pipelines.frozen_graph.options import pipeline_arguments, pipeline_options
from pipelines.quiet import quiet


@click.command()
@pipeline_options
@click.option("--output", default="build/frozen_graph", show_default=True, help="Directory for all that the run makes.")
def main(output: str, **options: Any) -> None:
    """Quantize a frozen graph to INT8 with TFRecord examples, evaluate it and push it if it is good.

    Without --graph and --examples it takes MobileNet V1 0.25 and the labelled photos of the shared data.

    \b
    Ends with 0 if the INT8 model was blessed and pushed, with 3 if it was not blessed.
    Example, with images made into TFRecords by `quantizer make-tfrecords`:
      --config '{"inputs": ["input"], "outputs": ["MobilenetV1/Predictions/Reshape_1"],
                 "preprocess": {"kind": "image", "normalize": "inception",
                                "label_key": "image/class/label", "label_offset": 1}}'
    """
    if bool(options["graph"]) != bool(options["examples"]):
        raise click.UsageError("give --graph and --examples together, or neither")
    quiet()
    from pipelines.frozen_graph import mobilenet
    from pipelines.frozen_graph.pipeline import PIPELINE_NAME
    from pipelines.local import metadata_path
    from pipelines.record import latest_run
    from pipelines.report import print_report
    from quantizer_core.errors import QuantizerError

    console = Console()
    output = os.path.abspath(output)
    started = time.monotonic()
    try:
        if not options["graph"]:
            options |= mobilenet.options(mobilenet.shared_data(), os.path.join(output, "data"))
        run(output, **options)
    except QuantizerError as error:
        raise click.ClickException(str(error)) from None
    record = latest_run(metadata_path(output), PIPELINE_NAME)
    print_report(console, record, f"{os.path.basename(str(options['graph']))}: FP32 → INT8")
    console.print(f"Done in {time.monotonic() - started:.0f} s.")
    sys.exit(0 if record.outputs["evaluation"].properties["blessed"] else 3)


def run(output: str, graph: str, examples: str, **options: Any) -> None:
    """Runs the pipeline with everything that it makes under ``output``; the options are those of the command line.

    Raises:
      QuantizerError: if the graph, the examples or an option will not do.
    """
    from pipelines.frozen_graph.pipeline import create_pipeline
    from pipelines.local import run_locally

    arguments = pipeline_arguments(os.path.abspath(graph), os.path.abspath(examples), **options)
    run_locally(create_pipeline, output, **arguments)


if __name__ == "__main__":
    main()
