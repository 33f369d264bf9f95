"""Measures what INT8 costs trained graphs in accuracy, on images that were not calibrated on; peers too if asked.

Every conversion runs in a process of its own. Run it with ``python -m benchmarks.accuracy``; it needs the shared data.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import accuracy_table, peers, tables
from benchmarks.accuracy_cases import CASES, MOST_VIEWS
from benchmarks.accuracy_table import COLUMNS, Row
from benchmarks.common import ROOT, last_line, last_word, python_child, shared_data

#: What can be simulated: the kind of processor → the weights that are made for it.
SIMULATED = {"vnni": {"reduce_range": "off"}, "no_vnni": {"reduce_range": "on"}}
TITLES = {name: case.title for name, case in CASES.items()}


def convert_and_evaluate(name: str, settings: str, tool: str, folds: int, views: int, simulated: bool) -> Row:
    """Calibrates, converts and evaluates one graph with our product, in this process; the folds are counted as one.

    If ``simulated``, what the INT8 graph computes is computed in float32.
    """
    import quantizer_core as qc
    from quantizer_core.evaluation.counts import EvaluationCounts
    from quantizer_core.lowering.simulate import simulate

    case = CASES[name]
    config = qc.QuantizationConfig.from_json(settings)
    config = dataclasses.replace(config, outputs=(case.output,), preprocess=case.preprocess())
    import tensorflow  # noqa: F401 - paid before the clock starts

    graph_def = qc.load_graph(str(case.graph_path()))
    counts, seconds = EvaluationCounts(), np.zeros(2)
    for fold in range(folds):
        calibration, evaluation = case.examples(fold, folds, views)
        marks = [time.perf_counter()]
        prepared = qc.prepare(graph_def, config)
        run = qc.calibrate(prepared, calibration, config)
        marks.append(time.perf_counter())
        conversion = qc.convert(prepared, run.statistics, config, run.sample)
        marks.append(time.perf_counter())
        seconds += np.diff(marks) / folds
        ends = prepared.inputs, prepared.outputs
        int8 = conversion.graph_def
        if simulated:
            int8 = simulate(conversion.prepared, conversion.plan, conversion.parameters)
        counts = counts.merge(qc.evaluate(graph_def, int8, *ends, evaluation, config).counts)
    result = qc.judge(counts, max_drop=1.0)
    return Row(
        name, tool, result.num_examples, result.fp32, result.int8, result.agreement, result.mcnemar_p,
        f"{conversion.plan.quantized} of {conversion.plan.candidates}", *map(float, seconds),
        divergence=result.divergence,
    )  # fmt: skip


def write_arrays(name: str, folder: Path, views: int) -> None:
    """Writes what a peer gets: the graph, the preprocessed images and FP32's classes as .npy, the names of the ends.

    Files: ``graph.pb``, which ends at the output (some peers know no outputs inside a graph); ``calibration.npy`` and
    ``evaluation.npy`` float32 [images, height, width, channels]; ``fp32.npy`` and ``labels.npy`` int64 [images];
    ``case.json`` (paths and names: graph, input, output).
    """
    import quantizer_core as qc
    from quantizer_core.graph.graph import Graph
    from quantizer_core.graph.summarize import find_inputs, input_specs
    from quantizer_core.preprocessing.decoder import ExampleDecoder
    from quantizer_core.runtime import GraphSession

    case = CASES[name]
    graph_def = qc.load_graph(str(case.graph_path()))
    specs = input_specs(graph_def, find_inputs(graph_def))
    (spec,) = specs
    decoder = ExampleDecoder(case.preprocess(), specs)
    calibration, evaluation = ([decoder.decode(example) for example in part] for part in case.examples(views=views))
    images = np.stack([example.feeds[spec.name] for example in evaluation])
    np.save(folder / "calibration.npy", np.stack([example.feeds[spec.name] for example in calibration]))
    np.save(folder / "evaluation.npy", images)
    np.save(folder / "labels.npy", np.array([example.label for example in evaluation], np.int64))
    with GraphSession(graph_def, specs, [case.output]) as session:
        scores = [session.run({spec.name: image[None]})[0].reshape(-1) for image in images]
    np.save(folder / "fp32.npy", np.argmax(scores, 1))
    pruned = Graph(graph_def)
    pruned.prune([spec.name, case.output])
    qc.save_graph(pruned.to_graph_def(), str(folder / "graph.pb"))
    meta = {"graph": str(folder / "graph.pb"), "input": spec.name, "output": case.output}
    (folder / "case.json").write_text(json.dumps(meta), encoding="utf-8")


def _child(*arguments: str) -> str:
    """Runs a task of this file in a new process and returns the last line that it prints; raises RuntimeError."""
    run = python_child("-m", "benchmarks.accuracy", *arguments)
    if run.returncode != 0:
        raise RuntimeError(last_word(run))
    return last_line(run.stdout)


def measure_ours(name: str, settings: str, tool: str, folds: int, views: int, simulated: str) -> Row:
    """Measures our product on one graph in a process of its own."""
    options = ["--graph", name, "--config", settings, "--tool", tool, "--folds", str(folds), "--views", str(views)]
    options += ["--simulate", simulated] if simulated else []
    try:
        return Row(**json.loads(_child("--task", "ours", *options)))
    except RuntimeError as error:
        return Row(name, tool, failure=str(error))


def measure_peers(installed: dict[str, Path], name: str, views: int) -> Iterator[Row]:
    """Measures other tools on one graph, on the very arrays that ours sees."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            _child("--task", "arrays", "--graph", name, "--folder", temporary, "--views", str(views))
        except RuntimeError as error:
            yield from (Row(name, peers.PEERS[key].title, failure=str(error)) for key in installed)
            return
        for key, python in installed.items():
            title = peers.PEERS[key].title
            try:
                seconds = peers.run(peers.PEERS[key], python, folder)
            except RuntimeError as error:
                yield Row(name, title, failure=str(error))
                continue
            classes = (np.load(folder / f"{part}.npy") for part in ("fp32", "int8", "labels"))
            yield accuracy_table.scored(name, title, *classes, seconds)


