"""Times the Beam stages on this machine and takes their peak memory: ``python -m benchmarks.beam``.

Every run is a process of its own; runs of the settings that are compared follow one another in turn, so that a machine
that others use too is as busy for one as for the other. Imports of the process that makes the pipeline are outside the
clock, the start of its workers is inside.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
from rich.console import Console

from benchmarks.tables import machine, write_markdown

GRAPH, INPUT, OUTPUT = "cifar10_resnet20.pb", "input", "logits"
FEW, MANY = 1_000, 10_000
#: Examples of a run that shows what starting costs.
START = 64
TRAIN_STEPS = 300


class Setting(NamedTuple):
    """A task on a Beam runner, and the table that it is for; with 0 threads TensorFlow takes as many as it likes."""

    table: str
    task: str
    runner: str
    examples: int = 0
    threads: int = 0


RUNNERS = {
    "1 worker": ["--direct_num_workers=1", "--direct_running_mode=in_memory"],
    "2 processes": ["--direct_num_workers=2", "--direct_running_mode=multi_processing"],
    "4 processes": ["--direct_num_workers=4", "--direct_running_mode=multi_processing"],
    "Prism": [],
}
CALIBRATION = [
    Setting("calibration", "calibrate", runner, count, threads)
    for threads in (1, 0)
    for runner in RUNNERS
    for count in (START, MANY)
]
DEMO = [Setting("demo", "demo", runner) for runner in ("1 worker", "2 processes", "Prism")]
MEMORY = [
    *(
        Setting("memory", task, "1 worker", count)
        for task in ("calibrate", "convert", "evaluate")
        for count in (FEW, MANY)
    ),
    *(Setting("memory", task, "2 processes", MANY) for task in ("calibrate", "evaluate")),
]


def write_records(shared: Path, folder: Path) -> None:
    """Writes 10,000 examples, the 2,000 labelled CIFAR-10 images five times, and the first of them as smaller sets."""
    from quantizer_core.data import read_examples, write_tfrecords

    images = list(read_examples(shared / "images" / "cifar10"))
    for count in (START, FEW, MANY):
        records = (images * -(-count // len(images)))[:count]
        write_tfrecords(records, str(folder / f"{count}.tfrecord"), shards=8)


def _config() -> Any:
    import quantizer_core as qc

    preprocess = qc.PreprocessConfig(kind="image", normalize="torch", label_key="image/class/label")
    return qc.QuantizationConfig(inputs=(INPUT,), outputs=(OUTPUT,), preprocess=preprocess)


@contextlib.contextmanager
def _arguments(runner: str) -> Any:
    """Gives the Beam arguments of a runner; Prism runs as long as the block."""
    if runner != "Prism":
        yield ["--runner=DirectRunner", "--sdk_container_image=unused", *RUNNERS[runner]]
        return
    from tests.helpers.prism import portable_options, prism, why_no_prism

    if why_no_prism():
        raise click.ClickException(why_no_prism())
    with prism() as endpoint:
        yield portable_options(endpoint)


def _prepared(folder: Path) -> Any:
    import quantizer_core as qc

    return qc.prepare(qc.load_graph(str(folder / GRAPH)), _config())


def _timed(pipeline: Any) -> float:
    started = time.perf_counter()
    pipeline.run().wait_until_finish()
    return time.perf_counter() - started


def calibrate(folder: Path, work: Path, runner: str, examples: int) -> dict[str, float]:
    """Calibrates ResNet-20; leaves its statistics behind for ``convert``."""
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    from quantizer_core.beam import Calibrate, ReadRecords, WriteOne, read_one
    from quantizer_core.calibration.run import checked
    from quantizer_core.prepare import save_prepared

    save_prepared(_prepared(folder), str(work / "prepared"))
    with _arguments(runner) as arguments:
        pipeline = beam.Pipeline(options=PipelineOptions(arguments))
        read = pipeline | ReadRecords([f"{folder}/{examples}.tfrecord*"])
        _ = read | Calibrate(str(work / "prepared"), _config()) | WriteOne(str(work / "run"))
        seconds = _timed(pipeline)
    run = checked(read_one(str(work / "run")), _config())
    assert run.reads.read == examples
    (folder / f"{examples}.statistics").write_bytes(run.statistics.to_bytes())
    (folder / "sample").write_bytes(b"".join(len(r).to_bytes(4, "big") + r for r in run.sample))
    return {"seconds": seconds, "inference_seconds": run.work.microseconds / 1e6, "batches": run.work.batches}


def convert(folder: Path, work: Path, runner: str, examples: int) -> dict[str, float]:
    """Converts ResNet-20 by the statistics that ``calibrate`` left behind."""
    import quantizer_core as qc

    data, sample = (folder / "sample").read_bytes(), []
    while data:
        size = int.from_bytes(data[:4], "big")
        sample.append(data[4 : 4 + size])
        data = data[4 + size :]
    prepared = _prepared(folder)
    observed = qc.CalibrationStatistics.from_bytes((folder / f"{examples}.statistics").read_bytes())
    started = time.perf_counter()
    conversion = qc.convert(prepared, observed, _config(), sample)
    seconds = time.perf_counter() - started
    qc.save_graph(conversion.graph_def, str(folder / "int8.pb"), overwrite=True)
    return {"seconds": seconds}


def evaluate(folder: Path, work: Path, runner: str, examples: int) -> dict[str, float]:
    """Compares ResNet-20 with the graph that ``convert`` left behind."""
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    from quantizer_core.beam import Evaluate, ReadRecords, WriteOne, read_one
    from quantizer_core.evaluation.run import checked

    prepared = _prepared(folder)
    graphs = str(folder / GRAPH), str(folder / "int8.pb")
    with _arguments(runner) as arguments:
        pipeline = beam.Pipeline(options=PipelineOptions(arguments))
        read = pipeline | ReadRecords([f"{folder}/{examples}.tfrecord*"])
        compare = Evaluate(*graphs, prepared.inputs, prepared.outputs, _config())
        _ = read | compare | WriteOne(str(work / "run"))
        seconds = _timed(pipeline)
    run = checked(read_one(str(work / "run")), _config())
    assert run.counts.examples == examples
    return {"seconds": seconds, "inference_seconds": run.work.microseconds / 1e6}


def demo(folder: Path, work: Path, runner: str, examples: int) -> dict[str, float]:
    """Runs the whole digits pipeline, from the data to the pushed model, with these arguments for every Beam step."""
    from tfx import v1 as tfx

    from pipelines.digits import make_data, pipeline

    make_data.write_digits(str(work / "data"))
    with _arguments(runner) as arguments:
        connection = tfx.orchestration.metadata.sqlite_metadata_connection_config(str(work / "metadata.db"))
        made = pipeline.create_pipeline(
            pipeline_root=str(work / "pipeline"),
            data_root=str(work / "data"),
            serving_root=str(work / "serving"),
            train_steps=TRAIN_STEPS,
            metadata_connection_config=connection,
            beam_pipeline_args=arguments,
        )
        started = time.perf_counter()
        tfx.orchestration.LocalDagRunner().run(made)
        seconds = time.perf_counter() - started
    assert list((work / "serving").iterdir()), "nothing was pushed"
    return {"seconds": seconds}


TASKS: dict[str, Callable[[Path, Path, str, int], dict[str, float]]] = {
    "calibrate": calibrate,
    "convert": convert,
    "evaluate": evaluate,
    "demo": demo,
}


def measure(setting: Setting, folder: Path) -> dict[str, float]:
    """Runs a setting once in a new process; adds the peak memory of it and its children, in MiB."""
    task = setting.task, setting.runner, str(setting.examples)
    command = [sys.executable, "-m", "benchmarks.beam", "--data", str(folder), "--task", *task]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1"}
    if setting.threads:
        environment |= dict.fromkeys(("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), str(setting.threads))
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as log:
        child = subprocess.Popen(command, stdout=out, stderr=log, text=True, env=environment)
        peak = 0
        while child.poll() is None:
            peak = max(peak, memory_of(child.pid))
            time.sleep(0.2)
        out.seek(0)
        log.seek(0)
        if child.returncode:
            raise click.ClickException(f"{setting} failed:\n{log.read()[-4000:]}")
        return {**json.loads(out.read().strip().splitlines()[-1]), "peak_mib": peak / 1024}


def memory_of(process: int) -> int:
    """Returns the resident memory of a process and all its descendants in KiB; pages that they share count for each."""
    children: dict[int, list[int]] = {}
    memory: dict[int, int] = {}
    for number in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            with open(f"/proc/{number}/status", encoding="ascii", errors="replace") as file:
                values = dict(line.split(":", 1) for line in file if ":" in line)
        except OSError:  # it has ended
            continue
        children.setdefault(int(values["PPid"]), []).append(number)
        memory[number] = int(values.get("VmRSS", "0 kB").split()[0])
    found, stack = 0, [process]
    while stack:
        number = stack.pop()
        found += memory.get(number, 0)
        stack += children.get(number, [])
    return found


Results = dict[Setting, list[dict[str, float]]]


def figures(values: Sequence[float], digits: int = 1) -> str:
    """Returns the median and the spread of some values as text."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def tables(results: Results, busy: str) -> str:
    """Returns the measurements as Markdown: median, and least and most of the repeats in brackets."""
    lines = [f"Measured on {machine()}{busy}. Median, and least and most of the repeats.", ""]
    if DEMO[0] in results:
        one = statistics.median(run["seconds"] for run in results[DEMO[0]])
        lines += ["| demo pipeline (`make demo`) | seconds | time of 1 worker |", "|---|---:|---:|"]
        for setting in DEMO:
            seconds = [run["seconds"] for run in results[setting]]
            lines.append(f"| {setting.runner} | {figures(seconds)} | ×{statistics.median(seconds) / one:.2f} |")
        lines.append("")
    if CALIBRATION[0] in results:
        columns = (f"calibration of ResNet-20, {MANY:,} images", "threads of each", "seconds", "of them to start",
                   "examples a second, then", "rate of 1 worker, 1 thread")  # fmt: skip
        lines += [f"| {' | '.join(columns)} |", f"|---{'|---:' * (len(columns) - 1)}|"]
        one = 0.0
        for few, many in zip(CALIBRATION[::2], CALIBRATION[1::2], strict=True):
            start, whole = ([run["seconds"] for run in results[setting]] for setting in (few, many))
            rates = [(MANY - START) / max(1e-3, long - short) for short, long in zip(start, whole, strict=True)]
            one = one or statistics.median(rates)
            lines.append(
                f"| {few.runner} | {few.threads or 'all'} | {figures(whole)} | {statistics.median(start):.1f} | "
                f"{figures(rates, 0)} | ×{statistics.median(rates) / one:.2f} |"
            )
        lines.append("")
    if MEMORY[0] in results:
        lines += ["| stage, ResNet-20 | runner | examples | peak memory in MiB |", "|---|---|---:|---:|"]
        for setting in MEMORY:
            peaks = [run["peak_mib"] for run in results[setting]]
            lines.append(f"| {setting.task} | {setting.runner} | {setting.examples:,} | {figures(peaks, 0)} |")
    return "\n".join(lines).rstrip()


