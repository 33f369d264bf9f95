"""Sessions over GraphDefs, batches of examples for them, and what this machine can run."""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import re
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf
from tensorflow.core.framework import graph_pb2, step_stats_pb2
from tensorflow.core.protobuf import config_pb2, rewriter_config_pb2
from tensorflow.python.util import _pywrap_util_port

from quantizer_core.errors import DataError, GraphError, MachineError, UnknownNodeError, nearest
from quantizer_core.graph.graph import canonical
from quantizer_core.graph.infer import infer_shapes
from quantizer_core.graph.names import with_port
from quantizer_core.onednn import SWITCH, given_switch, isa_limit
from quantizer_core.types import TensorSpec

_CPUINFO = "/proc/cpuinfo"
# What ONEDNN_MAX_CPU_ISA may name, and which of the two VNNI instruction sets oneDNN then still uses
# (https://uxlfoundation.github.io/oneDNN/dev_guide_cpu_dispatcher_control.html). Names not listed allow both.
_ISA_WITHOUT_VNNI = frozenset({"SSE41", "AVX", "AVX2", "AVX512_MIC", "AVX512_MIC_4OPS", "AVX512_CORE"})
_ISA_WITH_AVX_VNNI_ONLY = frozenset({"AVX2_VNNI", "AVX2_VNNI_2"})

# In TensorFlow's errors: the node, as a line and behind its cause; lines that say nothing of the cause; the number
# before one of several causes.
_NODE_LINE, _NODE_MARK = re.compile(r"Node: '(.*)'"), re.compile(r"\{\{node ([^}]*)\}\}")
_HEADING = re.compile(r"Graph execution error|Detected at node|\d+ root error|\[\[|Original stack trace|File \"")
_ROOT_NUMBER = re.compile(r"^\(\d+\) (?:[A-Za-z_ ]+:\s*)?")

# Bytes: memory that begins at a multiple of them TensorFlow takes as it is, and copies other.
_ALIGNMENT = 64

#: A batch that no graph fixes: shapes inferred with it tell which dimensions are the batch. It is a prime, so that a
#: tensor of a multiple of as many values holds it.
PROBE_BATCH = 509

# Compiled steps that live: one that lives to the end of the process would look for TensorFlow's modules when Python has
# taken them down, and complain.
_steps: weakref.WeakSet[Any] = weakref.WeakSet()


@atexit.register
def _forget_steps() -> None:
    for step in _steps:
        step._handle = None


def _fuse_only(options: rewriter_config_pb2.RewriterConfig) -> None:
    """Turns off every pass of the graph optimiser but remapping, which fuses kernels."""
    options.meta_optimizer_iterations = rewriter_config_pb2.RewriterConfig.ONE
    options.memory_optimization = rewriter_config_pb2.RewriterConfig.NO_MEM_OPT
    for name in (
        "layout_optimizer", "constant_folding", "shape_optimization", "arithmetic_optimization",
        "dependency_optimization", "loop_optimization", "function_optimization", "common_subgraph_elimination",
        "scoped_allocator_optimization", "implementation_selector", "auto_mixed_precision",
    ):  # fmt: skip
        setattr(options, name, rewriter_config_pb2.RewriterConfig.OFF)


def imported(graph_def: graph_pb2.GraphDef) -> tf.Graph:
    """Returns a tf.Graph of its own with the nodes of a GraphDef.

    Raises:
      GraphError: if TensorFlow refuses the graph.
    """
    graph = tf.Graph()
    with graph.as_default():
        try:
            tf.graph_util.import_graph_def(graph_def, name="")
        except (ValueError, tf.errors.OpError) as error:
            raise GraphError(f"TensorFlow cannot load the graph: {error}") from None
    return graph


