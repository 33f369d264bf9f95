"""Times kernels between floats in FP32 and INT8: ``python -m benchmarks.kernels``.

It shows from how many products a value on INT8 makes up for rounding what a kernel reads and for the way back
(``quantizer_core.planning.make.ENOUGH_PRODUCTS``), how many kernels need besides, and what planning decides. Each graph
is some like layers with a Tanh behind each, which no kernel takes in; or, in a chain, a Relu, so that codes go from
layer to layer. Every time is taken in a process of its own; FP32 and INT8 take turns.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

from benchmarks import tables


@dataclasses.dataclass(frozen=True)
class Layer:
    """``size``×``size`` convolutions, depthwise ones, or matrix products (size 0); ``chained``: they hand on codes.

    ``count`` is how many of them there are, ``side`` height and width of the images.
    """

    title: str
    size: int
    channels: int
    depthwise: bool = False
    chained: bool = False
    count: int = 4
    side: int = 28

    @property
    def products(self) -> float:
        """Products for each value read or made."""
        per_position = max(self.size, 1) ** 2 * self.channels * (1 if self.depthwise else self.channels)
        return per_position / (2 * self.channels)


CASES = (
    Layer("depthwise 3×3", 3, 128, depthwise=True),
    *(Layer("1×1", 1, channels) for channels in (16, 32, 64, 128, 256)),
    *(Layer("3×3", 3, channels) for channels in (8, 16, 32, 64)),
    *(Layer("matrix", 0, channels) for channels in (128, 256, 512, 1024)),
    Layer("depthwise 3×3 in a chain", 3, 128, depthwise=True, chained=True),
    *(Layer("1×1 in a chain", 1, channels, chained=True) for channels in (16, 32, 64)),
    *(Layer("3×3 in a chain", 3, channels, chained=True) for channels in (4, 8, 16)),
    *(Layer("1×1 in a chain", 1, 32, chained=True, count=count, side=side) for side in (7, 14) for count in (2, 8)),
    *(Layer("3×3 in a chain", 3, 16, chained=True, count=count, side=side) for side in (7, 14) for count in (2, 8)),
    *(Layer("matrices in a chain", 0, channels, chained=True) for channels in (64, 128, 256, 512, 1024)),
)


def network(layer: Layer) -> Any:
    """Returns the graph of a layer: input ``x``, output ``y``."""
    import tensorflow.compat.v1 as tf

    rng = np.random.default_rng(0)
    width = layer.channels
    shape = (width,) if layer.size == 0 else (layer.side, layer.side, width)
    with tf.Graph().as_default() as graph:
        y = tf.placeholder(tf.float32, (None, *shape), "x")
        for _ in range(layer.count):
            taps = max(layer.size, 1) ** 2 * (1 if layer.depthwise else width)
            size = (layer.size, layer.size) if layer.size else ()
            values = rng.normal(0, taps**-0.5, (*size, width, 1 if layer.depthwise else width)).astype(np.float32)
            if layer.size == 0:
                y = tf.matmul(y, values)
            elif layer.depthwise:
                y = tf.nn.depthwise_conv2d(y, values, [1, 1, 1, 1], "SAME")
            else:
                y = tf.nn.conv2d(y, values, 1, "SAME")
            y = tf.nn.bias_add(y, rng.normal(0, 0.1, width).astype(np.float32))
            y = tf.nn.relu(y) if layer.chained else tf.tanh(y)
        tf.identity(y, "y")
        return graph.as_graph_def()


class Measured(NamedTuple):
    """FP32's milliseconds; how many times faster INT8 is: median, least and most; whether planning makes it INT8."""

    fp32: float
    times: float
    least: float
    most: float
    planned: bool


def measure(layer: Layer, batch: int, repeats: int, seconds: float) -> Measured:
    """Times the graph of a layer."""
    import quantizer_core as qc
    from quantizer_core.calibration.observer import Observer
    from quantizer_core.speed.measure import Bench, Setting

    config = qc.QuantizationConfig(outputs=("y",), only_faster=False)
    graph_def = network(layer)
    prepared = qc.prepare(graph_def, config)
    shape = prepared.inputs[0].shape or ()
    examples = [{"x": each} for each in np.random.default_rng(1).normal(size=(16, *shape[1:])).astype(np.float32)]
    with Observer(prepared, 16) as observer:
        statistics = observer.observe(examples)
    conversion = qc.convert(prepared, statistics, config)
    judging = dataclasses.replace(config, only_faster=True, serving_batch_size=batch)
    planned = qc.make_plan(prepared, statistics, judging).quantized > 0
    with Bench({"FP32": graph_def, "INT8": conversion.graph_def}, prepared.inputs, ("y",), examples) as bench:
        fp32, int8 = bench.time([Setting(1, batch)], repeats, seconds)
    return Measured(fp32.latency, *int8.speedup_over(fp32), planned)


def markdown(rows: Sequence[tuple[Layer, int, Measured]], machine: str) -> str:
    """Returns the table in Markdown."""
    lines = [
        f"Measured on {machine}, one thread; a Tanh (in a chain, a Relu) behind each layer; in brackets the least and "
        "the most of the repeats.",
        "",
        "| layer | layers | images | channels | products a value | batch | FP32, ms | INT8 over FP32's speed "
        "| planned |",
        "|---|" + "---:|" * 8,
    ]
    for layer, batch, (fp32, *ratio, planned) in rows:
        figures = f"{fp32:.2f} | {tables.times(*ratio)} | {'INT8' if planned else 'FP32'}"
        images = f"{layer.side}×{layer.side}" if layer.size else "–"
        sizes = f"{layer.count} | {images} | {layer.channels} | {layer.products:.0f} | {batch}"
        lines.append(f"| {layer.title} | {sizes} | {figures} |")
    return "\n".join(lines)


@click.command()
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Times of each graph.")
@click.option("--seconds", type=float, default=0.5, show_default=True, help="How long each time.")
@click.option("--batch", "batches", type=click.IntRange(1), multiple=True, default=(1, 16), show_default=True,
              help="Batch sizes.")  # fmt: skip
@click.option("--layer", "titles", type=click.Choice(list(dict.fromkeys(layer.title for layer in CASES))),
              multiple=True, help="Kinds of layers; default: all.")  # fmt: skip
@click.option("--markdown", "page", type=click.Path(path_type=Path, dir_okay=False),
              help="Write the table into this file too, between its marks.")  # fmt: skip
def main(repeats: int, seconds: float, batches: tuple[int, ...], titles: tuple[str, ...], page: Path | None) -> None:
    """Time kernels between floats in FP32 and INT8."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    rows = []
    for layer in [layer for layer in CASES if not titles or layer.title in titles]:
        for batch in batches:
            rows.append((layer, batch, measure(layer, batch, repeats, seconds)))
            click.echo(markdown(rows[-1:], "").splitlines()[-1])
    if page is not None:
        tables.write_markdown(page, markdown(rows, tables.machine()), "kernels")


if __name__ == "__main__":
    main()
