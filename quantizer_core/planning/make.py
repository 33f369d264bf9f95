"""Makes the plan: takes the structure of integer tensors, gives each a dtype and a range, and each kernel its form."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from quantizer_core.calibration.methods import select_range
from quantizer_core.calibration.statistics import CalibrationStatistics, TensorStatistics
from quantizer_core.config import QuantizationConfig
from quantizer_core.errors import DataError
from quantizer_core.graph.graph import Graph, NodeDef, canonical
from quantizer_core.graph.infer import lazy_shapes
from quantizer_core.lowering import safe
from quantizer_core.planning import passive
from quantizer_core.planning.equalize import equalize
from quantizer_core.planning.groups import ADD_OPS, ANCHOR_OPS, RELU_OPS, Matcher, find_groups, ordered
from quantizer_core.planning.plan import SLOWER, NodePlan, QuantizationPlan, TensorPlan
from quantizer_core.planning.signs import Signs
from quantizer_core.planning.structure import Bans, Step, Structure, joined
from quantizer_core.planning.work import image_size, work_of
from quantizer_core.rewrites.ops import is_float32
from quantizer_core.runtime import batch_limit, has_vnni
from quantizer_core.types import ObservedTensor, PreparedGraph, Range

QINT8, QUINT8 = "qint8", "quint8"
#: An AvgPool whose averages use less than this share of its input's range stays FP32: few codes would be left.
AVERAGE_SHARE = 0.5
#: A range whose negative part is less than this share of the positive one is worth an offset.
LOPSIDED = 0.5
#: x · sigmoid(x) is within 0.003 of zero below minus this.
GATE_CLOSED = 8.0
#: Products for each value read or made below which kernels between floats are slower in INT8, without and with VNNI:
#: measured, as what follows, by ``python -m benchmarks.kernels``.
ENOUGH_PRODUCTS = {False: 64, True: 40}
#: Products that a kernel needs besides, however small it is; a float tensor that goes into matrix products; one that
#: goes into or comes out of an island with convolutions, whose products take less time. And the rows up to which FP32's
#: matrix product takes no longer than for one, as it waits for the weights.
KERNEL_PRODUCTS, ENTRY_PRODUCTS, EDGE_PRODUCTS, READING_ROWS = 100_000, 50_000, 300_000, 7


def excluded_names(graph: Graph, config: QuantizationConfig) -> frozenset[str]:
    """Returns the names of the nodes that the configuration keeps FP32."""
    by_op = {node.name for node in graph if node.op in config.excluded_ops}
    # A rewrite that has to leave a node's name to another adds a word to it; one that splits it, numbers the parts.
    found = by_op.union(config.excluded_nodes)
    for name in config.excluded_nodes:
        found.update(other for word in ("linear", "nhwc") if (other := f"{name}/{word}") in graph)
        parts = (f"{name}/part_{index}" for index in itertools.count())
        found.update(itertools.takewhile(graph.__contains__, parts))
    return frozenset(found)


def observed_tensors(graph: Graph, outputs: tuple[str, ...], config: QuantizationConfig) -> tuple[ObservedTensor, ...]:
    """Returns the tensors whose ranges and channel means a plan may ask for, sorted by name."""
    matcher = Matcher(graph, outputs, excluded_names(graph, config))
    watched: dict[str, int | None] = {}

    def watch(tensor: str, axis: int | None = None) -> None:
        watched[tensor] = axis if axis is not None else watched.get(tensor)

    for node in graph:
        if node.op in ANCHOR_OPS and not matcher.refusal(node):
            group = matcher.group(node)
            watch(group.source, -1)
            watch(group.output, -1 if _floats_read(graph, group.output) else None)
            if group.residual is not None:
                watch(group.residual.relu)
        elif node.name in matcher.excluded or not is_float32(node):
            continue
        elif node.op in passive.CONCAT_OPS and _codes_wanted(graph, node):
            for tensor in passive.sources(graph, node):
                watch(tensor)
        elif node.op == "AvgPool":
            watch(canonical(node.input[0]))
            watch(node.name)
        elif node.op in passive.MEAN_OPS and passive.averages_places(graph, node) and _codes_wanted(graph, node):
            watch(node.name)
    signs = Signs(graph)
    return tuple(ObservedTensor(name, watched[name], signs.nonnegative(name)) for name in sorted(watched))


def _codes_wanted(graph: Graph, node: NodeDef) -> bool:
    """Tells whether an op that reads integers may stand behind a node, after ops that only hand values on."""
    seen = {node.name}
    stack = [node]
    while stack:
        for edge in graph.consumers(stack.pop().name):
            if edge.consumer.op in ANCHOR_OPS | ADD_OPS | passive.POOL_OPS:
                return True
            # A depthwise convolution may take a PadV2 over.
            if edge.consumer.op in passive.PASSIVE_OPS | {"PadV2"} and edge.consumer.name not in seen:
                seen.add(edge.consumer.name)
                stack.append(edge.consumer)
    return False


def _floats_read(graph: Graph, tensor: str) -> bool:
    """Tells whether an op that is computed in float32 surely reads a tensor, as activations do that no kernel has."""
    integer = ANCHOR_OPS | ADD_OPS | RELU_OPS | passive.PASSIVE_OPS - passive.MEAN_OPS

    def floats(node: NodeDef) -> bool:
        return not _codes_wanted(graph, node) if node.op in passive.PLAIN_MOVES else node.op not in integer

    return any(floats(edge.consumer) for edge in graph.consumers(tensor))


def make_plan(
    prepared: PreparedGraph,
    statistics: CalibrationStatistics,
    config: QuantizationConfig,
    kept: Mapping[str, str] = MappingProxyType({}),
) -> QuantizationPlan:
    """Plans the conversion of a prepared graph.

    Args:
      prepared: the graph after all rewrites.
      statistics: what calibration saw of ``prepared.observed``.
      config: exclusions, method of the ranges, granularity and width of the weights.
      kept: nodes that stay FP32 besides, and why.

    Returns:
      The plan; the same for the same arguments on CPUs of the same kind (``reduce_range='auto'`` asks for VNNI).

    Raises:
      DataError: if the statistics lack a tensor that the plan needs.
    """
    return _Planner(prepared, statistics, config, kept).plan()


class _Planner:
    """The decisions of one conversion."""

    def __init__(
        self,
        prepared: PreparedGraph,
        statistics: CalibrationStatistics,
        config: QuantizationConfig,
        kept: Mapping[str, str],
    ):
        self.graph = prepared.graph
        self.statistics = statistics
        self.config = config
        self.matcher = Matcher(self.graph, prepared.outputs, excluded_names(self.graph, config))
        self.signs = Signs(self.graph)
        self.bans = Bans()
        self.groups, self.refused = find_groups(self.graph, self.matcher)
        self._refuse({name: reason for name, reason in kept.items() if name in self.groups})
        self._refuse_unseen()
        self._refuse_grouped()
        self.order = ordered(self.graph, self.groups)
        self.shapes = lazy_shapes(lambda: self.graph.part(self._operands()))
        vnni = has_vnni()
        self.reduced = config.reduce_range == "on" or (config.reduce_range == "auto" and not vnni)
        self.enough_products = ENOUGH_PRODUCTS[vnni]
        # An input without a batch dimension makes it 1 for calibration, not for the rows that a kernel gets.
        self.rows = batch_limit([spec for spec in prepared.inputs if spec.has_batch]) or config.serving_batch_size
        self._few: dict[str, str] = {}  # of each AvgPool that has been asked for: what ``_few_codes`` says

    def plan(self) -> QuantizationPlan:
        while True:
            structure = Structure(
                self.graph, self.matcher, self.groups, self.order, self.shapes, self.bans, self._unreached,
                self._few_codes,
            )  # fmt: skip
            if self.config.only_faster and self._refuse_slow(structure):
                continue
            bans = len(self.bans)
            tensors = self._tensors(structure)
            if len(self.bans) == bans:
                break
        if self.config.equalization and self.config.per_channel:
            steps, outputs = structure.steps, self.matcher.outputs
            tensors.update(equalize(self.graph, outputs, steps, _classes(steps), tensors, self.statistics))
        nodes = {step.name: self._node(step, tensors) for step in structure.steps}
        for name, reason in {**self.refused, **structure.refused}.items():
            nodes[name] = NodePlan(name, self.graph.node(name).op, quantized=False, reason=reason)
        return QuantizationPlan(
            tuple(nodes[node.name] for node in self.order if node.name in nodes),
            {name: tensors[name] for name in sorted(tensors)},
        )

    def _refuse(self, reasons: Mapping[str, str]) -> None:
        """Leaves nodes alone."""
        for name, reason in reasons.items():
            del self.groups[name]
            self.refused[name] = reason

    def _operands(self) -> list[str]:
        """Returns the tensors whose shapes count: operands of fused sums, what averages read and convolutions make."""
        found = [(group.stem, group.residual.summand) for group in self.groups.values() if group.residual is not None]
        steady = [node for node in self.order if node.name not in self.matcher.sporadic]
        read = [canonical(node.input[0]) for node in steady if node.op in passive.AVERAGE_OPS]
        groups = [self.groups[node.name] for node in steady if node.name in self.groups]
        made = [group.stem for group in groups if group.op != "MatMul"]
        return [*(tensor for pair in found for tensor in pair), *read, *made]

    def _refuse_unseen(self) -> None:
        """Leaves alone what lies in a branch or loop that no example has entered."""
        unseen = [
            group.anchor
            for group in self.groups.values()
            if group.anchor in self.matcher.sporadic and not self._statistics(group.source).finite
        ]
        self._refuse(dict.fromkeys(unseen, "no calibration example reached it"))

    def _refuse_grouped(self) -> None:
        """Leaves convolutions alone whose filters read a part of the channels each: the INT8 kernels read all."""
        grouped = []
        for group in self.groups.values():
            channels = self._statistics(group.source).channel_sums if group.op == "Conv2D" else None
            if channels is not None and (self.graph.constant_shape(group.filter) or ())[2:3] != channels.shape[1:]:
                grouped.append(group.anchor)
        self._refuse(dict.fromkeys(grouped, "a grouped convolution: the INT8 kernel reads all channels"))

    def _refuse_slow(self, structure: Structure) -> bool:
        """Leaves kernels alone that have little to do for what they cost; tells whether there are any.

        Of a kernel that reads floats and is read by floats, rounding what it reads and the way back may cost more than
        it saves. Of kernels that hand codes to each other, they themselves may: each takes microseconds more than
        FP32's, however small it is.
        """
        slow: dict[str, str] = {}
        read = {tensor for step in structure.steps for tensor in (*step.sources, step.summand)}
        for island in structure.islands():
            kernels = [step for step in island if step.form in ("convolution", "matmul")]
            if not kernels:
                continue
            matrices = all(step.op == "MatMul" for step in kernels)
            alone = len(island) == 1 and not island[0].summand
            reason = self._too_little(island, kernels) if matrices or alone else ""
            if not (reason or matrices):
                reason = self._too_small(island, kernels, read)
            if reason:
                slow.update(dict.fromkeys((step.name for step in kernels), reason))
        self._refuse(slow)
        return bool(slow)

    def _too_little(self, island: Sequence[Step], kernels: Sequence[Step]) -> str:
        """Returns why an island's kernels, one or matrix products, would be slower in INT8, or ""."""
        read = {source for step in island for source in step.sources}
        outputs: set[str] = set()  # what the kernels make, and what moves hand on of it
        for step in island:
            if step.form != "average" and (step in kernels or outputs.intersection(step.sources)):
                outputs.add(step.output)
        work = [(step, work_of(self.graph, self.graph.node(step.name))) for step in kernels]
        products = sum(each.products for _, each in work)
        entries = {step.sources[0]: each.read for step, each in work if step.sources[0] not in outputs}
        values = sum(entries.values()) + sum(each.made for step, each in work if step.output not in read)
        fixed = 0.0
        if kernels[0].op == "MatMul":
            fixed = (KERNEL_PRODUCTS * len(kernels) + ENTRY_PRODUCTS * len(entries)) / max(self.rows / READING_ROWS, 1)
        if products >= self.enough_products * values + fixed:
            return ""
        if len(kernels) > 1:
            few = f"floats go into {len(kernels)} matrix products and come out, {products:,} products in all"
        else:
            share = products / values
            count = f"{share:.0f} products a value" if share < self.enough_products else f"{products:,} products"
            few = f"it reads floats, floats read it, and {count}"
        return f"{few} are few: {SLOWER}"

    def _too_small(self, island: Sequence[Step], kernels: Sequence[Step], read: Collection[str]) -> str:
        """Returns why an island with convolutions would be slower in INT8, or "": also where sizes are not known.

        Args:
          island: its steps.
          kernels: those with weights.
          read: every tensor that a step of the graph reads as codes.
        """
        made = {step.output for step in island}
        products = 0
        edges: dict[str, int] = {}  # float tensors that go in or come out, and the values that kernels have to do with
        for step in island:
            taken = () if step.form == "average" else (*step.sources, step.summand)
            edges.update(dict.fromkeys((tensor for tensor in taken if tensor and tensor not in made), 0))
            if step.output not in read:
                edges[step.output] = 0
        for step in kernels:
            sides = (1, 1) if step.op == "MatMul" else image_size(self.shapes(self.groups[step.name].stem))
            if not sides:
                return ""
            places = math.prod(sides)
            work = work_of(self.graph, self.graph.node(step.name))
            products += work.products * places
            of_step = {step.sources[0]: work.read, step.summand: work.made, step.output: work.made}
            edges.update({tensor: each * places for tensor, each in of_step.items() if tensor in edges})
        fixed = KERNEL_PRODUCTS * len(kernels) + EDGE_PRODUCTS * len(edges)
        values = sum(edges.values()) if len(island) > 1 else 0  # of one step ``_too_little`` has counted them
        if self.rows * (products - self.enough_products * values) >= fixed:
            return ""
        few = f"{self.rows * products:,} products"
        if len(kernels) == 1:
            return f"it reads floats, floats read it, and {few} are few: {SLOWER}"
        return f"floats go into {len(kernels)} kernels and come out, {few} in all are few: {SLOWER}"

    # --- dtypes and ranges ----------------------------------------------------------------------------------------

    def _tensors(self, structure: Structure) -> dict[str, TensorPlan]:
        """Gives every integer tensor its dtype and range, or bans a fusion that no dtype or range would suit."""
        tensors: dict[str, TensorPlan] = {}
        readers: dict[str, list[Step]] = defaultdict(list)
        for step in structure.steps:
            for source in step.sources:
                readers[source].append(step)
        relu6 = {step.output for step in structure.steps if any(self.graph.node(n).op == "Relu6" for n in step.fused)}
        sums = {step.output: step for step in structure.steps if step.summand}
        for members in _classes(structure.steps):
            roots = [m for m in members if m not in structure.producers or structure.producers[m].form in
                     ("convolution", "matmul", "average")]  # fmt: skip
            signed = not all(self.signs.nonnegative(root) for root in roots)
            if signed and len(members) == 1 and members[0] not in structure.producers:
                offset = self._offset_entry(members[0], readers[members[0]])
                if offset is not None:
                    tensors[members[0]] = offset
                    continue
            gated = self._gated_result(members, readers, structure) if signed else None
            if gated is not None:
                tensors[members[0]] = gated
                continue
            for root in roots:
                if signed and root in sums:
                    step = sums[root]
                    self.bans.sums[step.fused[-2]] = "its result is carried as signed codes"
            limit = max(self._limit(root, signed) for root in roots)
            if limit > 6.0 and relu6.intersection(roots):
                joins = [m for m in members if m in structure.producers and structure.producers[m].form == "concat"]
                for name in joins:
                    self.bans.passive[name] = "it joins a Relu6 with values above 6, which one range cannot clip"
                if not joins:
                    limit = 6.0
            for member in members:
                tensors[member] = TensorPlan(member, QINT8 if signed else QUINT8, limit)
        for step in sums.values():
            self._settle_summand(step, structure, tensors)
        return tensors

    def _offset_entry(self, tensor: str, readers: list[Step]) -> TensorPlan | None:
        """A signed float tensor that is coded as quint8 above its minimum, where all that reads it can take that.

        Matrix products with float results can, which read quint8 alone; and convolutions that pad nothing (a code of
        zero would not stand for zero), where the shorter range saves much of the step: behind x · sigmoid(x), which
        is never below -0.28, half of it.
        """
        found = self._range(tensor, signed=True)
        low, high = min(found.min, 0.0), max(found.max, 0.0)
        lopsided = -low < LOPSIDED * high
        if not all((s.form == "matmul" and not s.integer) or (lopsided and self._pads_nothing(s)) for s in readers):
            return None
        limit = high - low
        if lopsided:  # zero gets a code of its own, as it has many readings there
            return TensorPlan(tensor, QUINT8, limit, round(-low * 255 / limit) * limit / 255)
        return TensorPlan(tensor, QUINT8, limit, -low)

    def _gated_result(
        self, members: list[str], readers: Mapping[str, list[Step]], structure: Structure
    ) -> TensorPlan | None:
        """The result of a convolution that only x · sigmoid(x) reads: quint8 from where that function is all but 0."""
        step = structure.producers.get(members[0])
        if len(members) > 1 or step is None or step.form != "convolution" or step.summand or readers[members[0]]:
            return None
        if members[0] in self.matcher.outputs or any(members[0] == other.summand for other in structure.steps):
            return None
        edges = self.graph.consumers(members[0])
        gates = [edge.consumer.name for edge in edges if edge.consumer.op == "Sigmoid"]
        products = [edge.consumer for edge in edges if edge.consumer.op == "Mul"]
        if len(edges) != 2 or len(gates) != 1 or len(products) != 1 or gates[0] not in products[0].input:
            return None
        found = self._range(members[0], signed=True)
        low, high = max(found.min, -GATE_CLOSED), max(found.max, 0.0)
        if -low >= high or self.graph.sole_consumer(gates[0]) is None or gates[0] in self.matcher.outputs:
            return None
        limit = high - low
        return TensorPlan(members[0], QUINT8, limit, round(-low * 255 / limit) * limit / 255)

    def _pads_nothing(self, step: Step) -> bool:
        if step.form != "convolution" or step.padding:
            return False
        anchor = self.graph.node(step.name)
        shape = self.graph.constant_shape(anchor.input[1]) or ()
        padding = anchor.attr["padding"].s  # EXPLICIT pads a 1×1 convolution too
        return padding == b"VALID" or (padding == b"SAME" and tuple(shape[:2]) == (1, 1))

    def _settle_summand(self, step: Step, structure: Structure, tensors: dict[str, TensorPlan]) -> None:
        """Makes the summand of a fused sum unsigned: by proof, or by an offset if the sum alone reads it."""
        if tensors[step.summand].dtype == QUINT8:
            return
        producer = structure.producers.get(step.summand)
        alone = len(self.graph.consumers(step.summand)) == 1
        if not alone or producer is None or producer.form != "convolution" or producer.summand:
            why = "no convolution makes it that could shift it up" if alone else "read elsewhere too"
            self.bans.sums[step.fused[-2]] = f"the summand is signed and {why}"
            return
        found = self._range(step.summand, signed=True)
        low, high = min(found.min, 0.0), max(found.max, 0.0)
        tensors[step.summand] = TensorPlan(step.summand, QUINT8, high - low, -low)

    def _statistics(self, tensor: str) -> TensorStatistics:
        found = self.statistics.tensors.get(tensor)
        if found is None:
            raise DataError(f"calibration holds no statistics of tensor {tensor!r}; calibrate this very graph again")
        return found

    def _range(self, tensor: str, signed: bool) -> Range:
        return select_range(
            self._statistics(tensor), self.config.calibration_method, signed=signed, percentile=self.config.percentile
        )

    def _limit(self, tensor: str, signed: bool) -> float:
        found = self._range(tensor, signed)
        return max(abs(found.min) if signed else 0.0, found.max)

    def _unreached(self, node: NodeDef) -> str:
        """Returns why an AvgPool in a branch or loop has no range, or ""."""
        unseen = node.name in self.matcher.sporadic and not self._statistics(node.name).finite
        return "no calibration example reached it" if unseen else ""

    def _few_codes(self, node: NodeDef) -> str:
        """Returns why the averages of an AvgPool should not have the range of what they are made of, or ""."""
        if node.name not in self._few:
            source, result = self._limit(canonical(node.input[0]), True), self._limit(node.name, True)
            few = f"its averages use {result / source:.0%} of its input's range, too few of its codes"
            self._few[node.name] = "" if result >= AVERAGE_SHARE * source else few
        return self._few[node.name]

    # --- nodes ----------------------------------------------------------------------------------------------------

    def _node(self, step: Step, tensors: dict[str, TensorPlan]) -> NodePlan:
        """Gives a step its kernel; a matrix multiplication whose result is read as codes becomes a convolution."""
        form = "matmul_as_convolution" if step.form == "matmul" and step.integer else step.form
        kernel = safe.kernel_of(step.op, form)
        bits = safe.weight_bits(step.op, form, tensors[step.sources[0]].dtype, narrow=self.reduced)
        return NodePlan(
            step.name,
            step.op,
            quantized=True,
            reason=step.note,
            kernel=kernel.kernel if kernel else "",
            fused=step.fused,
            output=step.output,
            sources=step.sources,
            summand=step.summand,
            padding=step.padding,
            window=step.window,
            places=step.places,
            form=form,
            weight_bits=bits,
            per_channel=bits > 0 and self.config.per_channel,
        )


def _classes(steps: list[Step]) -> list[list[str]]:
    """Returns the sets of tensors that must share dtype and range, members and sets in order of appearance."""
    sets: list[list[str]] = []
    for step in steps:
        tensors = [*step.sources, step.output] if step.integer else list(step.sources)
        sets.extend([tensors] if step.form in ("pool", "concat", "move") else [[tensor] for tensor in tensors])
    return joined(sets)