@click.command()
@click.option("--only", type=click.Choice(["demo", "calibration", "memory"]), multiple=True, help="Default: all.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Processes a setting.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("build/benchmarks"), show_default=True)
@click.option("--markdown", type=click.Path(path_type=Path), help="A page to put the tables into, between its marks.")
@click.option("--note", default="", help="What to say of the machine besides, such as that others used it.")
@click.option("--data", type=click.Path(path_type=Path), hidden=True)
@click.option("--task", nargs=3, type=str, hidden=True)
def main(
    only: tuple[str, ...],
    repeats: int,
    output: Path,
    markdown: Path | None,
    note: str,
    data: Path | None,
    task: tuple[str, str, str] | None,
) -> None:
    """Time Beam's stages by runner and number of workers, and take their peak memory.

    Writes beam.json after each kind of measurement; with --only, the others in it stay as they are.
    """
    if task and data:
        name, runner, examples = task
        with tempfile.TemporaryDirectory() as work:
            click.echo(json.dumps(TASKS[name](data, Path(work), runner, int(examples))))
        return
    console = Console()
    shared = Path(os.environ.get("QUANTIZER_SHARED_DATA", "../shared/data"))
    kinds = {"demo": DEMO, "calibration": CALIBRATION, "memory": MEMORY}
    path = output / "beam.json"
    told = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept = told["rows"] if told.get("machine") == machine() else []
    results: Results = {Setting(*(row.get(name, 0) for name in Setting._fields)): row["runs"] for row in kept}
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        graph = shared / "graphs" / GRAPH
        if not graph.exists():
            raise click.ClickException(f"no {graph}: name the folder of the shared data in QUANTIZER_SHARED_DATA")
        Path(folder, GRAPH).write_bytes(graph.read_bytes())
        write_records(shared, Path(folder))
        for kind in only or kinds:
            found: Results = {setting: [] for setting in kinds[kind]}
            for repeat in range(repeats):
                for setting, runs in found.items():
                    with console.status(f"{', '.join(map(str, setting[1:]))}: {repeat + 1}"):
                        runs.append(measure(setting, Path(folder)))
            results |= found
            rows = [{**setting._asdict(), "runs": runs} for setting, runs in results.items()]
            report = json.dumps({"machine": machine(), "note": note, "rows": rows}, indent=2) + "\n"
            path.write_text(report, encoding="utf-8")
    table = tables(results, f", {note}" if note else "")
    console.print(table, soft_wrap=True)
    if markdown:
        write_markdown(markdown, table, "beam")


if __name__ == "__main__":
    main()
