"""Decides through which ops integers flow: what kernels take in, which sums fuse, which pools carry on."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from quantizer_core.graph.graph import Graph, NodeDef, canonical
from quantizer_core.planning import passive
from quantizer_core.planning.groups import Group, Matcher, Residual, is_product
from quantizer_core.planning.work import image_size

#: Axes of a tensor that oneDNN's QuantizeV2 and Dequantize take.
_MOST_AXES = 5


@dataclasses.dataclass(frozen=True)
class Step:
    """One INT8 kernel (or move) of the graph to be, before dtypes and ranges are known.

    Attributes:
      name, op: the candidate node.
      form: ``convolution``, ``matmul`` (that of a MatMul, or of a 1×1 convolution with a float32 result), ``pool``,
        ``average`` (a Mean or AvgPool whose result has a range of its own), ``concat`` or ``move``.
      sources: tensors read as integers.
      output: the tensor produced.
      integer: whether the output is integers (False: float32, of a matrix product that no one reads as such).
      fused: further nodes that the kernel computes.
      summand: the tensor that a fused sum adds, or "".
      padding: explicit padding that the kernel takes over from a Pad.
      window: height, width and channels that an ``average`` reads at a time.
      places: height and width of the ``matmul`` of a 1×1 convolution, where they are known.
      note: what could not be taken in and why, or "".
    """

    name: str
    op: str
    form: str
    sources: tuple[str, ...]
    output: str
    integer: bool = True
    fused: tuple[str, ...] = ()
    summand: str = ""
    padding: tuple[int, ...] = ()
    window: tuple[int, ...] = ()
    places: tuple[int, ...] = ()
    note: str = ""


@dataclasses.dataclass
class Bans:
    """Fusions that later checks have taken back: node name → why."""

    sums: dict[str, str] = dataclasses.field(default_factory=dict)
    passive: dict[str, str] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.sums) + len(self.passive)


class Structure:
    """Where integers flow in a graph.

    Attributes:
      steps: in topological order.
      producers: integer tensor → the step that makes it.
      refused: candidate node → why it stays FP32.
    """

    def __init__(
        self,
        graph: Graph,
        matcher: Matcher,
        groups: Mapping[str, Group],
        order: list[NodeDef],
        shapes: Callable[[str], tuple[int, ...] | None],
        bans: Bans,
        unreached: Callable[[NodeDef], str],
        few_codes: Callable[[NodeDef], str],
    ):
        """``unreached`` tells why an AvgPool has no range, ``few_codes`` why its result needs one of its own, or ""."""
        self._graph, self._matcher, self._groups, self._shapes, self._bans = graph, matcher, groups, shapes, bans
        self._unreached, self._few_codes = unreached, few_codes
        self._summands = {
            (g.residual.add, g.residual.summand)
            for g in groups.values()
            if g.residual is not None and g.residual.add not in bans.sums
        }
        self._pads = {group.pad for group in groups.values() if group.pad}
        self._wanted: dict[str, bool] = {}
        self._find_wanted(order)
        self._entries: set[str] = set()  # float32 tensors that are quantised because a kernel reads them
        self.steps: list[Step] = []
        self.producers: dict[str, Step] = {}
        self.refused: dict[str, str] = {}
        for node in order:
            if node.name in groups:
                self._add(self._group_step(groups[node.name]))
            elif node.op in passive.PASSIVE_OPS:
                self._decide_passive(node)

    def _add(self, step: Step) -> None:
        self.steps.append(step)
        self._entries.update(source for source in step.sources if source not in self.producers)
        if step.integer:
            self.producers[step.output] = step

    def islands(self) -> list[list[Step]]:
        """Returns the sets of steps that hand codes to each other, steps and sets in order of appearance.

        What an average reads is not of its set: a kernel makes new codes there, as rounding floats would.
        """
        steps = {step.name: step for step in self.steps}
        sets = []
        for step in self.steps:
            read = () if step.form == "average" else (*step.sources, step.summand)
            sets.append([step.name, *(tensor for tensor in read if tensor in self.producers), step.output])
        return [[steps[member] for member in members if member in steps] for members in joined(sets)]

    # --- who would read integers ----------------------------------------------------------------------------------

    def _find_wanted(self, order: list[NodeDef]) -> None:
        """Notes of each node, from the last on, whether something after it would read its first output as integers."""
        for node in reversed(order):
            self._wanted[node.name] = any(
                edge.index >= 0 and edge.port == 0 and self._wants(edge.consumer, edge.index)
                for edge in self._graph.consumers(node.name)
            )

    def _wants(self, consumer: NodeDef, index: int) -> bool:
        if consumer.name in self._groups:
            return index == 0 and not self._groups[consumer.name].pad
        if consumer.name in self._pads and index == 0:
            return True
        if (consumer.name, canonical(consumer.input[index])) in self._summands:
            return True
        if consumer.op in passive.PASSIVE_OPS:
            useful = self._wanted.get(consumer.name, False)
            handed_on = index < len(passive.sources(self._graph, consumer))
            if not handed_on or not (useful or consumer.op in passive.POOL_OPS) or self._passive_refusal(consumer):
                return False
            return useful or not self._needs_range(consumer)
        return False

    # --- groups ---------------------------------------------------------------------------------------------------

    def _group_step(self, group: Group) -> Step:
        bias = tuple(name for name in (group.pad, group.bias) if name)
        if group.op == "MatMul":
            if not self._wanted[group.output]:
                return Step(group.anchor, group.op, "matmul", (group.source,), group.stem, False, bias)
            relu = (group.relu,) if group.relu else ()
            return Step(group.anchor, group.op, "matmul", (group.source,), group.output, True, bias + relu)
        step = Step(
            group.anchor, group.op, "convolution", (group.source,), group.stem, True, bias, padding=group.padding
        )  # fmt: skip
        residual = group.residual
        if residual is not None:
            reason = self._bans.sums.get(residual.add) or self.sum_refusal(group, residual)
            if not reason:
                fused = (*bias, residual.add, residual.relu)
                return dataclasses.replace(step, fused=fused, output=residual.relu, summand=residual.summand)
            step = dataclasses.replace(step, note=f"sum {residual.add!r} is not fused: {reason}")
        if not self._wanted[group.output] and is_product(self._graph, group):
            return dataclasses.replace(step, form="matmul", integer=False, places=self._places(group))
        return dataclasses.replace(step, output=group.output, fused=bias + ((group.relu,) if group.relu else ()))

    def _places(self, group: Group) -> tuple[int, ...]:
        """Returns height and width of a convolution's result; () if they are not known, or in a branch or loop."""
        return () if group.anchor in self._matcher.sporadic else image_size(self._shapes(group.stem))

    def sum_refusal(self, group: Group, residual: Residual) -> str:
        """Returns why a sum may not be fused into a convolution, or "".

        The kernel reads the summand as codes and does not broadcast it. Who else reads the summand does not matter:
        what lowering emits copies it where it must (``lowering.sums``), and fails where the shapes of a step differ.
        """
        summand = residual.summand
        if summand not in self.producers and summand not in self._entries:
            return "the summand does not come from an INT8 kernel"
        shape = self._shapes(group.stem)
        if shape is None or shape != self._shapes(summand):
            return "the shapes of the two operands are not known to be equal"
        return ""

    # --- passive ops ----------------------------------------------------------------------------------------------

    def _passive_refusal(self, node: NodeDef) -> str:
        """Returns why a passive op cannot carry integers whatever it reads, or ""."""
        if node.name in self._matcher.excluded:
            return "excluded by the configuration"
        if node.name in self._bans.passive:
            return self._bans.passive[node.name]
        if node.attr["T" if "T" in node.attr else "Tparams"].type != 1:
            return "not float32"
        if node.op in passive.CONCAT_OPS:
            return passive.concat_refusal(self._graph, node)
        if node.op == "Mean":
            return "" if self._window(node) else "it is no mean over a small image"
        if node.op == "MaxPool":
            return passive.pool_refusal(node)
        if node.op == "AvgPool":
            reason = passive.pool_refusal(node) or self._unreached(node)
            few = "" if reason else self._few_codes(node)
            return reason or ("" if not few or self._window(node) else few)
        return "floats read it, and it has more than the five axes that Dequantize takes" if self._deep(node) else ""

    def _deep(self, node: NodeDef) -> bool:
        """Tells whether a move would have to be dequantised with more axes than oneDNN's kernels take."""
        shape = self._shapes(node.name)
        if shape is None or len(shape) <= _MOST_AXES:
            return False
        readers = [edge.consumer for edge in self._graph.consumers(node.name)]
        return node.name in self._matcher.outputs or any(
            reader.op not in passive.MOVE_OPS or not self._wanted.get(reader.name, False) for reader in readers
        )

    def _needs_range(self, node: NodeDef) -> bool:
        """Tells whether the result of a passive op that ``_passive_refusal`` lets through has a range of its own."""
        return node.op == "Mean" or (node.op == "AvgPool" and bool(self._few_codes(node)))

    def _window(self, node: NodeDef) -> tuple[int, ...]:
        """Returns the window of a Mean or AvgPool as ``passive.window`` does; () in a branch or loop."""
        if node.name in self._matcher.sporadic:
            return ()
        return passive.window(self._graph, node, self._shapes(canonical(node.input[0])))

    def _decide_passive(self, node: NodeDef) -> None:
        read = passive.sources(self._graph, node)
        reason = self._passive_refusal(node)
        average = not reason and self._needs_range(node)
        wanted = self._wanted[node.name]
        if average and node.op == "AvgPool" and not wanted:
            reason = self._few_codes(node)
        if not reason and not any(tensor in self.producers for tensor in read):
            reason = "its input is not INT8"
        if not reason and not wanted and node.op not in passive.POOL_OPS:
            reason = "nothing after it reads INT8"
        if reason:
            if node.op in passive.POOL_OPS | passive.CONCAT_OPS:
                self.refused[node.name] = reason
            return
        form = "pool" if node.op in passive.POOL_OPS else "concat" if node.op in passive.CONCAT_OPS else "move"
        step = Step(node.name, node.op, form, tuple(read), node.name)
        self._add(dataclasses.replace(step, form="average", window=self._window(node)) if average else step)


def joined(sets: Iterable[Sequence[str]]) -> list[list[str]]:
    """Joins sets that overlap; members and sets are in order of appearance."""
    parent: dict[str, str] = {}

    def find(member: str) -> str:
        parent.setdefault(member, member)
        while parent[member] != member:
            parent[member] = parent[parent[member]]
            member = parent[member]
        return member

    for members in sets:
        for member in members:
            parent[find(member)] = find(members[0])
    members_of: dict[str, list[str]] = defaultdict(list)
    for member in list(parent):
        members_of[find(member)].append(member)
    return list(members_of.values())
