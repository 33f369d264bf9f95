"""Gives inputs of INT8 kernels that eight bits cannot hold well a second code for what the first rounds away.

With h the multiple of the step next to x, x = h + r/16 for r = 16·(x - h): a kernel that reads both, r with a sixteenth
of the weights, computes W·x as from twelve bits: W·h + (W/16)·r. The codes are joined along the channels, so the kernel
is the same with twice the channels read. This is worth it where few values of an input are large and the others
matter, as with the cepstral coefficients that speech models read; and cheap, as such inputs have few channels.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import numpy as np
import tensorflow as tf

from quantizer_core.calibration.statistics import CalibrationStatistics, TensorStatistics
from quantizer_core.config import QuantizationConfig
from quantizer_core.graph.graph import Graph
from quantizer_core.graph.names import as_node
from quantizer_core.lowering.kernels import LEVELS, Emitter
from quantizer_core.planning.make import make_plan
from quantizer_core.planning.plan import NodePlan, QuantizationPlan, TensorPlan
from quantizer_core.types import PreparedGraph

#: Rest over what it is coded as.
FINER = 16
#: Signal to rounding noise in a kernel's result, in dB, below which its input gets a second code.
ENOUGH = 24.0
#: Inputs of more channels keep one code: the kernel would take twice the time.
MOST_CHANNELS = 512


def plan_finely(
    prepared: PreparedGraph,
    statistics: CalibrationStatistics,
    config: QuantizationConfig,
    kept: Mapping[str, str] = MappingProxyType({}),
) -> tuple[PreparedGraph, CalibrationStatistics, QuantizationPlan]:
    """Plans the conversion of a graph, with two codes for the inputs that need them.

    Args:
      prepared, statistics, config, kept: as for ``make_plan``.

    Returns:
      The graph with these inputs written as two parts, equal in function up to the rounding of float32; the statistics
      with those of the new tensors; the plan. The first two are those given where no input needs it.
    """
    plan = make_plan(prepared, statistics, config, kept)
    found = _coarse_inputs(prepared, statistics, plan) if config.fine_inputs else {}
    if not found:
        return prepared, statistics, plan
    names = {tensor: prepared.graph.unique_name(f"{as_node(tensor)}/fine") for tensor in found}
    more = {names[tensor]: _statistics(statistics.tensors[tensor], plan.tensors[tensor]) for tensor in found}
    statistics = CalibrationStatistics({**statistics.tensors, **more}, statistics.num_examples)
    # The plan does not depend on the grids, which are known after it.
    plan = make_plan(_split(prepared, found, names, plan.tensors), statistics, config, kept)
    joins = set(names.values())
    plan = dataclasses.replace(plan, nodes=tuple(node for node in plan.nodes if node.name not in joins))
    grids = {tensor: plan.tensors[names[tensor]] for tensor in found if names[tensor] in plan.tensors}
    return _split(prepared, {tensor: found[tensor] for tensor in grids}, names, grids), statistics, plan


def _coarse_inputs(
    prepared: PreparedGraph, statistics: CalibrationStatistics, plan: QuantizationPlan
) -> dict[str, tuple[NodePlan, ...]]:
    """Returns the float tensors that are quantised too coarsely for a kernel that reads them, with all that do."""
    graph = prepared.graph
    made = {node.output for node in plan.nodes if node.quantized}
    readers_of: dict[str, list[NodePlan]] = defaultdict(list)
    for node in plan.nodes:
        for tensor in {*node.sources, node.summand} if node.quantized else ():
            readers_of[tensor].append(node)
    result = {}
    for tensor in plan.tensors:
        readers = tuple(readers_of[tensor])
        if tensor in made or any(node.op not in ("Conv2D", "MatMul") or node.summand == tensor for node in readers):
            continue
        ratios = [_signal_to_noise(graph, statistics, node, plan.tensors[tensor]) for node in readers]
        if min(ratios, default=np.inf) < ENOUGH and statistics.tensors[tensor].channel_sums is not None:
            result[tensor] = readers
    return result


def _signal_to_noise(graph: Graph, statistics: CalibrationStatistics, node: NodePlan, source: TensorPlan) -> float:
    """Returns the variance of a kernel's FP32 result over the noise that its rounded input makes in it, in dB."""
    anchor = graph.node(node.name)
    weights = np.asarray(graph.constant(anchor.input[1]), np.float64)
    if anchor.op == "MatMul" and anchor.attr["transpose_b"].b:
        weights = weights.T
    if weights.shape[-2] > MOST_CHANNELS:
        return np.inf
    found = next((statistics.tensors[name] for name in _results(graph, node) if name in statistics.tensors), None)
    if found is None or not found.count:
        return np.inf
    values = (found.keys.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    mean = np.average(values, weights=found.counts)
    signal = float(np.average((values - mean) ** 2, weights=found.counts))
    noise = (source.limit / LEVELS[source.dtype]) ** 2 / 12 * float(np.square(weights).sum()) / weights.shape[-1]
    return 10 * float(np.log10(signal / noise)) if signal and noise else np.inf


def _results(graph: Graph, node: NodePlan) -> Iterator[str]:
    """Yields the kernel's result and the Relu after it, if that alone reads it: calibration has seen one of them."""
    yield node.output
    after = graph.sole_consumer(node.output)
    if after is not None:
        yield after.name


def _statistics(found: TensorStatistics, planned: TensorPlan) -> TensorStatistics:
    """Returns the statistics of both parts joined: the first has the values' own, the second lies around zero."""
    rest = FINER / 2 * planned.limit / LEVELS[planned.dtype]
    sums = found.channel_sums
    return dataclasses.replace(
        found,
        minimum=min(found.minimum, -rest),
        maximum=max(found.maximum, rest),
        channel_sums=None if sums is None else np.concatenate([sums, np.zeros_like(sums)], axis=1),
        channel_extremes=None,
    )


def _split(
    prepared: PreparedGraph,
    found: Mapping[str, tuple[NodePlan, ...]],
    names: Mapping[str, str],
    grids: Mapping[str, TensorPlan],
) -> PreparedGraph:
    """Writes tensors as two parts, joined under other names, and lets their readers read both."""
    graph = Graph(prepared.graph_def)
    emitter = Emitter(graph)
    for tensor, readers in found.items():
        fine = _parts(graph, emitter, tensor, names[tensor], grids[tensor])
        for node in readers:
            anchor = graph.node(node.name)
            weights = np.asarray(graph.constant(anchor.input[1]))
            axis = 1 if anchor.op == "MatMul" and anchor.attr["transpose_b"].b else -2
            both = np.concatenate([weights, weights / np.float32(FINER)], axis)
            graph.set_input(anchor, 1, emitter.const(f"{node.name}/fine_weights", both, beside=tensor))
            pads = [name for name in node.fused if graph.node(name).op in ("Pad", "PadV2")]
            graph.set_input(pads[0] if pads else anchor, 0, fine)
    return dataclasses.replace(prepared, graph_def=graph.to_graph_def())


def _parts(graph: Graph, emitter: Emitter, tensor: str, base: str, grid: TensorPlan) -> str:
    """Writes a tensor as multiples of its step and sixteen times the rest; returns their join, which is ``base``."""
    step = grid.limit / LEVELS[grid.dtype]
    low = 0 if grid.dtype == "quint8" else -LEVELS[grid.dtype]

    def add(op: str, word: str, left: str, *right: float) -> str:
        constants = [emitter.range_const(value, tensor) for value in right]
        return graph.add_node(op, f"{base}/{word}", [left, *constants], T=tf.float32)

    offset = float(grid.offsets[0])
    moved = add("AddV2", "moved", tensor, offset) if offset else tensor
    rounded = graph.add_node("Round", f"{base}/round", [add("Mul", "scaled", moved, 1 / step)], T=tf.float32)
    coarse = add("Mul", "carried", add("ClipByValue", "codes", rounded, low, LEVELS[grid.dtype]), step)
    coarse = add("Sub", "coarse", coarse, offset) if offset else coarse
    rest = graph.add_node("Sub", f"{base}/rest", [tensor, coarse], T=tf.float32)
    axis = emitter.const(f"{base}/axis", np.array(-1, np.int32), beside=tensor)
    scaled = add("Mul", "rest_scaled", rest, FINER)
    return graph.add_node("ConcatV2", base, [coarse, scaled, axis], N=2, T=tf.float32, Tidx=tf.int32)