class GraphSession:
    """A frozen graph ready to run: one TensorFlow session on a tf.Graph of its own.

    Use it as a context manager or call ``close``. It may be shared by threads (TensorFlow sessions may).

    Args:
      graph_def: the frozen graph, not changed; or one in TensorFlow's hands already, which spares importing it.
      inputs: the nodes that ``run`` feeds.
      fetches: tensor names that ``run`` returns, with or without ``:0``.
      threads: size of the thread pools, None for TensorFlow's choice. The pool inside operations belongs to the
        process: the first session made in it decides. With 1 thread, operations run in that which calls ``run``.
      optimize: what TensorFlow's graph optimiser does to the graph at the first run: True, all; None, no more than
        fusing kernels with what follows them, which takes a fraction of the time; False, nothing.
      targets: names of nodes that ``run`` runs besides, without a result.
      bfloat16: whether the optimiser may turn float32 into bfloat16 (TensorFlow's automatic mixed precision).

    Raises:
      UnknownNodeError: if an input or fetch is no tensor of the graph; names the nearest.
      GraphError: if TensorFlow refuses the graph.
    """

    def __init__(
        self,
        graph_def: graph_pb2.GraphDef | tf.Graph,
        inputs: Sequence[TensorSpec],
        fetches: Sequence[str],
        *,
        threads: int | None = None,
        optimize: bool | None = True,
        targets: Sequence[str] = (),
        bfloat16: bool = False,
    ):
        self.inputs = tuple(inputs)
        self.fetches = tuple(canonical(name) for name in fetches)
        graph = graph_def if isinstance(graph_def, tf.Graph) else imported(graph_def)
        self._feeds = {spec.name: tensor_of(graph, spec.name) for spec in self.inputs}
        self._fetches = [tensor_of(graph, name) for name in self.fetches]
        self._targets = [graph.get_operation_by_name(name) for name in targets]
        self._batched = frozenset(spec.name for spec in self.inputs if spec.has_batch)
        fed = {tensor.name for tensor in self._feeds.values()}
        self._asked = [tensor.name for tensor in self._fetches if tensor.name not in fed]  # what is fed is no fetch
        self._step: Callable[..., list[np.ndarray]] | None = None
        self._making = threading.Lock()
        config = tf.ConfigProto(
            intra_op_parallelism_threads=threads or 0,
            inter_op_parallelism_threads=-1 if threads == 1 else threads or 0,
            device_count={"GPU": 0},
            allow_soft_placement=True,  # a graph frozen for a GPU names it
        )
        if bfloat16:
            config.graph_options.rewrite_options.auto_mixed_precision_onednn_bfloat16 = (
                rewriter_config_pb2.RewriterConfig.ON
            )
        if optimize is None:
            _fuse_only(config.graph_options.rewrite_options)
        elif not optimize:
            config.graph_options.optimizer_options.opt_level = tf.OptimizerOptions.L0
            config.graph_options.rewrite_options.disable_meta_optimizer = True
            config.graph_options.rewrite_options.min_graph_nodes = -1
            config.graph_options.rewrite_options.remapping = rewriter_config_pb2.RewriterConfig.OFF
        self._session = tf.Session(graph=graph, config=config)

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Runs the graph once.

        Args:
          feeds: one array for every input, keyed by node name, batch dimension included.

        Returns:
          The fetched arrays, in the order of ``fetches``.

        Raises:
          DataError: if an input is missing, of the wrong shape or dtype or an empty batch, or if an operation
            refuses the values.
          GraphError: if the graph cannot run whatever the values are.
        """
        values = self._values(feeds)
        found = {tensor.name: value for tensor, value in zip(self._feeds.values(), values, strict=True)}
        with _told():
            if self._asked or self._targets:
                found |= zip(self._asked, self._compiled()(*values), strict=True)
        return [found[tensor.name] for tensor in self._fetches]

    def _compiled(self) -> Callable[..., list[np.ndarray]]:
        with self._making:
            if self._step is None:
                feeds = [tensor.name for tensor in self._feeds.values()]
                self._step = compiled(self._session, feeds, self._asked, [node.name for node in self._targets])
            return self._step

    def trace(self, feeds: Mapping[str, np.ndarray]) -> step_stats_pb2.StepStats:
        """Runs the graph once and returns when each node began and ended; see ``run`` for arguments and errors."""
        metadata = tf.RunMetadata()
        options = tf.RunOptions(trace_level=tf.RunOptions.FULL_TRACE)
        feed_dict = dict(zip(self._feeds.values(), self._values(feeds), strict=True))
        with _told():
            self._session.run([*self._fetches, *self._targets], feed_dict, options=options, run_metadata=metadata)
        return metadata.step_stats

    def _values(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Returns the inputs' values in their order, checked and of their dtypes."""
        missing = [name for name in self._feeds if name not in feeds]
        if missing:
            raise DataError(f"no value for the graph input {missing[0]!r}; given: {', '.join(sorted(feeds)) or 'none'}")
        values = []
        for name, tensor in self._feeds.items():
            with _told():
                value = np.asarray(feeds[name], tensor.dtype.as_numpy_dtype, order="C")
            if not tensor.shape.is_compatible_with(value.shape):
                raise DataError(f"graph input {name!r} takes shape {tensor.shape}, not {list(value.shape)}")
            if name in self._batched and value.ndim and value.shape[0] == 0:
                # The INT8 kernels end the process on an empty batch.
                raise DataError(f"the batch for graph input {name!r} is empty: give one example at least")
            values.append(value)
        return values

    def close(self) -> None:
        """Frees the session; ``run`` must not be called any more."""
        self._step = None
        self._session.close()

    def __enter__(self) -> GraphSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def compiled(
    session: tf.Session, feeds: Sequence[str], fetches: Sequence[str], targets: Sequence[str] = ()
) -> Callable[..., list[np.ndarray]]:
    """Returns a step of a session as TensorFlow's Session::MakeCallable makes it.

    ``Session.run`` looks at its feeds and fetches anew each time, in Python, which takes up to 0.3 ms. That the other
    way has no public name in TensorFlow's Python is one more reason to pin its version.

    Args:
      session: the session.
      feeds: full names of the tensors that the step takes, an array of the right dtype for each.
      fetches: full names of the tensors that it returns, none of them fed.
      targets: names of nodes that it runs besides.

    Raises:
      tf.errors.OpError: if TensorFlow cannot run the graph.
    """
    step = session._make_callable_from_options(config_pb2.CallableOptions(feed=feeds, fetch=fetches, target=targets))
    _steps.add(step)
    return step


