"""The accuracy benchmark's result: one row a graph and tool, as a table for people, for docs and for machines."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Row:
    """What one tool made of one graph.

    Attributes:
      case: key of the graph.
      tool: the tool, or a variant of our settings.
      images: number of images evaluated.
      fp32, int8: share of them classified rightly.
      agreement: share of them to which INT8 gives FP32's class.
      divergence: mean Kullback-Leibler divergence of INT8's classes from FP32's in nats; NaN if not told.
      p: McNemar's exact p-value of the difference between fp32 and int8.
      nodes: INT8 nodes of all candidates, or "" where the tool does not tell.
      calibrate_seconds, convert_seconds: time taken; tools that do both at once report the sum as ``convert_seconds``.
      failure: why there are no figures, or "".
    """

    case: str
    tool: str
    images: int = 0
    fp32: float = float("nan")
    int8: float = float("nan")
    agreement: float = float("nan")
    p: float = float("nan")
    nodes: str = ""
    calibrate_seconds: float = 0.0
    convert_seconds: float = 0.0
    failure: str = ""
    divergence: float = float("nan")


COLUMNS = (
    "graph",
    "tool",
    "images",
    "FP32",
    "INT8",
    "drop",
    "agreement",
    "divergence",
    "McNemar p",
    "INT8 nodes",
    "seconds",
)


def scored(case: str, tool: str, fp32: np.ndarray, int8: np.ndarray, labels: np.ndarray, seconds: float) -> Row:
    """Makes a row from the classes [images] that FP32 and a tool's INT8 give, and the right ones."""
    from quantizer_core.evaluation.judge import mcnemar

    if not fp32.shape == int8.shape == labels.shape:
        return Row(case, tool, failure=f"gave {len(int8)} classes for {len(labels)} images")
    right, right_int8 = fp32 == labels, int8 == labels
    p = mcnemar(int(np.sum(right & ~right_int8)), int(np.sum(~right & right_int8)))
    return Row(
        case, tool, len(labels), float(right.mean()), float(right_int8.mean()), float((fp32 == int8).mean()), p,
        convert_seconds=seconds,
    )  # fmt: skip


def cells(row: Row, title: str) -> tuple[str, ...]:
    """Returns a row's texts, one a column; a failure takes the place of the figures."""
    if row.failure:
        return (title, row.tool, *["–"] * (len(COLUMNS) - 3), row.failure)
    seconds = f"{row.calibrate_seconds:.1f} + {row.convert_seconds:.1f}"
    return (
        title,
        row.tool,
        str(row.images),
        f"{100 * row.fp32:.2f}",
        f"{100 * row.int8:.2f}",
        f"{100 * (row.fp32 - row.int8):+.2f}",
        f"{100 * row.agreement:.2f} %",
        "–" if math.isnan(row.divergence) else f"{row.divergence:.4f}",
        f"{row.p:.2f}",
        row.nodes or "–",
        seconds if row.calibrate_seconds else f"{row.convert_seconds:.1f}",
    )


def markdown(rows: Sequence[Row], titles: dict[str, str], machine: str) -> str:
    """Returns the table with its heading line, in Markdown."""
    lines = [
        f"Measured on {machine}. Accuracies in percent; seconds are calibration + conversion.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|---|---|" + "---:|" * (len(COLUMNS) - 2),
    ]
    lines += ["| " + " | ".join(cells(row, titles[row.case])) + " |" for row in rows]
    return "\n".join(lines)
