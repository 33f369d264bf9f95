"""Times conversion without calibration: load, prepare, convert, save.

Of Keras models and the zoo's graphs, with random weights, and of chains of small layers that show how time grows with
the number of nodes. Every repeat runs in a process of its own, so that no cache of an earlier one helps it. Statistics
are made beforehand, outside the clock; so is the import of TensorFlow. Run it with ``make benchmark``.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from benchmarks import tables
from benchmarks.common import ROOT, child, shared_data, zoo_graph
from quantizer_core.calibration.statistics import CalibrationStatistics
from quantizer_core.config import QuantizationConfig
from quantizer_core.data import read_examples

# Name on the command line → class in tf.keras.applications.
KERAS = {"mobilenet": "MobileNet", "resnet50": "ResNet50"}
#: The zoo's graph of the most weights, and that of the most nodes.
ZOO = ("rfcn", "ssd_mobilenet")
#: Chains, by their number of nodes: constants, convolution, BiasAdd and Relu, five a layer.
CHAINS = {f"chain_{nodes}": nodes for nodes in (1_000, 10_000, 100_000)}
MODELS = (*KERAS, *ZOO, *CHAINS)
PARTS = ("load", "prepare", "convert", "save", "total")
IMAGE = (224, 224, 3)
BATCH = 4


def make_case(model: str, folder: Path) -> None:
    """Writes what a repeat reads: the frozen graph, its config and calibration statistics."""
    import numpy as np

    import quantizer_core as qc
    from quantizer_core.calibration.observer import Observer

    if model in CHAINS:
        graph_def, config = chain(CHAINS[model])
        prepared = qc.prepare(graph_def, config)
        seen = repeated_statistics(prepared)
    else:
        graph_def, config = keras_model(model, folder) if model in KERAS else zoo_entry(model, folder)
        prepared = qc.prepare(graph_def, config)
        if model in KERAS:
            noise = np.random.default_rng(0).uniform(-1, 1, (BATCH, *IMAGE)).astype(np.float32)
            seen = Observer(prepared, BATCH).observe([{prepared.inputs[0].name: image} for image in noise])
        else:
            examples = read_examples(str(shared_data() / "images" / "nips2017_dev"))
            seen = qc.calibrate(prepared, itertools.islice(examples, BATCH), config).statistics
    qc.save_graph(graph_def, str(folder / "frozen.pb"), overwrite=True)
    (folder / "config.json").write_text(config.to_json(), encoding="utf-8")
    (folder / "statistics").write_bytes(seen.to_bytes())


def keras_model(model: str, folder: Path) -> tuple[Any, QuantizationConfig]:
    """Returns a frozen Keras model and what to convert it with."""
    import tensorflow as tf

    import quantizer_core as qc

    tf.keras.utils.set_random_seed(0)
    saved_model = str(folder / "saved_model")
    getattr(tf.keras.applications, KERAS[model])(weights=None).export(saved_model, verbose=False)
    frozen = qc.freeze_saved_model(saved_model)
    return frozen.graph_def, QuantizationConfig(inputs=frozen.inputs, outputs=frozen.outputs)


def zoo_entry(model: str, folder: Path) -> tuple[Any, QuantizationConfig]:
    """Returns a graph of the zoo, made by the shared data's script, and its entry's choices."""
    import quantizer_core as qc
    from quantizer_core.zoo import zoo_model

    return qc.load_graph(str(zoo_graph(model, folder / "zoo.pb"))), zoo_model(model).config.without_label()


def chain(nodes: int) -> tuple[Any, QuantizationConfig]:
    """Returns a graph of 1×1 convolutions, each with bias and Relu, of so many nodes, and what to convert it with.

    They are too small to be faster in INT8.
    """
    import numpy as np
    import tensorflow.compat.v1 as tf

    rng = np.random.default_rng(0)
    filters = tf.make_tensor_proto(rng.normal(0, 0.5, (1, 1, 8, 8)).astype(np.float32))
    biases = tf.make_tensor_proto(np.full(8, 0.1, np.float32))
    number = tf.AttrValue(type=tf.float32.as_datatype_enum)
    ones = tf.AttrValue(list=tf.AttrValue.ListValue(i=[1, 1, 1, 1]))
    shape = tf.AttrValue(shape=tf.TensorShape([None, 4, 4, 8]).as_proto())
    found = [tf.NodeDef(name="x", op="Placeholder", attr={"dtype": number, "shape": shape})]
    convolution = {
        "T": number, "strides": ones, "dilations": ones, "padding": tf.AttrValue(s=b"SAME"),
        "data_format": tf.AttrValue(s=b"NHWC"),
    }  # fmt: skip
    for layer in range(nodes // 5):
        names = [f"{kind}_{layer}" for kind in ("filter", "bias", "convolution", "biased", "relu")]
        for name, value in zip(names, (filters, biases), strict=False):
            found.append(tf.NodeDef(name=name, op="Const", attr={"dtype": number, "value": tf.AttrValue(tensor=value)}))
        found += [
            tf.NodeDef(name=names[2], op="Conv2D", input=[found[-3 if layer else 0].name, names[0]], attr=convolution),
            tf.NodeDef(name=names[3], op="BiasAdd", input=[names[2], names[1]], attr={"T": number}),
            tf.NodeDef(name=names[4], op="Relu", input=[names[3]], attr={"T": number}),
        ]
    return tf.GraphDef(node=found), QuantizationConfig(inputs=("x",), outputs=(found[-1].name,), only_faster=False)


def repeated_statistics(prepared: Any) -> CalibrationStatistics:
    """Returns statistics of a chain: every layer has those of the first, as running so many would take minutes."""
    import numpy as np

    import quantizer_core as qc
    from quantizer_core.calibration.observer import Observer

    first = qc.prepare(*chain(5))
    noise = np.random.default_rng(0).normal(size=(BATCH, 4, 4, 8)).astype(np.float32)
    with Observer(first, BATCH) as observer:
        seen = observer.observe([{"x": image} for image in noise])
    tensors = {each.name: seen.tensors["x" if each.name == "x" else "relu_0"] for each in prepared.observed}
    return CalibrationStatistics(tensors, BATCH)


def measure(folder: Path) -> dict[str, float]:
    """Converts the case once and returns the seconds of each part, and how many nodes became INT8."""
    import tensorflow  # noqa: F401 - paid before the clock starts

    import quantizer_core as qc

    for name in qc.__all__:  # imports are no part of a conversion
        getattr(qc, name)
    config = qc.QuantizationConfig.from_json((folder / "config.json").read_text(encoding="utf-8"))
    observed = qc.CalibrationStatistics.from_bytes((folder / "statistics").read_bytes())

    cpu = time.process_time()
    marks = [time.perf_counter()]
    graph_def = qc.load_graph(str(folder / "frozen.pb"))
    marks.append(time.perf_counter())
    prepared = qc.prepare(graph_def, config)
    marks.append(time.perf_counter())
    conversion = qc.convert(prepared, observed, config)
    marks.append(time.perf_counter())
    qc.save_graph(conversion.graph_def, str(folder / "int8.pb"), overwrite=True)
    marks.append(time.perf_counter())
    seconds = [after - before for before, after in itertools.pairwise(marks)]
    result = dict(zip(PARTS, [*seconds, marks[-1] - marks[0]], strict=True))
    result["cpu"] = time.process_time() - cpu  # of all threads: tells a slow conversion from a busy machine
    plan = conversion.plan
    return {**result, "nodes": len(graph_def.node), "quantized": plan.quantized, "candidates": plan.candidates}


def _child(task: str, model: str, folder: Path) -> str:
    """Runs one task of this file in a new process and returns the last line that it prints."""
    return child("-m", "benchmarks.conversion", "--task", task, "--model", model, "--output", str(folder))


def markdown(results: dict[str, list[dict[str, float]]], machine: str) -> str:
    """Returns a table of the seconds of each part: the median of the repeats, of the total also the least and most."""
    repeats = len(next(iter(results.values())))
    lines = [f"Measured on {machine}; seconds, median of {repeats} processes, in brackets the least and the most.", ""]
    lines += [f"| graph | nodes | in INT8 | {' | '.join(PARTS)} | ms a node |", "|---|" + "---:|" * (len(PARTS) + 3)]
    for model, runs in results.items():
        medians = {part: statistics.median(run[part] for run in runs) for part in PARTS}
        totals, nodes = [run["total"] for run in runs], runs[0]["nodes"]
        cells = [model, f"{nodes:,}", f"{runs[0]['quantized']:,} of {runs[0]['candidates']:,}"]
        cells += [f"{medians[part]:.2f}" for part in PARTS[:-1]]
        cells += [
            f"{medians['total']:.2f} ({min(totals):.2f}–{max(totals):.2f})",
            f"{1e3 * medians['total'] / nodes:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


@click.command()
@click.option("--model", "models", type=click.Choice(MODELS), multiple=True, help="Graphs; default: all.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Processes a graph.")
@click.option("--output", type=click.Path(path_type=Path), default=ROOT / "build" / "benchmarks", help="Folder.")
@click.option("--markdown", "page", type=click.Path(path_type=Path, dir_okay=False),
              help="Write the table into this file too, between its marks.")  # fmt: skip
@click.option("--task", type=click.Choice(["all", "make", "measure"]), default="all", hidden=True)
def main(models: tuple[str, ...], repeats: int, output: Path, page: Path | None, task: str) -> None:
    """Time conversion without calibration; writes conversion.json into the output folder."""
    if task == "make":
        make_case(models[0], output)
        return
    if task == "measure":
        click.echo(json.dumps(measure(output)))
        return
    console = Console()
    results: dict[str, list[dict[str, float]]] = {}
    for model in models or MODELS:
        folder = (output / model).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        with console.status(f"{model}: making the graph and its statistics"):
            _child("make", model, folder)
        results[model] = []
        for repeat in range(repeats):
            with console.status(f"{model}: {repeat + 1} of {repeats}"):
                results[model].append(json.loads(_child("measure", model, folder)))
    table = markdown(results, tables.machine())
    console.print(table, soft_wrap=True, markup=False)
    report = {"machine": tables.machine(), "seconds": results}
    path = output / "conversion.json"
    path.write_text(json.dumps(report, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if page is not None:
        tables.write_markdown(page, table, "conversion")
    console.print(f"all repeats: {path}")


if __name__ == "__main__":
    main()
