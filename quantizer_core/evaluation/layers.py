"""Layer by layer: how far each quantised tensor of the INT8 graph lies from its FP32 value, on real examples."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import graph_pb2

from quantizer_core.batch_memory import batch_size_within
from quantizer_core.config import QuantizationConfig
from quantizer_core.errors import ConfigError, GraphError
from quantizer_core.graph.control_flow import sporadic_nodes
from quantizer_core.graph.graph import Graph, canonical, node_of
from quantizer_core.graph.names import as_node, with_port
from quantizer_core.lowering.kernels import LEVELS, QINT8, QUINT8, Emitter, IntTensor
from quantizer_core.planning.plan import NodePlan, QuantizationPlan, TensorPlan
from quantizer_core.preprocessing.decoder import ExampleDecoder
from quantizer_core.reads import BatchReader, Example, ReadCounts, read_all
from quantizer_core.runtime import GraphSession, batch_size_for, stack_batch, tensor_of
from quantizer_core.types import PreparedGraph, TensorSpec

_CODES = 256
#: Examples a step, at most: the FP32 value of every tensor waits for its INT8 one.
MAX_BATCH = 4
_QUANTIZE = "QuantizeV2"


@dataclasses.dataclass(frozen=True)
class LayerComparison:
    """One tensor of the INT8 graph against its FP32 value.

    Attributes:
      tensor: its name in the prepared FP32 graph.
      node: the planned node that computes it, or "" where a float32 tensor is quantised.
      op: that node's op type, or "".
      kernel: the INT8 op that makes it.
      source_dtype: dtype that the kernel reads.
      dtype: ``quint8`` or ``qint8``; ``float32`` for a matrix multiplication whose result no one reads as integers.
      low, high: the range that its codes stand for; NaN for float32.
      sqnr_db: signal-to-quantisation-noise ratio, 10·log10(Σx² / Σ(x - x̂)²), of all values of all examples: x is the
        FP32 graph's value, x̂ the INT8 graph's, so that the errors of the layers before it count too. Infinite where
        the two are equal, minus infinity where x is zero throughout and x̂ is not.
      clipped: share of the FP32 values that lie more than half a step outside the range; 0 for float32.
      unused_codes: number of codes that no value took; 0 for float32.
      codes: number of codes there are: 256 (quint8), 255 (qint8) or 0.
    """

    tensor: str
    node: str
    op: str
    kernel: str
    source_dtype: str
    dtype: str
    low: float
    high: float
    sqnr_db: float
    clipped: float
    unused_codes: int
    codes: int


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """The comparison of all quantised tensors.

    Attributes:
      layers: worst signal-to-noise ratio first.
      unmeasured: planned tensors that could not be compared, sorted: those that lie in a while loop or in a branch
        that may not be taken, and those that the INT8 graph does not hold (nothing reads them).
      reads: how many examples were used, and how many not and why.
    """

    layers: tuple[LayerComparison, ...]
    unmeasured: tuple[str, ...] = ()
    reads: ReadCounts = dataclasses.field(default_factory=ReadCounts)

    def to_json(self) -> str:
        """Returns JSON; NaN becomes null, infinite ratios the strings ``inf`` and ``-inf``."""
        layers = [{key: _plain(value) for key, value in dataclasses.asdict(layer).items()} for layer in self.layers]
        values = {"layers": layers, "unmeasured": list(self.unmeasured), "reads": dataclasses.asdict(self.reads)}
        return json.dumps(values, indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> LayerReport:
        """Reads ``to_json``'s form; raises ConfigError if it is something else."""
        try:
            values: dict[str, Any] = json.loads(text)
            layers = [LayerComparison(**{k: _number(v, k) for k, v in layer.items()}) for layer in values["layers"]]
            return cls(tuple(layers), tuple(values["unmeasured"]), ReadCounts(**values["reads"]))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(f"this is no layer report: {error}") from None


_FLOATS = frozenset(f.name for f in dataclasses.fields(LayerComparison) if f.type == "float")


def _plain(value: object) -> object:
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return None if math.isnan(value) else str(value)