def measure(
    graphs: tuple[str, ...],
    variants: dict[str, str],
    chosen: tuple[str, ...],
    folds: int,
    views: int,
    simulated: str,
    console: Console,
) -> Iterator[Row]:
    """Yields the rows of each graph: our settings, then the chosen peers that can be installed here."""
    installed = peers.install_all(chosen, ROOT / "build" / "peers", console)
    for name in graphs:
        with console.status(TITLES[name]):
            for tool, settings in variants.items():
                yield measure_ours(name, settings, tool, folds, views, simulated)
            if installed:
                yield from measure_peers(installed, name, views)


def show(rows: list[Row], console: Console) -> None:
    """Prints the rows as a table."""
    table = Table(title="Accuracy on images that were not calibrated on (%)")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in COLUMNS[:2] else "right")
    for row in rows:
        table.add_row(*accuracy_table.cells(row, TITLES[row.case]))
    console.print(table)


def _variants(given: tuple[str, ...], config: str) -> dict[str, str]:
    """Returns name → settings as JSON: the defaults, or each NAME=JSON on top of ``config``."""
    base = _json("--config", config)
    result = {} if given else {"ours": json.dumps(base)}
    for text in given:
        name, mark, settings = text.partition("=")
        if not mark or not name or name in result:
            raise click.UsageError(f"--variant is NAME=JSON with a new name each, not {text!r}")
        result[name] = json.dumps({**base, **_json(f"--variant {name}", settings or "{}")})
    return result


