"""The steps of ``quantizer benchmark``: load, make up the feeds, time, trace, and the tables of it all."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quantizer_core.cli.pair import load_pair
from quantizer_core.cli.progress import step
from quantizer_core.cli.steps import CalibrationRequest, config_of, examples_of
from quantizer_core.cli.tables import plain_table
from quantizer_core.errors import DataError
from quantizer_core.preprocessing.decoder import ExampleDecoder
from quantizer_core.runtime import check_machine
from quantizer_core.speed.feeds import noise, with_shapes
from quantizer_core.speed.measure import Bench, Setting, Timing, Trace, batches_for

FP32, INT8 = "FP32", "INT8"
#: Slowest nodes that are shown, of each graph.
_NODES = 10


@dataclasses.dataclass(frozen=True)
class Measured:
    """All timings, and where the time goes if that was asked for."""

    timings: tuple[Timing, ...]
    traces: tuple[Trace, ...] = ()

    def pairs(self) -> list[tuple[Timing, Timing | None]]:
        """Returns FP32's timing of each setting beside INT8's."""
        int8 = {timing.setting: timing for timing in self.timings if timing.graph == INT8}
        return [(timing, int8.get(timing.setting)) for timing in self.timings if timing.graph == FP32]


def measure(
    *, int8_graph: str | None, threads: tuple[int, ...] | None, batch_sizes: tuple[int, ...], repeats: int,
    seconds: float, data: str | None, shapes: Sequence[tuple[str, tuple[int, ...]]], trace: bool, timeline: str | None,
    quiet: bool, **options: Any,
) -> Measured:  # fmt: skip
    """Times the graphs as the command's options say.

    Raises:
      QuantizerError: see ``load_pair``, ``noise`` and ``Bench.time``.
    """
    check_machine()
    request = CalibrationRequest(evaluation_data=data, **options)
    with step("Loading", quiet):
        pair = load_pair(request, int8_graph, config_of(request))
    inputs = with_shapes(pair.inputs, dict(shapes))
    batches = batches_for(inputs, batch_sizes)
    if data is None:
        examples = [noise(inputs)]
    else:
        unlabelled = dataclasses.replace(pair.config.preprocess, label_key="")
        config = dataclasses.replace(pair.config, preprocess=unlabelled)
        decoder = ExampleDecoder(config, inputs)
        found = itertools.islice(examples_of(request, data, config, inputs), max(batches))
        examples = [decoder.decode(example).feeds for example in found]
        if not examples:
            raise DataError(f"--data {data!r} holds no examples")
    if timeline is not None:
        os.makedirs(timeline, exist_ok=True)
    processors = len(os.sched_getaffinity(0))
    settings = [Setting(count, batch) for count in threads or sorted({1, processors}) for batch in batches]
    graphs = {FP32: pair.fp32} if pair.int8 is None else {FP32: pair.fp32, INT8: pair.int8}
    with Bench(graphs, inputs, pair.outputs, examples) as bench:
        with step("Timing", quiet, unit="runs") as seen:
            timings = bench.time(settings, repeats, seconds, None if quiet else lambda done, _: seen(done))
        traces = []
        if trace or timeline is not None:
            slowest = min(settings, key=lambda setting: (setting.threads, setting.batch))
            for name in graphs:
                path = str(Path(timeline).absolute() / f"{name.lower()}.json") if timeline is not None else ""
                traces.append(bench.trace(name, slowest, path))
    return Measured(tuple(timings), tuple(traces) if trace else ())


def report(measured: Measured, as_json: bool) -> str:
    """Returns what to print."""
    return json.dumps(facts(measured), indent=2) if as_json else "\n\n".join(_tables(measured))


def facts(measured: Measured) -> dict[str, Any]:
    """Returns everything as JSON data."""
    rows = []
    for fp32, int8 in measured.pairs():
        row: dict[str, Any] = dataclasses.asdict(fp32.setting)
        for timing in (fp32, *([int8] if int8 else [])):
            row[timing.graph.lower()] = {
                "milliseconds": timing.latency,
                "repeats": list(timing.milliseconds),
                "examples_per_second": timing.throughput,
            }
        if int8 is not None:
            row["speedup"] = dict(zip(("median", "least", "most"), int8.speedup_over(fp32), strict=True))
        rows.append(row)
    traces = {
        trace.graph.lower(): {
            **dataclasses.asdict(trace.setting),
            "ops": [{"op": op, "nodes": n, "microseconds": time} for op, (n, time) in trace.by_op().items()],
            "nodes": [dataclasses.asdict(node) for node in trace.nodes],
        }
        for trace in measured.traces
    }
    return {"settings": rows, **({"trace": traces} if traces else {})}


def _tables(measured: Measured) -> list[str]:
    rows = []
    for fp32, int8 in measured.pairs():
        row = [str(fp32.setting.threads), str(fp32.setting.batch), f"{fp32.latency:.2f}", f"{fp32.throughput:.0f}"]
        if int8 is not None:
            median, least, most = int8.speedup_over(fp32)
            row += [
                f"{int8.latency:.2f}",
                f"{int8.throughput:.0f}",
                f"{median:.2f} ×",
                f"{least:.2f}…{most:.2f}",
            ]
        rows.append(row)
    paired = any(int8 is not None for _, int8 in measured.pairs())
    columns = ["threads", "batch", "FP32 ms", "FP32 ex/s"]
    columns += ["INT8 ms", "INT8 ex/s", "speed-up", "spread"] if paired else []
    latency = min(measured.timings, key=lambda timing: timing.latency)
    throughput = max(measured.timings, key=lambda timing: timing.throughput)
    best = [
        f"lowest latency: {latency.latency:.2f} ms, {_where(latency)}",
        f"highest throughput: {throughput.throughput:.0f} examples a second, {_where(throughput)}",
    ]
    parts = [plain_table(columns, rows, right=len(columns)), "\n".join(best)]
    for trace in measured.traces:
        total = max(trace.total, 1e-9)
        by_op = [
            (f"{time / 1000:.3f}", f"{time / total:.1%}", str(count), op)
            for op, (count, time) in itertools.islice(trace.by_op().items(), _NODES)
        ]
        nodes = [
            (f"{node.microseconds / 1000:.3f}", f"{node.microseconds / total:.1%}", node.op, node.node)
            for node in trace.nodes[:_NODES]
        ]
        where = f"{trace.setting.threads} thread{'s' * (trace.setting.threads > 1)}, batch {trace.setting.batch}"
        parts.append(f"{trace.graph}, {where}: {trace.total / 1000:.2f} ms in {len(trace.nodes)} nodes")
        parts.append(plain_table(["ms", "share", "nodes", "op"], by_op, right=3))
        parts.append(plain_table(["ms", "share", "op", "node"], nodes, right=2))
    return parts


def _where(timing: Timing) -> str:
    threads = timing.setting.threads
    return f"{timing.graph} with {threads} thread{'s' * (threads > 1)}, batch {timing.setting.batch}"
