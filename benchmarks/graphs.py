"""Takes every graph of the shared data through the product at its defaults and holds each to its bar.

Each graph runs in a process of its own; what is evaluated was not calibrated on. Run it with
``python -m benchmarks.graphs``; it needs the shared data.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks import tables
from benchmarks.common import ROOT, last_line, last_word, python_child, shared_data
from benchmarks.graph_cases import GRAPH_CASES, Figures

#: The ops whose share in INT8 is held to ``SHARE``.
WEIGHTED = ("Conv2D", "DepthwiseConv2dNative", "MatMul")
SHARE = 0.9
#: How often each graph is timed, and how long.
REPEATS, SECONDS = 3, 0.5
COLUMNS = ("graph", "INT8 of Conv2D, Depthwise, MatMul", "of all candidates", "examples", "metric", "FP32", "INT8",
           "more", "bar", "INT8 / FP32 bytes", "speed over FP32's", "seconds")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of one graph.

    Attributes:
      case: its key.
      figures: the metric and whether its bar is reached.
      weighted, candidates: (nodes in INT8, all) of ``WEIGHTED`` and of all candidates.
      left: why nodes stayed FP32: "op: reason" → how many.
      examples: how many were evaluated.
      size: bytes of the INT8 graph over those of the FP32 graph.
      speed: how many times faster INT8 is with one thread and batch 1: median, least and most of the repeats.
      calibrate_seconds, convert_seconds: mean over the folds.
    """

    case: str
    figures: Figures
    weighted: tuple[int, int]
    candidates: tuple[int, int]
    left: dict[str, int]
    examples: int
    size: float
    speed: tuple[float, float, float]
    calibrate_seconds: float
    convert_seconds: float

    @property
    def passed(self) -> bool:
        done, all_of_them = self.weighted
        explained = sum(count for reason, count in self.left.items() if reason.partition(": ")[0] in WEIGHTED)
        return self.figures.passed and (done >= SHARE * all_of_them or done + explained == all_of_them)

    @classmethod
    def from_json(cls, text: str) -> Result:
        values = json.loads(text)
        values["figures"] = Figures(**values["figures"])
        for name in ("weighted", "candidates", "speed"):
            values[name] = tuple(values[name])
        return cls(**values)


def measure(name: str, settings: str = "{}") -> Result:
    """Calibrates, converts and evaluates one graph, in this process; ``settings``: fields of the config as JSON."""
    import tensorflow  # noqa: F401 - paid before the clock starts

    import quantizer_core as qc
    from quantizer_core.preprocessing.decoder import ExampleDecoder

    case = GRAPH_CASES[name]
    graph_def = qc.load_graph(str(shared_data() / "graphs" / case.file))
    config = qc.QuantizationConfig.from_json(settings)
    config = dataclasses.replace(config, outputs=case.outputs, preprocess=case.preprocess())
    exact: list[list[np.ndarray]] = []
    ours: list[list[np.ndarray]] = []
    numbers: list[int] = []
    labels: list[int | None] = []
    seconds = np.zeros(2)
    for calibration, evaluation, evaluated in case.parts():
        marks = [time.perf_counter()]
        prepared = qc.prepare(graph_def, config)
        run = qc.calibrate(prepared, calibration, config)
        marks.append(time.perf_counter())
        conversion = qc.convert(prepared, run.statistics, config, run.sample)
        marks.append(time.perf_counter())
        seconds += np.diff(marks) / case.folds
        decoder = ExampleDecoder(config, prepared.inputs)
        decoded = [decoder.decode(example) for example in evaluation]
        exact += _outputs(graph_def, prepared, decoded)
        ours += _outputs(conversion.graph_def, prepared, decoded)
        numbers += evaluated
        labels += [example.label for example in decoded]
    plan = conversion.plan
    counted = [count for op, count in plan.counts().items() if op in WEIGHTED]
    left: dict[str, int] = {}
    for node in plan.computing():
        if not node.quantized and node.reason:
            left[f"{node.op}: {node.reason}"] = left.get(f"{node.op}: {node.reason}", 0) + 1
    return Result(
        name, case.judge(exact, ours, numbers, labels), (sum(c[0] for c in counted), sum(c[1] for c in counted)),
        (plan.quantized, plan.candidates), left, len(numbers),
        conversion.graph_def.ByteSize() / (shared_data() / "graphs" / case.file).stat().st_size,
        _speed(graph_def, conversion.graph_def, prepared, decoded[0].feeds), *map(float, seconds),
    )  # fmt: skip