def tensor_of(graph: tf.Graph, name: str) -> tf.Tensor:
    """Returns a tensor by its name, with or without ``:0``; raises UnknownNodeError with the nearest name."""
    try:
        return graph.get_tensor_by_name(with_port(name))
    except (KeyError, ValueError):
        known = [operation.name for operation in graph.get_operations()]
        raise UnknownNodeError(f"the graph holds no tensor {name!r}{nearest(name, known)}") from None


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Turns what TensorFlow and NumPy raise of a step into DataError and GraphError."""
    try:
        yield
    except (TypeError, ValueError, tf.errors.InvalidArgumentError) as error:
        raise DataError(f"the graph refuses its inputs: {_first_line(error)}") from error
    except tf.errors.OpError as error:
        raise GraphError(f"the graph cannot run: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """Returns what an error says, without TensorFlow's headings and traces, and the node that it is of."""
    text = error.message if isinstance(error, tf.errors.OpError) else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    marked = [index for index, line in enumerate(lines) if _NODE_LINE.fullmatch(line)]
    useful = lines[marked[-1] + 1 :] if marked else lines  # what stands before is where the node was made
    useful = [line for line in useful if not _HEADING.match(line)]
    cause = (useful or lines or [type(error).__name__])[0]
    node = _NODE_MARK.search(text, text.find(cause))
    cause = _ROOT_NUMBER.sub("", cause)
    return f"{cause} (node {node[1]!r})" if node and f"node {node[1]}" not in cause else cause


