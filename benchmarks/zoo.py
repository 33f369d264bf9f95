"""Takes the nine Model Zoo graphs through ``quantizer model-zoo`` and measures how close and how much faster INT8 is.

Their structure is that of the real models, their weights are seeded random numbers: accuracy means nothing, closeness
to FP32 and speed do. Run it with ``python -m benchmarks.zoo``; it needs the shared data. Every step has a process of
its own, FP32 and INT8 are timed in turn.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from benchmarks import tables
from benchmarks.common import ROOT, child, output_of, shared_data, zoo_graph
from benchmarks.graphs import WEIGHTED
from quantizer_core.zoo import load_models, zoo_model

if TYPE_CHECKING:
    from quantizer_core.speed.measure import Timing

#: Bars: share of the kernels with weights in INT8; mean cosine of a classifier's logits; share of FP32's boxes found.
SHARE, COSINE, BOXES = 0.95, 0.99, 0.9
CALIBRATION, COMPARED = 32, 32
COLUMNS = ("graph", "INT8 of Conv2D, Depthwise, MatMul", "close to FP32", "FP32, ms", "INT8, ms", "faster", "size",
           "the whole command, s")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of one graph.

    Attributes:
      name: its name in the registry.
      weighted: nodes of ``WEIGHTED`` in INT8, and all.
      closeness: mean cosine of the logits, or share of FP32's boxes that INT8 finds.
      boxes: how many boxes of FP32 that is the share of; 0 for classifiers.
      fp32, int8: the times of a step of batch 1, which took turns.
      size: bytes of the INT8 graph over those of the FP32 graph.
      seconds: the whole command.
    """

    name: str
    weighted: tuple[int, int]
    closeness: float
    boxes: int
    fp32: Timing
    int8: Timing
    size: float
    seconds: float

    @property
    def missed(self) -> list[str]:
        """What falls short of its bar."""
        found = []
        if self.weighted[0] < SHARE * self.weighted[1]:
            found.append("share in INT8")
        if self.closeness < (BOXES if self.boxes else COSINE):
            found.append("closeness")
        if self.int8.speedup_over(self.fp32)[0] <= 1:
            found.append("speed")
        return found


def images(count: int, behind: int = 0) -> list[bytes]:
    """Returns serialized examples of the shared images behind the first ``behind``."""
    from quantizer_core.data import read_examples

    examples = list(read_examples(str(shared_data() / "images" / "nips2017_dev")))
    return examples[behind : behind + count]


def decoded(name: str, inputs: Sequence[Any], count: int) -> list[dict[str, np.ndarray]]:
    """Returns what the graph is fed with for images that were not calibrated on."""
    from quantizer_core.preprocessing.decoder import ExampleDecoder

    decoder = ExampleDecoder(zoo_model(name).config.without_label(), inputs)
    return [decoder.decode(example).feeds for example in images(count, CALIBRATION)]


def closeness(name: str, fp32: Path, int8: Path) -> tuple[float, int]:
    """Compares two graphs on images: mean cosine of the logits and 0, or share of the boxes found and how many."""
    from quantizer_core.evaluation.detectors import evaluate_detectors
    from quantizer_core.graph.files import load_graph
    from quantizer_core.graph.summarize import input_specs
    from quantizer_core.runtime import GraphSession, stack_batch

    model = zoo_model(name)
    graphs = [load_graph(str(path)) for path in (fp32, int8)]
    inputs = input_specs(graphs[0], model.config.inputs)
    if model.metric == "coco_map":
        run = evaluate_detectors(
            *graphs, inputs, model.config.outputs, images(COMPARED, CALIBRATION), model.config, labelled=False
        )
        return run.matched / max(1, run.boxes), run.boxes
    found = []
    for graph in graphs:
        outputs = [logits(graph, output) for output in model.config.outputs if output != "ArgMax"]
        with GraphSession(graph, inputs, outputs) as session:
            found.append([session.run(stack_batch([feeds], inputs, 1)) for feeds in decoded(name, inputs, COMPARED)])
    cosines = [cosine(*pair) for one, other in zip(*found, strict=True) for pair in zip(one, other, strict=True)]
    return float(np.mean(cosines)), 0