def _number(value: Any, field: str) -> Any:
    return (math.nan if value is None else float(value)) if field in _FLOATS else value


def compare_layers(
    prepared: PreparedGraph,
    graph_def: graph_pb2.GraphDef,
    plan: QuantizationPlan,
    examples: Iterable[bytes],
    config: QuantizationConfig,
    on_example: Callable[[int], None] | None = None,
) -> LayerReport:
    """Runs the FP32 and the INT8 graph side by side and compares every quantised tensor.

    The INT8 graph is run as it is, fused sums included: what reads a tensor besides is added so that it has copied
    the values before a fused sum may write over them. Each example's sums are reduced inside TensorFlow in float64;
    Python adds them up in float64 in the order of the examples. Memory holds one batch of at most
    ``MAX_BATCH`` examples at a time.

    Args:
      prepared: the FP32 graph that was planned.
      graph_def: the INT8 graph that ``convert`` made of it.
      plan: the plan that it was made from.
      examples: serialized ``tf.Example``s, labels are not needed; read once, not kept.
      config: preprocessing, batch size and the share of bad records to accept.
      on_example: called with the number of records read so far.

    Raises:
      DataError: if there are no examples, or too many cannot be used.
      ConfigError: if the preprocessing does not fit the graph's inputs.
      GraphError: if the plan is not that of the two graphs, or they cannot be run.
    """
    unlabelled = config.without_label()
    decoder = ExampleDecoder(unlabelled, prepared.inputs)
    batch_size = batch_size_within(prepared.graph_def, prepared.inputs, prepared.outputs, config)
    with LayerComparer(prepared, graph_def, plan, batch_size) as comparer:
        reads = read_all(BatchReader(decoder, comparer.add, comparer.batch_size), examples, on_example)
        reads.check(config.max_bad_fraction, "the comparison of layers")
        return dataclasses.replace(comparer.report(), reads=reads)


@dataclasses.dataclass(frozen=True)
class _Watched:
    """A tensor to compare: its FP32 name, the INT8 graph's float32 form of it, and what the plan says."""

    tensor: str
    found: str
    kernel: str
    planned: TensorPlan | None
    node: NodePlan | None


