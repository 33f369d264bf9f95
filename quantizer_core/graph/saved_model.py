"""A SavedModel's signature as one frozen GraphDef: variables become constants, functions are inlined."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import tensorflow as tf
from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow.python.framework import convert_to_constants
from tensorflow.python.saved_model import loader_impl

from quantizer_core.errors import ConfigError, GraphError, nearest
from quantizer_core.graph.graph import Graph, set_attr
from quantizer_core.graph.inlined import tidy_inlined
from quantizer_core.graph.names import canonical, node_of
from quantizer_core.graph.rename import rename_functions, rename_nodes
from quantizer_core.graph.state import find_state, function_names

_CALL = re.compile(r"(Stateful)?PartitionedCall(_\d+)?")
_FUNCTION = re.compile(r"^(__inference_)?(.*?)(_\d+)?(_frozen_\d+)?$")


@dataclasses.dataclass(frozen=True)
class FrozenModel:
    """A frozen signature.

    Attributes:
      graph_def: the graph, cut down to what the outputs need.
      inputs: node names of the inputs, sorted by their signature key.
      outputs: node names of the outputs, sorted by their signature key.
      input_keys: signature key → node name of the input.
      output_keys: signature key → node name of the output.
    """

    graph_def: GraphDef
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    input_keys: Mapping[str, str]
    output_keys: Mapping[str, str]


def freeze_saved_model(
    directory: str | os.PathLike[str], signature: str = "serving_default", tags: Sequence[str] = ("serve",)
) -> FrozenModel:
    """Freezes one signature of a SavedModel written by TensorFlow 1 or 2 (Keras 2 and 3 included).

    Names: each input is a Placeholder named by its signature key, each output a node named by its signature key (an
    Identity, unless the result bears that name already). Where that name is taken, or is none that TensorFlow allows,
    the nearest free one is used; ``input_keys`` and ``output_keys`` tell. Inner nodes lose the ``PartitionedCall``
    parts of their names. Functional While and If stay functional, so their bodies remain in the function library;
    TensorFlow 1 control flow stays as it is.

    Raises:
      GraphError: if there is no readable SavedModel, or the signature needs a lookup table or other resource (the
        node is named).
      ConfigError: if the SavedModel has no such signature or tags; the nearest are named.
    """
    directory = os.fspath(directory)
    meta_graph = _meta_graph(directory, tags)
    _check_signature(directory, meta_graph, signature)
    freeze = _freeze_v2 if meta_graph.HasField("object_graph_def") else _freeze_v1
    try:
        frozen = _with_readable_names(_cut_to_signature(freeze(directory, signature, tags)))
    except (tf.errors.OpError, OSError, ValueError) as error:
        raise GraphError(
            f"cannot freeze signature {signature!r} of {directory!r}: {getattr(error, 'message', error)}"
        ) from None
    state = find_state(frozen.graph_def, frozen.inputs, frozen.outputs)
    if state is not None:
        kind = "uses a lookup table" if state.is_table else "needs a variable or another resource that is no constant"
        raise GraphError(
            f"signature {signature!r} of {directory!r} cannot be frozen: node {state.node.name!r} ({state.node.op})"
            f"{state.where} {kind}; save a signature whose inputs are what comes after that node"
        )
    return frozen


def _meta_graph(directory: str, tags: Sequence[str]) -> meta_graph_pb2.MetaGraphDef:
    if not tf.io.gfile.isdir(directory):
        raise GraphError(f"SavedModel {directory!r} is not a directory, or does not exist")
    if not loader_impl.contains_saved_model(directory):
        raise GraphError(f"{directory!r} is no SavedModel: it holds no saved_model.pb")
    try:
        meta_graphs = loader_impl.parse_saved_model(directory).meta_graphs
    except (OSError, tf.errors.OpError) as error:
        raise GraphError(f"SavedModel {directory!r} cannot be read: {getattr(error, 'message', error)}") from None
    if not meta_graphs:
        raise GraphError(f"SavedModel {directory!r} cannot be read: its saved_model.pb holds no graph, or is damaged")
    for meta_graph in meta_graphs:
        if set(meta_graph.meta_info_def.tags) == set(tags):
            return meta_graph
    have = ", ".join("+".join(sorted(meta_graph.meta_info_def.tags)) or "(none)" for meta_graph in meta_graphs)
    raise ConfigError(f"SavedModel {directory!r} has no graph with the tags {'+'.join(tags)!r}; it has: {have}")


def _check_signature(directory: str, meta_graph: meta_graph_pb2.MetaGraphDef, signature: str) -> None:
    # TensorFlow adds signatures such as __saved_model_init_op, which are no inference.
    known = sorted(name for name in meta_graph.signature_def if not name.startswith("__saved_model_"))
    if signature not in known:
        have = f"it has {', '.join(known)}" if known else "it has none: save it with signatures, or model.export() it"
        hint = nearest(signature, known)
        raise ConfigError(f"SavedModel {directory!r} has no signature {signature!r}{hint} ({have})")


class _Tensor(NamedTuple):
    name: str
    dtype: tf.DType
    shape: tf.TensorShape


@dataclasses.dataclass(frozen=True)
class _Signature:
    """A graph with constants for variables, and its signature; keys are sorted. ``wishes``: node → better name."""

    graph_def: GraphDef
    inputs: dict[str, _Tensor]
    outputs: dict[str, _Tensor]
    wishes: dict[str, str]
    inlined: bool


def _freeze_v2(directory: str, signature: str, tags: Sequence[str]) -> _Signature:
    with tf.init_scope():
        loaded = tf.saved_model.load(directory, tags=list(tags))
        function = loaded.signatures[signature]
        specs: dict[str, tf.TensorSpec] = function.structured_input_signature[1]
        input_keys, output_keys = sorted(specs), sorted(function.structured_outputs)

        # A function of our own around the signature fixes the order of inputs and outputs.
        def call(*tensors: tf.Tensor) -> list[tf.Tensor]:
            results: dict[str, tf.Tensor] = function(**dict(zip(input_keys, tensors, strict=True)))
            return [results[key] for key in output_keys]

        wrapped = tf.function(
            call, input_signature=[tf.TensorSpec(specs[key].shape, specs[key].dtype) for key in input_keys]
        )
        concrete = wrapped.get_concrete_function()
        frozen = convert_to_constants.convert_variables_to_constants_v2(concrete, lower_control_flow=False)
    names = {id(variable.handle): variable.name.partition(":")[0] for variable in concrete.variables}
    # Constants are named by the number of what they were captured from, which changes from run to run.
    captured = {inner.op.name: names.get(id(outer), "constant") for outer, inner in concrete.graph.captures}
    inputs = frozen.inputs[: len(input_keys)]  # what follows are resources that could not be made constants
    return _Signature(
        graph_def=frozen.graph.as_graph_def(),
        inputs={key: _Tensor(t.name, t.dtype, specs[key].shape) for key, t in zip(input_keys, inputs, strict=True)},
        outputs={key: _Tensor(t.name, t.dtype, t.shape) for key, t in zip(output_keys, frozen.outputs, strict=True)},
        wishes=captured,
        inlined=True,
    )


def _freeze_v1(directory: str, signature: str, tags: Sequence[str]) -> _Signature:
    config = tf.compat.v1.ConfigProto(allow_soft_placement=True)  # it may name a GPU
    with tf.Graph().as_default(), tf.compat.v1.Session(config=config) as session:
        meta_graph = loader_impl.SavedModelLoader(directory).load(session, list(tags))
        definition = meta_graph.signature_def[signature]
        inputs = {key: _tensor(key, info) for key, info in sorted(definition.inputs.items())}
        outputs = {key: _tensor(key, info) for key, info in sorted(definition.outputs.items())}
        graph_def = convert_to_constants.convert_variables_to_constants_from_session_graph(
            session, session.graph.as_graph_def(), list(dict.fromkeys(node_of(t.name) for t in outputs.values()))
        )
    return _Signature(graph_def, inputs, outputs, {}, inlined=False)


def _tensor(key: str, info: meta_graph_pb2.TensorInfo) -> _Tensor:
    if not info.name:
        raise GraphError(f"{key!r} of the signature is a sparse or composite tensor; save one with dense tensors")
    return _Tensor(info.name, tf.as_dtype(info.dtype), tf.TensorShape(info.tensor_shape))


def _cut_to_signature(signature: _Signature) -> _Signature:
    """Makes every input a Placeholder and every output a node of its own, and removes all else."""
    graph = Graph(signature.graph_def)
    outputs = {}
    for key, tensor in signature.outputs.items():
        name = canonical(tensor.name)
        if name != key:
            name = graph.add_node("Identity", _valid_name(key), [name], T=tensor.dtype.base_dtype)
        outputs[key] = tensor._replace(name=name)
    inputs = {}
    for key, tensor in signature.inputs.items():
        name = canonical(tensor.name)
        if name not in graph or graph.node(name).op != "Placeholder":
            stand_in = graph.add_node("Placeholder", _valid_name(key), dtype=tensor.dtype, shape=tensor.shape)
            if node_of(name) in graph:  # else the outputs do not need it
                graph.redirect(name, stand_in, control=False)
            name = stand_in
        else:
            set_attr(graph.node(name), "shape", tensor.shape)
        inputs[key] = tensor._replace(name=name)
    ends = [tensor.name for tensor in inputs.values()], [tensor.name for tensor in outputs.values()]
    graph.prune([*ends[0], *ends[1]])
    graph_def = graph.to_graph_def()
    if signature.inlined:
        graph_def = tidy_inlined(graph_def, *ends)
    return dataclasses.replace(signature, graph_def=graph_def, inputs=inputs, outputs=outputs)


def _with_readable_names(signature: _Signature) -> FrozenModel:
    graph_def = signature.graph_def
    ends = {tensor.name for tensor in (*signature.inputs.values(), *signature.outputs.values())}
    taken = {node.name for node in graph_def.node} - ends  # inputs choose first, then outputs, then the others
    names: dict[str, str] = {}

    def claim(old: str, wished: str) -> str:
        """Takes the name for the node ``old`` if it is free or that node's own."""
        if old not in names:
            if old not in ends:
                taken.discard(old)
            names[old] = _free(wished, taken)
            taken.add(names[old])
        return names[old]

    input_keys = {key: claim(tensor.name, _valid_name(key)) for key, tensor in signature.inputs.items()}
    output_keys = {key: claim(tensor.name, _valid_name(key)) for key, tensor in signature.outputs.items()}
    for node in graph_def.node:
        claim(node.name, _without_calls(signature.wishes.get(node.name, node.name)))
    graph_def = _with_readable_functions(rename_nodes(graph_def, names))
    return FrozenModel(
        graph_def,
        tuple(dict.fromkeys(input_keys.values())),
        tuple(dict.fromkeys(output_keys.values())),
        input_keys,
        output_keys,
    )


