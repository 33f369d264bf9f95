"""What a frozen graph holds at a glance: its inputs, outputs, operations, and a command line to convert it with."""

from __future__ import annotations

import dataclasses
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from tensorflow.core.framework import graph_pb2, node_def_pb2, types_pb2
from tensorflow.core.framework.tensor_shape_pb2 import TensorShapeProto

from quantizer_core.errors import GraphError, UnknownNodeError, nearest
from quantizer_core.graph.names import node_of, port_of
from quantizer_core.graph.state import STATE_OPS
from quantizer_core.types import TensorSpec

#: Operations for which an INT8 kernel exists.
QUANTIZABLE_OPS = ("Conv2D", "DepthwiseConv2dNative", "MatMul", "MaxPool", "AvgPool", "ConcatV2")

_INPUT_OPS = frozenset({"Placeholder", "PlaceholderV2"})
_IMAGE_CHANNELS = (1, 3, 4)

#: Nodes that are no result even if nobody reads them: sources, side effects and the leftovers of control flow.
_NO_OUTPUT_OPS = _INPUT_OPS | frozenset(
    {
        "Const", "PlaceholderWithDefault", "NoOp", "Assert", "Assign", "AssignAdd", "AssignSub", "AssignVariableOp",
        "SaveV2", "PrintV2", "ControlTrigger", "Abort", "InitializeTable", "InitializeTableV2",
        "InitializeTableFromTextFile", "InitializeTableFromTextFileV2", "LookupTableImport", "LookupTableImportV2",
        "ScalarSummary", "HistogramSummary", "ImageSummary", "MergeSummary", "TensorSummaryV2", "WriteScalarSummary",
    }
)  # fmt: skip
_CONTROL_FLOW_OPS = frozenset({"Enter", "Exit", "Switch", "Merge", "NextIteration", "LoopCond"})
_CONTROL_FLOW_OPS |= {f"Ref{op}" for op in _CONTROL_FLOW_OPS}

#: TensorFlow reads a scalar shape of a Placeholder in older graphs as "unknown" (its shape function says 21).
_FIRST_VERSION_WITH_SCALAR_PLACEHOLDERS = 22