class LayerComparer:
    """Both graphs in one session, with the reductions of every quantised tensor.

    Args:
      prepared, graph_def, plan: see ``compare_layers``.
      batch_size: examples a step, at most ``MAX_BATCH`` unless the graph fixes more; 1 where it asks for it.
      threads: size of the thread pools (see ``GraphSession``).
    """

    def __init__(
        self,
        prepared: PreparedGraph,
        graph_def: graph_pb2.GraphDef,
        plan: QuantizationPlan,
        batch_size: int,
        threads: int | None = None,
    ):
        self.inputs = prepared.inputs
        self._plan = plan
        sporadic = prepared.graph.remembered(sporadic_nodes)
        instrumented, self._watched, self._unmeasured = instrument(graph_def, plan, sporadic)
        if not self._watched:
            raise GraphError(
                "the INT8 graph holds none of the plan's tensors outside loops and branches, or is of another graph"
            )
        names = [watched.tensor for watched in self._watched]
        self.batch_size = batch_size_for(prepared.graph_def, prepared.inputs, names, min(batch_size, MAX_BATCH))
        joined, fetches = _join(prepared, instrumented, self._watched, self.batch_size == 1)
        # Without TensorFlow's optimiser: what it would make of both graphs joined is none of the two.
        self._session = GraphSession(joined, prepared.inputs, fetches, threads=threads, optimize=False)
        self._sums = np.zeros((len(names), 4))  # Σx², Σ(x - x̂)², clipped values, values
        self._used = np.zeros((len(names), _CODES), bool)

    def add(self, examples: Sequence[Example]) -> None:
        """Runs one batch of 1 to ``batch_size`` examples and counts it; raises DataError without counting any."""
        feeds = stack_batch([example.feeds for example in examples], self.inputs, self.batch_size)
        sums, used = self._session.run(feeds)
        # The batch is filled up with copies of its last example, which add nothing to the codes used.
        for row in range(len(examples)):
            self._sums += sums[:, :, row]
        self._used |= used > 0

    def report(self) -> LayerReport:
        """Returns the comparison of all examples added so far."""
        layers = [self._layer(*each) for each in zip(self._watched, self._sums, self._used, strict=True)]
        layers.sort(key=lambda layer: layer.sqnr_db)
        return LayerReport(tuple(layers), self._unmeasured)

    def _layer(self, watched: _Watched, sums: np.ndarray, used: np.ndarray) -> LayerComparison:
        signal, noise, clipped, values = (float(value) for value in sums)
        planned, node = watched.planned, watched.node
        low, high = bounds(planned) if planned is not None else (math.nan, math.nan)
        codes = 0 if planned is None else LEVELS[planned.dtype] * (2 if planned.dtype == QINT8 else 1) + 1
        source = self._plan.tensors.get(node.sources[0]) if node is not None and node.sources else None
        return LayerComparison(
            tensor=watched.tensor,
            node=node.name if node is not None else "",
            op=node.op if node is not None else "",
            kernel=watched.kernel,
            source_dtype=source.dtype if source is not None else "float32",
            dtype=planned.dtype if planned is not None else "float32",
            low=low,
            high=high,
            sqnr_db=sqnr_db(signal, noise),
            clipped=clipped / values if planned is not None and values else 0.0,
            unused_codes=max(codes - int(used.sum()), 0) if planned is not None else 0,
            codes=codes,
        )

    def close(self) -> None:
        """Frees the session."""
        self._session.close()

    def __enter__(self) -> LayerComparer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def sqnr_db(signal: float, noise: float) -> float:
    """Returns 10·log10(signal / noise); infinite where there is no noise, minus infinity where there is only noise."""
    if not noise:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def bounds(planned: TensorPlan) -> tuple[float, float]:
    """Returns the least and the greatest value, of all channels, that the codes of a planned tensor stand for."""
    low = 0.0 if planned.dtype == QUINT8 else -planned.limit
    least, greatest = (value / planned.scales - planned.offsets for value in (low, planned.limit))
    return float(least.min()), float(greatest.max())


# --- the graph that sees ------------------------------------------------------------------------------------------


def instrument(
    graph_def: graph_pb2.GraphDef, plan: QuantizationPlan, unseen: Collection[str] = ()
) -> tuple[graph_pb2.GraphDef, tuple[_Watched, ...], tuple[str, ...]]:
    """Adds a Dequantize to every planned tensor that an INT8 graph holds, but those of the nodes ``unseen``.

    Returns:
      The graph; what it lets one see, in the order of the plan; names of the other planned tensors.
    """
    graph = Graph(graph_def)
    emitter = Emitter(graph)
    makers = {node.output: node for node in plan.nodes if node.quantized}
    watched: list[_Watched] = []
    unmeasured: list[str] = []
    for name, planned in plan.tensors.items():
        integer = _integer_form(graph, name)
        if not integer or node_of(name) in unseen:
            unmeasured.append(name)
            continue
        kernel = graph.node(integer).op
        seen = emitter.dequantize_as(IntTensor(integer, planned.dtype, planned.limit), f"{as_node(name)}/seen", planned)
        node = makers.get(name) if kernel != _QUANTIZE else None
        watched.append(_Watched(name, seen, node.kernel or kernel if node else kernel, planned, node))
    for name, node in makers.items():
        if name not in plan.tensors and name in graph and node_of(name) not in unseen:
            watched.append(_Watched(name, name, node.kernel, None, node))
    order = {node.output: index for index, node in enumerate(plan.nodes)}
    watched.sort(key=lambda each: order.get(each.tensor, -1))
    return graph.to_graph_def(), tuple(watched), tuple(sorted(unmeasured))


def _integer_form(graph: Graph, tensor: str) -> str:
    """Returns the node with a tensor's codes: its kernel's, or the QuantizeV2 of a float32 tensor; "" if none."""
    for name in (f"{tensor}/int8", f"{as_node(tensor)}/quantize"):
        if name in graph:
            return name
    return ""


