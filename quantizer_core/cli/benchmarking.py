"""The steps of ``quantizer benchmark``: load, make up the feeds, time, trace, and the tables of it all."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quantizer_core.cli.pair import load_pair
from quantizer_core.cli.progress import step
from quantizer_core.cli.steps import CalibrationRequest, config_of, examples_of
from quantizer_core.cli.tables import plain_table
from quantizer_core.errors import ConfigError, DataError, MachineError
from quantizer_core.preprocessing.decoder import ExampleDecoder
from quantizer_core.runtime import check_machine, has_bfloat16, processors
from quantizer_core.speed.feeds import noise, with_shapes
from quantizer_core.speed.measure import Bench, Setting, Timing, Trace, batches_for

FP32, BF16, INT8 = "FP32", "BF16", "INT8"
#: Slowest nodes that are shown, of each graph.
_NODES = 10


@dataclasses.dataclass(frozen=True)
class Measured:
    """All timings, and where the time goes if that was asked for."""

    timings: tuple[Timing, ...]
    traces: tuple[Trace, ...] = ()

    def by_setting(self) -> dict[Setting, dict[str, Timing]]:
        """Returns setting → graph → timing, in the order of measurement."""
        found: dict[Setting, dict[str, Timing]] = {}
        for timing in self.timings:
            found.setdefault(timing.setting, {})[timing.graph] = timing
        return found


def measure(
    *, int8_graph: str | None, threads: tuple[int, ...] | None, batch_sizes: tuple[int, ...], repeats: int,
    seconds: float, bfloat16: bool, data: str | None, shapes: Sequence[tuple[str, tuple[int, ...]]], trace: bool,
    timeline: str | None, quiet: bool, **options: Any,
) -> Measured:  # fmt: skip
    """Times the graphs as the command's options say.

    Raises:
      QuantizerError: see ``load_pair``, ``noise`` and ``Bench.time``.
    """
    check_machine()
    if bfloat16 and not has_bfloat16():
        raise MachineError("--bfloat16: this processor has no bfloat16 (avx512_bf16 or amx_bf16 in /proc/cpuinfo)")
    request = CalibrationRequest(evaluation_data=data, **options)
    with step("Loading", quiet):
        pair = load_pair(request, int8_graph, config_of(request))
    inputs = with_shapes(pair.inputs, dict(shapes))
    batches = batches_for(inputs, batch_sizes)
    if data is None:
        examples = [noise(inputs)]
    else:
        config = pair.config.without_label()
        decoder = ExampleDecoder(config, inputs)
        found = itertools.islice(examples_of(request, data, config, inputs), max(batches))
        examples = [decoder.decode(example).feeds for example in found]
        if not examples:
            raise DataError(f"--data {data!r} holds no examples")
    if timeline is not None:
        try:
            os.makedirs(timeline, exist_ok=True)
            with tempfile.TemporaryFile(dir=timeline):
                pass
        except OSError as error:
            raise ConfigError(f"--timeline {timeline!r} cannot be written to: {error.strerror}") from None
    settings = [Setting(count, batch) for count in threads or sorted({1, processors()}) for batch in batches]
    graphs = {FP32: pair.fp32}
    if bfloat16:
        graphs[BF16] = pair.fp32
    if pair.int8 is not None:
        graphs[INT8] = pair.int8
    with Bench(graphs, inputs, pair.outputs, examples, {BF16}) as bench:
        with step("Timing", quiet, unit="runs") as seen:
            timings = bench.time(settings, repeats, seconds, seen)
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
    for setting, timings in measured.by_setting().items():
        row: dict[str, Any] = dataclasses.asdict(setting)
        for name, timing in timings.items():
            row[name.lower()] = {
                "milliseconds": timing.latency,
                "repeats": list(timing.milliseconds),
                "examples_per_second": timing.throughput,
            }
            if name != FP32:
                ratios = timing.speedup_over(timings[FP32])
                row[name.lower()]["speedup"] = dict(zip(("median", "least", "most"), ratios, strict=True))
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
    columns: list[str] = []
    for setting, timings in measured.by_setting().items():
        row, columns = [str(setting.threads), str(setting.batch)], ["threads", "batch"]
        for name, timing in timings.items():
            row += [f"{timing.latency:.2f}", f"{timing.throughput:.0f}"]
            columns += [f"{name} ms", f"{name} ex/s"]
            if name != FP32:
                median, least, most = timing.speedup_over(timings[FP32])
                row += [f"{median:.2f} ×", f"{least:.2f}…{most:.2f}"]
                columns += ["speed-up", "spread"]
        rows.append(row)
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
