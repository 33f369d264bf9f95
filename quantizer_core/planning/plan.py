"""QuantizationPlan: plain data that says of every candidate node what becomes of it and why."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from quantizer_core.errors import ConfigError

#: Version of the JSON form.
FORMAT = 1
#: How the reason of a node ends that has a kernel, and stays FP32 for time.
SLOWER = "INT8 would be slower"


@dataclasses.dataclass(frozen=True)
class TensorPlan:
    """A tensor that is carried as integers: code · limit / (255 or 127) stands for (value + offset) · scale.

    Attributes:
      name: tensor name in the prepared FP32 graph.
      dtype: ``quint8`` or ``qint8``.
      limit: what code 255 (quint8) or 127 (qint8) stands for.
      offset: added to the values before they are coded (0 for nearly all), where floats alone read the tensor also one
        for each channel (the last axis). What reads the codes takes it back in its bias: a signed summand of a fused
        sum is carried as quint8 so.
      scale: what the values of each channel are multiplied with thereafter, or empty for 1: small channels use more
        codes so. The weights of the kernels that make and read the tensor take it in.
    """

    name: str
    dtype: str
    limit: float
    offset: float | tuple[float, ...] = 0.0
    scale: tuple[float, ...] = ()

    @property
    def offsets(self) -> np.ndarray:
        """The offset as float64 [channels], or [1] where it is one."""
        return np.atleast_1d(np.asarray(self.offset, np.float64))

    @property
    def scales(self) -> np.ndarray:
        """The scale as float64 [channels], or [1] where it is 1."""
        return np.asarray(self.scale or (1.0,), np.float64)


@dataclasses.dataclass(frozen=True)
class NodePlan:
    """What becomes of one candidate node.

    Attributes:
      name: node name in the prepared FP32 graph.
      op: its op type.
      quantized: whether it runs in INT8.
      reason: why not, if it does not; what could not be taken into its kernel and why, if it does; else "".
      kernel: the INT8 op that computes it, or "".
      fused: names of the nodes that the kernel computes besides, in order.
      output: name of the tensor that the kernel's result stands for.
      sources: tensors that it reads as integers (the input; all inputs of a concatenation).
      summand: tensor that a fused sum adds, or "".
      padding: explicit padding (eight widths) that the kernel takes over from a Pad before it, or empty.
      window: height, width and channels that an ``average`` reads at a time, or empty.
      places: height and width of what a 1×1 convolution makes that is a ``matmul``, where they are known, or empty.
      form: how the node is lowered: ``convolution``, ``matmul`` (float32 result; of a 1×1 convolution too),
        ``matmul_as_convolution``, ``pool``, ``average``, ``concat``, ``move``; "" if it is not.
      weight_bits: for nodes with weights 8, or 7 where their codes keep to 16-bit sums (see
        ``quantizer_core.lowering.weights.grid``: 7 to 8 bits over quint8 tensors); else 0.
      per_channel: one weight scale for each output channel.
    """

    name: str
    op: str
    quantized: bool
    reason: str = ""
    kernel: str = ""
    fused: tuple[str, ...] = ()
    output: str = ""
    sources: tuple[str, ...] = ()
    summand: str = ""
    padding: tuple[int, ...] = ()
    window: tuple[int, ...] = ()
    places: tuple[int, ...] = ()
    form: str = ""
    weight_bits: int = 0
    per_channel: bool = False


@dataclasses.dataclass(frozen=True)
class QuantizationPlan:
    """The whole plan of a graph.

    Attributes:
      nodes: one entry a candidate, and one for each op that only moves integers on and each Mean of integers, in
        topological order.
      tensors: the integer tensors by name, sorted.
    """

    nodes: tuple[NodePlan, ...]
    tensors: Mapping[str, TensorPlan]

    def computing(self) -> tuple[NodePlan, ...]:
        """Returns the candidates that compute something: not the ops that only move integers on, or average them."""
        return tuple(node for node in self.nodes if node.form != "move" and node.op != "Mean")

    @property
    def candidates(self) -> int:
        """How many computing nodes could run in INT8."""
        return len(self.computing())

    @property
    def quantized(self) -> int:
        """How many of them do."""
        return sum(node.quantized for node in self.computing())

    @property
    def slower(self) -> int:
        """How many stay FP32 because INT8 would be slower (``only_faster``)."""
        return sum(SLOWER in node.reason for node in self.computing() if not node.quantized)

    def counts(self) -> dict[str, tuple[int, int]]:
        """Returns op type → (nodes in INT8, candidates) of the computing nodes, sorted by op type."""
        result: dict[str, tuple[int, int]] = {}
        for node in sorted(self.computing(), key=lambda n: n.op):
            done, total = result.get(node.op, (0, 0))
            result[node.op] = (done + node.quantized, total + 1)
        return result

    def to_json(self) -> str:
        """Returns JSON fit for reading and for a line-wise diff; ``from_json`` gives an equal plan back."""
        return json.dumps(
            {
                "format": FORMAT,
                "nodes": [dataclasses.asdict(node) for node in self.nodes],
                "tensors": [dataclasses.asdict(self.tensors[name]) for name in sorted(self.tensors)],
            },
            indent=1,
        )

    @classmethod
    def from_json(cls, text: str) -> QuantizationPlan:
        """Reads ``to_json``'s form.

        Raises:
          ConfigError: if the text is no plan of this format.
        """
        try:
            values = json.loads(text)
            if values["format"] != FORMAT:
                raise ConfigError(f"the plan has format {values['format']!r}; this version reads format {FORMAT}")
            nodes = tuple(NodePlan(**_tuples(node)) for node in values["nodes"])
            tensors = [TensorPlan(**_tuples(tensor)) for tensor in values["tensors"]]
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ConfigError(f"not a quantization plan: {error}") from None
        return cls(nodes, {tensor.name: tensor for tensor in sorted(tensors, key=lambda t: t.name)})


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
