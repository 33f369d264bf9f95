"""ExampleDecoder: serialized examples to NumPy feeds, fast, with errors that say what is wrong with the example."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from quantizer_core.config import PreprocessConfig, QuantizationConfig
from quantizer_core.preprocessing.diagnosis import diagnose
from quantizer_core.preprocessing.preprocessor import Preprocessor, make_preprocessor
from quantizer_core.runtime import compiled
from quantizer_core.types import TensorSpec


@dataclasses.dataclass(frozen=True)
class DecodedExample:
    """One example as the graph takes it.

    Attributes:
      feeds: input name → array without the batch dimension (a string input gives bytes in an object array).
      label: index of the right output, or None if examples carry none.
    """

    feeds: dict[str, np.ndarray]
    label: int | None


class ExampleDecoder:
    """Turns serialized ``tf.Example``s into the graph's inputs.

    The preprocessing is traced once, here, by the same code that ``export_saved_model`` exports. Except for kind
    ``module``, TensorFlow's runtime is started by the first ``decode``, not before: the first session of a process sets
    its number of threads.

    Args:
      config: the preprocessing (or a whole quantization config, whose ``preprocess`` is taken).
      inputs: the graph's inputs.
      threads: intra-op threads, should this be the first session of the process; None leaves it to TensorFlow.

    Raises:
      ConfigError: if the config does not fit the inputs.
    """

    def __init__(
        self,
        config: QuantizationConfig | PreprocessConfig,
        inputs: Sequence[TensorSpec],
        threads: int | None = None,
    ):
        preprocess = config.preprocess if isinstance(config, QuantizationConfig) else config
        self._preprocessor = make_preprocessor(preprocess, inputs)
        trace = _trace_function if preprocess.kind == "module" else _trace_graph
        self._start = trace(self._preprocessor, threads)
        self._run: Callable[[bytes], list] | None = None

    def decode(self, serialized: bytes) -> DecodedExample:
        """Returns the feeds and the label of one example.

        Raises:
          DataError: if the example is damaged, lacks a feature or label, or holds values of a wrong shape, dtype or
            image format; the message names the feature and what the example holds instead.
        """
        if self._run is None:
            self._run = self._start()
        try:
            values = self._run(serialized)
        except (tf.errors.OpError, UnicodeDecodeError) as error:
            raise diagnose(serialized, self._preprocessor, getattr(error, "message", str(error))) from None
        # The label, where there is one, comes last.
        feeds = {spec.name: _array(value) for spec, value in zip(self._preprocessor.inputs, values, strict=False)}
        label = int(values[-1]) if len(values) > len(feeds) else None
        return DecodedExample(feeds, label)


def _array(value: object) -> np.ndarray:
    # Sessions and tensors give a scalar string as plain bytes, which NumPy would cut at the last zero byte.
    return np.array(value, dtype=object) if isinstance(value, bytes) else np.asarray(value)


def _outputs(preprocessor: Preprocessor, serialized: tf.Tensor) -> list[tf.Tensor]:
    feeds, label = preprocessor(serialized), preprocessor.label(serialized)
    return [feeds[spec.name] for spec in preprocessor.inputs] + ([] if label is None else [label])


def _trace_graph(preprocessor: Preprocessor, threads: int | None) -> Callable[[], Callable[[bytes], list]]:
    """Built-in kinds: a graph of its own, run by a session, which costs far less a call than a tf.function."""
    with tf.Graph().as_default() as graph:
        serialized = tf.compat.v1.placeholder(tf.string, [])
        outputs = _outputs(preprocessor, serialized)

    def start() -> Callable[[bytes], list]:
        # A negative number runs all ops in the caller's thread: nothing to hand over, nothing shared by two decoders.
        options = tf.compat.v1.ConfigProto(inter_op_parallelism_threads=-1, intra_op_parallelism_threads=threads or 0)
        session = tf.compat.v1.Session(graph=graph, config=options)
        step = compiled(session, [serialized.name], [output.name for output in outputs])
        return lambda example: step(np.array(example, object))

    return start


def _trace_function(preprocessor: Preprocessor, threads: int | None) -> Callable[[], Callable[[bytes], list]]:
    """A user's module: a tf.function, so that Python's ``if`` on tensors, lookup tables and variables work."""
    del threads  # tracing starts TensorFlow's eager runtime

    @tf.function
    def function(serialized: tf.Tensor) -> list[tf.Tensor]:
        return _outputs(preprocessor, serialized)

    concrete = function.get_concrete_function(tf.TensorSpec([], tf.string))

    def run(serialized: bytes) -> list:
        return [value.numpy() for value in concrete(tf.constant(serialized, tf.string))]

    return lambda: run
