"""The plain data that the steps of a conversion hand to each other."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

from tensorflow.core.framework import graph_pb2

from quantizer_core.graph.graph import Graph


class Range(NamedTuple):
    """A closed interval of float values that a tensor is quantised for."""

    min: float
    max: float


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """A graph input: node name, dtype name (``float32``, ``uint8``, ``string``…) and shape.

    ``shape`` is None where the rank is unknown; -1 stands for an unknown dimension. ``single`` says that the input
    takes one example, or one setting for all, as it is: its first dimension is no batch.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] | None
    single: bool = False

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TensorSpec:
        """Reads what ``dataclasses.asdict`` made of an input, from JSON too; raises KeyError or TypeError otherwise."""
        shape = values["shape"]
        return cls(values["name"], values["dtype"], None if shape is None else tuple(shape), values["single"])

    @property
    def has_batch(self) -> bool:
        """Whether there is a batch dimension: none in a scalar, nor in a string of unknown rank."""
        if self.single:
            return False
        return self.dtype != "string" if self.shape is None else len(self.shape) > 0

    @property
    def batch(self) -> int | None:
        """The batch dimension: None if unknown or absent, else its fixed size."""
        if not self.has_batch or not self.shape or self.shape[0] < 0:
            return None
        return self.shape[0]


@dataclasses.dataclass(frozen=True)
class ObservedTensor:
    """A tensor of the FP32 graph to watch during calibration.

    Attributes:
      name: tensor name in GraphDef spelling (``a`` or ``a:1``).
      channel_axis: axis whose means bias correction needs (the input channels of a convolution or matrix
        multiplication: -1), or None.
      nonnegative: the graph proves that no value is below 0, which stands for the minima then.
    """

    name: str
    channel_axis: int | None = None
    nonnegative: bool = False


@dataclasses.dataclass(frozen=True)
class RewriteReport:
    """What one rewrite rule did: its name and the names of the nodes that it changed or folded, in graph order."""

    rule: str
    nodes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class PreparedGraph:
    """An FP32 inference graph after all rewrites, and what to watch in it.

    Attributes:
      graph_def: equal in function to the input graph between ``inputs`` and ``outputs``.
      inputs: the graph's inputs, in the order given.
      outputs: node names of the outputs.
      observed: tensors whose values calibration must see, sorted by name.
      rewrites: one report a rule, in order of application.
    """

    graph_def: graph_pb2.GraphDef
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    observed: tuple[ObservedTensor, ...]
    rewrites: tuple[RewriteReport, ...]

    @functools.cached_property
    def graph(self) -> Graph:
        """``graph_def`` to ask, not to edit."""
        return Graph(self.graph_def, copy=False)