def _json(option: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise click.UsageError(f"{option} is no valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise click.UsageError(f"{option} is no JSON object")
    return value


@click.command()
@click.option("--graph", "graphs", type=click.Choice(sorted(CASES)), multiple=True, help="Graphs; default: all.")
@click.option("--config", default="{}", metavar="JSON", help="Fields of QuantizationConfig. [default: its defaults]")
@click.option("--variant", "variants", multiple=True, metavar="NAME=JSON",
              help="Settings to compare, on top of --config; repeatable. NAME= means the defaults.")  # fmt: skip
@click.option("--folds", type=click.IntRange(1), default=1, show_default=True,
              help="Parts that the images are evaluated in, each by a conversion that has not seen it; 1: the images "
                   "after the first 128.")  # fmt: skip
@click.option("--views", type=click.IntRange(1, MOST_VIEWS), default=MOST_VIEWS, show_default=True,
              help="How often each image is evaluated: as it is, mirrored, shifted, both.")  # fmt: skip
@click.option("--simulate", "simulated", type=click.Choice(list(SIMULATED)),
              help="Make the graph for such a processor, and compute in float32 what its kernels would.")  # fmt: skip
@click.option("--peers", "all_peers", is_flag=True,
              help="Measure other tools too, each in a virtual environment made under build/peers.")  # fmt: skip
@click.option("--peer", "some_peers", type=click.Choice(sorted(peers.PEERS)), multiple=True, help="Only this one.")
@click.option("--output", type=click.Path(path_type=Path), default=ROOT / "build" / "benchmarks" / "accuracy.json",
              help="JSON file to write. [default: build/benchmarks/accuracy.json]")  # fmt: skip
@click.option("--markdown", type=click.Path(path_type=Path, dir_okay=False),
              help="Write the table into this file too, between its marks.")  # fmt: skip
@click.option("--task", type=click.Choice(["all", "ours", "arrays"]), default="all", hidden=True)
@click.option("--tool", default="ours", hidden=True)
@click.option("--folder", type=click.Path(path_type=Path), hidden=True)
def main(
    graphs: tuple[str, ...], config: str, variants: tuple[str, ...], folds: int, views: int, simulated: str | None,
    all_peers: bool, some_peers: tuple[str, ...], output: Path, markdown: Path | None, task: str, tool: str,
    folder: Path | None,
) -> None:  # fmt: skip
    """Measure FP32 and INT8 accuracy on the shared images: calibrated on 128 of them, evaluated on others."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if task == "ours":
        settings_of = json.dumps({**_json("--config", config), **SIMULATED.get(simulated or "", {})})
        row = convert_and_evaluate(graphs[0], settings_of, tool, folds, views, bool(simulated))
        click.echo(json.dumps(dataclasses.asdict(row)))
        return
    if task == "arrays":
        assert folder is not None
        write_arrays(graphs[0], folder, views)
        return
    if not (shared_data() / "graphs").is_dir():
        raise click.ClickException(f"no shared data in {shared_data()}; name its folder in QUANTIZER_SHARED_DATA")
    settings = _variants(variants, config)
    console = Console(width=None if sys.stdout.isatty() else 160)
    chosen = some_peers or (tuple(peers.PEERS) if all_peers else ())
    if chosen and folds > 1:
        raise click.UsageError("--folds is for our own settings: other tools are measured on one part of the images")
    if chosen and simulated:
        raise click.UsageError("--simulate is for our own graphs: other tools are measured on this processor's kernels")
    if not chosen:
        console.print("other tools are not measured: --peers installs and runs them")
    rows = []
    for row in measure(graphs or tuple(CASES), settings, chosen, folds, views, simulated or "", console):
        rows.append(row)
        click.echo("  ".join(accuracy_table.cells(row, TITLES[row.case])), err=True)
    show(rows, console)
    machine = tables.machine()
    kind = None
    if simulated:
        kind = f"simulated {simulated.replace('_', ' ').replace('vnni', 'VNNI')}"
        machine = f"{machine}, which computed in float32 what INT8 kernels would ({kind})"
    report = {
        "machine": machine,
        "settings": settings,
        "folds": folds,
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    console.print(f"all figures: {output}")
    if markdown is not None:
        tables.write_markdown(markdown, accuracy_table.markdown(rows, TITLES, machine), processor=kind)


if __name__ == "__main__":
    main()