@dataclasses.dataclass(frozen=True)
class GraphSummary:
    """What ``summarize_graph`` found.

    Attributes:
      inputs: the placeholders: name, dtype and shape.
      outputs: names of the nodes whose result no other node reads.
      ops: op type → number of top-level nodes, most frequent first.
      function_ops: the same for the nodes inside the function library.
      quantizable: op type → number, for the op types that have INT8 kernels (top-level nodes only).
      state: names of the variables and tables left in the graph: a frozen graph has none.
      functions: names of the function library's functions, sorted.
      nodes: number of top-level nodes.
      constant_bytes: size of all constants' values, the function library included.
      command: a ``quantizer convert`` command line with the inputs and outputs found filled in.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    ops: Mapping[str, int]
    function_ops: Mapping[str, int]
    quantizable: Mapping[str, int]
    state: tuple[str, ...]
    functions: tuple[str, ...]
    nodes: int
    constant_bytes: int
    command: str


def summarize_graph(
    graph_def: graph_pb2.GraphDef,
    path: str = "GRAPH.pb",
    signature: str | None = None,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
) -> GraphSummary:
    """Describes a graph without running it; ``path`` and ``signature`` are only used in the suggested command line.

    ``inputs`` and ``outputs`` are what a signature says of them; where they are empty they are found.

    Graphs with function libraries, control flow, string inputs or variables left inside are described too.
    """
    specs = input_specs(graph_def, inputs or find_inputs(graph_def))
    outputs = tuple(outputs) or find_outputs(graph_def)
    in_functions = [node for function in graph_def.library.function for node in function.node_def]
    ops = _count(graph_def.node)
    return GraphSummary(
        inputs=specs,
        outputs=outputs,
        ops=ops,
        function_ops=_count(in_functions),
        quantizable={op: ops[op] for op in QUANTIZABLE_OPS if op in ops},
        state=tuple(node.name for node in [*graph_def.node, *in_functions] if node.op in STATE_OPS),
        functions=tuple(sorted(function.signature.name for function in graph_def.library.function)),
        nodes=len(graph_def.node),
        constant_bytes=sum(_constant_bytes(node) for node in [*graph_def.node, *in_functions]),
        command=_command(path, signature, specs, outputs),
    )


def find_inputs(graph_def: graph_pb2.GraphDef) -> tuple[str, ...]:
    """Returns the names of the placeholders in graph order; those with a default value need no feeding."""
    return tuple(node.name for node in graph_def.node if node.op in _INPUT_OPS)


def find_outputs(graph_def: graph_pb2.GraphDef) -> tuple[str, ...]:
    """Returns the names of the nodes that no node reads, in graph order.

    Constants, placeholders, nodes without a result (NoOp, Assert, Assign…) and the ends of TensorFlow 1 control flow
    do not count, unless the latter are all there is.
    """
    read = {node_of(tensor) for node in graph_def.node for tensor in node.input}
    ends = [node for node in graph_def.node if node.name not in read and node.op not in _NO_OUTPUT_OPS]
    results = [node for node in ends if node.op not in _CONTROL_FLOW_OPS] or ends
    return tuple(node.name for node in results)


def input_specs(graph_def: graph_pb2.GraphDef, names: Sequence[str]) -> tuple[TensorSpec, ...]:
    """Returns name, dtype and shape of the named nodes' first outputs, in the order given.

    A placeholder's attributes tell; the shapes of other nodes (a graph may be cut anywhere) are inferred. A vector
    whose fixed length contradicts the first dimension of a larger input is a setting, not a batch (the thresholds of a
    detector, say); beside one, images of rank 3 and inputs of unknown rank are taken for single ones too.

    Raises:
      UnknownNodeError: if the graph holds no such node; the nearest is named.
      GraphError: if a name has a port other than 0, or the node has no output.
    """
    nodes = {node.name: node for node in graph_def.node}
    specs: list[TensorSpec] = []
    inferred = None
    for given in names:
        name = node_of(given)
        if name not in nodes:
            raise UnknownNodeError(f"the graph holds no node {name!r}{nearest(name, nodes)}")
        if port_of(given) != 0:
            raise GraphError(f"input {given!r} must be the first output of a node: write {name!r}")
        node = nodes[name]
        if node.op in _INPUT_OPS:
            specs.append(_placeholder_spec(node, graph_def.versions.producer))
            continue
        if inferred is None:
            from quantizer_core.graph.infer import tensor_info

            inferred = tensor_info(graph_def)
        if name not in inferred:
            raise GraphError(f"node {name!r} ({node.op}) has no output and cannot be an input of the graph")
        specs.append(TensorSpec(name, inferred[name].dtype, inferred[name].shape))
    return _mark_single(specs)


def _mark_single(specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    larger = [spec.shape for spec in specs if spec.shape is not None and len(spec.shape) > 1]
    settings = {
        spec.name
        for spec in specs
        if spec.shape is not None
        and len(spec.shape) == 1
        and spec.shape[0] > 1
        and any(shape[0] != spec.shape[0] for shape in larger)
    }
    if not settings:
        return tuple(specs)

    def single(spec: TensorSpec) -> bool:
        shape = spec.shape
        return spec.name in settings or shape is None or (len(shape) == 3 and shape[2] in _IMAGE_CHANNELS)

    return tuple(dataclasses.replace(spec, single=single(spec)) for spec in specs)


def _placeholder_spec(node: node_def_pb2.NodeDef, producer: int) -> TensorSpec:
    # Asking a protobuf map for a missing key adds it: look before.
    dtype = node.attr["dtype"].type if "dtype" in node.attr else 0
    shape = node.attr["shape"].shape if "shape" in node.attr else TensorShapeProto(unknown_rank=True)
    dims = tuple(int(dim.size) for dim in shape.dim)
    unknown = shape.unknown_rank
    unknown |= node.op == "Placeholder" and not dims and producer < _FIRST_VERSION_WITH_SCALAR_PLACEHOLDERS
    return TensorSpec(node.name, _dtype_name(dtype), None if unknown else dims)


def _dtype_name(enum: int) -> str:
    from tensorflow.python.framework import dtypes

    return str(dtypes.as_dtype(enum).base_dtype.name) if enum else "unknown"


def _count(nodes: Iterable[node_def_pb2.NodeDef]) -> dict[str, int]:
    counts = Counter(node.op for node in nodes)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _constant_bytes(node: node_def_pb2.NodeDef) -> int:
    """The size of a Const's value as it lies in memory; strings count their characters."""
    if node.op != "Const" or "value" not in node.attr:
        return 0
    from tensorflow.python.framework import dtypes

    value = node.attr["value"].tensor
    if value.dtype == types_pb2.DT_STRING:
        return sum(len(text) for text in value.string_val)
    size = dtypes.as_dtype(value.dtype).size if value.dtype else 0
    for dim in value.tensor_shape.dim:
        size *= dim.size
    return int(size)


def _command(path: str, signature: str | None, inputs: Sequence[TensorSpec], outputs: Sequence[str]) -> str:
    path = path.rstrip("/")
    stem = path[:-3] if path.endswith(".pb") else path
    words = ["quantizer", "convert", "--input_graph", path, "--output_graph", f"{stem}_int8.pb"]
    if signature:
        words += ["--signature", signature]
    if inputs:
        words += ["--inputs", ",".join(spec.name for spec in inputs)]
    if outputs:
        words += ["--outputs", ",".join(outputs)]
    words += ["--calibration_data", "EXAMPLES"]
    if len(inputs) == 1 and (shape := inputs[0].shape) and len(shape) == 4 and shape[-1] in _IMAGE_CHANNELS:
        words += ["--preprocess", "KIND"]
    return shlex.join(words)