def logits(graph_def: Any, output: str) -> str:
    """Returns the tensor that an output is the softmax of, else the output."""
    from quantizer_core.graph.graph import Graph, node_of

    graph = Graph(graph_def)
    node = graph.node(node_of(output))
    while node.op in ("Reshape", "Identity", "Squeeze"):
        node = graph.node(node_of(node.input[0]))
    return str(node.input[0]) if node.op == "Softmax" else output


def amplified(name: str, fp32: Path, count: int = 16) -> tuple[float, float]:
    """Returns the mean cosine of the logits if nothing is rounded but activations to 8 bits: the first Relu's, and all.

    What a classifier loses here no choice of weights, ranges or kernels brings back.
    """
    import tensorflow.compat.v1 as tf

    import quantizer_core as qc

    config = zoo_model(name).config.without_label()
    prepared = qc.prepare(qc.load_graph(str(fp32)), config)
    output = logits(prepared.graph_def, next(each for each in config.outputs if each != "ArgMax"))
    relus = [node.name for node in prepared.graph_def.node if node.op in ("Relu", "Relu6")]
    examples = decoded(name, prepared.inputs, count)

    def run(rounded: dict[str, float], fetches: Sequence[str]) -> list[list[np.ndarray]]:
        with tf.Graph().as_default() as graph:
            tf.import_graph_def(prepared.graph_def, name="")
            for relu, limit in rounded.items():
                tensor = graph.get_tensor_by_name(f"{relu}:0")
                readers = [(op, i) for op in tensor.consumers() for i, read in enumerate(op.inputs) if read is tensor]
                value = tf.quantization.fake_quant_with_min_max_args(tensor, 0.0, limit, 8)
                for op, place in readers:
                    op._update_input(place, value)
            with tf.Session(graph=graph) as session:
                names = [fetch if ":" in fetch else f"{fetch}:0" for fetch in fetches]
                feeds = [{f"{key}:0": value[None] for key, value in each.items()} for each in examples]
                return [session.run(names, each) for each in feeds]

    plain = run({}, [output, *relus])
    limits = {relu: float(max(values[1 + i].max() for values in plain)) for i, relu in enumerate(relus)}
    found = []
    for chosen in (relus[:1], relus):
        other = run({relu: limits[relu] for relu in chosen}, [output])
        found.append(float(np.mean([cosine(a[0], b[0]) for a, b in zip(plain, other, strict=True)])))
    return found[0], found[1]


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the cosine of two tensors taken as vectors."""
    x, y = (np.asarray(value, np.float64).ravel() for value in (one, other))
    return float(x @ y / max(1e-30, np.linalg.norm(x) * np.linalg.norm(y)))


def timed(name: str, fp32: Path, int8: Path, repeats: int, seconds: float = 4.0) -> tuple[Timing, Timing]:
    """Times steps of batch 1 of both graphs in turn, with as many threads as there are processors."""
    from quantizer_core.graph.files import load_graph
    from quantizer_core.graph.summarize import input_specs
    from quantizer_core.runtime import processors
    from quantizer_core.speed.measure import Bench, Setting

    config = zoo_model(name).config
    graphs = {path.stem: load_graph(str(path)) for path in (fp32, int8)}
    inputs = input_specs(graphs[fp32.stem], config.inputs)
    with Bench(graphs, inputs, config.outputs, decoded(name, inputs, 1)) as bench:
        plain, ours = bench.time([Setting(processors(), 1)], repeats, seconds)
    return plain, ours


def measure(name: str, folder: Path, repeats: int) -> Result:
    """Makes the graph, converts it by the command line, compares and times it."""
    fp32, int8 = zoo_graph(name, folder / f"{name}.pb"), folder / f"{name}_int8.pb"
    start = time.perf_counter()
    facts = json.loads(
        output_of(
            *("-m", "quantizer_core.cli.main", "model-zoo", "--model", name, "--in_graph", str(fp32)),
            *("--out_graph", str(int8), "--data_location", str(shared_data() / "images" / "nips2017_dev")),
            *("--num_calibration_examples", str(CALIBRATION), "--overwrite", "--json"),
        )
    )
    seconds = time.perf_counter() - start
    compare = ("-m", "benchmarks.zoo", "--model", name, "--task", "compare", str(fp32), str(int8))
    close, boxes = json.loads(child(*compare))
    counts = [count for op, count in facts["by_op"].items() if op in WEIGHTED]
    return Result(
        name, (sum(done for done, _ in counts), sum(total for _, total in counts)), close, boxes,
        *timed(name, fp32, int8, repeats), facts["int8_bytes"] / facts["fp32_bytes"], seconds,
    )  # fmt: skip


def cells(result: Result) -> tuple[str, ...]:
    """Returns a result's texts, one a column."""
    close = f"{result.closeness:.1%} of {result.boxes} boxes" if result.boxes else f"cosine {result.closeness:.4f}"
    return (
        result.name,
        "{} of {}".format(*result.weighted),
        close,
        f"{result.fp32.latency:.1f}",
        f"{result.int8.latency:.1f}",
        tables.times(*result.int8.speedup_over(result.fp32)),
        f"{result.size:.2f} ×",
        f"{result.seconds:.0f}",
    )


