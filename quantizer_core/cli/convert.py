"""``quantizer convert``: the whole way from an FP32 graph and examples to an INT8 graph and a verdict."""

from __future__ import annotations

from typing import Any

import click

from quantizer_core.cli.options import (
    callback_options,
    folder_options,
    gate_options,
    graph_options,
    preprocess_options,
    quantization_options,
)


@click.command()
@graph_options()
@callback_options
@click.option(
    "--output_graph",
    type=click.Path(),
    metavar="FILE",
    help="The INT8 graph to write (.pb or .pbtxt). [default: input_graph's name with _int8]",
)
@click.option("--evaluation_data", type=click.Path(), metavar="PATH", help="Compare FP32 and INT8 on these examples.")
@click.option("--evaluate_rest", is_flag=True,
              help="Compare on the calibration data behind the first --num_calibration_examples.")  # fmt: skip
@gate_options
@preprocess_options
@folder_options
@quantization_options
@click.option(
    "--plan", type=click.Path(), metavar="FILE.json", help="Write which nodes run in INT8, and why others do not."
)
@click.option("--save_calibration", type=click.Path(), metavar="FILE",
              help="Write what calibration saw, for --calibration. Holds a sample of the examples.")  # fmt: skip
@click.option(
    "--saved_model",
    type=click.Path(),
    metavar="DIR",
    help="Write a SavedModel for serving, preprocessing included, too.",
)
@click.option("--report", type=click.Path(), metavar="FILE.json", help="Write the figures of the evaluation.")
@click.option("--overwrite", is_flag=True, help="Replace outputs that exist.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table, and no progress.")
@click.pass_context
def convert(ctx: click.Context, as_json: bool, **options: Any) -> None:
    """Convert a frozen FP32 graph to INT8, calibrated on examples.

    With --evaluation_data or --evaluate_rest both graphs are compared. If the metric falls by more than --max_drop, the
    INT8 graph is written all the same and the exit code is 3.

    \b
    quantizer convert --input_graph mobilenet.pb --output_graph mobilenet_int8.pb \\
        --calibration_data photos/ --labels photos.csv --preprocess inception --label_offset 1 \\
        --num_calibration_examples 128 --evaluate_rest

    With --callback a program of your own runs the graph, as the quantization tool of 2020 had it:

    \b
    quantizer convert --input_graph mobilenet.pb --output_graph mobilenet_int8.pb \\
        --callback "python inference.py --input_graph={} --data_location photos/"
    """
    from quantizer_core.cli.conversion import Request, run
    from quantizer_core.cli.report import tell

    if options["output_graph"] is None:
        options["output_graph"] = _beside(options["input_graph"])
    tell(ctx, run(Request(**options), quiet=as_json), as_json)


def _beside(graph: str) -> str:
    """Returns the path of the INT8 graph of a graph file or a SavedModel's directory."""
    import os

    from quantizer_core.graph.names import path_beside

    if os.path.isdir(graph):
        graph = os.path.abspath(graph) + ".pb"  # whatever dots are in its name
    return path_beside(graph.rstrip("/"), "int8")
