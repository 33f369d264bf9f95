"""What ``quantizer inspect`` prints: tables for people, or one JSON object."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from quantizer_core.cli.tables import plain_table
from quantizer_core.evaluation.layers import LayerComparison, bounds

if TYPE_CHECKING:
    from quantizer_core.cli.inspection import Inspection
    from quantizer_core.planning.plan import NodePlan, QuantizationPlan


def facts(found: Inspection, top: int | None) -> dict[str, Any]:
    """Returns everything as JSON data (NaN as None, infinite ratios as ``inf`` and ``-inf``)."""
    plan = found.plan
    values: dict[str, Any] = {
        "quantized": plan.quantized,
        "candidates": plan.candidates,
        "fp32": [
            {"node": node.name, "op": node.op, "reason": node.reason} for node in plan.nodes if not node.quantized
        ],
        "notes": [{"node": node.name, "note": node.reason} for node in plan.nodes if node.quantized and node.reason],
    }
    if found.report is None:
        return {**values, "plan": json.loads(plan.to_json())}
    report = json.loads(found.report.to_json())
    return {
        **values,
        "layers": report["layers"][:top],
        "unmeasured": report["unmeasured"],
        "examples": found.report.reads.read,
        "skipped_examples": found.report.reads.skipped,
    }


def as_text(found: Inspection, top: int | None) -> str:
    """Returns the lines to print: the tensors, what stayed FP32 and why, what could not be fused and why."""
    plan, report = found.plan, found.report
    parts = []
    if report is None:
        parts.append(
            plain_table(("node", "kernel", "dtypes", "range", "fused"), [_plan_row(n, plan) for n in _int8(plan)])
        )
    else:
        rows = [_layer_row(layer) for layer in report.layers[:top]]
        columns = ("SQNR dB", "clipped %", "unused codes", "dtypes", "range", "kernel", "node (tensor)")
        parts.append(plain_table(columns, rows, right=3))
        hidden = len(report.layers) - len(rows)
        more = f" ({hidden} better ones not shown)" if hidden else ""
        left_out = f", {report.reads.skipped} left out" if report.reads.skipped else ""
        parts.append(f"{len(rows)} tensors, worst first{more}; compared on {report.reads.read} examples{left_out}")
        if report.unmeasured:
            parts.append(f"not compared (in loops, in branches, or read by no one): {', '.join(report.unmeasured)}")
    notes = [(node.name, node.op, node.reason) for node in plan.nodes if node.quantized and node.reason]
    if notes:
        parts.append(plain_table(("node in INT8", "op", "note"), notes))
    fp32 = [(node.name, node.op, node.reason) for node in plan.nodes if not node.quantized]
    if fp32:
        parts.append(plain_table(("node in FP32", "op", "why"), fp32))
    by_op = ", ".join(f"{op} {done}/{total}" for op, (done, total) in plan.counts().items())
    parts.append(f"{plan.quantized} of {plan.candidates} nodes in INT8: {by_op}")
    return "\n\n".join(parts)


def _int8(plan: QuantizationPlan) -> list[NodePlan]:
    return [node for node in plan.nodes if node.quantized]


def _layer_row(layer: LayerComparison) -> tuple[str, ...]:
    integer = layer.dtype != "float32"
    # A move or QuantizeV2 computes nothing: its tensor says where it is.
    name = layer.node or layer.tensor
    return (
        "exact" if layer.sqnr_db == math.inf else f"{layer.sqnr_db:.1f}",
        f"{100 * layer.clipped:.3f}" if integer else "–",
        f"{layer.unused_codes} of {layer.codes}" if integer else "–",
        f"{layer.source_dtype} → {layer.dtype}",
        f"{layer.low:.4g} … {layer.high:.4g}" if integer else "–",
        layer.kernel,
        name if name == layer.tensor else f"{name} ({layer.tensor})",
    )


def _plan_row(node: NodePlan, plan: QuantizationPlan) -> tuple[str, ...]:
    source = plan.tensors.get(node.sources[0]) if node.sources else None
    result = plan.tensors.get(node.output)
    low, high = bounds(result) if result is not None else (math.nan, math.nan)
    return (
        node.name,
        node.kernel or node.op,
        f"{source.dtype if source else 'float32'} → {result.dtype if result else 'float32'}",
        f"{low:.4g} … {high:.4g}" if result is not None else "–",
        ", ".join(node.fused),
    )
