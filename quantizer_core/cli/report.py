"""The result of a conversion on standard output, and as the exit code."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from quantizer_core.cli.conversion import Result
    from quantizer_core.evaluation.judge import EvaluationResult


def tell(ctx: click.Context, result: Result, as_json: bool) -> None:
    """Prints a result, as one JSON object or for people; the exit code is 3 where the INT8 graph is not blessed."""
    click.echo(json.dumps(result.facts(), indent=2, sort_keys=True) if as_json else as_text(result))
    if result.evaluation is not None and not result.evaluation.blessed:
        ctx.exit(3)


def as_text(result: Result) -> str:
    """Returns the lines to print: size, INT8 nodes, and the comparison with FP32 if there was one."""
    from quantizer_core.planning.plan import SLOWER

    evaluation = result.evaluation
    fp32, int8 = result.sizes
    lines = _table(evaluation, [("size", f"{fp32 / 1e6:.2f} MB", f"{int8 / 1e6:.2f} MB", "")])
    reads = result.calibration.reads
    left_out = f", {reads.skipped} left out" if reads.skipped else ""
    lines.append(f"calibrated on {reads.read} examples{left_out}")
    by_op = ", ".join(f"{op} {done}/{total}" for op, (done, total) in result.plan.counts().items())
    lines.append(f"{result.plan.quantized} of {result.plan.candidates} nodes in INT8: {by_op}")
    if result.plan.slower:
        lines.append(
            f"{result.plan.slower} of the others stay FP32 as {SLOWER} (--only_faster false: INT8 all the same)"
        )
    if evaluation is not None:
        lines += verdict(evaluation)
    lines.append(f"wrote {result.request.output_graph}")
    return "\n".join(lines)


def evaluation_as_text(evaluation: EvaluationResult) -> str:
    """Returns the lines to print for an evaluation by itself."""
    return "\n".join([*_table(evaluation, []), *verdict(evaluation)])


def verdict(evaluation: EvaluationResult) -> list[str]:
    """Returns the lines on how close INT8 is to FP32, and whether that is good enough."""
    agreement = "" if math.isnan(evaluation.agreement) else f", agreement {_percent(evaluation.agreement)}"
    divergence = "" if math.isnan(evaluation.divergence) else f", divergence {evaluation.divergence:.4f} nats"
    return [
        f"compared on {evaluation.num_examples} examples{agreement}{divergence}",
        f"{'blessed' if evaluation.blessed else 'NOT BLESSED'}: {evaluation.reason}",
    ]


def _table(evaluation: EvaluationResult | None, rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a table of FP32 beside INT8."""
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=True, header_style="bold", box=None, pad_edge=False)
    for title, justify in (("", "left"), ("FP32", "right"), ("INT8", "right"), ("drop", "right")):
        table.add_column(title, justify=justify)  # type: ignore[arg-type]
    if evaluation is not None:
        drop = f"{evaluation.drop * 100:.2f} points"
        table.add_row(evaluation.metric, _percent(evaluation.fp32), _percent(evaluation.int8), drop)
    for row in rows:
        table.add_row(*row)
    text = io.StringIO()
    Console(file=text, width=100, color_system=None).print(table)
    return [line.rstrip() for line in text.getvalue().splitlines()]


def _percent(share: float) -> str:
    return f"{share * 100:.2f} %"
