"""Preprocessing kind ``module``: ``FEATURES`` and ``preprocess`` of a Python file."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence

import tensorflow as tf
from tensorflow.python.trackable.base import Trackable

from quantizer_core.config import PreprocessConfig
from quantizer_core.errors import ConfigError, QuantizerError, nearest
from quantizer_core.preprocessing.tensors import example_shape, open_shape
from quantizer_core.types import TensorSpec


def load_module(path: str) -> types.ModuleType:
    """Runs a Python file from any path that TensorFlow knows and returns it as a module.

    The module is not entered into ``sys.modules``: two files of one name do not meet.

    Raises:
      ConfigError: if the file cannot be read or run, or lacks ``FEATURES`` or ``preprocess``.
    """
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            source = file.read()
    except tf.errors.OpError as error:
        raise ConfigError(f"module_file {path!r} cannot be read: {error.message}") from None
    module = types.ModuleType("quantizer_preprocess_module")
    module.__file__ = path
    try:
        exec(compile(source, path, "exec"), module.__dict__)
    except Exception as error:
        raise ConfigError(f"module_file {path!r} cannot be run: {type(error).__name__}: {error}") from error
    if not isinstance(getattr(module, "FEATURES", None), dict):
        raise ConfigError(f"module_file {path!r} has no dict FEATURES (feature name -> tf.io.FixedLenFeature …)")
    if not callable(getattr(module, "preprocess", None)):
        raise ConfigError(f"module_file {path!r} has no function preprocess(features)")
    return module


def build(
    config: PreprocessConfig, inputs: Sequence[TensorSpec]
) -> tuple[Callable[[tf.Tensor], dict[str, tf.Tensor]], tuple[object, ...]]:
    """Returns the function from a serialized example (scalar string) to ``{input name: tensor without batch dim}``.

    With it come the module's lookup tables, variables and other trackable objects.

    Raises:
      ConfigError: see ``load_module``; at tracing, if ``preprocess`` fails or returns other inputs, dtypes or shapes
        than the graph's.
    """
    module = load_module(config.module_file)

    def preprocess(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        features = tf.io.parse_single_example(serialized, module.FEATURES)
        try:
            result = module.preprocess(features)
        except QuantizerError:
            raise
        except Exception as error:
            raise ConfigError(
                f"preprocess of {config.module_file!r} failed: {type(error).__name__}: {error}"
            ) from error
        return _checked(result, inputs, config.module_file)

    trackables = (value for value in vars(module).values() if isinstance(value, Trackable))
    return preprocess, tuple(trackables)


def _checked(result: object, inputs: Sequence[TensorSpec], path: str) -> dict[str, tf.Tensor]:
    names = [spec.name for spec in inputs]
    if not isinstance(result, dict):
        raise ConfigError(f"preprocess of {path!r} must return a dict, not {type(result).__name__}")
    for name in result:
        if name not in names:
            raise ConfigError(f"preprocess of {path!r} returns {name!r}, which is no graph input{nearest(name, names)}")
    tensors = {}
    for spec in inputs:
        if spec.name not in result:
            raise ConfigError(f"preprocess of {path!r} returns nothing for graph input {spec.name!r}")
        tensor = tf.convert_to_tensor(result[spec.name])
        if tensor.dtype != tf.as_dtype(spec.dtype):
            raise ConfigError(
                f"preprocess of {path!r} returns {tensor.dtype.name} for {spec.name!r}, the graph wants {spec.dtype}"
            )
        wanted = open_shape(example_shape(spec))
        if not tensor.shape.is_compatible_with(wanted):
            raise ConfigError(
                f"preprocess of {path!r} returns shape {tensor.shape} for {spec.name!r}, the graph wants {wanted} "
                "(one example, without the batch dimension)"
            )
        tensors[spec.name] = tensor if wanted is None else tf.ensure_shape(tensor, wanted)
    return tensors
