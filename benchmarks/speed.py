"""Times FP32, bfloat16, our INT8 and other tools' INT8 side by side: ``python -m benchmarks.speed``.

Every time is taken in a process of its own; in each repeat all tools follow one another in one setting before the next
setting begins. Neural Compressor's graphs run in the same TensorFlow as ours.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import statistics
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path

import click
from rich.console import Console

from benchmarks import peers, tables
from benchmarks.common import ROOT, child, shared_data
from benchmarks.speed_cases import CALIBRATION_FILE, CASE_FILE, FP32_FILE, SPEED_CASES, make_case

FP32, BF16, OURS = "FP32", "FP32 + bf16", "ours"
NEURAL_COMPRESSOR, OPENVINO = "neural_compressor", "openvino"
OURS_FILE, NEURAL_COMPRESSOR_FILE = "ours.pb", "neural_compressor.pb"
THREADS, BATCHES = (1, 2), (1, 16)


@dataclasses.dataclass
class Row:
    """One graph in one setting.

    Attributes:
      case: key of the graph.
      threads, batch: the setting.
      times: tool → the milliseconds of each repeat.
    """

    case: str
    threads: int
    batch: int
    times: dict[str, list[float]]

    def ratio(self, tool: str, to: str = FP32) -> tuple[float, float, float]:
        """Returns how many times faster a tool is than another: median, least and most of the repeats."""
        ratios = [slow / fast for fast, slow in zip(self.times[tool], self.times[to], strict=True)]
        return statistics.median(ratios), min(ratios), max(ratios)


@dataclasses.dataclass
class Case:
    """A graph made ready to time: its folder, the tools that have a graph of it, and what converting took.

    Attributes:
      seconds: tool → seconds of calibration and conversion.
      size: bytes of our INT8 graph over those of the FP32 graph.
      failures: tool → why it has no graph.
    """

    key: str
    folder: Path
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    size: float = float("nan")
    failures: dict[str, str] = dataclasses.field(default_factory=dict)


def convert_ours(key: str, folder: Path) -> float:
    """Converts a case with our product, in this process; returns the seconds of calibration and conversion."""
    import numpy as np
    import tensorflow  # noqa: F401 - paid before the clock starts

    import quantizer_core as qc
    from quantizer_core.data import tensor_example

    facts = json.loads((folder / CASE_FILE).read_text(encoding="utf-8"))
    examples = [
        tensor_example({facts["input"]: image}, with_shapes=True) for image in np.load(folder / CALIBRATION_FILE)
    ]
    # Of random weights nothing can be said about which layers cost classes.
    config = qc.QuantizationConfig(
        inputs=(facts["input"],), outputs=tuple(facts["outputs"]), mixed_precision=SPEED_CASES[key].trained,
        excluded_ops=("ConcatV2",) if "ssd" in key else (),
        preprocess=qc.PreprocessConfig(kind="tensors"),
    )  # fmt: skip
    start = time.perf_counter()
    prepared = qc.prepare(qc.load_graph(facts["graph"]), config)
    run = qc.calibrate(prepared, examples, config)
    conversion = qc.convert(prepared, run.statistics, config, run.sample)
    seconds = time.perf_counter() - start
    qc.save_graph(conversion.graph_def, str(folder / OURS_FILE), overwrite=True)
    return seconds


def ready(key: str, folder: Path, installed: dict[str, Path]) -> Case:
    """Makes a case's graph, and every tool's INT8 graph of it."""
    folder.mkdir(parents=True, exist_ok=True)
    case = Case(key, folder)
    child("-m", "benchmarks.speed", "--task", "make", "--graph", key, "--folder", str(folder))
    case.seconds[OURS] = float(
        child("-m", "benchmarks.speed", "--task", "ours", "--graph", key, "--folder", str(folder))
    )
    sizes = [(folder / name).stat().st_size for name in (OURS_FILE, FP32_FILE)]
    case.size = sizes[0] / sizes[1]
    for name, python in installed.items():
        try:
            case.seconds[name] = peers.run(peers.PEERS[name], python, folder)
        except RuntimeError as error:
            case.failures[name] = str(error)
    return case


def measure(case: Case, installed: dict[str, Path], repeats: int, seconds: float, console: Console) -> list[Row]:
    """Times every tool that has a graph of the case, in every setting."""
    import numpy as np

    from quantizer_core.errors import QuantizerError
    from quantizer_core.graph.files import load_graph
    from quantizer_core.graph.summarize import input_specs
    from quantizer_core.runtime import has_bfloat16
    from quantizer_core.speed.measure import Bench, Setting, in_turn

    facts = json.loads((case.folder / CASE_FILE).read_text(encoding="utf-8"))
    graphs = {FP32: load_graph(str(case.folder / FP32_FILE)), OURS: load_graph(str(case.folder / OURS_FILE))}
    if has_bfloat16():
        graphs[BF16] = graphs[FP32]
    if NEURAL_COMPRESSOR in case.seconds:
        graphs[NEURAL_COMPRESSOR] = load_graph(str(case.folder / NEURAL_COMPRESSOR_FILE))
    tools = [*graphs, *([OPENVINO] if OPENVINO in case.seconds else [])]
    examples = [{facts["input"]: image} for image in np.load(case.folder / CALIBRATION_FILE)[: max(BATCHES)]]
    batches = (facts["batch"],) if facts["batch"] else BATCHES
    rows = [Row(case.key, threads, batch, {tool: [] for tool in tools}) for threads in THREADS for batch in batches]
    inputs = input_specs(graphs[FP32], (facts["input"],))
    with Bench(graphs, inputs, facts["outputs"], examples, {BF16}) as bench:
        for repeat in range(repeats):
            for row in rows:
                for tool in [tool for tool in in_turn(tools, repeat) if tool in row.times]:
                    where = f"{case.key}, {row.threads} threads, batch {row.batch}, {tool}: {repeat + 1} of {repeats}"
                    with console.status(where):
                        try:
                            if tool == OPENVINO:
                                arguments = (row.threads, row.batch, seconds)
                                found = peers.script(installed[tool], "openvino_speed.py", case.folder, *arguments)
                            else:
                                found = bench.once(tool, Setting(row.threads, row.batch), seconds)
                        except (QuantizerError, RuntimeError) as error:
                            if tool in (FP32, OURS):
                                raise
                            case.failures[tool] = str(error)
                            for each in rows:
                                each.times.pop(tool, None)
                            continue
                        row.times[tool].append(found)
    return rows


def earlier(report: Path, repeats: int, measured: Collection[str]) -> tuple[list[Case], list[Row]]:
    """Returns what an earlier report says of other graphs than those measured now.

    Nothing, if there is none, or it is of another machine or of other repeats.
    """
    if not report.exists():
        return [], []
    told = json.loads(report.read_text(encoding="utf-8"))
    if told["machine"] != tables.machine() or told["repeats"] != repeats:
        return [], []
    cases = [Case(**{**case, "folder": report.parent / case["folder"]}) for case in told["cases"]]
    rows = [Row(**row) for row in told["rows"]]
    return [case for case in cases if case.key not in measured], [row for row in rows if row.case not in measured]


def title_of(tool: str) -> str:
    """Returns what tables call a tool."""
    return peers.PEERS[tool].title if tool in peers.PEERS else tool


def markdown(cases: Sequence[Case], rows: Sequence[Row], machine: str, repeats: int) -> str:
    """Returns the tables in Markdown: times, then conversion and size, then what failed."""
    tools = list(dict.fromkeys(tool for row in rows for tool in row.times))
    heads = ["graph", "threads", "batch", *(f"{title_of(tool)}, ms" for tool in tools), "ours to FP32"]
    others = [tool for tool in tools if tool not in (FP32, OURS)]
    heads += [f"ours to {title_of(tool)}" for tool in others]
    lines = [f"Measured on {machine}; median of {repeats} repeats in turn, in brackets the least and the most.", ""]
    lines += ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for row in rows:
        cells = [SPEED_CASES[row.case].title, str(row.threads), str(row.batch)]
        cells += [f"{statistics.median(row.times[tool]):.2f}" if tool in row.times else "–" for tool in tools]
        for tool in (FP32, *others):
            known = tool in row.times
            cells.append(tables.times(*row.ratio(OURS, tool)) if known else "–")
        lines.append("| " + " | ".join(cells) + " |")
    converters = list(dict.fromkeys(tool for case in cases for tool in case.seconds))
    lines += ["", "Seconds of calibration on 32 images and conversion, and the size of our INT8 graph over FP32's:", ""]
    lines += ["| graph | " + " | ".join(title_of(tool) for tool in converters) + " | size |"]
    lines += ["|---|" + "---:|" * (len(converters) + 1)]
    for case in cases:
        cells = [f"{case.seconds[tool]:.1f}" if tool in case.seconds else "–" for tool in converters]
        lines.append(f"| {SPEED_CASES[case.key].title} | " + " | ".join(cells) + f" | {case.size:.2f} × |")
    failed = [f"- {SPEED_CASES[c.key].title}, {title_of(t)}: {why}" for c in cases for t, why in c.failures.items()]
    return "\n".join([*lines, *(["", "Not measured:", "", *failed] if failed else [])])


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draws how many times faster than FP32 each tool is: a group of bars a setting, one panel a graph."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    keys = list(dict.fromkeys(row.case for row in rows))
    tools = [tool for tool in dict.fromkeys(t for row in rows for t in row.times) if tool != FP32]
    columns = min(2, len(keys))
    lines = -(-len(keys) // columns)
    figure, axes = pyplot.subplots(lines, columns, figsize=(6 * columns, 2.8 * lines), squeeze=False)
    for axis in axes.flat[len(keys) :]:
        axis.set_visible(False)
    width = 0.8 / max(1, len(tools))
    for axis, key in zip(axes.flat, keys, strict=False):
        chosen = [row for row in rows if row.case == key]
        for index, tool in enumerate(tools):
            for place, row in enumerate(chosen):
                if tool not in row.times:
                    continue
                median, least, most = row.ratio(tool)
                axis.bar(
                    place + (index - (len(tools) - 1) / 2) * width, median, width, color=f"C{index}",
                    yerr=[[median - least], [most - median]], label=title_of(tool) if place == 0 else None,
                )  # fmt: skip
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_title(SPEED_CASES[key].title)
        axis.set_xticks(range(len(chosen)))
        threads = [f"{row.threads} thread{'s' * (row.threads > 1)}\nbatch {row.batch}" for row in chosen]
        axis.set_xticklabels(threads)
        axis.set_ylabel("times FP32's speed")
    handles = dict(zip(*reversed(axes.flat[0].get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="upper center", ncols=max(1, len(tools)), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.35 / (2.8 * lines)))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


@click.command()
@click.option("--graph", "graphs", type=click.Choice(list(SPEED_CASES)), multiple=True, help="Graphs; default: all.")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="Times of each tool and setting.")
@click.option("--seconds", type=float, default=2.0, show_default=True, help="How long each time.")
@click.option("--peer", "chosen", type=click.Choice([*peers.PEERS, "none"]), multiple=True,
              help="Other tools, each in an environment made under build/peers. [default: all]")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path), default=ROOT / "build" / "benchmarks" / "speed",
              help="Folder for graphs, speed.json and speed.png. [default: build/benchmarks/speed]")  # fmt: skip
@click.option("--markdown", "page", type=click.Path(path_type=Path, dir_okay=False),
              help="Write the tables into this file too, between its marks.")  # fmt: skip
@click.option("--keep", is_flag=True, help="Keep what the output folder's speed.json, if it is of this machine and as "
              "many repeats, says of other graphs.")  # fmt: skip
@click.option("--task", type=click.Choice(["all", "make", "ours"]), default="all", hidden=True)
@click.option("--folder", type=click.Path(path_type=Path), hidden=True)
def main(
    graphs: tuple[str, ...], repeats: int, seconds: float, chosen: tuple[str, ...], output: Path, page: Path | None,
    keep: bool, task: str, folder: Path | None,
) -> None:  # fmt: skip
    """Time INT8 graphs against FP32, bfloat16, Neural Compressor and OpenVINO."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if task != "all":
        assert folder is not None
        click.echo(make_case(graphs[0], folder) or "" if task == "make" else convert_ours(graphs[0], folder))
        return
    if not (shared_data() / "graphs").is_dir():
        raise click.ClickException(f"no shared data in {shared_data()}; name its folder in QUANTIZER_SHARED_DATA")
    console = Console(width=None if sys.stdout.isatty() else 200)
    wanted = [name for name in chosen or tuple(peers.PEERS) if name != "none"]
    installed = peers.install_all(wanted, ROOT / "build" / "peers", console)
    order = list(SPEED_CASES)
    cases, rows = earlier(output / "speed.json", repeats, graphs or order) if keep else ([], [])
    for key in graphs or order:
        with console.status(f"{key}: converting"):
            case = ready(key, output.resolve() / key, installed)
        rows = sorted(
            [*rows, *measure(case, installed, repeats, seconds, console)], key=lambda row: order.index(row.case)
        )
        cases = sorted([*cases, case], key=lambda case: order.index(case.key))
        report = {
            "machine": tables.machine(),
            "repeats": repeats,
            "cases": [{**dataclasses.asdict(case), "folder": case.folder.name} for case in cases],
            "rows": [dataclasses.asdict(row) for row in rows],
        }
        (output / "speed.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        table = markdown(cases, rows, tables.machine(), repeats)
        plot(rows, output / "speed.png")
        if page is not None:  # after each, as all take long
            picture = f"{page.stem}_{re.sub(r'[^a-z0-9]+', '_', tables.processor_kind().lower())}.png"
            shutil.copyfile(output / "speed.png", page.with_name(picture))
            shown = f"{table}\n\n![How many times faster than FP32 each tool is, graph by graph]({picture})"
            tables.write_markdown(page, shown, "speed")
    console.print(table, soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()
