"""``quantizer benchmark``: how fast FP32 and INT8 run here, over threads and batch sizes, and where the time goes."""

from __future__ import annotations

from typing import Any

import click

from quantizer_core.cli.options import IMAGE_KEY, IntegerList, Shape, pair_options, preprocess_options


@click.command()
@pair_options(int8_required=False)
@click.option("--threads", type=IntegerList(), help="Sizes of the thread pools. [default: 1 and all processors]")
@click.option("--batch_sizes", type=IntegerList(), default="1,16", show_default=True,
              help="Examples a step; a graph that fixes its batch is run with that.")  # fmt: skip
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, metavar="N",
              help="How often each setting is timed, FP32 and INT8 in turn.")  # fmt: skip
@click.option("--seconds", type=click.FloatRange(min=0), default=2.0, show_default=True,
              help="How long each time.")  # fmt: skip
@click.option("--data", metavar="PATH", type=click.Path(),
              help="Run on examples from here: images, WAV files, TFRecords. [default: noise]")  # fmt: skip
@click.option("--shape", "shapes", type=Shape(), multiple=True,
              help="Shape of one example of an input that the graph leaves open. May be given again.")  # fmt: skip
@click.option("--bfloat16", is_flag=True,
              help="Time FP32 with TensorFlow's automatic bfloat16 too. Needs a processor that has it.")  # fmt: skip
@preprocess_options
@click.option("--image_key", help=f"The feature of --data with the image's bytes. [default: {IMAGE_KEY}]")
@click.option("--config", metavar="FILE.json", type=click.Path(),
              help="A QuantizationConfig: inputs, outputs and preprocessing.")  # fmt: skip
@click.option("--trace", is_flag=True, help="Show the slowest operations too, with the fewest threads.")
@click.option("--timeline", metavar="DIR", type=click.Path(file_okay=False),
              help="Write one step of each graph as a Chrome trace (chrome://tracing, ui.perfetto.dev).")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables, and no progress.")
def benchmark(as_json: bool, int8_graph: str | None, **options: Any) -> None:
    """Measure latency and throughput of an FP32 graph, and of the INT8 graph made of it, on this machine.

    Each setting of threads and batch size runs in a process of its own, FP32 and INT8 in turn; the figures are medians
    of the repeats, the speed-up that of repeats side by side, with its spread. Nothing else should run meanwhile.

    \b
    quantizer benchmark --input_graph mobilenet.pb --int8_graph mobilenet_int8.pb --threads 1,2 --trace
    """
    from quantizer_core.cli.benchmarking import measure, report

    click.echo(report(measure(int8_graph=int8_graph, quiet=as_json, **options), as_json))