def _speed(fp32: Any, int8: Any, prepared: Any, feeds: Any) -> tuple[float, float, float]:
    """Returns how many times faster INT8 is than FP32 on one example, one thread; the two are timed in turn."""
    from quantizer_core.speed.measure import Bench, Setting

    with Bench({"FP32": fp32, "INT8": int8}, prepared.inputs, prepared.outputs, [feeds]) as bench:
        exact, ours = bench.time([Setting(1, 1)], REPEATS, SECONDS)
    return ours.speedup_over(exact)


def _outputs(graph_def: Any, prepared: Any, decoded: Sequence[Any]) -> list[list[np.ndarray]]:
    """Returns the outputs of each example, run one by one."""
    from quantizer_core.runtime import GraphSession, stack_batch

    with GraphSession(graph_def, prepared.inputs, prepared.outputs) as session:
        return [session.run(stack_batch([each.feeds], prepared.inputs, 1)) for each in decoded]


def run(name: str, settings: str = "{}") -> Result:
    """Measures one graph in a process of its own; raises ClickException with its last words."""
    done = python_child("-m", "benchmarks.graphs", "--task", "--graph", name, "--config", settings)
    if done.returncode:
        raise click.ClickException(f"{name}: {last_word(done)}")
    return Result.from_json(last_line(done.stdout))


def cells(result: Result) -> tuple[str, ...]:
    """Returns a result's texts, one a column."""
    figures = result.figures
    return (
        GRAPH_CASES[result.case].title,
        "{} of {}".format(*result.weighted),
        "{} of {}".format(*result.candidates),
        str(result.examples),
        figures.metric,
        "–" if math.isnan(figures.fp32) else f"{figures.fp32:.2f}",
        f"{figures.int8:.2f}",
        figures.more,
        f"{figures.bar}: {'reached' if figures.passed else 'missed'}",
        f"{result.size:.2f}",
        tables.times(*result.speed),
        f"{result.calibrate_seconds:.1f} + {result.convert_seconds:.1f}",
    )


def markdown(results: Sequence[Result], machine: str) -> str:
    """Returns the table in Markdown, and below it why nodes stayed FP32."""
    lines = [f"Measured on {machine}.", "", "| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    lines += ["| " + " | ".join(cells(result)) + " |" for result in results]
    lines += ["", "What stayed FP32, and why:", ""]
    for result in results:
        for reason, count in sorted(result.left.items()):
            lines.append(f"- {GRAPH_CASES[result.case].title}: {count} × {reason}")
    return "\n".join(lines)


@click.command()
@click.option("--graph", "graphs", type=click.Choice(list(GRAPH_CASES)), multiple=True, help="Graphs; default: all.")
@click.option("--config", "settings", default="{}", metavar="JSON",
              help="Fields of QuantizationConfig. [default: its defaults]")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path), default=ROOT / "build" / "benchmarks" / "graphs.json",
              help="JSON file to write. [default: build/benchmarks/graphs.json]")  # fmt: skip
@click.option("--markdown", "page", type=click.Path(path_type=Path, dir_okay=False),
              help="Write the table into this file too, between its marks.")  # fmt: skip
@click.option("--task", is_flag=True, hidden=True)
def main(graphs: tuple[str, ...], settings: str, output: Path, page: Path | None, task: bool) -> None:
    """Convert every shared graph at the defaults and hold it to its bar; exit code 1 if one misses it."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if task:
        click.echo(json.dumps(dataclasses.asdict(measure(graphs[0], settings))))
        return
    if not (shared_data() / "graphs").is_dir():
        raise click.ClickException(f"no shared data in {shared_data()}; name its folder in QUANTIZER_SHARED_DATA")
    results: list[Result] = []
    machine = tables.machine()
    output.parent.mkdir(parents=True, exist_ok=True)
    for name in graphs or tuple(GRAPH_CASES):
        results.append(run(name, settings))
        click.echo("  ".join(cells(results[-1])))
        found = [dataclasses.asdict(result) for result in results]
        report = {"machine": machine, "settings": json.loads(settings), "results": found}
        output.write_text(json.dumps(report, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    click.echo(f"all figures: {output}")
    if page is not None:
        tables.write_markdown(page, markdown(results, machine), "graphs")
    missed = [GRAPH_CASES[result.case].title for result in results if not result.passed]
    if missed:
        raise click.ClickException(f"bars missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
