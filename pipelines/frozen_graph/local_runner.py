"""Runs the frozen graph pipeline on this machine: ``python -m pipelines.frozen_graph.local_runner --help``."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console

from pipelines.errors import errors_told
from pipelines.frozen_graph.options import pipeline_arguments, pipeline_options, text_of
from pipelines.quiet import quiet


@click.command()
@pipeline_options
@click.option("--output", default="build/frozen_graph", show_default=True, help="Directory for all that the run makes.")
def main(output: str, **options: Any) -> None:
    """Quantize a frozen graph to INT8 with TFRecord examples, evaluate it and push it if it is good.

    Without --graph and --examples it takes MobileNet V1 0.25 and the labelled photos of the shared data, with
    --max_drop 0.03 and a --config for them, of which what is given here is changed.

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

    console = Console()
    output = os.path.abspath(output)
    started = time.monotonic()
    with errors_told():
        if not options["graph"]:
            source = click.get_current_context().get_parameter_source("max_drop")
            max_drop = mobilenet.MAX_DROP if source is ParameterSource.DEFAULT else options["max_drop"]
            config = mobilenet.config(text_of(options["config"]))
            found = mobilenet.files(mobilenet.shared_data(), os.path.join(output, "data"))
            options |= {**found, "config": config.to_json(), "max_drop": max_drop}
        run(output, **options)
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

    arguments = pipeline_arguments(_whole_path(graph), _whole_path(examples), **options)
    run_locally(create_pipeline, output, **arguments)


def _whole_path(path: str) -> str:
    return path if "://" in path else os.path.abspath(path)


if __name__ == "__main__":
    main()
