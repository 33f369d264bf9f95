"""Holds each kernel of an INT8 graph to half a step of what the FP32 graph makes of the same values.

``python -m tests.helpers.plan_checks FIRST COUNT`` checks COUNT random graphs and prints one line of JSON.

The values that an INT8 graph's kernels read are fed to the FP32 graph in the place of its own, and its filters as they
were rounded: what it then computes, clipped to the planned range, lies within half a step of the kernel's codes, each
of them. The rounded filters lie within half of their step of the FP32 ones, and everything that stays float computes
the same bits. Kernel after kernel this bounds the error of the whole graph by what its ranges allow.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping

import numpy as np
import tensorflow.compat.v1 as tf

from quantizer_core.config import QuantizationConfig
from quantizer_core.evaluation.layers import instrument
from quantizer_core.graph.graph import Graph, canonical
from quantizer_core.lowering.conformance import HALF_STEP
from quantizer_core.lowering.kernels import LEVELS, QUINT8
from quantizer_core.lowering.parameters import WEIGHTED_FORMS, LayerParameters, filter_of, nominal_parameters
from quantizer_core.planning.make import GATE_CLOSED
from quantizer_core.planning.plan import NodePlan, TensorPlan
from quantizer_core.prepare import prepare
from quantizer_core.quantize import Conversion, convert
from quantizer_core.types import PreparedGraph
from tests.helpers.nets import data_for, statistics_of
from tests.helpers.plan_graphs import PlanGraph


class WrongError(AssertionError):
    """The INT8 graph makes what it must not."""


class Session:
    """A graph as it stands, without TensorFlow's optimiser, which would compute the floats otherwise."""

    def __init__(self, graph_def: tf.GraphDef):
        config = tf.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)
        config.graph_options.rewrite_options.disable_meta_optimizer = True
        config.graph_options.optimizer_options.opt_level = tf.OptimizerOptions.L0
        graph = tf.Graph()
        with graph.as_default():
            tf.import_graph_def(graph_def, name="")
        self._session = tf.Session(graph=graph, config=config)

    def run(self, fetches: list[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        named = {key if ":" in key else f"{key}:0": value for key, value in feeds.items()}
        return self._session.run([name if ":" in name else f"{name}:0" for name in fetches], named)

    def close(self) -> None:
        self._session.close()


class Checked:
    """A converted random graph and all values that its INT8 form computes of some examples."""

    def __init__(self, conversion: Conversion, config: QuantizationConfig, data: np.ndarray):
        prepared = conversion.prepared  # with what planning wrote into it
        self.plan, self.data = conversion.plan, data
        self.method = config.calibration_method
        self.fp32 = Graph(prepared.graph_def)
        self.parameters: Mapping[str, LayerParameters] = nominal_parameters(
            self.fp32, self.plan, None, config.weight_clipping
        )
        self.int8 = Graph(conversion.graph_def)
        instrumented, watched, unseen = instrument(conversion.graph_def, self.plan)
        if unseen:
            raise WrongError(f"planned, but not in the INT8 graph: {unseen}")
        self.floats = [node for node in self.int8 if self._stays(node)]
        names = {canonical(t): t for node in self.floats for t in [node.name, *self.int8.data_inputs(node)]}
        names |= {name: name for name in self._quantised_floats() if name not in names}
        names |= {each.tensor: each.found for each in watched if each.planned is None}
        rounded = {each.tensor: each.found for each in watched if each.planned is not None}
        session = Session(instrumented)
        found = session.run([*names.values(), *rounded.values()], {"x": data})
        session.close()
        #: Float tensors of the INT8 graph, and what the codes of its integer tensors stand for; by FP32 name.
        self.values = dict(zip(names, found, strict=False))
        self.rounded = dict(zip(rounded, found[len(names) :], strict=True))
        self._session = Session(prepared.graph_def)

    def _stays(self, node: tf.NodeDef) -> bool:
        """Whether a node of the INT8 graph is one of the FP32 graph, with its op, that reads something."""
        if node.name not in self.fp32 or node.op in ("Const", "Placeholder") or node.attr["T"].type != 1:
            return False
        same = self.fp32.node(node.name)
        return same.op == node.op and [canonical(t) for t in same.input] == [canonical(t) for t in node.input]

    def reference(self, tensor: str, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns what the FP32 graph makes of these tensors."""
        return self._session.run([tensor], {"x": self.data, **feeds})[0]

    def check(self) -> Counter[str]:
        """Returns what was checked, by kind; raises WrongError."""
        done: Counter[str] = Counter()
        for node in self.plan.nodes:
            if node.quantized:
                self._kernel(node)
                done[node.op + (" sum" if node.summand else "")] += 1
        for name in self._quantised_floats():
            self._within(name, self.values[name], 127)
            done["QuantizeV2"] += 1
        for kept in self.floats:
            inputs = [t for t in self.int8.data_inputs(kept) if self.int8.node(t).op != "Const"]
            exact = self.reference(kept.name, {canonical(t): self.values[canonical(t)] for t in inputs})
            if not np.array_equal(self.values[kept.name], exact):
                raise WrongError(f"{kept.name}: {kept.op} stayed float, but its bits are others")
            done["excluded" if kept.name in self._excluded() else "float"] += 1
        if self.method == "minmax":
            done["range"] += self._ranges()
        self._session.close()
        return done

    def _ranges(self) -> int:
        """Holds each range to what calibration by extremes saw: nothing is clipped by more than half a step."""
        names = [name for name in self.plan.tensors if "/fine" not in name]
        for name, exact in zip(names, self._session.run(names, {"x": self.data}), strict=True):
            planned = self.plan.tensors[name]
            low, high = codes_range(planned)
            if any(edge.consumer.op == "Sigmoid" for edge in self.fp32.consumers(name)):
                exact = np.maximum(exact, -GATE_CLOSED)  # x · sigmoid(x) is all but 0 there: clipped on purpose
            carried, step = (exact + planned.offsets) * planned.scales, planned.limit / LEVELS[planned.dtype]
            over = max(float(carried.max()) - high, low - float(carried.min())) / step
            if over > HALF_STEP:
                raise WrongError(f"{name}: a value of the calibration data lies {over:.3f} steps outside the range")
        return len(names)

    def _excluded(self) -> set[str]:
        return {node.name for node in self.plan.nodes if "excluded" in node.reason}

    def _quantised_floats(self) -> list[str]:
        """Returns the planned tensors that no planned node makes."""
        return sorted(self.plan.tensors.keys() - {node.output for node in self.plan.nodes if node.quantized})

    def _kernel(self, node: NodePlan) -> None:
        feeds = {name: self.rounded[name] for name in [*node.sources, *([node.summand] if node.summand else [])]}
        if node.form in WEIGHTED_FORMS:
            feeds[self.fp32.node(node.name).input[1]] = self._filter(node)
        self._within(node.output, self.reference(node.output, feeds))

    def _filter(self, node: NodePlan) -> np.ndarray:
        """Returns the rounded filter as the FP32 node takes it, and holds it to half a step of the FP32 one."""
        weights, exact = self.parameters[node.name].weights, filter_of(self.fp32, node)
        carried = self.plan.tensors[node.sources[0]].scales[:, None]
        step = weights.limits / 127 * (2 if not np.any(weights.codes % 2) else 1)
        shape = weights.codes.shape
        step = np.reshape(step, shape[-2:]) if np.ndim(step) and step.size != shape[-1] else step
        error = np.abs(weights.dequantized() - exact / carried)
        if np.any(error > 0.501 * step):
            raise WrongError(f"{node.name}: a weight is {np.max(error / step):.3f} steps off")
        rounded = (weights.dequantized() * carried).astype(np.float32)
        return rounded.T if node.op == "MatMul" and self.fp32.node(node.name).attr["transpose_b"].b else rounded

    def _within(self, name: str, exact: np.ndarray, lowest: int = 128) -> None:
        """Holds a tensor to the exact one, clipped: QuantizeV2 at code -127, the kernels at -128."""
        planned = self.plan.tensors.get(name)
        found = self.values[name] if planned is None else self.rounded[name]
        if found.shape != exact.shape:
            raise WrongError(f"{name}: shape {found.shape}, not {exact.shape}")
        if planned is None:
            error, bound = np.abs(found - exact).max(), 1e-4 * max(float(np.abs(exact).max()), 1e-3)
        else:
            step = planned.limit / LEVELS[planned.dtype]
            carried = np.clip(
                (exact.astype(np.float64) + planned.offsets) * planned.scales, *codes_range(planned, lowest)
            )
            error = np.abs((found + planned.offsets) * planned.scales - carried).max() / step
            bound = HALF_STEP + 2e-5 * float(np.abs(carried).max()) / step
        if not error <= bound:
            raise WrongError(f"{name}: {error:.4g} off, may be {bound:.4g}")


def codes_range(planned: TensorPlan, lowest: int = 127) -> tuple[float, float]:
    """Returns the least and the greatest carried value; ``lowest`` is the least signed code's magnitude."""
    return (0.0 if planned.dtype == QUINT8 else -planned.limit * lowest / 127), planned.limit


def converted(seed: int) -> tuple[PreparedGraph, Conversion, QuantizationConfig, np.ndarray]:
    """Returns a random graph converted, and the examples that it was calibrated on."""
    graph_def, _, config = PlanGraph(seed).make()
    prepared = prepare(graph_def, config)
    data = data_for(prepared, 3, seed)
    before = prepared.graph_def.SerializeToString(deterministic=True)
    conversion = convert(prepared, statistics_of(prepared, data), config)
    # To ask a node for an attribute that it lacks would add an empty one.
    assert prepared.graph_def.SerializeToString(deterministic=True) == before, "the prepared graph was changed"
    assert all(value.WhichOneof("value") for node in prepared.graph_def.node for value in node.attr.values())
    return prepared, conversion, config, data


def check_seed(seed: int) -> Counter[str]:
    """Checks one random graph; a graph whose every layer is excluded counts as ``none``."""
    from quantizer_core.errors import GraphError

    try:
        _, conversion, config, data = converted(seed)
    except GraphError as error:
        if "can run in INT8" not in str(error):
            raise
        return Counter(none=1)
    return Checked(conversion, config, data).check() + Counter(graphs=1)


def main() -> None:
    first, count = (int(word) for word in sys.argv[1:])
    done: Counter[str] = Counter()
    wrong: dict[int, str] = {}
    for seed in range(first, first + count):
        try:
            done += check_seed(seed)
        except WrongError as error:
            wrong[seed] = str(error)
    sys.stdout.write(json.dumps({"done": done, "wrong": wrong}) + "\n")


if __name__ == "__main__":
    main()
