"""Exports a frozen graph as a SavedModel that TensorFlow Serving and TFX's stock components take as it is."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import graph_pb2

from quantizer_core.config import PreprocessConfig
from quantizer_core.errors import GraphError
from quantizer_core.graph.files import is_saved_model
from quantizer_core.graph.graph import Graph, canonical, set_attr
from quantizer_core.graph.names import with_port
from quantizer_core.preprocessing import make_preprocessor
from quantizer_core.preprocessing.tensors import example_shape, open_shape
from quantizer_core.runtime import batch_limit, batch_size_for
from quantizer_core.types import TensorSpec

#: The signature on serialized examples: TFX's Evaluator and BulkInferrer and TensorFlow Serving take this one unless
#: told otherwise (``tfx_bsl.beam.run_inference``, ``tensorflow_model_analysis.utils.model_util``).
EXAMPLES_SIGNATURE = "serving_default"
EXAMPLES_INPUT = "examples"
#: The signature on tensors. Not ``predict``: the Evaluator would prefer that name to the default.
TENSORS_SIGNATURE = "serving_tensors"

#: Any size above 1 tells a free batch from one that has to be run example by example.
_PROBE = 2


def signature_keys(names: Iterable[str]) -> dict[str, str]:
    """Returns tensor name → signature key: every character but letters, digits and ``_`` becomes ``_``.

    ``MobilenetV1/Predictions/Reshape_1`` becomes ``MobilenetV1_Predictions_Reshape_1``. A key that is taken already
    gets ``_1``, ``_2``… behind it.
    """
    keys: dict[str, str] = {}
    for name in names:
        base = re.sub(r"[^A-Za-z0-9_]", "_", canonical(name))
        key, number = base, 0
        while key in keys.values():
            number += 1
            key = f"{base}_{number}"
        keys[name] = key
    return keys


def export_saved_model(
    graph_def: graph_pb2.GraphDef,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[str],
    preprocess: PreprocessConfig,
    directory: str | os.PathLike[str],
    overwrite: bool = False,
) -> None:
    """Writes a SavedModel (tag ``serve``) with the graph once and two signatures:

    * ``serving_default``: ``examples``, a string vector of serialized ``tf.Example``s, with the preprocessing inside;
    * ``serving_tensors``: one tensor an input, with a batch dimension in front (also for inputs that have none in the
      graph: one value an example then).

    Both take any number of examples: a graph whose batch is fixed at N is run N by N (the last batch filled up with
    copies of its last example), one at 1 (or that mixes the examples of a batch) example by example. There an output's
    first dimension, if it is 1 or not known before the graph runs, is taken for the batch. Keys of inputs
    and outputs are their node names as ``signature_keys`` spells them. The results are bit for bit those of the
    GraphDef run with the same batches.

    The SavedModel appears whole or not at all. Its functions' names contain counters of the exporting process, so two
    exports are equal in function, not always in bytes.

    Raises:
      UnknownNodeError: if an input or output is not in the graph; the nearest is named.
      ConfigError: if the preprocessing does not fit the inputs.
      GraphError: if the directory exists (with ``overwrite``: and is no SavedModel) or cannot be written, or TensorFlow
        refuses the graph.
    """
    directory = os.fspath(directory).rstrip("/")
    _check_free(directory, overwrite)
    model = _ServedModel(graph_def, tuple(inputs), tuple(outputs), preprocess)
    signatures = {EXAMPLES_SIGNATURE: model.on_examples, TENSORS_SIGNATURE: model.on_tensors}
    parent, name = os.path.split(directory)
    temporary = os.path.join(parent, f".{name}.{uuid.uuid4().hex}.tmp")
    try:
        if parent:
            tf.io.gfile.makedirs(parent)
        tf.saved_model.save(model, temporary, signatures=signatures)
        _check_free(directory, overwrite)
        _put(temporary, directory)
    except tf.errors.OpError as error:
        raise GraphError(f"cannot write SavedModel {directory!r}: {error.message}") from None
    finally:
        if tf.io.gfile.exists(temporary):
            tf.io.gfile.rmtree(temporary)


def _put(made: str, directory: str) -> None:
    """Renames a directory; one that is there is removed after it has made room, and comes back if that fails."""
    if not tf.io.gfile.exists(directory):
        tf.io.gfile.rename(made, directory)
        return
    aside = f"{made}.before"
    tf.io.gfile.rename(directory, aside)
    try:
        tf.io.gfile.rename(made, directory)
    except tf.errors.OpError:
        tf.io.gfile.rename(aside, directory)
        raise
    tf.io.gfile.rmtree(aside)


def _check_free(directory: str, overwrite: bool) -> None:
    if not tf.io.gfile.exists(directory):
        return
    if not overwrite:
        raise GraphError(
            f"cannot write SavedModel {directory!r}: it exists already; remove it or name another directory"
        )
    if not is_saved_model(directory):
        raise GraphError(
            f"cannot write SavedModel {directory!r}: it exists and is no SavedModel, so it is not replaced"
        )


class _ServedModel(tf.Module):
    """The two signatures over one copy of the graph."""

    def __init__(
        self,
        graph_def: graph_pb2.GraphDef,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[str, ...],
        config: PreprocessConfig,
    ):
        super().__init__()
        self._preprocess = make_preprocessor(config, inputs)
        self.resources = list(self._preprocess.trackables)  # SavedModels hold only what hangs on the root
        self._inputs = inputs
        self._batch = _batch(graph_def, inputs, outputs)
        self._graph = _graph_function(graph_def, inputs, outputs, self._batch)
        results = self._graph.structured_outputs
        # At batch 1 an output that has no batch in front (the boxes of a detector, say) is an example's as it stands.
        self._has_batch = {key: self._batch != 1 or _may_be_batch(result.shape) for key, result in results.items()}
        self._result_of_batch = {key: tf.TensorSpec(result.shape, result.dtype) for key, result in results.items()}
        self._result_of_one = {
            key: tf.TensorSpec(result.shape[1:] if self._has_batch[key] else result.shape, result.dtype)
            for key, result in results.items()
        }
        keys = signature_keys(spec.name for spec in inputs)
        many = [_spec(spec, keys[spec.name], None) for spec in inputs]
        self.on_tensors = tf.function(self._on_tensors, input_signature=many)
        examples = tf.TensorSpec([None], tf.string, name=EXAMPLES_INPUT)
        self.on_examples = tf.function(self._on_examples, input_signature=[examples])

    def _on_tensors(self, *tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        return self._unless_empty(tensors[0], lambda: self._run(tensors))

    def _on_examples(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        def feeds(example: tf.Tensor) -> tuple[tf.Tensor, ...]:
            named = self._preprocess(example)
            return tuple(named[spec.name] for spec in self._inputs)

        def results() -> dict[str, tf.Tensor]:
            if self._batch == 1:  # in one loop, so that the examples of a request may differ in shape
                return _map(lambda example: self._one(*feeds(example)), examples, self._result_of_one)
            one = tuple(tf.TensorSpec(open_shape(example_shape(spec)), spec.dtype) for spec in self._inputs)
            return self._run(_map(feeds, examples, one))

        return self._unless_empty(examples, results)

    def _unless_empty(self, examples: tf.Tensor, results: Callable[[], dict[str, tf.Tensor]]) -> dict[str, tf.Tensor]:
        # The INT8 kernels abort the process on an empty batch.
        return tf.cond(tf.shape(examples)[0] > 0, results, self._no_results)

    def _no_results(self) -> dict[str, tf.Tensor]:
        def none(result: tf.TensorSpec) -> tf.Tensor:
            return tf.zeros([0, *(size or 0 for size in (result.shape if result.shape.rank else ()))], result.dtype)

        return {key: none(result) for key, result in self._result_of_one.items()}

    def _run(self, tensors: Sequence[tf.Tensor]) -> dict[str, tf.Tensor]:
        if self._batch is None:
            return self._graph(*tensors)
        if self._batch == 1:
            return _map(lambda example: self._one(*example), tuple(tensors), self._result_of_one)
        return self._in_batches(tensors)

    def _one(self, *tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        pairs = zip(self._inputs, tensors, strict=True)
        batched = [tensor[tf.newaxis] if spec.has_batch else tensor for spec, tensor in pairs]
        results = self._graph(*batched)
        return {key: tf.squeeze(result, 0) if self._has_batch[key] else result for key, result in results.items()}

    def _in_batches(self, tensors: Sequence[tf.Tensor]) -> dict[str, tf.Tensor]:
        count, size = tf.shape(tensors[0])[0], self._batch
        # Every place is filled: position i of the padded batch holds example i, or the last one.
        places = tf.minimum(tf.range((count + size - 1) // size * size), count - 1)
        stacked = [
            tf.reshape(tf.gather(tensor, places), tf.concat([[-1, size], tf.shape(tensor)[1:]], axis=0))
            for tensor in tensors
        ]
        results = _map(lambda batch: self._graph(*batch), tuple(stacked), self._result_of_batch)
        return {
            key: tf.reshape(result, tf.concat([[-1], tf.shape(result)[2:]], axis=0))[:count]
            for key, result in results.items()
        }


def _may_be_batch(shape: tf.TensorShape) -> bool:
    """Whether a first dimension is 1; one that TensorFlow cannot tell is (squeezing it checks that at run time)."""
    return shape.rank is None or (shape.rank > 0 and shape[0] in (1, None))


def _map(function: Callable, elements: object, signature: object) -> Any:
    # One at a time: the kernels use all cores themselves, and requests run side by side.
    return tf.map_fn(function, elements, fn_output_signature=signature, parallel_iterations=1)


def _batch(graph_def: graph_pb2.GraphDef, inputs: Sequence[TensorSpec], outputs: Sequence[str]) -> int | None:
    """Returns how many examples the graph takes at a time; None for any number."""
    size = batch_size_for(graph_def, inputs, outputs, _PROBE)
    return None if size == _PROBE and batch_limit(inputs) is None else size


def _spec(spec: TensorSpec, key: str, batch: int | None) -> tf.TensorSpec:
    """Returns the spec of an input with that batch; an input without batch dimension gets one at signatures (None)."""
    if spec.shape is None and (batch is not None or spec.dtype != "string"):
        return tf.TensorSpec(None, spec.dtype, name=key)
    example = open_shape(example_shape(spec) or ()) or []
    leading = [] if batch is not None and not spec.has_batch else [batch]
    return tf.TensorSpec([*leading, *example], spec.dtype, name=key)


def _graph_function(
    graph_def: graph_pb2.GraphDef, inputs: Sequence[TensorSpec], outputs: Sequence[str], batch: int | None
) -> tf.types.experimental.ConcreteFunction:
    """Returns the graph as a function from its inputs, in order, to ``{signature key: output}``."""
    fed = _with_feeds(graph_def, inputs, outputs)
    keys = signature_keys(outputs)

    def run(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        feeds = {f"{_feed_name(index)}:0": tensor for index, tensor in enumerate(tensors)}
        fetches = [with_port(name) for name in outputs]
        try:
            results = tf.graph_util.import_graph_def(fed, feeds, fetches, name="")
        except (ValueError, tf.errors.OpError) as error:
            raise GraphError(f"TensorFlow cannot load the graph: {error}") from None
        return {keys[name]: result for name, result in zip(outputs, results, strict=True)}

    specs = [_spec(spec, f"input_{index}", batch) for index, spec in enumerate(inputs)]
    # Not a tf.function: its automatic control edges would tie nodes inside TensorFlow 1 loops to nodes outside.
    return tf.compat.v1.wrap_function(run, specs)


def _feed_name(index: int) -> str:
    return f"exported_feed_{index}"


def _with_feeds(
    graph_def: graph_pb2.GraphDef, inputs: Sequence[TensorSpec], outputs: Sequence[str]
) -> graph_pb2.GraphDef:
    """Returns what the outputs need, with each input node made an Identity of a placeholder of ours.

    So control edges from an input stay valid, and an input may be any node, not only a Placeholder.
    """
    graph = Graph(graph_def)
    for name in outputs:
        graph.node(name)
    for index, spec in enumerate(inputs):
        dtype = tf.as_dtype(spec.dtype)
        feed = graph.add_node("Placeholder", _feed_name(index), dtype=dtype)
        node = type(graph.node(spec.name))(name=spec.name, op="Identity", input=[feed])
        set_attr(node, "T", dtype)
        graph.replace_node(node)
    graph.prune([*outputs, *(_feed_name(index) for index in range(len(inputs)))])
    return graph.to_graph_def()