def batch_limit(inputs: Sequence[TensorSpec]) -> int | None:
    """Returns the batch size that the inputs fix: 1 if one has no batch dimension, N if fixed at N, None if free.

    Raises:
      GraphError: if two inputs fix different batches.
    """
    fixed = {spec.name: spec.batch if spec.has_batch else 1 for spec in inputs}
    sizes = {size for size in fixed.values() if size is not None}
    if len(sizes) > 1:
        raise GraphError(f"the graph's inputs fix different batch sizes: {fixed}; batches of examples cannot be made")
    return sizes.pop() if sizes else None


def batch_size_for(
    graph_def: graph_pb2.GraphDef,
    inputs: Sequence[TensorSpec],
    tensors: Sequence[str],
    wanted: int,
    examples: Sequence[Mapping[str, np.ndarray]] = (),
) -> int:
    """Returns the batch size to run a graph with so that every tensor's first axis holds the examples.

    It is what the inputs fix, else ``wanted``, or 1 where the graph folds the batch into other axes or static shapes
    cannot tell.

    Args:
      graph_def: the graph.
      inputs: its inputs.
      tensors: tensors whose values are to be told apart by example.
      wanted: the batch size to take if the graph leaves it free.
      examples: what will be run, where that is known: examples of different shapes fit into no batch but of 1.

    Raises:
      GraphError: if the graph fixes its batch over 1 without keeping the examples of a tensor apart.
    """
    if len({tuple((name, np.shape(value)) for name, value in sorted(each.items())) for each in examples}) > 1:
        wanted = 1
    limit = batch_limit(inputs)
    if limit == 1 or (wanted == 1 and limit is None):
        return 1
    mixed = _mixes_examples(graph_def, inputs, tensors, limit or PROBE_BATCH)
    if mixed is None:
        return limit or wanted
    if limit is None:
        return 1
    raise GraphError(
        f"the graph fixes its batch at {limit}, but tensor {mixed!r} does not keep the examples apart along its first "
        "axis; freeze the graph with batch 1 or with a free batch"
    )