def _without_calls(name: str) -> str:
    return "/".join(part for part in name.split("/") if not _CALL.fullmatch(part)) or name


def _with_readable_functions(graph_def: GraphDef) -> GraphDef:
    """Keeps the functions that are called, in the order of first use, under names without running numbers."""
    functions = {function.signature.name: function for function in graph_def.library.function}
    names: dict[str, str] = {}
    taken: set[str] = set()
    queue: list[NodeDef] = list(graph_def.node)
    for node in queue:
        for name in function_names(node):
            if name in functions and name not in names:
                names[name] = _free(_FUNCTION.sub(r"\2", name), taken)
                taken.add(names[name])
                queue.extend(functions[name].node_def)
    result = GraphDef(node=graph_def.node, versions=graph_def.versions)
    result.library.function.extend(functions[name] for name in names)
    return rename_functions(result, names)


def _valid_name(key: str) -> str:
    """Returns the key with every character that TensorFlow's node names do not allow replaced by an underscore."""
    name = re.sub(r"[^A-Za-z0-9_.\\/>-]", "_", key)
    return name if re.match(r"[A-Za-z0-9.]", name) else f"tensor{name}"


def _free(wished: str, taken: Iterable[str]) -> str:
    name, number = wished, 0
    while name in taken:
        number += 1
        name = f"{wished}_{number}"
    return name
