"""Measures what each option of a conversion costs in time and gains in accuracy: the defaults with one thing changed.

Every image is evaluated by a conversion that was calibrated on others. Each graph runs in a process of its own, in
which it is calibrated once for each part of the images. Run it with ``python -m benchmarks.ablation``; it needs the
shared data.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks import tables
from benchmarks.accuracy_cases import CASES
from benchmarks.common import ROOT, last_word, python_child, shared_data

#: Name → what differs from the defaults.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "defaults": {},
    "rounding: nearest": {"rounding": "nearest"},
    "bias_correction: off": {"bias_correction": False},
    "rounding: nearest, bias_correction: off": {"rounding": "nearest", "bias_correction": False},
    "refine_examples: 0": {"refine_examples": 0},
    "refine_examples: 8": {"refine_examples": 8},
    "refine_examples: 64": {"refine_examples": 64},
    "equalization: off": {"equalization": False},
    "mixed_precision: off": {"mixed_precision": False},
    "per_channel: off": {"per_channel": False},
    "weight_clipping: mse": {"weight_clipping": "mse"},
    "reduce_range: on": {"reduce_range": "on"},
    "calibration_method: minmax": {"calibration_method": "minmax"},
    "calibration_method: moving_average": {"calibration_method": "moving_average"},
    "calibration_method: percentile": {"calibration_method": "percentile"},
    "calibration_method: kl": {"calibration_method": "kl"},
}


@dataclasses.dataclass(frozen=True)
class Result:
    """What one variant makes of one graph; shares, nats and seconds, the latter the mean over the parts."""

    case: str
    variant: str
    examples: int
    fp32: float
    int8: float
    agreement: float
    divergence: float
    convert_seconds: float


def measure(name: str, variants: Mapping[str, Mapping[str, Any]], folds: int) -> Iterator[Result]:
    """Yields the results of one graph, in this process."""
    import tensorflow  # noqa: F401 - paid before the clock starts

    import quantizer_core as qc
    from quantizer_core.evaluation.counts import EvaluationCounts

    case = CASES[name]
    config = qc.QuantizationConfig(outputs=(case.output,), preprocess=case.preprocess())
    graph_def = qc.load_graph(str(case.graph_path()))
    prepared = qc.prepare(graph_def, config)
    counts = {variant: EvaluationCounts() for variant in variants}
    seconds = dict.fromkeys(variants, 0.0)
    for fold in range(folds):
        calibration, evaluation = case.examples(fold, folds)
        run = qc.calibrate(prepared, calibration, config)
        if not fold:  # what is imported and made once takes no one's time
            qc.convert(prepared, run.statistics, config, run.sample)
        for variant, changes in variants.items():
            chosen = dataclasses.replace(config, **changes)
            start = time.perf_counter()
            conversion = qc.convert(prepared, run.statistics, chosen, run.sample)
            seconds[variant] += (time.perf_counter() - start) / folds
            ends = prepared.inputs, prepared.outputs
            found = qc.evaluate(graph_def, conversion.graph_def, *ends, evaluation, chosen)
            counts[variant] = counts[variant].merge(found.counts)
    for variant, counted in counts.items():
        judged = qc.judge(counted, max_drop=1.0)
        yield Result(
            name, variant, judged.num_examples, judged.fp32, judged.int8, judged.agreement, judged.divergence,
            seconds[variant],
        )  # fmt: skip


def _child(name: str, variants: Sequence[str], folds: int) -> list[Result]:
    command = ["-m", "benchmarks.ablation", "--task", "--graph", name, "--folds", str(folds)]
    command += [part for variant in variants for part in ("--variant", variant)]
    run = python_child(*command)
    if run.returncode:
        raise click.ClickException(f"{name}: {last_word(run)}")
    return [Result(**json.loads(line)) for line in run.stdout.splitlines() if line.startswith("{")]


def markdown(results: Sequence[Result], machine: str, folds: int) -> str:
    """Returns the table in Markdown: a row a variant, a column a graph."""
    names = list(dict.fromkeys(result.case for result in results))
    by_place = {(result.variant, result.case): result for result in results}
    examples = ", ".join(f"{CASES[name].title} {by_place['defaults', name].examples}" for name in names)
    lines = [
        f"Measured on {machine}; {folds} parts, images: {examples}. In each cell: divergence in thousandths of a nat · "
        "agreement in percent · points of top-1 accuracy over FP32 · seconds of conversion.",
        "",
        "| options | " + " | ".join(CASES[name].title for name in names) + " |",
        "|---|" + "---:|" * len(names),
    ]
    for variant in dict.fromkeys(result.variant for result in results):
        cells = [_cell(by_place[variant, name]) for name in names]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(result: Result) -> str:
    return (
        f"{1000 * result.divergence:.2f} · {100 * result.agreement:.1f} · "
        f"{100 * (result.int8 - result.fp32):+.1f} · {result.convert_seconds:.1f}"
    )


@click.command()
@click.option("--graph", "graphs", type=click.Choice(sorted(CASES)), multiple=True, help="Graphs; default: all.")
@click.option("--variant", "chosen", type=click.Choice(list(VARIANTS)), multiple=True,
              help="Only these, and the defaults.")  # fmt: skip
@click.option("--folds", type=click.IntRange(2), default=3, show_default=True, help="Parts of the images.")
@click.option("--output", type=click.Path(path_type=Path), default=ROOT / "build" / "benchmarks" / "ablation.json",
              help="JSON file to write. [default: build/benchmarks/ablation.json]")  # fmt: skip
@click.option("--markdown", "page", type=click.Path(path_type=Path, dir_okay=False),
              help="Write the table into this file too, between its marks.")  # fmt: skip
@click.option("--task", is_flag=True, hidden=True)
def main(
    graphs: tuple[str, ...], chosen: tuple[str, ...], folds: int, output: Path, page: Path | None, task: bool
) -> None:
    """Measure each option of a conversion against the defaults, on the shared images."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    names = [name for name in VARIANTS if not chosen or name in chosen or name == "defaults"]
    if task:
        for result in measure(graphs[0], {name: VARIANTS[name] for name in names}, folds):
            click.echo(json.dumps(dataclasses.asdict(result)))
        return
    if not (shared_data() / "graphs").is_dir():
        raise click.ClickException(f"no shared data in {shared_data()}; name its folder in QUANTIZER_SHARED_DATA")
    results = []
    for graph in graphs or tuple(CASES):
        for result in _child(graph, names, folds):
            click.echo(f"{CASES[graph].title}  {result.variant}  {_cell(result)}")
            results.append(result)
    machine = tables.machine()
    report = {"machine": machine, "folds": folds, "results": [dataclasses.asdict(result) for result in results]}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    click.echo(f"all figures: {output}")
    if page is not None:
        tables.write_markdown(page, markdown(results, machine, folds), "options")


if __name__ == "__main__":
    main()
