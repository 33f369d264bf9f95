"""``quantizer summarize-graph``: what is in a graph file."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from quantizer_core.graph.summarize import GraphSummary


@click.command("summarize-graph")
@click.option(
    "--in_graph", required=True, type=click.Path(), metavar="PATH", help="A GraphDef (.pb or .pbtxt) or a SavedModel."
)
@click.option("--input_binary", is_flag=True, help="Insist on a binary GraphDef. [default: detect the form]")
@click.option("--signature", help="The SavedModel's signature. [default: serving_default]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def summarize_graph(in_graph: str, input_binary: bool, signature: str | None, as_json: bool) -> None:
    """Show a graph's inputs, outputs and operations, and a command line to convert it."""
    from quantizer_core.cli.load import load
    from quantizer_core.graph.summarize import summarize_graph as summarize

    graph = load(in_graph, signature, True if input_binary else None)
    summary = summarize(graph.graph_def, in_graph, signature, graph.inputs, graph.outputs)
    click.echo(json.dumps(dataclasses.asdict(summary), indent=2) if as_json else _text(summary))


def _text(summary: GraphSummary) -> str:
    lines = [f"{summary.nodes} nodes, {summary.constant_bytes / 1e6:.2f} MB of constants"]
    lines += [f"input   {spec.name}  {spec.dtype} {_shape(spec.shape)}" for spec in summary.inputs]
    lines += [f"output  {name}" for name in summary.outputs]
    lines += [f"not frozen: {name}" for name in summary.state]
    lines.append("operations: " + ", ".join(f"{count} {op}" for op, count in summary.ops.items()))
    if summary.functions:
        inside = ", ".join(f"{count} {op}" for op, count in summary.function_ops.items())
        lines.append(f"{len(summary.functions)} functions with: {inside}")
    quantizable = ", ".join(f"{count} {op}" for op, count in summary.quantizable.items())
    lines.append(f"with INT8 kernels: {quantizable or 'none'}")
    return "\n".join([*lines, "", "To convert it:", summary.command])


def _shape(shape: tuple[int, ...] | None) -> str:
    return "of unknown rank" if shape is None else "[" + ", ".join("?" if s < 0 else str(s) for s in shape) + "]"