def _join(
    prepared: PreparedGraph, instrumented: graph_pb2.GraphDef, watched: Sequence[_Watched], single: bool
) -> tuple[graph_pb2.GraphDef, tuple[str, str]]:
    """Puts both graphs behind the FP32 graph's inputs and reduces each pair of tensors, example by example.

    The fetches: sums float64 [tensors, 4, batch] (Σx², Σ(x - x̂)², clipped values, values) and how often each code
    was met, int32 [tensors, 256].
    """
    instrumented = _with_own_frames(instrumented)
    with tf.Graph().as_default() as graph:
        try:
            tf.graph_util.import_graph_def(prepared.graph_def, name="")
            inputs = {f"{name}:0": tensor_of(graph, name) for name in _read_inputs(instrumented, prepared.inputs)}
            names = [with_port(each.found) for each in watched]
            found = tf.graph_util.import_graph_def(instrumented, inputs, names, name="int8_graph")
        except (ValueError, tf.errors.OpError) as error:
            raise GraphError(f"TensorFlow cannot load the FP32 and the INT8 graph together: {error}") from None
        with tf.name_scope("compare_layers"):
            pairs = [
                _reduce(tensor_of(graph, canonical(each.tensor)), int8, each.planned, single)
                for each, int8 in zip(watched, found, strict=True)
            ]
            sums = tf.stack([pair[0] for pair in pairs])
            used = tf.stack([pair[1] for pair in pairs])
        return graph.as_graph_def(), (sums.name, used.name)


def _with_own_frames(graph_def: graph_pb2.GraphDef) -> graph_pb2.GraphDef:
    """Renames the frames of while loops: two loops that run at once may not share a frame's name."""
    renamed = graph_pb2.GraphDef()
    renamed.CopyFrom(graph_def)
    for node in renamed.node:
        if node.op in ("Enter", "RefEnter"):
            node.attr["frame_name"].s = b"int8_graph/" + node.attr["frame_name"].s
    return renamed


def _read_inputs(graph_def: graph_pb2.GraphDef, inputs: Sequence[TensorSpec]) -> list[str]:
    """Returns the inputs that some node reads: TensorFlow refuses to replace others."""
    graph = Graph(graph_def)
    return [spec.name for spec in inputs if graph.consumers(f"{spec.name}:0")]


def _reduce(x: tf.Tensor, int8: tf.Tensor, planned: TensorPlan | None, single: bool) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the sums of one tensor, float64 [4, batch], and the count of its codes, int32 [256]."""
    batch = 1 if single else tf.shape(x)[0]
    x, int8 = tf.reshape(x, [batch, -1]), tf.reshape(int8, [batch, -1])
    signal = tf.reduce_sum(tf.square(tf.cast(x, tf.float64)), 1)
    noise = tf.reduce_sum(tf.square(tf.cast(x, tf.float64) - tf.cast(int8, tf.float64)), 1)
    values = tf.ones_like(signal) * tf.cast(tf.shape(x)[1], tf.float64)
    if planned is None:
        return tf.stack([signal, noise, tf.zeros_like(signal), values]), tf.zeros([_CODES], tf.int32)
    low, high = 0.0 if planned.dtype == QUINT8 else -planned.limit, planned.limit
    step = planned.limit / LEVELS[planned.dtype]
    channels = max(planned.offsets.size, planned.scales.size)
    offsets, scales = (tf.constant(values, tf.float32) for values in (planned.offsets, planned.scales))
    x, int8 = (tf.reshape((tf.reshape(t, [-1, channels]) + offsets) * scales, [batch, -1]) for t in (x, int8))
    outside = tf.logical_or(x > high + step / 2, x < low - step / 2)
    codes = tf.cast(tf.round((int8 - low) / step), tf.int32)
    met = tf.math.bincount(
        tf.reshape(tf.clip_by_value(codes, 0, _CODES - 1), [-1]), minlength=_CODES, maxlength=_CODES
    )  # fmt: skip
    return tf.stack([signal, noise, tf.reduce_sum(tf.cast(outside, tf.float64), 1), values]), met
