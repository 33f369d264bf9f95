"""Sets calibration beside plain FP32 inference, and takes its peak memory: ``python -m benchmarks.calibration``.

Both run the same images in the same batches and threads, decoded beforehand, each in a process of its own, in turn.
Calibration is that of histograms: extremes, sampled values and channel means of every tensor that a plan may ask for.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import click
from rich.console import Console

from benchmarks import tables
from benchmarks.accuracy_cases import CASES
from benchmarks.common import ROOT, child, shared_data
from benchmarks.speed_cases import CALIBRATION_FILE, CASE_FILE, FP32_FILE, SPEED_CASES, make_case

GRAPHS = ("mobilenet_keras2", "resnet50_keras2", "squeezenet", "mobilenet_025", "zoo_resnet50v1_5")
THREADS, BATCH = (1, 2), 16
#: Bars: images a second over those of inference; peak memory of many examples over that of few.
RATE, MEMORY = 0.7, 1.05
FEW, MANY = 1_000, 10_000
MEMORY_GRAPH = "resnet20"


def rate(task: str, folder: Path, threads: int, seconds: float) -> float:
    """Returns the images a second of FP32 inference (``infer``) or calibration (``observe``) of a case, in a batch."""
    import numpy as np

    import quantizer_core as qc
    from quantizer_core.calibration.observer import Observer
    from quantizer_core.graph.summarize import input_specs
    from quantizer_core.runtime import GraphSession, stack_batch

    facts = json.loads((folder / CASE_FILE).read_text(encoding="utf-8"))
    graph_def = qc.load_graph(str(folder / FP32_FILE))
    size = facts["batch"] or BATCH
    images = [{facts["input"]: image} for image in np.load(folder / CALIBRATION_FILE)]
    batches = [images[start : start + size] for start in range(0, len(images), size)]
    if task == "infer":
        inputs = input_specs(graph_def, (facts["input"],))
        with GraphSession(graph_def, inputs, facts["outputs"], threads=threads) as session:
            return _rate(lambda batch: session.run(stack_batch(batch, inputs, size)), batches, seconds)
    config = qc.QuantizationConfig(inputs=(facts["input"],), outputs=tuple(facts["outputs"]))
    with Observer(qc.prepare(graph_def, config), size, threads) as observer:
        assert observer.batch_size == size
        return _rate(observer.add, batches, seconds, observer.take)


def _rate(
    run: Callable[[list], object], batches: Sequence[list], seconds: float, end: Callable[[], object] | None = None
) -> float:
    for batch in batches[:2]:  # the first runs do not count
        run(batch)
    started, images = time.perf_counter(), 0
    for batch in itertools.cycle(batches):
        run(batch)
        images += len(batch)
        if images >= 2 * len(batches[0]) and time.perf_counter() - started >= seconds:
            break
    if end is not None:
        end()
    return images / (time.perf_counter() - started)


def peak(count: int) -> float:
    """Calibrates with so many examples in this process; returns its peak memory in MiB."""
    import quantizer_core as qc

    case = CASES[MEMORY_GRAPH]
    graph_def = qc.load_graph(str(case.graph_path()))
    config = qc.QuantizationConfig(outputs=(case.output,), preprocess=case.preprocess()).without_label()
    images, others = case.examples()
    examples = itertools.islice(itertools.cycle([*images, *others]), count)
    run = qc.calibrate(qc.prepare(graph_def, config), examples, config)
    assert run.reads.read == count
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def task_of(*arguments: str) -> float:
    """Runs a task of this file in a new process; returns the number that it prints."""
    return float(child("-m", "benchmarks.calibration", *arguments))


def markdown(rates: dict[tuple[str, int], dict[str, list[float]]], peaks: dict[int, list[float]]) -> str:
    """Returns both tables in Markdown, and what falls short of its bar."""
    repeats = len(next(iter(peaks.values())))
    lines = [f"Measured on {tables.machine()}; median of {repeats} repeats in turn (least–most).", ""]
    lines += ["| graph | threads | FP32, images/s | calibration, images/s | ratio |", "|---|" + "---:|" * 4]
    missed = []
    for (key, threads), found in rates.items():
        ratios = [seen / plain for plain, seen in zip(found["infer"], found["observe"], strict=True)]
        middles = [f"{statistics.median(found[task]):.1f}" for task in ("infer", "observe")]
        spread = tables.times(statistics.median(ratios), min(ratios), max(ratios))
        lines.append(f"| {SPEED_CASES[key].title} | {threads} | {' | '.join(middles)} | {spread} |")
        if statistics.median(ratios) < RATE:
            missed.append(f"{SPEED_CASES[key].title}, {threads} threads")
    lines += ["", "| examples | peak memory, MiB |", "|---:|---:|"]
    lines += [f"| {count:,} | {statistics.median(found):.0f} |" for count, found in peaks.items()]
    growth = statistics.median(peaks[MANY]) / statistics.median(peaks[FEW])
    if growth > MEMORY:
        missed.append("memory")
    lines += ["", f"Memory of {MANY:,} examples over that of {FEW:,}: {growth:.3f}."]
    return "\n".join([*lines, f"Short of a bar ({RATE} ×, {MEMORY} ×): {'; '.join(missed) or 'none'}."])


@click.command()
@click.option("--graph", "graphs", type=click.Choice(GRAPHS), multiple=True, help="Graphs; default: all.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Times of each setting.")
@click.option("--seconds", type=float, default=4.0, show_default=True, help="How long each time.")
@click.option("--output", type=click.Path(path_type=Path), default=ROOT / "build" / "benchmarks" / "speed",
              help="Folder for the graphs. [default: build/benchmarks/speed]")  # fmt: skip
@click.option("--markdown", "page", type=click.Path(path_type=Path, dir_okay=False),
              help="Write the tables into this file too, between its marks.")  # fmt: skip
@click.option("--task", type=click.Choice(["all", "make", "infer", "observe", "peak"]), default="all", hidden=True)
@click.option("--threads", type=int, default=1, hidden=True)
@click.option("--count", type=int, default=FEW, hidden=True)
def main(
    graphs: tuple[str, ...], repeats: int, seconds: float, output: Path, page: Path | None, task: str, threads: int,
    count: int,
) -> None:  # fmt: skip
    """Set calibration beside plain FP32 inference, and its memory for many examples beside that for few."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if task == "peak":
        click.echo(peak(count))
        return
    if task != "all":
        folder = output / graphs[0]
        click.echo(make_case(graphs[0], folder) or 0 if task == "make" else rate(task, folder, threads, seconds))
        return
    if not (shared_data() / "graphs").is_dir():
        raise click.ClickException(f"no shared data in {shared_data()}; name its folder in QUANTIZER_SHARED_DATA")
    console = Console()
    rates: dict[tuple[str, int], dict[str, list[float]]] = {}
    common = ("--output", str(output.resolve()), "--seconds", str(seconds))
    for key in graphs or GRAPHS:
        with console.status(f"{key}: making the graph"):
            (output / key).mkdir(parents=True, exist_ok=True)
            task_of("--task", "make", "--graph", key, *common)
        for threads in THREADS:
            rates[key, threads] = {"infer": [], "observe": []}
        for repeat, threads, task in itertools.product(range(repeats), THREADS, ("infer", "observe")):
            with console.status(f"{key}, {threads} threads, {task}: {repeat + 1} of {repeats}"):
                found = task_of("--task", task, "--graph", key, "--threads", str(threads), *common)
            rates[key, threads][task].append(found)
    peaks: dict[int, list[float]] = {FEW: [], MANY: []}
    for repeat, count in itertools.product(range(repeats), peaks):
        with console.status(f"memory of {count} examples: {repeat + 1} of {repeats}"):
            peaks[count].append(task_of("--task", "peak", "--count", str(count)))
    table = markdown(rates, peaks)
    console.print(table, soft_wrap=True, markup=False)
    if page is not None:
        tables.write_markdown(page, table, "calibration")


if __name__ == "__main__":
    main()