def markdown(results: Sequence[Result], machine: str) -> str:
    """Returns the table in Markdown."""
    lines = [
        f"Measured on {machine}; batch 1, a thread a processor, {len(results[0].fp32.milliseconds)} repeats in turn.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|---" * len(COLUMNS) + "|",
    ]
    lines += ["| " + " | ".join(cells(result)) + " |" for result in results]
    short = [f"{result.name} ({', '.join(result.missed)})" for result in results if result.missed]
    return "\n".join([*lines, "", f"Short of a bar: {', '.join(short) or 'none'}."])


@click.command()
@click.option("--model", "models", type=click.Choice(list(load_models())), multiple=True, help="Models; default: all.")
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Timings of each graph.")
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), default=ROOT / "build" / "zoo",
              help="Where the graphs are made, 1.2 GB for all nine. [default: build/zoo]")  # fmt: skip
@click.option("--markdown", "page", type=click.Path(path_type=Path, dir_okay=False),
              help="Write the table into this file too, between its marks.")  # fmt: skip
@click.option("--amplification", is_flag=True,
              help="Only print each classifier's cosine if nothing but activations is rounded to 8 bits.")  # fmt: skip
@click.option("--task", type=click.Choice(["compare", "amplify"]), hidden=True)
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
def main(
    models: tuple[str, ...], repeats: int, folder: Path, page: Path | None, amplification: bool, task: str | None,
    paths: tuple[Path, ...],
) -> None:  # fmt: skip
    """Convert the nine models of the zoo, and measure how close INT8 is to FP32 and how much faster."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if task == "compare":
        click.echo(json.dumps(closeness(models[0], *paths)))
        return
    if task == "amplify":
        click.echo(json.dumps(amplified(models[0], *paths)))
        return
    if not (shared_data() / "zoo").is_dir():
        raise click.ClickException(f"no shared data in {shared_data()}; name its folder in QUANTIZER_SHARED_DATA")
    if amplification:
        for name in models or [name for name in load_models() if zoo_model(name).metric == "top1"]:
            made = zoo_graph(name, folder.resolve() / f"{name}.pb")
            first, every = json.loads(child("-m", "benchmarks.zoo", "--model", name, "--task", "amplify", str(made)))
            click.echo(f"{name}  first activation alone {first:.4f}  all activations {every:.4f}")
        return
    results = []
    for name in models or tuple(load_models()):
        results.append(measure(name, folder.resolve(), repeats))
        click.echo("  ".join(cells(results[-1])))
        if page is not None:  # after each, as all nine take long
            tables.write_markdown(page, markdown(results, tables.machine()), "zoo")
    if any(result.missed for result in results):
        missed = [f"{result.name}: {', '.join(result.missed)}" for result in results if result.missed]
        raise click.ClickException(f"bars missed: {'; '.join(missed)}")


if __name__ == "__main__":
    main()
