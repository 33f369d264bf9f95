"""The table that a local run ends with."""

from __future__ import annotations

import os

from rich.console import Console
from rich.table import Table

from components.artifacts import EVALUATION_FILE
from pipelines.record import RunRecord


def print_report(console: Console, record: RunRecord, title: str) -> None:
    """Prints what became of a graph: the metric before and after, sizes, the verdict and where things lie."""
    evaluation, pushed = record.steps["Quantizer"]["evaluation"], record.outputs["pushed_model"].properties
    facts = evaluation.properties
    metric = {"top1": "accuracy", "top5": "top-5 accuracy"}.get(str(facts["metric"]), str(facts["metric"]))
    slower = f" ({facts['slower_nodes']} would be slower)" if facts.get("slower_nodes") else ""
    table = Table(title=title, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    rows = [
        (f"FP32 {metric}", f"{facts['fp32']:.2%}"),
        (f"INT8 {metric}", f"{facts['int8']:.2%} (drop {facts['drop']:.2%}, allowed {facts['max_drop']:.2%})"),
        ("Agreement", f"{facts['agreement']:.2%} of the examples get the same class" if "agreement" in facts else "–"),
        ("Examples", f"{facts['calibration_examples']} calibrated on, {facts['evaluation_examples']} evaluated on"),
        ("Model size", f"{_size(facts['fp32_bytes'])} FP32, {_size(facts['int8_bytes'])} INT8"),
        ("INT8 nodes", f"{facts['quantized_nodes']} of {facts['candidate_nodes']}{slower}"),
        ("Blessed", "yes" if facts["blessed"] else f"no: {facts['reason']}"),
        ("Pushed to", str(pushed["pushed_destination"]) if pushed.get("pushed") else "not pushed"),
        ("Evaluation", os.path.join(evaluation.uri, EVALUATION_FILE)),
    ]
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _size(count: int | float | str) -> str:
    return f"{float(count) / 1024:,.0f} KiB"