def in_whole_batches(
    examples: Sequence[Mapping[str, np.ndarray]], inputs: Sequence[TensorSpec]
) -> list[Mapping[str, np.ndarray]]:
    """Returns the examples that fill whole batches of the size that the inputs fix, all of them where they fix none.

    Fewer examples than one batch holds are repeated in turn, so that each counts about as often as the others.
    """
    fixed = batch_limit(inputs) or 1
    return [examples[index % len(examples)] for index in range(max(len(examples) // fixed, 1) * fixed)]


def _mixes_examples(
    graph_def: graph_pb2.GraphDef, inputs: Sequence[TensorSpec], tensors: Sequence[str], batch: int
) -> str | None:
    """Returns the first tensor whose first dimension is not surely the batch, or None."""
    feeds = {spec.name: None if spec.shape is None else (batch, *spec.shape[1:]) for spec in inputs}
    try:
        shapes = infer_shapes(graph_def, feeds)
    except GraphError:  # for instance where a constant shape contradicts the batch
        return tensors[0] if tensors else None
    for name in tensors:
        shape = shapes.get(canonical(name))
        if not shape or shape[0] != batch:
            return name
    return None


def stack_batch(
    examples: Sequence[Mapping[str, np.ndarray]], inputs: Sequence[TensorSpec], size: int
) -> dict[str, np.ndarray]:
    """Stacks examples along a new first axis and fills up to ``size`` with copies of the last.

    Args:
      examples: 1 to ``size`` examples: input name → array without batch dimension.
      inputs: the graph's inputs; one without a batch dimension gets the (only) example's value as it is.
      size: examples in the batch; ``batch_limit`` goes before it where the graph fixes its batch.

    Returns:
      Input name → array of shape [size, …], which a session takes without copying it.

    Raises:
      DataError: if there are no or too many examples, an input is missing or the examples' shapes differ.
    """
    size = batch_limit(inputs) or size
    if not 1 <= len(examples) <= size:
        raise DataError(f"{len(examples)} examples do not fit a batch of {size}")
    feeds = {}
    for spec in inputs:
        for example in examples:
            if spec.name not in example:
                known = ", ".join(sorted(example)) or "none"
                raise DataError(f"an example holds no value for the graph input {spec.name!r}; it has: {known}")
        values = [np.asarray(example[spec.name]) for example in examples]
        if not spec.has_batch:
            feeds[spec.name] = values[0]
            continue
        if any(value.shape != values[0].shape or value.dtype != values[0].dtype for value in values):
            shapes = sorted({f"{value.dtype.name}{list(value.shape)}" for value in values})
            raise DataError(
                f"examples of one batch differ in shape or dtype for the graph input {spec.name!r}: "
                f"{', '.join(shapes)}; use batch_size 1"
            )
        values += values[-1:] * (size - len(values))
        feeds[spec.name] = np.stack(values, out=aligned((size, *values[0].shape), values[0].dtype))
    return feeds


def aligned(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Returns a new array, not filled, whose memory TensorFlow takes as it is instead of copying it."""
    if dtype.hasobject:
        return np.empty(shape, dtype)
    memory = np.empty(math.prod(shape) * dtype.itemsize + _ALIGNMENT, np.uint8)
    start = -memory.__array_interface__["data"][0] % _ALIGNMENT
    return np.ndarray(shape, dtype, memory, start)


def check_machine() -> None:
    """Makes sure that INT8 graphs can run here.

    Raises:
      MachineError: if oneDNN is switched off or not in this TensorFlow, or the CPU has no AVX2.
    """
    chosen = given_switch()
    if not _pywrap_util_port.IsMklEnabled():
        if chosen is None:
            raise MachineError(
                f"TensorFlow ({tf.VERSION}) runs without oneDNN, and INT8 graphs need it: it leaves oneDNN off on "
                f"processors without VNNI unless {SWITCH}=1 is set before it is imported (and has it in the x86-64 "
                "Linux package alone)"
            )
        if chosen.lower() not in ("1", "true"):
            raise MachineError(
                f"oneDNN is switched off ({SWITCH}={chosen}), and INT8 graphs need it: "
                "unset the variable before TensorFlow is imported"
            )
        raise MachineError(
            f"this TensorFlow ({tf.VERSION}) has no oneDNN kernels for this processor, or was imported before {SWITCH} "
            "was set: set it where the process starts, and use the x86-64 Linux package"
        )
    flags = cpu_flags()
    if flags and "avx2" not in flags:
        raise MachineError("this processor has no AVX2, which oneDNN's INT8 kernels need: use a newer x86-64 machine")


def processors() -> int:
    """Returns how many processors this process may use."""
    return len(os.sched_getaffinity(0))


def has_vnni() -> bool:
    """Returns whether oneDNN will use VNNI here: 8-bit products summed in 32 bits without saturating at 16.

    Honours oneDNN's own limit, the environment variable ``ONEDNN_MAX_CPU_ISA`` (or ``DNNL_MAX_CPU_ISA``).
    """
    flags = cpu_flags()
    limit = (isa_limit() or "ALL").upper()
    if limit in _ISA_WITHOUT_VNNI:
        return False
    if limit in _ISA_WITH_AVX_VNNI_ONLY:
        return "avx_vnni" in flags
    return "avx512_vnni" in flags or "avx_vnni" in flags


def has_bfloat16() -> bool:
    """Returns whether the processor multiplies bfloat16 numbers itself."""
    return bool({"avx512_bf16", "amx_bf16"} & cpu_flags())


def cpu_flags() -> frozenset[str]:
    """Returns the processor's feature flags as Linux spells them; empty where they cannot be read."""
    try:
        with open(_CPUINFO, encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("flags"):
                    return frozenset(line.partition(":")[2].split())
    except OSError:
        pass
    return frozenset()
